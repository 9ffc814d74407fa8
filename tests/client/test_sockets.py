"""What really goes wrong on a network: real sockets, in real time."""

import asyncio
import contextlib
import gc
import gzip
import json
import socket
import ssl
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import luma_agents
import pytest
from anyio.from_thread import start_blocking_portal
from httpx_aiohttp import HttpxAiohttpClient
from tenacity import wait_fixed

from luma_poll import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    InvalidResponseError,
    LumaClient,
    LumaError,
    Poller,
    PollEvent,
    PollTimeoutError,
    ServerError,
)
from luma_poll._client.connections import MAX_ANSWER, MAX_GETS
from tests.fakes import ID, OUTPUT, URL

TOKEN = "luma-api-test"
SOON = wait_fixed(0.02)

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Does with each connection what is written down for it; the last one stands for all others."""

    def __init__(self, *connections: Connection) -> None:
        self.port = 0
        self.accepted = 0
        self.open: set[asyncio.Task[Any]] = set()
        self._connections = connections

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.open.add(task)
        number = min(self.accepted, len(self._connections) - 1)
        self.accepted += 1
        try:
            await self._connections[number](reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            self.open.discard(task)
            writer.close()


@asynccontextmanager
async def serve(
    *connections: Connection, port: int = 0, ssl: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server on this machine that handles its connections so."""
    server = Server(*connections)
    listening = await asyncio.start_server(server.connected, "127.0.0.1", port, ssl=ssl)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        # Not `async with listening`: since Python 3.12 that waits for connections to end.
        listening.close()
        for task in server.open:
            task.cancel()
        await eventually(lambda: not server.open)


async def eventually(holds: Callable[[], bool]) -> None:
    """What happens on another task, or at the other end of a connection, takes a moment."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.002)
    pytest.fail("it does not happen within two seconds")


def client_of(base_url: str, **options: Any) -> LumaClient:
    return LumaClient(TOKEN, base_url=base_url, **{"timeout": 5, "max_retries": 0, **options})


HttpClient = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient | None]]
HTTP_CLIENTS = [
    pytest.param(contextlib.nullcontext, id="default"),
    pytest.param(httpx.AsyncClient, id="http_client"),
]
ANY_HTTP_CLIENT = [*HTTP_CLIENTS, pytest.param(HttpxAiohttpClient, id="aiohttp")]


def short_if_it_hangs(error_class: type[APIError]) -> float:
    """Seconds: a request that hangs is waited for only as long as it must be."""
    return 0.15 if error_class is APITimeoutError else 5


# --- what a server may do with a connection ------------------------------------------------------


def http(
    body: bytes, *, status: str = "200 OK", length: int | None = None, more: str = ""
) -> bytes:
    """An answer, which may promise another length than it has."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n"
    return (head + more + "\r\n").encode() + body


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length: ")
    return head + await reader.readexactly(int(length.split(b"\r\n")[0] or 0))


