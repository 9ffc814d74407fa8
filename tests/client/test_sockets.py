"""What really goes wrong on a network: real sockets, in real time."""

import asyncio
import contextlib
import gc
import gzip
import json
import socket
import ssl
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import httpx
import luma_agents
import pytest
from anyio.from_thread import start_blocking_portal
from httpx_aiohttp import HttpxAiohttpClient

from luma_poll import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    InvalidResponseError,
    LumaClient,
    LumaError,
    Poller,
    PollEvent,
    PollTimeoutError,
    ServerError,
)
from luma_poll._client.connections import MAX_ANSWER, MAX_GETS
from tests.client.servers import (
    COMPLETED,
    FAULTS,
    PAGE,
    QUEUED,
    SOON,
    TOKEN,
    Connection,
    Server,
    answer,
    client_of,
    completed,
    eventually,
    hang,
    http,
    patiently,
    read_request,
    reset,
    serve,
    short_if_it_hangs,
)
from tests.fakes import ID, URL

HttpClient = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient | None]]
HTTP_CLIENTS = [
    pytest.param(contextlib.nullcontext, id="default"),
    pytest.param(httpx.AsyncClient, id="http_client"),
]
ANY_HTTP_CLIENT = [*HTTP_CLIENTS, pytest.param(HttpxAiohttpClient, id="aiohttp")]


# --- what a server may do with a connection ------------------------------------------------------


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
@pytest.mark.filterwarnings("ignore:the API key will be sent")
async def test_a_name_that_does_not_resolve_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait goes on, and has the outputs as soon as the name is known again."""
    resolve, tries = socket.getaddrinfo, count(1)

    def resolver(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("api.test", b"api.test"):
            return resolve(host, *args, **options)
        if next(tries) < 4:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return resolve("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    async with serve(completed) as server, client_of(f"http://api.test:{server.port}/v1") as client:
        assert await Poller(client, wait=SOON).wait(ID, timeout=25)
    assert next(tries) == 5


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 has to be made elsewhere")
@pytest.mark.filterwarnings("ignore:the API key will be sent")
async def test_an_address_that_swallows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As IPv6 does behind many routers: the next address is tried beside it, after a moment."""
    async with serve(completed) as server:
        with ExitStack() as sockets:
            hole = sockets.enter_context(socket.socket())
            hole.bind(("127.0.0.2", server.port))
            hole.listen(0)
            for _ in range(4):  # its queue is full: what comes now is dropped
                filling = sockets.enter_context(socket.socket())
                filling.setblocking(False)
                filling.connect_ex(("127.0.0.2", server.port))
            addresses = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, server.port))
                for address in ("127.0.0.2", "127.0.0.1")
            ]
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: addresses)
            async with client_of(f"http://api.test:{server.port}/v1", timeout=5) as client:
                assert await client.generations.get(ID)


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
