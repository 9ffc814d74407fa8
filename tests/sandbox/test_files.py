"""The simulated files: from their creation to their use by a generation."""

import io
from typing import Any

import anyio
import httpx
import pytest
from luma_agents import AsyncLuma
from luma_agents.types import CreateFileResponse, File

from luma_poll import LumaClient
from luma_poll._api.media_types import media_type_of
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.films import make_mp4
from tests.sandbox.test_sandbox import KEY, connect, download, get, submit

PNG = b"\x89PNG\r\n\x1a\n" + bytes(92)
WANTED: dict[str, Any] = {"mime_type": "image/png", "size_bytes": len(PNG)}
VIDEO = {"model": "ray-3.2", "type": "video"}


async def create(client: httpx.AsyncClient, **fields: Any) -> Any:
    response = await client.post("/files", json={**WANTED, **fields})
    assert response.status_code == 201, response.text
    return response.json()


async def put(
    sandbox: Sandbox, created: Any, content: bytes = PNG, headers: dict[str, str] | None = None
) -> int:
    upload = created["upload"]
    transport = httpx.ASGITransport(app=sandbox.app)
    async with httpx.AsyncClient(transport=transport) as storage:
        sent = {**upload["headers"], **(headers or {})}
        return (await storage.put(upload["url"], content=content, headers=sent)).status_code


async def ready(sandbox: Sandbox, client: httpx.AsyncClient, **fields: Any) -> str:
    created = await create(client, **fields)
    content = PNG if created["file"]["mime_type"] == "image/png" else make_mp4("x")
    assert await put(sandbox, created, content) == 200
    assert (await client.post(f"/files/{created['id']}/complete")).status_code == 200
    await anyio.sleep(2)
    file_id: str = created["id"]
    return file_id


async def state_of(client: httpx.AsyncClient, file_id: str) -> Any:
    return (await client.get(f"/files/{file_id}")).json()["state"]


@pytest.mark.anyio
async def test_a_file_becomes_ready() -> None:
    """Pending until its bytes are there, are said to be, and have been taken in."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        created = await create(client, filename="a.png", user_id="u", purpose="reference")
        path = f"/files/{created['id']}"
        assert created["file"] == (await client.get(path)).json()
        assert created["upload"]["method"] == "PUT"
        assert (await client.post(f"{path}/complete")).status_code == 409
        assert await put(sandbox, created) == 200
        assert await state_of(client, created["id"]) == "pending"
        assert (await client.post(f"{path}/complete")).json()["state"] == "pending"
        await anyio.sleep(1.9)
        assert await state_of(client, created["id"]) == "pending"
        await anyio.sleep(0.2)
        told = (await client.get(path)).json()
    assert (told["state"], told["filename"], told["user_id"]) == ("ready", "a.png", "u")
    assert (told["size_bytes"], told["purpose"]) == (len(PNG), "reference")
    assert sandbox.calls["PUT /uploads/{id}"] == 1


@pytest.mark.anyio
async def test_the_official_sdk_reads_the_answers() -> None:
    """With its strict validation on."""
    sandbox = Sandbox()
    transport = httpx.ASGITransport(app=sandbox.app)
    async with httpx.AsyncClient(transport=transport) as http_client:
        sdk = AsyncLuma(
            auth_token=KEY,
            base_url="http://sandbox/v1",
            http_client=http_client,
            _strict_response_validation=True,
        )
        created = await sdk.files.create(mime_type="image/png", size_bytes=len(PNG))
        assert isinstance(created, CreateFileResponse)
        assert created.upload is not None
        headers = created.upload.headers
        await http_client.put(created.upload.url, content=PNG, headers=headers)
        assert isinstance(await sdk.files.complete(created.id), File)
        assert (await sdk.files.list(limit=1)).data[0].id == created.id
        await sdk.files.delete(created.id)
        assert (await sdk.files.get(created.id)).state == "deleted"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "status", "detail"),
    [
        ({"size_bytes": 0}, 400, "size_bytes must be a whole number, 1 or more"),
        ({"size_bytes": True}, 400, "size_bytes must be a whole number, 1 or more"),
        ({"size_bytes": 5 * 1024**3 + 1}, 413, "File exceeds 5 GiB size limit"),
        ({"mime_type": None}, 400, "mime_type must be a string"),
        ({"filename": 7}, 400, "filename must be a string"),
        ({"purpose": "fun"}, 400, "Invalid purpose 'fun'. Valid: input, reference"),
        ({"expires_at": "soon"}, 400, "expires_at must be a date and time, as in "),
        ({"expires_at": 7}, 400, "expires_at must be a date and time, as in "),
        ({"name": "a.png"}, 400, "Unknown parameter: name. Valid: expires_at, "),
    ],
)
async def test_what_is_no_file_is_refused(fields: Any, status: int, detail: str) -> None:
    """In the form of all errors."""
    async with connect(Sandbox()) as client:
        response = await client.post("/files", json={**WANTED, **fields})
        assert (response.status_code, list(response.json())) == (status, ["detail"])
        assert response.json()["detail"].startswith(detail)
        assert (await client.post("/files", content=b"[]")).status_code == 400
        form = {"file": ("a.png", io.BytesIO(PNG))}
        assert (await client.post("/files", files=form)).status_code == 415


@pytest.mark.anyio
async def test_the_storage_takes_what_was_announced_and_nothing_else() -> None:
    """The type is part of the signature, the length is checked, the URL expires."""
    sandbox = Sandbox(url_expires=60)
    async with connect(sandbox) as client:
        created = await create(client)
        assert await put(sandbox, created, PNG + b"x") == 400
        assert await put(sandbox, created, PNG[:-1]) == 400
        assert await put(sandbox, created, headers={"Content-Type": "image/jpeg"}) == 403
        assert await put(sandbox, created, headers={"Authorization": f"Bearer {KEY}"}) == 400
        url = created["upload"]["url"]
        assert (await download(sandbox, url)).status_code == 405  # signed for PUT alone
        other = await create(client)
        swapped = {
            **created,
            "upload": {**created["upload"], "url": url.replace(created["id"], other["id"])},
        }
        assert await put(sandbox, swapped) == 403
        await anyio.sleep(61)
        assert await put(sandbox, created) == 403
        assert (await client.post(f"/files/{created['id']}/complete")).status_code == 409


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "content", "reason"),
    [
        ({"filename": "sandbox:fail.png"}, PNG, "flagged by our content moderation"),
        ({"mime_type": "text/plain"}, PNG, "Unsupported media type: text/plain"),
        ({"mime_type": "image/webp"}, b"hello" * 20, "could not be decoded as image/webp"),
        ({"mime_type": "video/mp4"}, PNG, "could not be decoded as video/mp4"),
    ],
)
async def test_a_file_can_fail(fields: Any, content: bytes, reason: str) -> None:
    """By what it is, and by its name."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        created = await create(client, **fields)
        assert await put(sandbox, created, content) == 200
        await client.post(f"/files/{created['id']}/complete")
        await anyio.sleep(2)
        told = (await client.get(f"/files/{created['id']}")).json()
        assert (told["state"], reason in told["failure_reason"]) == ("failed", True)