def answer(data: bytes, *, then: Connection | None = None) -> Connection:
    """Answer a request with these bytes, then close the connection or do something else."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        if then is not None:
            await then(reader, writer)

    return connection


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client goes


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await asyncio.sleep(0.02)
        writer.write(b" ")
        await writer.drain()


COMPLETED = json.dumps({"id": ID, "state": "completed", "output": OUTPUT}).encode()
QUEUED = json.dumps({"id": ID, "state": "queued", "output": []}).encode()
PAGE = b"<html>We are busy.</html>"
completed = answer(http(COMPLETED, more="Content-Type: application/json\r\nConnection: close\r\n"))
unauthorized = answer(http(b'{"detail": "Invalid API key"}', status="401 Unauthorized"))

FAULTS: dict[str, tuple[Connection, type[APIError]]] = {
    "closed at once": (hang_up, APIConnectionError),
    "closed after the request": (answer(b""), APIConnectionError),
    "reset at once": (reset, APIConnectionError),
    "reset before an answer": (answer(b"", then=reset), APIConnectionError),
    "reset inside the head": (answer(b"HTTP/1.1 200 OK\r\nA:", then=reset), APIConnectionError),
    "reset inside the body": (answer(http(b"{", length=99), then=reset), APIConnectionError),
    "truncated body": (answer(http(COMPLETED[:20], length=99)), APIConnectionError),
    "truncated chunks": (
        answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"),
        APIConnectionError,
    ),
    "garbage": (answer(b"\x00\x01SSH-2.0-OpenSSH_9.6\r\n\r\n"), APIConnectionError),
    "page with status 200": (answer(http(PAGE)), InvalidResponseError),
    "empty body with status 200": (answer(http(b"")), InvalidResponseError),
    "no gzip": (answer(http(PAGE, more="Content-Encoding: gzip\r\n")), InvalidResponseError),
    "page with status 502": (answer(http(PAGE, status="502 Bad Gateway")), ServerError),
    "hang": (hang, APITimeoutError),
    "hang inside the body": (answer(http(b"{", length=99), then=hang), APITimeoutError),
    "trickle": (answer(http(b"{", length=9_999), then=trickle), APITimeoutError),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> tuple[Connection, type[APIError]]:
    """What goes wrong, and the class of error that it is."""
    return FAULTS[request.param]


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


# --- our own client ------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_each_fault_is_a_typed_error(fault: tuple[Connection, type[APIError]]) -> None:
    """It names the generation, may be retried, and was sent once."""
    connection, error_class = fault
    timeout = short_if_it_hangs(error_class)
    async with serve(connection) as server, client_of(server.base_url, timeout=timeout) as client:
        with pytest.raises(APIError, match=ID) as caught:
            await client.generations.get(ID)
    assert type(caught.value) is error_class
    assert caught.value.retryable
    assert server.accepted == 1
    if isinstance(caught.value, APIConnectionError):
        assert caught.value.request_sent


@pytest.mark.asyncio
async def test_a_wait_polls_through_each_fault(fault: tuple[Connection, type[APIError]]) -> None:
    """The schedule is the only retry, and the generation is not lost."""
    connection, error_class = fault
    events: list[PollEvent] = []
    options: dict[str, Any] = {"timeout": short_if_it_hangs(error_class), "max_retries": 5}
    async with (
        serve(connection, completed) as server,
        client_of(server.base_url, **options) as client,
    ):
        poller = Poller(client, wait=SOON, max_rate=None, on_poll=events.append)
        outputs = await poller.wait(ID, timeout=5)
    assert [output.url for output in outputs] == [URL]
    assert [type(event.error) for event in events] == [error_class, type(None)]
    assert server.accepted == 2


@pytest.mark.asyncio
async def test_the_timeout_of_a_request_holds_over_a_trickle() -> None:
    """A byte now and then does not keep it alive."""
    connection, _ = FAULTS["trickle"]
    clock = asyncio.get_running_loop().time
    async with serve(connection) as server, client_of(server.base_url, timeout=0.3) as client:
        began = clock()
        with pytest.raises(APITimeoutError, match=r"within 0\.3 s"):
            await client.generations.get(ID)
        assert 0.29 < clock() - began < 2


@pytest.mark.asyncio
async def test_a_refused_connection_is_polled_through() -> None:
    """The request was certainly not sent, and a server that comes up later is found."""
    port = free_port()
    async with client_of(f"http://127.0.0.1:{port}/v1") as client:
        with pytest.raises(APIConnectionError, match=ID) as caught:
            await client.generations.get(ID)
        assert type(caught.value) is APIConnectionError
        assert not caught.value.request_sent
        refused = asyncio.Event()
        poller = Poller(client, wait=SOON, on_poll=lambda event: refused.set())
        wait = asyncio.create_task(poller.wait(ID, timeout=5))
        await refused.wait()
        async with serve(completed, port=port):
            assert await wait


@pytest.mark.asyncio
@pytest.mark.parametrize("trouble", ["dns", "tls"])
async def test_a_host_that_cannot_be_talked_to_is_polled_through(trouble: str) -> None:
    """A name that does not resolve, and TLS where plain text is spoken, may be mended in time."""
    page = answer(http(PAGE, status="400 Bad Request"))

    async def plain_text(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(PAGE, status="400 Bad Request"))

    async with serve(plain_text if trouble == "tls" else page) as server:
        host = f"127.0.0.1:{server.port}" if trouble == "tls" else "luma-poll.invalid"
        async with client_of(f"https://{host}/v1", timeout=5) as client:
            with pytest.raises(APIConnectionError, match=ID) as caught:
                await client.generations.get(ID)
            assert type(caught.value) is APIConnectionError
            assert not caught.value.request_sent
            events: list[PollEvent] = []
            poller = Poller(client, wait=SOON, on_poll=events.append)
            with pytest.raises(PollTimeoutError) as given_up:
                await poller.wait(ID, timeout=1.5)
    assert type(given_up.value.__cause__) is APIConnectionError
    assert len(events) > 1
    assert {type(event.error) for event in events} == {APIConnectionError}


@pytest.mark.asyncio
async def test_a_connection_is_kept_and_replaced_when_the_server_drops_it() -> None:
    """Two polls on one connection; when it was closed meanwhile, the next opens another."""
    kept = answer(http(QUEUED), then=answer(http(QUEUED)))
    async with serve(kept, completed) as server, client_of(server.base_url) as client:
        assert (await client.generations.get(ID)).state == "queued"
        assert (await client.generations.get(ID)).state == "queued"
        assert server.accepted == 1
        await asyncio.sleep(0.05)
        assert (await client.generations.get(ID)).state == "completed"
    assert server.accepted == 2


@pytest.mark.asyncio
async def test_a_get_that_an_idle_connection_breaks_under_is_sent_once_more() -> None:
    """The server closes it at the same moment: nobody notices, and no poll is lost."""
    for end in (answer(b""), answer(b"", then=reset)):
        kept = answer(http(QUEUED), then=end)
        async with serve(kept, completed) as server, client_of(server.base_url) as client:
            assert (await client.generations.get(ID)).state == "queued"
            assert (await client.generations.get(ID)).state == "completed"
        assert server.accepted == 2


@pytest.mark.asyncio
async def test_a_get_is_sent_once_more_only_once() -> None:
    """A fault of the new connection is a fault; so is one that comes with an answer."""
    broken = answer(b"")
    garbage, _ = FAULTS["garbage"]
    for second, accepted in ((broken, 2), (answer(http(b"{", length=99)), 1), (garbage, 1)):
        kept = answer(http(QUEUED), then=second)
        async with serve(kept, broken) as server, client_of(server.base_url) as client:
            await client.generations.get(ID)
            with pytest.raises(APIConnectionError):
                await client.generations.get(ID)
        assert server.accepted == accepted


@pytest.mark.asyncio
async def test_a_submission_uses_no_idle_connection() -> None:
    """If the server closed it just then, nobody could tell whether it was accepted."""
    requests: list[bytes] = []

    async def read_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read())

    kept = answer(http(QUEUED), then=read_on)
    async with serve(kept, patiently()) as server, client_of(server.base_url) as client:
        await client.generations.get(ID)
        for _ in range(3):
            await client.generations.create("a fox")
        await eventually(lambda: len(server.open) == 1)
        await client.generations.get(ID)
    assert requests == [b""]
    assert server.accepted == 4


@pytest.mark.asyncio
@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
@pytest.mark.parametrize("http_client", ANY_HTTP_CLIENT)
async def test_an_answer_without_end_is_given_up(http_client: HttpClient, status: str) -> None:
    """After some megabytes, and its connection is closed; an error status is told all the same."""
    head = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(head)
        while not writer.is_closing():
            writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            sent += 0x10000
            await writer.drain()

    async with (
        serve(flood) as server,
        http_client() as mine,
        client_of(server.base_url, http_client=mine) as client,
    ):
        with pytest.raises(APIError) as caught:
            await client.generations.get(ID)
        await eventually(lambda: not server.open)
    assert type(caught.value) is (InvalidResponseError if "200" in status else ServerError)
    assert sent > MAX_ANSWER


@pytest.mark.asyncio
@pytest.mark.parametrize("http_client", ANY_HTTP_CLIENT)
async def test_a_small_answer_that_decodes_to_a_large_one_fills_no_memory(
    http_client: HttpClient,
) -> None:
    """It is decoded bit by bit, and no further than an answer may be long."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b" " * 1024**2) for _ in range(128)) + packer.flush()
    body = http(bomb, more="Content-Encoding: gzip\r\n")
    async with (
        serve(answer(body)) as server,
        http_client() as mine,
        client_of(server.base_url, http_client=mine) as client,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidResponseError, match="larger than"):
                await client.generations.get(ID)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 * MAX_ANSWER


