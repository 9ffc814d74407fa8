"""The sandbox on a real socket, in real time."""

import asyncio
import logging
import signal
from urllib.parse import urlsplit

import anyio
import httpx
import pytest
import trio

from luma_poll.sandbox import Sandbox
from tests.sandbox.test_sandbox import KEY, decode_png, get, submit


@pytest.mark.asyncio
async def test_serve() -> None:
    """`serve` listens on a free port and takes no signal over; afterwards nothing listens."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    tasks = asyncio.all_tasks()
    async with Sandbox().serve() as base_url:
        assert urlsplit(base_url).path == "/v1"
        assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        async with httpx.AsyncClient(
            base_url=base_url, headers={"Authorization": f"Bearer {KEY}"}
        ) as client:
            generation = await submit(client, "sandbox:duration=0")
            response = await client.get(f"/generations/{generation['id']}")
            assert len(response.headers.get_list("Date")) == 1
            del client.headers["Authorization"]
            decode_png((await client.get(response.json()["output"][0]["url"])).content)
    assert asyncio.all_tasks() == tasks
    with pytest.raises(OSError, match=r"Connect call failed|refused"):
        await asyncio.open_connection(urlsplit(base_url).hostname, urlsplit(base_url).port)


@pytest.mark.asyncio
async def test_a_client_cannot_make_a_fault() -> None:
    """Nothing that a client sends and the answer echoes lets the connection misbehave."""
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "X-Sandbox-Fault: hang"}
    async with (
        Sandbox().serve() as base_url,
        httpx.AsyncClient(base_url=base_url, headers=headers, timeout=5) as client,
    ):
        generation = await submit(client, "sandbox:duration=0")
        response = await client.get(f"/generations/{generation['id']}")
    assert response.headers["X-Request-Id"] == "X-Sandbox-Fault: hang"
    assert response.json()["state"] == "completed"


@pytest.mark.asyncio
async def test_stop_with_open_connections(caplog: pytest.LogCaptureFixture) -> None:
    """Stopping closes idle, silent and stalled connections, and leaves no task and no error."""
    caplog.set_level(logging.WARNING)
    tasks = asyncio.all_tasks()
    requests = {
        "silent": b"",
        "idle": b"GET /v1/generations/x HTTP/1.1\r\nHost: x\r\n\r\n",
        "stalled": b"POST /v1/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
        b"Authorization: Bearer luma-api-x\r\n\r\n{",
    }
    readers, writers = {}, {}
    async with asyncio.timeout(10):
        async with Sandbox().serve() as base_url:
            url = urlsplit(base_url)
            for name, request in requests.items():
                readers[name], writers[name] = await asyncio.open_connection(url.hostname, url.port)
                writers[name].write(request)
            assert (await readers["idle"].readline()).startswith(b"HTTP/1.1 401")
            await asyncio.sleep(0.05)
        assert asyncio.all_tasks() == tasks
        for name in requests:
            await readers[name].read()
            writers[name].close()
            await writers[name].wait_closed()
    assert caplog.records == []


@pytest.mark.asyncio
async def test_serve_cancelled() -> None:
    """A cancelled block stops the server all the same."""
    tasks = asyncio.all_tasks()
    url = None
    with anyio.move_on_after(0.05) as scope:
        async with Sandbox().serve() as base_url:
            url = urlsplit(base_url)
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert asyncio.all_tasks() == tasks
    assert url is not None
    with pytest.raises(OSError, match=r"Connect call failed|refused"):
        await asyncio.open_connection(url.hostname, url.port)


@pytest.mark.asyncio
async def test_serve_error_passes() -> None:
    """An exception of the block comes out as it is, in no group."""
    with pytest.raises(KeyError, match="mine"):
        async with Sandbox().serve():
            raise KeyError("mine")


@pytest.mark.asyncio
async def test_port_in_use() -> None:
    """A port that is in use raises OSError, and the server on it goes on."""
    async with Sandbox().serve() as base_url:
        port = urlsplit(base_url).port or 0
        with pytest.raises(OSError, match="in use"):
            async with Sandbox().serve(port=port):
                pass
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{base_url}/generations/x")).status_code == 401


@pytest.mark.asyncio
async def test_two_servers() -> None:
    """One sandbox can listen on two ports, one after the other and at once."""
    sandbox = Sandbox()
    async with sandbox.serve() as first, sandbox.serve() as second:
        assert first != second
    async with sandbox.serve(port=urlsplit(first).port or 0) as again:
        assert again == first


@pytest.mark.asyncio
@pytest.mark.parametrize("port", [-1, 65536])
async def test_bad_port(port: int) -> None:
    """A port that cannot be is refused by name."""
    with pytest.raises(ValueError, match=r"^port must be from 0 to 65535"):
        async with Sandbox().serve(port=port):
            pass


def test_serve_on_trio() -> None:
    """On trio `serve` says what to use instead."""

    async def serve() -> None:
        async with Sandbox().serve():
            pass

    with pytest.raises(RuntimeError, match=r"needs asyncio.*Sandbox\.app"):
        trio.run(serve)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fault", "error"),
    [("cut-truncated", httpx.RemoteProtocolError), ("cut-reset", httpx.ReadError)],
)
async def test_bodies_cut_in_the_middle(fault: str, error: type[Exception]) -> None:
    """Half of the body comes; then the connection is closed, or reset."""
    async with (
        Sandbox(storage_faults={fault: 1.0}).serve() as base_url,
        httpx.AsyncClient(base_url=base_url) as client,
    ):
        client.headers["Authorization"] = f"Bearer {KEY}"
        created = await submit(client, "sandbox:duration=0 sandbox:size=100000")
        url = (await get(client, created))["output"][0]["url"]
        del client.headers["Authorization"]
        async with client.stream("GET", url) as response:
            received = 0

            async def read() -> None:
                nonlocal received
                async for piece in response.aiter_bytes():
                    received += len(piece)

            with pytest.raises(error):
                await read()
    assert response.headers["Content-Length"] == "100000"
    assert received == 50_000
