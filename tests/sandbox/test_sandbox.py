"""The simulated API: what it answers, when, and to whom."""

import json
import math
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import anyio
import httpx
import pytest

from luma_poll import LumaClient, Poller
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.lifecycles import MEDIAN_DURATIONS

KEY = "luma-api-test"
SOURCE = {"url": "https://example.com/a.jpg"}


@asynccontextmanager
async def connect(sandbox: Sandbox, key: str = KEY) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=sandbox.app),
        base_url="http://sandbox/v1",
        headers={"Authorization": f"Bearer {key}"},
    ) as client:
        yield client


async def submit(client: httpx.AsyncClient, prompt: str = "A cat", **fields: Any) -> Any:
    response = await client.post("/generations", json={"prompt": prompt, **fields})
    assert response.status_code == 201, response.text
    return response.json()


async def get(client: httpx.AsyncClient, generation: Any) -> Any:
    response = await client.get(f"/generations/{generation['id']}")
    assert response.status_code == 200, response.text
    return response.json()


async def download(sandbox: Sandbox, url: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=sandbox.app)) as client:
        return await client.get(url, headers=headers)


def decode_png(data: bytes) -> tuple[int, int, bytes]:
    """Width, height and the unfiltered pixels of an 8-bit RGB PNG."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = {}, 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind = data[position + 4 : position + 8]
        chunks[kind] = data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        assert checksum == zlib.crc32(kind + chunks[kind])
        position += length + 12
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *layout = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert layout == [8, 2, 0, 0, 0]
    lines = zlib.decompress(chunks[b"IDAT"])
    assert len(lines) == height * (1 + width * 3)
    assert set(lines[:: 1 + width * 3]) == {0}
    return width, height, lines


# States, over time


@pytest.mark.anyio
async def test_states_over_time() -> None:
    """A generation is queued for an eighth of its duration, then processing, then completed."""
    async with connect(Sandbox()) as client:
        generation = await submit(client, "A cat sandbox:duration=8")
        states = [generation["state"]]
        for pause in (0, 0.99, 0.01, 6.99, 0.01, 3600):
            await anyio.sleep(pause)
            states.append((await get(client, generation))["state"])
        assert states == [
            *("queued", "queued", "queued"),
            *("processing", "processing"),
            *("completed", "completed"),
        ]


@pytest.mark.anyio
async def test_snapshots() -> None:
    """A generation has the eight documented fields, null and [] where they do not apply."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        created = await submit(client, "A cat sandbox:duration=8")
        await anyio.sleep(8)
        completed = await get(client, created)
    (output,) = completed.pop("output")
    assert output == {"type": "image", "url": output["url"]}
    assert created == {
        "id": str(UUID(created["id"], version=4)),
        "created_at": created["created_at"],
        "model": "uni-1",
        "state": "queued",
        "type": "image",
        "failure_code": None,
        "failure_reason": None,
        "output": [],
    }
    assert completed == {**{k: v for k, v in created.items() if k != "output"}, **completed}
    assert completed["state"] == "completed"
    datetime.strptime(created["created_at"], "%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.anyio
async def test_dates_follow_the_clock() -> None:
    """`created_at`, Date and X-Amz-Date advance with anyio's clock from one wall time."""
    async with connect(Sandbox()) as client:
        first = await submit(client, "A cat sandbox:duration=0")
        await anyio.sleep(7200)
        second = await submit(client)
        response = await client.get(f"/generations/{first['id']}")
    dates = [datetime.fromisoformat(made["created_at"]) for made in (first, second)]
    assert dates[1] - dates[0] == timedelta(hours=2)
    assert parsedate_to_datetime(response.headers["Date"]) == dates[1]
    query = parse_qs(urlsplit(response.json()["output"][0]["url"]).query)
    assert datetime.strptime(query["X-Amz-Date"][0] + "+0000", "%Y%m%dT%H%M%SZ%z") == dates[1]
    assert abs(dates[0] - datetime.now(UTC)) < timedelta(minutes=10)


@pytest.mark.anyio
async def test_speed() -> None:
    """`speed` divides scripted and drawn durations, but not the life of a URL."""
    sandbox = Sandbox(speed=1000)
    async with connect(sandbox) as client:
        scripted = await submit(client, "sandbox:duration=8000")
        drawn = await submit(client)
        await anyio.sleep(0.9)
        assert (await get(client, scripted))["state"] == "queued"
        completed = await get(client, drawn)
        assert completed["state"] == "completed"
        await anyio.sleep(3598)
        assert (await download(sandbox, completed["output"][0]["url"])).status_code == 200


@pytest.mark.no_cover
@pytest.mark.anyio
@pytest.mark.parametrize("model", MEDIAN_DURATIONS)
async def test_drawn_durations(model: str) -> None:
    """Half of the generations end within the published median, nearly all within twice that."""
    async with connect(Sandbox(seed=1)) as client:
        kind = "video" if model == "ray-3.2" else "image"
        generations = [await submit(client, model=model, type=kind) for _ in range(400)]
        done = []
        for _ in range(2):
            await anyio.sleep(MEDIAN_DURATIONS[model])
            answers = [await get(client, generation) for generation in generations]
            assert {answer["state"] for answer in answers} <= {"completed", "processing"}
            done.append(sum(answer["state"] == "completed" for answer in answers))
    assert 160 < done[0] < 240
    assert 380 < done[1] <= 400


def test_second_event_loop() -> None:
    """A sandbox can be used in a second event loop: time goes on, and never back."""
    sandbox = Sandbox()

    async def check(start: Any) -> Any:
        async with connect(sandbox) as client:
            generation = start or await submit(client, "sandbox:duration=0.05")
            await anyio.sleep(0.1)
            return await get(client, generation)

    first = anyio.run(check, None)
    assert first["state"] == "completed"
    for backend in ("trio", "asyncio"):
        again = anyio.run(check, first, backend=backend)
        assert {**again, "output": []} == {**first, "output": []}


@pytest.mark.anyio
async def test_its_schedule_is_as_fast_as_it_is() -> None:
    """A poller with the sandbox's schedule sees the end as soon as its speed lets it be."""
    sandbox = Sandbox(speed=100)
    transport = httpx.ASGITransport(app=sandbox.app)
    async with httpx.AsyncClient(transport=transport) as http:
        client = LumaClient(KEY, base_url="http://localhost/v1", http_client=http)
        generation = await client.generations.create("A cat sandbox:duration=30")
        started = anyio.current_time()
        await Poller(client, wait=sandbox.wait, max_rate=None).wait(generation)
    assert 0.3 <= anyio.current_time() - started <= 0.4
    assert 6 <= sandbox.calls["GET /generations/{id}"] <= 8


# Scripts


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("generation_failed", "Generation failed"),
        ("content_moderated", "Generation output was flagged by our content moderation system."),
        ("budget_exhausted", "Insufficient credits to complete this generation."),
        ("output_not_found", "Output artifacts not found"),
        ("rate_limited", "Generation failed"),
        ("some-new_code", "Generation failed"),
    ],
)
async def test_scripted_failure(code: str, reason: str) -> None:
    """`sandbox:fail=` ends in that failure code, known or not, as a 200 without outputs."""
    async with connect(Sandbox()) as client:
        generation = await submit(client, f"A cat sandbox:fail={code} sandbox:duration=4")
        await anyio.sleep(3)
        before = await get(client, generation)
        await anyio.sleep(1)
        after = await get(client, generation)
    assert (before["state"], before["failure_code"]) == ("processing", None)
    assert after == {
        **before,
        "state": "failed",
        "failure_code": code,
        "failure_reason": reason,
        "output": [],
    }