@pytest.mark.asyncio
async def test_a_compressed_answer_is_read() -> None:
    """The client asks for compression, as httpx does."""
    body = http(gzip.compress(COMPLETED), more="Content-Encoding: gzip\r\n")
    async with serve(answer(body)) as server, client_of(server.base_url) as client:
        assert (await client.generations.get(ID)).state == "completed"


@pytest.mark.asyncio
@pytest.mark.parametrize("count", [50, MAX_GETS + 50])
async def test_cancelled_requests_leave_nothing_behind(count: int) -> None:
    """No task, and no connection that the next request would miss, even if some had to queue."""
    sent = min(count, MAX_GETS)
    async with (
        serve(*[hang] * sent, completed) as server,
        client_of(server.base_url, timeout=30) as client,
    ):
        before = asyncio.all_tasks()
        requests = [asyncio.create_task(client.generations.get(ID)) for _ in range(count)]
        await eventually(lambda: len(server.open) == sent)
        await asyncio.sleep(0.05)  # all of them have been sent and wait for an answer
        for request in requests:
            request.cancel()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        async with asyncio.timeout(2):
            assert (await client.generations.get(ID)).state == "completed"
        await eventually(lambda: not server.open)
        assert asyncio.all_tasks() == before


async def cancel_at_every_moment(server: Server, client: LumaClient) -> None:
    """Cancel two requests after each number of steps that it takes to connect and to send."""
    for steps in range(40):
        requests = [asyncio.create_task(client.generations.get(ID)) for _ in range(2)]
        for _ in range(steps):
            await asyncio.sleep(0)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