@pytest.mark.anyio
async def test_files_are_listed_newest_first() -> None:
    """In pages, by purpose and state, and each account's alone."""
    sandbox = Sandbox()
    async with connect(sandbox) as client, connect(sandbox, "luma-api-other") as stranger:
        ids = [(await create(client))["id"] for _ in range(4)]
        reference = (await create(client, purpose="reference"))["id"]
        await client.delete(f"/files/{ids[0]}")
        found, cursor = [], None
        while True:
            query = {"limit": "2", **({"cursor": cursor} if cursor else {})}
            page = (await client.get("/files", params=query)).json()
            found += [file["id"] for file in page["data"]]
            if not page["has_more"]:
                break
            cursor = page["next_cursor"]
        assert found == [reference, *ids[:0:-1]]
        for query, expected in (
            ({"purpose": "reference"}, [reference]),
            ({"state": "deleted"}, [ids[0]]),
            ({"state": "ready"}, []),
            ({"cursor": "no such"}, []),
        ):
            page = (await client.get("/files", params=query)).json()
            assert [file["id"] for file in page["data"]] == expected
        for bad in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"state": "x"}):
            assert (await client.get("/files", params=bad)).status_code == 400
        assert (await stranger.get("/files")).json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/complete")):
            response = await stranger.request(method, f"/files/{reference}{path}")
            assert (response.status_code, response.json()) == (404, {"detail": "File not found"})


