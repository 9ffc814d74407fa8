"""The simulated storage: what is behind the URLs of outputs."""

import sys
from collections.abc import Awaitable
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from luma_poll.sandbox import Sandbox
from tests.sandbox.test_sandbox import KEY, SOURCE, connect, decode_png, download, get, submit


@pytest.mark.anyio
async def test_download() -> None:
    """An output is a PNG that differs by generation and by index, and needs no key."""
    sandbox = Sandbox()
    pictures = []
    async with connect(sandbox) as client:
        for _ in range(2):
            created = await submit(client, "sandbox:duration=0 sandbox:outputs=2")
            for output in (await get(client, created))["output"]:
                response = await download(sandbox, output["url"])
                assert response.status_code == 200
                assert response.headers["Content-Type"] == "image/png"
                assert int(response.headers["Content-Length"]) == len(response.content)
                pictures.append(decode_png(response.content))
    assert {picture[:2] for picture in pictures} == {(64, 64)}
    assert len(set(pictures)) == 4


@pytest.mark.anyio
async def test_fresh_urls() -> None:
    """Every GET signs anew, also within a second; all URLs give the same bytes."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        created = await submit(client, "sandbox:duration=0")
        urls = [(await get(client, created))["output"][0]["url"] for _ in range(3)]
    assert len(set(urls)) == 3
    assert len({(await download(sandbox, url)).content for url in urls}) == 1
    query = parse_qs(urlsplit(urls[0]).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-Expires"] == ["3600"]
    assert {"X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders"} <= set(query)
    assert len(bytes.fromhex(query["X-Amz-Signature"][0])) == 32


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("bytes=10-", slice(10, None)),
        ("bytes=10-19", slice(10, 20)),
        ("bytes=10-999999999", slice(10, None)),
        ("bytes=-10", slice(-10, None)),
        ("bytes=0-0", slice(0, 1)),
        ("bytes=0000000000000000000000010-0019", slice(10, 20)),
        (f"bytes=0-{'9' * 5000}", slice(None)),
        (f"bytes=-{'9' * 5000}", slice(None)),
    ],
)
async def test_ranges(wanted: str, given: slice) -> None:
    """A range is answered with 206 and these bytes, if `If-Range` names the file's ETag."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        created = await submit(client, "sandbox:duration=0")
        url = (await get(client, created))["output"][0]["url"]
    whole = await download(sandbox, url)
    part = await download(sandbox, url, **{"Range": wanted, "If-Range": whole.headers["ETag"]})
    assert part.status_code == 206
    assert part.content == whole.content[given]
    start, stop, _ = given.indices(len(whole.content))
    assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole.content)}"
    for headers in (
        {"Range": wanted, "If-Range": '"other"'},
        {"Range": "bytes=-"},
        {"Range": "bytes=19-10"},
    ):
        other = await download(sandbox, url, **headers)
        assert (other.status_code, other.content) == (200, whole.content)
    for first in (len(whole.content), "9" * 5000):
        beyond = await download(sandbox, url, Range=f"bytes={first}-")
        assert beyond.status_code == 416
        assert beyond.headers["Content-Range"] == f"bytes */{len(whole.content)}"


@pytest.mark.anyio
async def test_the_cost_of_a_download() -> None:
    """A download runs through the same code, however many generations there are."""
    counts = []
    for others in (0, 500):
        sandbox = Sandbox(seed=1)
        async with connect(sandbox) as client:
            for _ in range(others):
                await submit(client)
            created = await submit(client, "sandbox:duration=0")
            url = (await get(client, created))["output"][0]["url"]
        counts.append(await count_lines("app.py", download(sandbox, url)))
    assert counts[0] == counts[1] > 0