@pytest.mark.anyio
async def test_moderation_is_early() -> None:
    """`content_moderated` comes after a fifth of the time that the generation would take."""
    ends = []
    for token in ("", "sandbox:fail=content_moderated"):
        async with connect(Sandbox(seed=3)) as client:
            generation = await submit(client, f"A cat {token}")
            states = ["queued"]
            while states[-1] in ("queued", "processing"):
                states.append((await get(client, generation))["state"])
                await anyio.sleep(0.25)
            ends.append(0.25 * len(states))
    assert ends[1] == pytest.approx(ends[0] / 5, abs=0.5)


@pytest.mark.anyio
async def test_failure_of_no_duration() -> None:
    """The answer to a POST is queued, without failure or output, whatever the duration."""
    async with connect(Sandbox()) as client:
        for token in ("sandbox:fail=x", "sandbox:outputs=3"):
            created = await submit(client, f"sandbox:duration=0 {token}")
            assert (created["state"], created["failure_code"]) == ("queued", None)
            assert created["output"] == []
            assert (await get(client, created))["state"] in ("failed", "completed")


@pytest.mark.anyio
@pytest.mark.parametrize("count", [0, 1, 2, 100])
async def test_scripted_outputs(count: int) -> None:
    """`sandbox:outputs=` sets how many outputs there are; none at all is possible."""
    async with connect(Sandbox()) as client:
        created = await submit(client, f"sandbox:duration=1 sandbox:outputs={count}")
        await anyio.sleep(1)
        completed = await get(client, created)
    assert completed["state"] == "completed"
    assert len({output["url"] for output in completed["output"]}) == count