@pytest.mark.anyio
async def test_a_file_that_is_deleted_or_expired_is_of_no_use() -> None:
    """It can be seen, and no generation may refer to it."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        deleted = await ready(sandbox, client)
        assert (await client.delete(f"/files/{deleted}")).status_code == 204
        told = (await client.get(f"/files/{deleted}")).json()
        assert (told["state"], told["deleted_at"] is not None) == ("deleted", True)
        expired = await create(client, expires_at="2020-01-01T00:00:00Z")
        assert await state_of(client, expired["id"]) == "deleted"
        assert (await client.post(f"/files/{deleted}/complete")).status_code == 409
        body = {"prompt": "a", "type": "image_edit", "source": {"file_id": deleted}}
        response = await client.post("/generations", json=body)
    assert (response.status_code, response.json()["detail"]) == (
        422,
        "source: file is not ready (state: deleted)",
    )


@pytest.mark.anyio
async def test_what_a_generation_refers_to_must_be_there() -> None:
    """Of the same account, complete, and of the kind that the parameter takes."""
    sandbox = Sandbox()
    async with connect(sandbox) as client, connect(sandbox, "luma-api-other") as stranger:
        image = (await submit(client, "sandbox:duration=0"))["id"]
        video = (await submit(client, "sandbox:duration=0", **VIDEO))["id"]
        late = (await submit(client, "sandbox:duration=60"))["id"]
        failed = (await submit(client, "sandbox:duration=0 sandbox:fail=generation_failed"))["id"]
        picture, film = (
            await ready(sandbox, client),
            await ready(sandbox, client, mime_type="video/mp4", size_bytes=len(make_mp4("x"))),
        )
        edit: dict[str, Any] = {"prompt": "a", "type": "image_edit"}
        films: dict[str, Any] = {"prompt": "a", "model": "ray-3.2", "type": "video_edit"}

        async def answer(caller: httpx.AsyncClient, body: Any) -> str:
            response = await caller.post("/generations", json=body)
            return (
                ""
                if response.status_code == 201
                else f"{response.status_code} {response.json()['detail']}"
            )

        for body in (
            {**edit, "source": {"generation_id": image}},
            {**edit, "source": {"file_id": picture}, "image_ref": [{"generation_id": image}]},
            {**films, "source": {"generation_id": video}},
            {**films, "source": {"file_id": film, "media_type": "video/mp4"}},
            {**VIDEO, "prompt": "a", "video": {"start_frame": {"generation_id": video}}},
            {**VIDEO, "prompt": "a", "video": {"start_frame": {"generation_id": image}}},
        ):
            assert await answer(client, body) == ""
        for kind, given, said in (
            ("generation_id", "nope", "422 source: generation not found"),
            ("generation_id", late, "422 source: generation is not completed (state: queued)"),
            ("generation_id", failed, "422 source: generation is not completed (state: failed)"),
            ("generation_id", video, "422 source: content-type is not an image"),
            ("file_id", "nope", "422 source: file not found"),
            ("file_id", film, "422 source: content-type is not an image"),
        ):
            assert (await answer(client, {**edit, "source": {kind: given}}))[: len(said)] == said
        assert "is not a video" in await answer(client, {**films, "source": {"file_id": picture}})
        assert "not found" in await answer(stranger, {**edit, "source": {"file_id": picture}})
        reference = {"prompt": "a", "image_ref": [{"generation_id": "nope"}]}
        assert await answer(client, reference) == "422 image_ref[0]: generation not found"


@pytest.mark.anyio
async def test_a_video_is_an_mp4() -> None:
    """Small, always the same, and padded in a way that players skip."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        generation = await submit(client, "sandbox:duration=0", **VIDEO)
        (output,) = (await get(client, generation))["output"]
        response = await download(sandbox, output["url"])
        larger = await submit(client, "sandbox:duration=0 sandbox:size=5000", **VIDEO)
        padded = await download(sandbox, (await get(client, larger))["output"][0]["url"])
    assert response.headers["Content-Type"] == "video/mp4"
    assert media_type_of(response.content) == "video/mp4"
    assert 1000 < len(response.content) < 1200
    assert boxes(response.content) == ["ftyp", "moov", "mdat"]
    assert (len(padded.content), boxes(padded.content)) == (5000, ["ftyp", "moov", "mdat", "free"])
    record = sandbox.submissions[0]
    assert (record.polls, record.downloads) == (1, 1)


def boxes(content: bytes) -> list[str]:
    """The boxes at the top of an MP4."""
    found, place = [], 0
    while place < len(content):
        found.append(content[place + 4 : place + 8].decode())
        place += int.from_bytes(content[place : place + 4])
    assert place == len(content)
    return found


@pytest.mark.anyio
async def test_uploads_meet_the_faults_of_the_storage() -> None:
    """What a share of downloads meets, a share of uploads meets too."""
    sandbox = Sandbox(storage_faults={"503": 1.0})
    async with connect(sandbox) as client:
        created = await create(client)
        assert await put(sandbox, created) == 503
        assert (await client.post(f"/files/{created['id']}/complete")).status_code == 409
    assert sandbox.storage_faults_served == {"503": 1}


@pytest.mark.anyio
async def test_files_change_no_seed() -> None:
    """The generations of a seed are the same with and without uploads."""
    ids = []
    for uploads in (0, 2):
        sandbox = Sandbox(seed=1)
        async with connect(sandbox) as client:
            for _ in range(uploads):
                await create(client)
            ids.append((await submit(client))["id"])
    assert ids[0] == ids[1]


@pytest.mark.anyio
async def test_a_layering_needs_no_prompt() -> None:
    """From the client to the sandbox."""
    transport = httpx.ASGITransport(app=Sandbox().app)
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = LumaClient(KEY, base_url="http://localhost/v1", http_client=http_client)
        generation = await client.generations.create(type="layering", source=PNG)
    assert generation.type == "layering"