@pytest.mark.asyncio
@pytest.mark.usefixtures("sockets_left_to_the_collector")
@pytest.mark.parametrize("http_client", HTTP_CLIENTS)
async def test_no_moment_to_cancel_makes_the_client_useless(
    monkeypatch: pytest.MonkeyPatch, http_client: HttpClient
) -> None:
    """While it connects, between connecting and sending, or later: no connection is used up."""
    monkeypatch.setattr("luma_poll._client.connections.MAX_CONNECTIONS", 2)
    async with (
        serve(hang) as server,
        http_client() as http,
        client_of(server.base_url, http_client=http) as client,
    ):
        await cancel_at_every_moment(server, client)
        seen = server.accepted
        request = asyncio.create_task(client.generations.get(ID))
        await eventually(lambda: server.accepted > seen)
        request.cancel()


@pytest.mark.asyncio
@pytest.mark.usefixtures("sockets_left_to_the_collector")
@pytest.mark.parametrize("http_client", HTTP_CLIENTS)
async def test_no_moment_to_cancel_leaves_a_connection_open(http_client: HttpClient) -> None:
    """The server sees all of them end, although the client lives on."""
    async with (
        serve(hang) as server,
        http_client() as http,
        client_of(server.base_url, http_client=http) as client,
    ):
        await cancel_at_every_moment(server, client)
        await eventually(lambda: not server.open)


@pytest.mark.asyncio
async def test_no_moment_to_cancel_forgets_a_connection() -> None:
    """Not the last one either: it is closed or kept, and never left to the collector."""
    async with serve(patiently()) as server, client_of(server.base_url) as client:
        for steps in range(60):
            await client.generations.get(ID)
            request = asyncio.create_task(client.generations.get(ID))
            for _ in range(steps):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await eventually(lambda: len(server.open) <= 1)
        assert not request.cancelled()  # the last moments came after the end
        gc.collect()
    await eventually(lambda: not server.open)


@pytest.mark.asyncio
async def test_a_cancelled_request_does_not_disturb_the_others() -> None:
    """The connections in use by other requests stay as they are."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await completed(reader, writer)

    async with serve(hang, slowly) as server, client_of(server.base_url, timeout=5) as client:
        cancelled = asyncio.create_task(client.generations.get(ID))
        await eventually(lambda: len(server.open) == 1)
        other = asyncio.create_task(client.generations.get(ID))
        await eventually(lambda: len(server.open) == 2)
        cancelled.cancel()
        assert (await other).state == "completed"
        assert cancelled.cancelled()


@pytest.mark.asyncio
async def test_cancelled_waits_leave_nothing_behind() -> None:
    """Fifty waits with their requests under way: the poller works on."""
    async with (
        serve(*[hang] * 50, completed) as server,
        client_of(server.base_url, timeout=30) as client,
    ):
        before = asyncio.all_tasks()
        poller = Poller(client, wait=SOON, max_rate=None)
        waits = [asyncio.create_task(poller.wait(f"id-{number}")) for number in range(50)]
        await eventually(lambda: len(server.open) == 50)
        await asyncio.sleep(0.05)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        assert repr(poller).endswith("generations=0)")
        assert await poller.wait(ID, timeout=2)
        await eventually(lambda: not server.open)
        assert asyncio.all_tasks() == before


# --- the connections of a client -----------------------------------------------------------------


def patiently(latency: float = 0.0) -> Connection:
    """Answer request after request, as long as the client likes."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(latency)
            writer.write(http(QUEUED))
            await writer.drain()

    return connection


@pytest.mark.asyncio
async def test_one_connection_serves_one_request_after_the_other() -> None:
    """It is kept alive, and no other is opened."""
    async with serve(patiently()) as server, client_of(server.base_url) as client:
        for _ in range(5):
            await client.generations.get(ID)
        assert server.accepted == 1
    await eventually(lambda: not server.open)


@pytest.mark.asyncio
async def test_as_many_connections_as_requests_under_way() -> None:
    """They are used again by the next ones."""
    async with serve(patiently(0.05)) as server, client_of(server.base_url) as client:
        for _ in range(3):
            await asyncio.gather(*[client.generations.get(ID) for _ in range(20)])
        assert server.accepted == len(server.open) == 20