@pytest.mark.anyio
async def test_scripted_state() -> None:
    """`sandbox:state=` is shown in place of processing, even if the word is a known one."""
    async with connect(Sandbox()) as client:
        for word in ("throttled", "completed"):
            created = await submit(client, f"sandbox:duration=8 sandbox:state={word}")
            await anyio.sleep(4)
            midway = await get(client, created)
            assert (midway["state"], midway["output"]) == (word, [])
            await anyio.sleep(4)
            ended = await get(client, created)
            assert (ended["state"], len(ended["output"])) == ("completed", 1)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("token", "explanation"),
    [
        ("duration=abc", "duration must be a number of seconds, 0 or more"),
        ("duration=-1", "duration must be a number of seconds, 0 or more"),
        ("duration=nan", "duration must be a number of seconds, 0 or more"),
        ("duration=inf", "duration must be a number of seconds, 0 or more"),
        ("duration", "duration must be a number of seconds, 0 or more"),
        ("outputs=-1", "outputs must be a whole number from 0 to 100"),
        ("outputs=1.5", "outputs must be a whole number from 0 to 100"),
        ("outputs=1000000000", "outputs must be a whole number from 0 to 100"),
        ("fail=", "fail must be a failure code of letters, digits, - and _"),
        ("fail=a.", "fail must be a failure code of letters, digits, - and _"),
        ("state=<b>", "state must be a word of letters, digits, - and _"),
        (
            "speed=3",
            "Valid: sandbox:fail=, sandbox:duration=, sandbox:outputs=, sandbox:size=, "
            "sandbox:state=",
        ),
    ],
)
async def test_malformed_token(token: str, explanation: str) -> None:
    """A malformed token is answered 400, with what it should be."""
    async with connect(Sandbox()) as client:
        response = await client.post("/generations", json={"prompt": f"A sandbox:{token} cat"})
    assert response.status_code == 400
    assert f"'sandbox:{token}'" in response.json()["detail"]
    assert explanation in response.json()["detail"]


@pytest.mark.anyio
@pytest.mark.parametrize("prompt", ["In the sandbox: a cat", "notsandbox:fail=x", "sandbox"])
async def test_prose_is_no_token(prompt: str) -> None:
    """Words that only resemble a token are part of the prompt."""
    async with connect(Sandbox()) as client:
        assert (await submit(client, prompt))["state"] == "queued"


@pytest.mark.anyio
async def test_seed() -> None:
    """The same seed gives the same ids and durations, whatever is scripted or polled between."""

    async def run(seed: int | None, first_prompt: str) -> list[tuple[str, bool]]:
        async with connect(Sandbox(seed=seed)) as client:
            made = [await submit(client, first_prompt)]
            await get(client, made[0])
            made += [await submit(client) for _ in range(40)]
            await anyio.sleep(30)
            answers = [await get(client, generation) for generation in made[1:]]
            return [(answer["id"], answer["state"] == "completed") for answer in answers]

    expected = await run(7, "A cat")
    assert await run(7, "A cat sandbox:duration=3") == expected
    assert await run(8, "A cat") != expected
    assert await run(None, "A cat") != await run(None, "A cat")
    assert all(UUID(generation_id).version == 4 for generation_id, _ in expected)