async def count_lines(file: str, awaitable: Awaitable[Any]) -> int:
    """How many lines of the sandbox's file run while it is awaited."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(f"sandbox/{file}"):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        await awaitable
    finally:
        sys.settrace(before)
    return count


@pytest.mark.anyio
async def test_expiry() -> None:
    """After its time a URL is answered 403 in XML, and a fresh one works again."""
    sandbox = Sandbox(url_expires=60)
    async with connect(sandbox) as client:
        created = await submit(client, "sandbox:duration=0")
        url = (await get(client, created))["output"][0]["url"]
        await anyio.sleep(59)
        assert (await download(sandbox, url)).status_code == 200
        await anyio.sleep(1)
        expired = await download(sandbox, url)
        assert expired.status_code == 403
        assert expired.headers["Content-Type"] == "application/xml"
        assert "<Code>AccessDenied</Code>" in expired.text
        assert "<Message>Request has expired</Message>" in expired.text
        url = (await get(client, created))["output"][0]["url"]
        assert (await download(sandbox, url)).status_code == 200


@pytest.mark.anyio
async def test_wrong_signature() -> None:
    """A URL that is changed in any way is refused."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        created = await submit(client, "sandbox:duration=0")
        url = (await get(client, created))["output"][0]["url"]
        elsewhere = (await get(client, created))["output"][0]["url"]
    signature = parse_qs(urlsplit(elsewhere).query)["X-Amz-Signature"][0]
    for changed in (
        url.partition("?")[0],
        url.replace("/0?", "/1?"),
        url.replace("X-Amz-Expires=3600", "X-Amz-Expires=9999"),
        f"{url}0",
        f"{url}&more=1",
        f"{url}&X-Amz-Signature={signature}",
        url.partition("X-Amz-Signature")[0] + f"X-Amz-Signature={signature}",
        url.partition("X-Amz-Signature")[0] + "X-Amz-Signature=%C3%A9",
        url.partition("X-Amz-Signature")[0],
    ):
        response = await download(sandbox, changed)
        assert response.status_code == 403
        assert "<Error><Code>SignatureDoesNotMatch</Code>" in response.text
    other_sandbox = Sandbox()
    assert (await download(other_sandbox, url)).status_code == 403


@pytest.mark.anyio
async def test_key_on_download() -> None:
    """An Authorization header beside a signed query is refused, as S3 does."""
    sandbox = Sandbox()
    async with connect(sandbox) as client:
        created = await submit(client, "sandbox:duration=0")
        response = await client.get((await get(client, created))["output"][0]["url"])
    assert response.status_code == 400
    assert "<Code>InvalidArgument</Code>" in response.text


@pytest.mark.anyio
async def test_layers() -> None:
    """Layers are numbered from the front, and the last one is the opaque background."""
    async with connect(Sandbox()) as client:
        created = await submit(client, "sandbox:duration=0", type="layering", source=SOURCE)
        outputs = (await get(client, created))["output"]
    layers = [output["layer"] for output in outputs]
    assert [output["type"] for output in outputs] == ["image"] * 3
    assert [layer["index"] for layer in layers] == [0, 1, 2]
    assert [layer["alpha_hint"] for layer in layers] == ["hard", "soft", "none"]
    assert [layer["label"] == "background" for layer in layers] == [False, False, True]
    assert all(layer["description"] for layer in layers)


@pytest.mark.anyio
async def test_video() -> None:
    """A video has one output of type video, without a layer."""
    async with connect(Sandbox()) as client:
        created = await submit(client, "sandbox:duration=0", model="ray-3.2", type="video")
        (output,) = (await get(client, created))["output"]
    assert output == {"type": "video", "url": output["url"]}


@pytest.mark.anyio
@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
async def test_urls_behind_a_mount(root_path: str) -> None:
    """The URL of an output leads back to where the sandbox is mounted."""
    outer = Starlette(routes=[Mount("/luma", app=Sandbox().app)])
    transport = httpx.ASGITransport(app=outer, root_path=root_path)
    async with httpx.AsyncClient(transport=transport) as client:
        base_url = f"https://example.org:8443{root_path}/luma"
        key = {"Authorization": f"Bearer {KEY}"}
        response = await client.post(
            f"{base_url}/v1/generations", json={"prompt": "sandbox:duration=0"}, headers=key
        )
        url = f"{base_url}/v1/generations/{response.json()['id']}"
        output = (await client.get(url, headers=key)).json()["output"][0]
        assert output["url"].startswith(f"{base_url}/storage/")
        assert (await client.get(output["url"])).status_code == 200


@pytest.mark.anyio
async def test_lifespan() -> None:
    """The app starts and stops where a server runs ASGI's lifespan protocol."""
    received = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Any] = []

    async def receive() -> dict[str, str]:
        return received.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await Sandbox().app({"type": "lifespan"}, receive, send)
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