@pytest.mark.asyncio
async def test_what_is_not_used_any_more_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a burst the client goes back to the few connections that it needs."""
    monkeypatch.setattr("luma_poll._client.http_client.KEEPALIVE", 0.2)
    async with serve(patiently(0.01)) as server, client_of(server.base_url) as client:
        await asyncio.gather(*[client.generations.get(ID) for _ in range(20)])
        for _ in range(10):
            await asyncio.sleep(0.05)
            await client.generations.get(ID)
        await eventually(lambda: len(server.open) == 1)


@pytest.mark.asyncio
async def test_a_connection_that_the_server_closed_is_replaced() -> None:
    """A server may end a connection that is kept alive: nobody notices."""
    once = answer(http(QUEUED))
    async with serve(once) as server, client_of(server.base_url) as client:
        for _ in range(3):
            await client.generations.get(ID)
            await eventually(lambda: not server.open)
        assert server.accepted == 3


@pytest.mark.asyncio
async def test_closing_a_client_with_a_request_under_way() -> None:
    """The request ends as if nothing were; its connection is closed after it."""
    async with serve(patiently(0.1)) as server:
        client = client_of(server.base_url)
        request = asyncio.create_task(client.generations.get(ID))
        await eventually(lambda: len(server.open) == 1)
        await asyncio.sleep(0.05)
        await client.aclose()
        assert (await request).state == "queued"
        await eventually(lambda: not server.open)
        with pytest.raises(RuntimeError, match="closed"):
            await client.generations.get(ID)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
async def test_the_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As with any httpx client: the proxy is asked for the whole URL."""
    asked = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read_request(reader))
        writer.write(http(QUEUED))
        await writer.drain()

    async with serve(proxy) as server:
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
        with pytest.warns(UserWarning, match="unencrypted"):
            client = client_of("http://api.example.com/v1")
        async with client:
            assert (await client.generations.get(ID)).state == "queued"
    assert asked[0].startswith(b"GET http://api.example.com/v1/generations/")