# Submissions


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "model", "kind"),
    [
        ({}, "uni-1", "image"),
        ({"model": "uni-1-max"}, "uni-1-max", "image"),
        ({"type": "image_edit", "source": SOURCE}, "uni-1", "image_edit"),
        ({"type": "layering", "source": SOURCE}, "uni-1", "layering"),
    ],
)
async def test_defaults(fields: dict[str, Any], model: str, kind: str) -> None:
    """Without a model it is uni-1, without a type it is an image, as documented."""
    async with connect(Sandbox()) as client:
        generation = await submit(client, **fields)
    assert (generation["model"], generation["type"]) == (model, kind)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "Request body must be a JSON object"),
        (b"{", "Request body must be a JSON object"),
        (b"\xff", "Request body must be a JSON object"),
        (b"[" * 100_000, "Request body must be a JSON object"),
        (b'["A cat"]', "Request body must be a JSON object"),
        (b"{}", "Prompt must be between 1 and 6000 characters"),
        (b'{"prompt": ""}', "Prompt must be between 1 and 6000 characters"),
        (b'{"prompt": 5}', "Prompt must be between 1 and 6000 characters"),
        (
            json.dumps({"prompt": "x" * 6001}).encode(),
            "Prompt must be between 1 and 6000 characters",
        ),
        (b'{"prompt": "A cat", "model": "x"}', "Unknown model: x"),
        (b'{"prompt": "A cat", "model": []}', "Unknown model: []"),
        (
            b'{"prompt": "A cat", "model": "\\ud800"}',
            "Request body must be valid Unicode: it has a lone surrogate",
        ),
        (
            b'{"prompt": "\\ud800 sandbox:duration=0"}',
            "Request body must be valid Unicode: it has a lone surrogate",
        ),
        (
            b'{"prompt": "A cat", "type": "gif"}',
            "Type 'gif' is not supported for model 'uni-1'",
        ),
        (b'{"prompt": "A cat", "type": {}}', "Type '{}' is not supported for model 'uni-1'"),
        (b'{"prompt": "A cat", "video": NaN}', "Request body must be a JSON object"),
    ],
)
async def test_bad_submission(body: bytes, detail: str) -> None:
    """A bad body is answered 400 with the API's text."""
    async with connect(Sandbox()) as client:
        response = await client.post("/generations", content=body)
    assert (response.status_code, response.json()) == (400, {"detail": detail})
    assert "X-RateLimit-Limit" not in response.headers


@pytest.mark.anyio
async def test_longest_prompt() -> None:
    """A prompt may have 6000 characters."""
    async with connect(Sandbox()) as client:
        await submit(client, "x" * 6000)