@pytest.mark.asyncio
@pytest.mark.parametrize("no_proxy", ["", "127.0.0.0/8"])
async def test_no_proxy_stands_between_us_and_this_machine(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    """The sandbox works behind a proxy too, whatever NO_PROXY says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    async with serve(patiently()) as server, client_of(server.base_url) as client:
        assert (await client.generations.get(ID)).state == "queued"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "foo://127.0.0.1:9?key=5ec4e7"),
        ("HTTPS_PROXY", "foo://user:5ec4e7@127.0.0.1:9"),
        ("HTTPS_PROXY", "http://user:5ec4e7@127.0.0.1:x"),
        ("ALL_PROXY", "http://user:5ec4e7@[::1"),
        ("HTTPS_PROXY", "http://user:5ec4e7@127.0.0.1:99999"),
    ],
)
def test_an_unusable_proxy_is_told_of_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Not as an error of a library that the user has never heard of, nor with its password."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name) as caught:
        LumaClient(TOKEN)
    assert "5ec4e7" not in str(caught.value)


@pytest.mark.asyncio
async def test_a_submission_through_a_proxy_uses_no_idle_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a GET that one breaks under is sent once more: as without a proxy."""
    kept = answer(http(QUEUED), then=answer(b""))
    async with serve(kept, patiently()) as server:
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{server.port}")
        with pytest.warns(UserWarning, match="unencrypted"):
            client = client_of("http://api.example.com/v1")
        async with client:
            await client.generations.get(ID)
            await client.generations.get(ID)
            await client.generations.create("a fox")
        assert server.accepted == 3


# --- certificates --------------------------------------------------------------------------------

SELF_SIGNED = Path(__file__).with_name("self_signed.pem")


@contextlib.asynccontextmanager
async def serve_tls(connection: Connection) -> AsyncIterator[str]:
    """A base URL on this machine, with a certificate that nobody has signed."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(SELF_SIGNED)
    async with serve(connection, ssl=tls) as server:
        yield f"https://127.0.0.1:{server.port}/v1"


@pytest.mark.asyncio
@pytest.mark.parametrize("http_client", ANY_HTTP_CLIENT)
async def test_a_certificate_that_does_not_hold_ends_a_wait_at_once(
    http_client: HttpClient,
) -> None:
    """It will not hold at the next poll either. Nothing was sent; the message says what to do."""
    async with (
        serve_tls(completed) as base_url,
        http_client() as mine,
        client_of(base_url, http_client=mine, max_retries=2) as client,
    ):
        with pytest.raises(
            APIConnectionError, match=r"self-signed certificate.*SSL_CERT_FILE"
        ) as e:
            await Poller(client, wait=SOON).wait(ID, timeout=5)
        assert (e.value.retryable, e.value.request_sent) == (False, False)
        with pytest.raises(APIConnectionError) as e:
            await client.generations.create("a fox")
        assert not hasattr(e.value, "__notes__")


def test_a_certificate_that_does_not_hold_is_the_same_on_trio() -> None:
    """Whose own errors stand between the certificate's and httpx's."""

    async def get(base_url: str) -> APIError:
        async with client_of(base_url, max_retries=2) as client:
            with pytest.raises(APIConnectionError, match="self-signed certificate") as caught:
                await client.generations.get(ID)
            return caught.value

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_tls(completed)) as base_url,
    ):
        assert not anyio.run(get, base_url, backend="trio").retryable


@pytest.mark.asyncio
async def test_a_certificate_of_the_environment_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the message advises."""
    monkeypatch.setenv("SSL_CERT_FILE", str(SELF_SIGNED))
    async with serve_tls(completed) as base_url, client_of(base_url) as client:
        assert (await client.generations.get(ID)).state == "completed"


# --- secrets -------------------------------------------------------------------------------------

ANY_KEY = "0fd9-any-key-of-a-gateway-77c1"
"""Without the form of Luma's keys, by which alone it cannot be found in a text."""


def shown_by(error: BaseException | None) -> str:
    """All that a log or an error tracker shows of an error and its chain."""
    shown = []
    while error is not None:
        shown += [str(error), repr(error), repr(error.args), repr(vars(error))]
        requests = [vars(error).get(name) for name in ("request", "_request")]
        shown += [repr(request.headers.items()) for request in requests if request is not None]
        error = error.__cause__ or error.__context__
    return "\n".join(shown)


ECHOES = {
    "detail": http(f'{{"detail": "Invalid API key: {ANY_KEY}"}}'.encode(), status="401 No"),
    "cut": http(
        json.dumps({"detail": "x" * (1000 - len(ANY_KEY) // 2) + ANY_KEY}).encode(), status="401 No"
    ),
    "list": http(json.dumps({"detail": [{"input": ANY_KEY}]}).encode(), status="422 No"),
    "request id": http(b"{}", status="401 No", more=f"X-Request-Id: {ANY_KEY}\r\n"),
    "illegal header line": f"HTTP/1.1 200 OK\r\nAuthorization {ANY_KEY}\r\n\r\n".encode(),
    "illegal status line": f"Authorization: {ANY_KEY}\r\n\r\n".encode(),
    "no generation": http(json.dumps({"id": ANY_KEY, ANY_KEY: ANY_KEY}).encode()),
    "no gzip": http(ANY_KEY.encode(), more="Content-Encoding: gzip\r\n"),
    "unknown encoding": http(b"", more=f"Content-Encoding: {ANY_KEY}\r\n"),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("key", [ANY_KEY, TOKEN])
@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("http_client", ANY_HTTP_CLIENT)
async def test_a_server_that_echoes_the_key_does_not_get_it_into_an_error(
    http_client: HttpClient, echo: str, key: str
) -> None:
    """Neither into ours nor into its causes."""
    connection = answer(ECHOES[echo].replace(ANY_KEY.encode(), key.encode().ljust(len(ANY_KEY))))
    async with (
        serve(connection) as server,
        http_client() as mine,
        LumaClient(key, base_url=server.base_url, max_retries=0, http_client=mine) as client,
    ):
        with pytest.raises(APIError) as caught:
            await client.generations.get(ID)
    shown = shown_by(caught.value)
    assert key not in shown
    assert key[: len(key) // 2] not in shown.replace("luma-api-...", "")


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["closed after the request", "garbage", "reset inside the body"])
async def test_no_error_of_aiohttp_keeps_the_key(name: str) -> None:
    """Some of them keep the whole request."""
    connection, _ = FAULTS[name]
    async with serve(connection) as server, HttpxAiohttpClient() as http:
        client = LumaClient(ANY_KEY, base_url=server.base_url, max_retries=0, http_client=http)
        with pytest.raises(APIError) as caught:
            await client.generations.get(ID)
    assert caught.value.__cause__ is not None
    assert ANY_KEY not in shown_by(caught.value)


@pytest.mark.asyncio
@pytest.mark.parametrize("echo", ["detail", "cut", "list", "request id", "illegal header line"])
async def test_a_server_that_echoes_the_key_of_the_official_sdk(echo: str) -> None:
    """Its errors keep the request, the body and the text: the key is in none of them."""
    async with (
        serve(answer(ECHOES[echo])) as server,
        luma_agents.AsyncLuma(auth_token=ANY_KEY, base_url=server.base_url) as sdk,
    ):
        with pytest.raises(LumaError) as caught:
            await Poller(sdk, wait=SOON).wait(ID, timeout=0.1)
    assert ANY_KEY not in shown_by(caught.value)
    assert ANY_KEY[:12] not in shown_by(caught.value)


# --- the official SDK ----------------------------------------------------------------------------


def sdk_of(server: Server, **options: Any) -> luma_agents.AsyncLuma:
    """The official client, with retries of its own that a wait must not use."""
    return luma_agents.AsyncLuma(
        auth_token=TOKEN, base_url=server.base_url, max_retries=5, **options
    )


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name",
    [
        "reset before an answer",
        "truncated body",
        "garbage",
        "page with status 200",
        "page with status 502",
        "no gzip",
        "hang",
    ],
)
async def test_a_wait_with_the_official_sdk_polls_through_each_fault(name: str) -> None:
    """One request for each poll, as its own retries are off; its errors become ours."""
    connection, error_class = FAULTS[name]
    if name == "no gzip":
        error_class = APIConnectionError  # that is what the SDK makes of it
    timeout = short_if_it_hangs(error_class)
    events: list[PollEvent] = []
    async with (
        serve(connection, connection, completed) as server,
        sdk_of(server, timeout=timeout) as sdk,
    ):
        poller = Poller(sdk, wait=SOON, max_rate=None, on_poll=events.append)
        outputs = await poller.wait(ID, timeout=5)
        assert sdk.max_retries == 5
    assert [output.url for output in outputs] == [URL]
    assert [type(event.error) for event in events] == [error_class, error_class, type(None)]
    assert server.accepted == 3


@pytest.mark.asyncio
async def test_a_deadline_bounds_a_request_of_the_official_sdk() -> None:
    """Its own timeout restarts with every byte, so a trickle would last for ever."""
    connection, _ = FAULTS["trickle"]
    async with serve(connection) as server, sdk_of(server, timeout=60) as sdk:
        with pytest.raises(PollTimeoutError) as caught:
            await Poller(sdk, wait=SOON).wait(ID, timeout=0.2)
    assert caught.value.attempts == 1


@pytest.mark.asyncio
async def test_a_refusal_of_the_official_sdk_is_our_error() -> None:
    """It ends the wait at once, with the API's words, and the chain keeps no key."""
    async with serve(unauthorized) as server, sdk_of(server) as sdk:
        with pytest.raises(AuthenticationError, match=f"{ID}.*Invalid API key") as caught:
            await Poller(sdk, wait=SOON).wait(ID, timeout=5)
    assert (caught.value.status_code, caught.value.detail) == (401, "Invalid API key")
    assert server.accepted == 1
    cause = caught.value.__cause__
    assert isinstance(cause, luma_agents.AuthenticationError)
    assert "Authorization" not in cause.request.headers
    assert "Authorization" not in cause.response.request.headers


@pytest.mark.asyncio
async def test_what_the_official_sdk_creates_can_be_waited_for() -> None:
    """Its snapshot is the first answer, so one poll is enough; its outputs come back as ours."""
    created = answer(
        http(
            QUEUED,
            status="201 Created",
            more="Content-Type: application/json\r\nConnection: close\r\n",
        )
    )
    async with serve(created, completed) as server, sdk_of(server) as sdk:
        snapshot = await sdk.generations.create(prompt="A cat")
        (output,) = await Poller(sdk, wait=SOON).wait(snapshot, timeout=5)
    assert (output.type, output.url) == ("image", URL)
    assert server.accepted == 2


def test_the_synchronous_sdk_is_refused() -> None:
    """It would block the event loop; the message names the one to use."""
    client: Any = luma_agents.Luma(auth_token=TOKEN)
    with client, pytest.raises(ConfigurationError, match=r"use luma_agents\.AsyncLuma"):
        Poller(client)


# --- event loops ---------------------------------------------------------------------------------


def test_a_client_outlives_its_event_loop() -> None:
    """Connections of the old one are not used in the new one."""

    async def get_twice(client: LumaClient) -> None:
        async with serve(patiently(), port=ports[-1]) as server:
            ports.append(server.port)
            client.generations._session._base_url = server.base_url
            for _ in range(2):
                assert (await client.generations.get(ID)).state == "queued"

    ports = [0]
    client = client_of("http://127.0.0.1:1/v1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):
            asyncio.run(get_twice(client))
        del client
        gc.collect()


@pytest.fixture
def base_url() -> Iterator[str]:
    """An API in a thread of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve(patiently())) as server,
    ):
        yield server.base_url


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio",) * 2])
def test_a_client_is_used_in_one_kind_of_event_loop_after_the_other(
    base_url: str, backends: tuple[str, str]
) -> None:
    """Requests, downloads' turns and the end: nothing of the first one is left."""

    async def use(client: LumaClient) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(client.generations.get, ID)
        await client.generations.create("a fox")

    async def use_and_close() -> None:
        await use(client)
        await client.aclose()
        await client.aclose()

    client = client_of(base_url)
    anyio.run(use, client, backend=backends[0])
    anyio.run(use_and_close, backend=backends[1])
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_that_is_closed_in_a_later_event_loop(base_url: str) -> None:
    """A program may have one event loop for its work and one for its end."""
    client = client_of(base_url)
    asyncio.run(client.generations.get(ID))
    asyncio.run(client.aclose())
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(client.generations.get(ID))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_turns_that_a_dead_event_loop_held_are_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was closed in the middle of requests, whose ends never ran."""
    monkeypatch.setattr("luma_poll._client.connections.MAX_CONNECTIONS", 1)

    async def never() -> None:
        await anyio.sleep_forever()

    async def start(client: LumaClient) -> None:
        task = asyncio.create_task(client.generations.get(ID))
        tasks.append(task)
        await asyncio.sleep(0.05)

    async def get(client: LumaClient) -> str:
        async with serve(patiently()) as server:
            client.generations._session._base_url = server.base_url
            return (await client.generations.get(ID)).state

    tasks: list[Any] = []
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: never()))  # type: ignore[arg-type]
    client = client_of("http://127.0.0.1:1/v1", http_client=http_client)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start(client))
    loop.close()
    client._connections.http = httpx.AsyncClient()
    assert asyncio.run(get(client)) == "queued"


def test_a_client_in_two_event_loops_at_once_is_refused(base_url: str) -> None:
    """With the advice to make one for each, for requests, downloads and the end."""
    client = client_of(base_url)
    uses: list[Callable[[], Any]] = [
        lambda: client.generations.get(ID),
        lambda: client.generations.create("a fox"),
        lambda: client.with_options(timeout=1).generations.get(ID),
        lambda: client.download(ID, "nowhere"),
        client.aclose,
    ]
    with start_blocking_portal() as portal:
        portal.call(client.generations.get, ID)
        for use in uses:
            with pytest.raises(ConfigurationError, match="create a LumaClient for each event loop"):
                anyio.run(use)
        assert portal.call(client.generations.get, ID).state == "queued"
        portal.call(client.aclose)


# --- httpx-aiohttp -------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name", ["reset inside the body", "truncated body", "garbage", "page with status 502", "hang"]
)
async def test_a_wait_over_aiohttp_polls_through_each_fault(name: str) -> None:
    """The transport of the extra `aiohttp` raises httpx's errors, and heeds the timeout."""
    connection, error_class = FAULTS[name]
    events: list[PollEvent] = []
    async with (
        serve(connection, completed) as server,
        HttpxAiohttpClient() as http,
        client_of(
            server.base_url, timeout=short_if_it_hangs(error_class), http_client=http
        ) as client,
    ):
        poller = Poller(client, wait=SOON, on_poll=events.append)
        assert await poller.wait(ID, timeout=5)
    assert [type(event.error) for event in events] == [error_class, type(None)]


@pytest.mark.asyncio
async def test_a_deadline_over_aiohttp() -> None:
    """It bounds a request that hangs, and closes its connection."""
    async with (
        serve(hang) as server,
        HttpxAiohttpClient() as http,
        client_of(server.base_url, http_client=http) as client,
    ):
        with pytest.raises(PollTimeoutError):
            await Poller(client, wait=SOON).wait(ID, timeout=0.2)
        await eventually(lambda: not server.open)


@pytest.mark.asyncio
async def test_a_submission_over_aiohttp_is_not_repeated_where_it_may_have_arrived() -> None:
    """httpx-aiohttp says "connect timeout" of a connection that broke after the request too."""
    connection, _ = FAULTS["closed after the request"]
    async with (
        serve(connection) as server,
        HttpxAiohttpClient() as http,
        client_of(server.base_url, http_client=http, max_retries=2) as client,
    ):
        with pytest.raises(APIConnectionError) as caught:
            await client.generations.create("a fox")
    assert caught.value.request_sent
    assert server.accepted == 1


@pytest.mark.asyncio
async def test_a_submission_over_aiohttp_is_repeated_where_nobody_listened() -> None:
    """Then nobody can have accepted it."""
    async with (
        HttpxAiohttpClient() as http,
        client_of("http://127.0.0.1:9/v1", http_client=http) as client,
    ):
        with pytest.raises(APIConnectionError) as caught:
            await client.generations.create("a fox")
    assert not caught.value.request_sent