# Keys and strangers


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("authorization", "status", "detail"),
    [
        (None, 401, "Missing or invalid API key"),
        ("", 401, "Missing or invalid API key"),
        ("Bearer", 401, "Missing or invalid API key"),
        ("Bearer ", 401, "Missing or invalid API key"),
        (KEY, 401, "Missing or invalid API key"),
        (f"bearer {KEY}", 401, "Missing or invalid API key"),
        (f"Basic {KEY}", 401, "Missing or invalid API key"),
        ("Bearer luma-api-invalid", 401, "Invalid API key"),
        ("Bearer luma-api-revoked", 401, "API key has been revoked"),
        ("Bearer luma-api-expired", 401, "API key has expired"),
        ("Bearer luma-api-suspended", 403, "API client is suspended"),
    ],
)
@pytest.mark.parametrize("auth_tokens", [None, [KEY]])
async def test_refused_keys(
    authorization: str | None, status: int, detail: str, auth_tokens: list[str] | None
) -> None:
    """A missing, malformed, unknown or scripted key is refused in the API's words."""
    sandbox = Sandbox(auth_tokens=auth_tokens)
    headers = {} if authorization is None else {"Authorization": authorization}
    transport = httpx.ASGITransport(app=sandbox.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://sandbox/v1") as client:
        for method, path in (("POST", "/generations"), ("GET", "/generations/x")):
            response = await client.request(method, path, headers=headers, json={"prompt": "A cat"})
            assert (response.status_code, response.json()) == (status, {"detail": detail})


@pytest.mark.anyio
async def test_accepted_keys() -> None:
    """Only the given keys are accepted; without any, all that look like one."""
    for auth_tokens, key, status in (
        (None, "any", 201),
        ({"secret"}, "secret", 201),
        ({"secret"}, "luma-api-any", 401),
        ((), "luma-api-any", 401),
    ):
        async with connect(Sandbox(auth_tokens=auth_tokens), key) as client:
            response = await client.post("/generations", json={"prompt": "A cat"})
            assert response.status_code == status


@pytest.mark.anyio
async def test_strict_keys() -> None:
    """A sandbox that is strict about keys refuses those that cannot be Luma's."""
    for key, status in (("any", 401), ("LUMA-API-any", 401), (KEY, 201)):
        async with connect(Sandbox(strict_keys=True), key) as client:
            response = await client.post("/generations", json={"prompt": "A cat"})
            assert response.status_code == status
            if status == 401:
                assert response.json() == {"detail": "Missing or invalid API key"}


@pytest.mark.anyio
async def test_strangers() -> None:
    """Another client's id, an unknown one and what is no UUID are answered by the same 404."""
    sandbox = Sandbox()
    async with connect(sandbox) as client, connect(sandbox, "luma-api-other") as stranger:
        generation = await submit(client)
        for caller, generation_id in (
            (stranger, generation["id"]),
            (client, "d290f1ee-6c54-4b01-90e6-d701748f0851"),
            (client, "cat"),
        ):
            response = await caller.get(f"/generations/{generation_id}")
            assert response.status_code == 404
            assert response.json() == {"detail": "Generation not found"}


@pytest.mark.anyio
async def test_unknown_routes() -> None:
    """What is no route, or no method of it, is answered in the form of all errors."""
    async with connect(Sandbox()) as client:
        for method, path, status, detail in (
            ("GET", "/usage", 404, "Not Found"),
            ("GET", "/generations/", 404, "Not Found"),
            ("GET", "/generations", 405, "Method Not Allowed"),
            ("DELETE", "/generations/x", 405, "Method Not Allowed"),
        ):
            response = await client.request(method, path)
            assert (response.status_code, response.json()) == (status, {"detail": detail})
            assert response.headers["X-API-Version"] == "2026-04-01"


# Headers and limits


@pytest.mark.anyio
async def test_headers() -> None:
    """Every response has the standard headers; only the POST has those of the rate limit."""
    async with connect(Sandbox(requests_per_minute=30)) as client:
        posted = await client.post("/generations", json={"prompt": "A cat"})
        polled = await client.get(f"/generations/{posted.json()['id']}")
        missing = await client.get("/generations/x", headers={"X-Request-Id": "mine"})
    for response in (posted, polled, missing):
        assert response.headers["X-API-Version"] == "2026-04-01"
        assert len(response.headers.get_list("Date")) == 1
        assert response.headers["Content-Type"] == "application/json"
    assert missing.headers["X-Request-Id"] == "mine"
    ids = [UUID(response.headers["X-Request-Id"]) for response in (posted, polled)]
    assert ids[0] != ids[1]

    assert posted.headers["X-RateLimit-Limit"] == "30"
    assert posted.headers["X-RateLimit-Remaining"] == "29"
    sent = parsedate_to_datetime(posted.headers["Date"]).timestamp()
    assert int(posted.headers["X-RateLimit-Reset"]) - sent in (60, 61)
    for response in (polled, missing):
        assert not [name for name in response.headers if name.startswith("x-ratelimit")]
        assert "Retry-After" not in response.headers


@pytest.mark.anyio
async def test_refusals_change_no_seed() -> None:
    """A refused submission takes nothing from the seed: the next id is the same."""

    async def run(limit: int, body: dict[str, str]) -> Any:
        async with connect(Sandbox(seed=5, max_concurrent=limit)) as client:
            await submit(client, "sandbox:duration=1")
            for _ in range(3):
                await client.post("/generations", json=body)
            await anyio.sleep(1)
            return (await submit(client))["id"]

    assert len({await run(1, {"prompt": "A cat"}), await run(2, {"prompt": ""})}) == 1


@pytest.mark.anyio
async def test_calls() -> None:
    """`calls` counts the requests by method and route, refused ones too."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        generation = await submit(client, "sandbox:duration=0")
        completed = await get(client, generation)
        await client.get("/generations/x")
        await download(sandbox, completed["output"][0]["url"])
    assert sandbox.calls == {
        "POST /generations": 1,
        "GET /generations/{id}": 2,
        "GET /storage/{id}/{index}": 1,
    }


@pytest.mark.no_cover
@pytest.mark.anyio
async def test_thousands() -> None:
    """Thousands of generations at once are no burden."""
    async with connect(Sandbox(max_concurrent=3000)) as client:
        generations = [await submit(client) for _ in range(3000)]
        refused = await client.post("/generations", json={"prompt": "A cat"})
        assert refused.status_code == 429
        await anyio.sleep(600)
        assert (await get(client, generations[-1]))["state"] == "completed"


# Construction


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("speed", [0, -1, math.nan, math.inf]),
        ("url_expires", [0, -1, math.nan, math.inf]),
        ("requests_per_minute", [0, -1, 1.5, math.nan]),
        ("max_concurrent", [0, -1, 1.5, math.nan]),
        ("auth_tokens", [KEY]),
        ("extra_parameters", ["seed"]),
    ],
)
def test_bad_arguments(name: str, values: list[Any]) -> None:
    """A bad argument is refused at once by name."""
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be "):
            Sandbox(**{name: value})


def test_repr() -> None:
    """The repr says how much there is, and shows no key."""
    assert repr(Sandbox(speed=2, auth_tokens=[KEY])) == "<Sandbox speed=2 generations=0>"
