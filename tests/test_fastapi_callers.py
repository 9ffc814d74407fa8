"""luma-poll in a FastAPI app: callers that send slowly, much, or nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, HTTPException, Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tenacity import wait_fixed

from luma_poll import Poller, PollTimeoutError
from luma_poll._fastapi.callers import MOST_KEPT, PATIENCE, Caller
from luma_poll.fastapi import PollerDep, add_error_handlers
from tests.fakes import ID, FakeClient
from tests.fastapi_apps import Order


@dataclass
class Exchange:
    """One request as a server hands it to an app: pieces of a body, then nothing more."""

    pieces: Iterator[bytes] = field(default_factory=lambda: iter([b""]))
    last: bytes | None = None  # piece; None: it never comes
    taken: int = 0
    sent: list[Message] = field(default_factory=list)
    over: anyio.Event = field(default_factory=anyio.Event)

    async def receive(self) -> Message:
        for piece in self.pieces:
            self.taken += len(piece)
            return {"type": "http.request", "body": piece, "more_body": True}
        if self.last is not None:
            piece, self.last = self.last, None
            self.taken += len(piece)
            return {"type": "http.request", "body": piece, "more_body": False}
        if not self.over.is_set():
            await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.over.set()

    async def run(self, app: FastAPI, poller: Poller) -> int:
        """Have the app answer it; gives the status."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "state": {"luma_poller": poller},
        }
        await app(scope, self.receive, self.send)
        return int(self.sent[0]["status"])


def app_at(handler: Callable[..., Any]) -> FastAPI:
    """An app that has nothing but this handler."""
    app = FastAPI()
    add_error_handlers(app)
    app.post("/")(handler)
    return app


async def wait_nine_seconds(poller: PollerDep) -> None:
    """A handler."""
    await poller.wait(ID, timeout=9)


def poller_of(*answers: Any) -> Poller:
    return Poller(FakeClient(*answers), wait=wait_fixed(1))


@pytest.mark.anyio
async def test_a_body_without_end_does_not_fill_the_memory() -> None:
    """So much of it is taken as a form has; the wait begins at once, and ends in its time."""
    exchange = Exchange(b"x" * 65536 for _ in range(1000))
    began = anyio.current_time()
    assert await exchange.run(app_at(wait_nine_seconds), poller_of("queued")) == 504
    assert anyio.current_time() - began < 10
    assert exchange.taken <= 512 * 1024


@pytest.mark.anyio
async def test_a_body_that_never_comes_holds_nothing_up() -> None:
    """The wait begins at once, and ends in its time."""
    exchange = Exchange(iter(()))
    began = anyio.current_time()
    assert await exchange.run(app_at(wait_nine_seconds), poller_of("queued")) == 504
    assert anyio.current_time() - began < 10


@pytest.mark.anyio
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_has_come_costs_a_wait_no_time(declared: bool) -> None:
    """Whether FastAPI has read it or nobody has."""
    exchange = Exchange(iter(()), last=b'{"prompt": "a fox"}')

    async def handler(poller: PollerDep) -> None:
        await poller.wait(ID)

    async def handler_with_body(order: Order, poller: PollerDep) -> None:
        await poller.wait(ID)

    app = app_at(handler_with_body if declared else handler)
    began = anyio.current_time()
    assert await exchange.run(app, poller_of("queued", "completed")) == 200
    assert anyio.current_time() - began == pytest.approx(1)


@pytest.mark.anyio
async def test_a_client_that_hangs_up_in_the_middle_of_its_body_ends_the_wait() -> None:
    """As one does that has sent all of it."""
    exchange = Exchange(iter([b"the first half"]))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, app_at(wait_nine_seconds), poller_of("queued"))
        await anyio.sleep(2)
        assert not exchange.sent
        exchange.over.set()
        await anyio.sleep(0.01)
        assert exchange.sent[0]["status"] == 499


@pytest.mark.anyio
async def test_a_long_body_can_be_read_after_a_wait() -> None:
    """Byte for byte, and from then on the client is listened to again."""
    pieces = [bytes([number]) * 10_000 for number in range(100)]
    exchange = Exchange(iter(pieces), last=b"end")
    read: list[bytes] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        with pytest.raises(PollTimeoutError):
            await poller.wait(ID, timeout=9)
        assert exchange.taken < 500_000
        read.append(await request.body())
        await poller.wait(ID, timeout=None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, app_at(handler), poller_of("queued"))
        await anyio.sleep(20)
        assert read == [b"".join([*pieces, b"end"])]
        assert not exchange.sent
        exchange.over.set()
        await anyio.sleep(0.01)
        assert exchange.sent[0]["status"] == 499


@pytest.mark.anyio
async def test_one_task_may_read_while_another_waits() -> None:
    """Neither takes a piece from the other."""
    exchange = Exchange((b"x" * 1000 for _ in range(1000)), last=b"end")
    read: list[bytes] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        async def wait() -> None:
            await poller.wait(ID)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            async for piece in request.stream():
                read.append(piece)
                await anyio.sleep(0.01)

    assert await exchange.run(app_at(handler), poller_of("queued", (2, "completed"))) == 200
    assert b"".join(read) == b"x" * 1_000_000 + b"end"


@pytest.mark.anyio
async def test_what_a_middleware_says_of_a_body_reaches_the_handler() -> None:
    """A limit of the app's own holds: the wait goes on, and reading the body does not."""
    exchange = Exchange(iter([b"x" * 1000]))
    waited: list[int] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        waited.append(len(await poller.wait(ID)))
        await request.body()

    class Limit:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def limited() -> Message:
                if len((message := await receive())["body"]) > 100:
                    raise HTTPException(413)
                return message

            await self.app(scope, limited, send)

    app = app_at(handler)
    app.add_middleware(Limit)
    assert await exchange.run(app, poller_of("queued", "completed")) == 413
    assert waited == [1]


@pytest.mark.anyio
async def test_a_handler_can_ask_whether_the_client_is_there() -> None:
    """Starlette's `is_disconnected` hears of it between waits."""
    exchange = Exchange(iter(()), last=b"")
    heard: list[bool] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        await poller.wait(ID)
        heard.append(await request.is_disconnected())
        exchange.over.set()
        heard.append(await request.is_disconnected())

    await exchange.run(app_at(handler), poller_of("queued", "completed"))
    assert heard == [False, True]


class Server:
    """The `receive` of a server, which counts its calls and those under way."""

    def __init__(self) -> None:
        self.calls = self.under_way = 0
        self.is_gone = anyio.Event()

    async def __call__(self) -> Message:
        self.calls += 1
        self.under_way += 1
        try:
            await self.is_gone.wait()
        finally:
            self.under_way -= 1
        return {"type": "http.disconnect"}

    def caller(self) -> tuple[Caller, Request]:
        request = Request({"type": "http"}, self)
        return Caller(request), request


@pytest.mark.anyio
async def test_a_caller_that_is_let_go_leaves_the_server_alone() -> None:
    """Nothing is received any more when `let_go` returns, nor by a wait that begins later."""
    server = Server()
    caller, _ = server.caller()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller.unless_gone, anyio.sleep(5))
        await anyio.sleep(1)
        assert server.under_way == 1
        began = anyio.current_time()
        await caller.let_go()
        assert server.under_way == 0
        assert anyio.current_time() - began == pytest.approx(PATIENCE)
        await caller.unless_gone(anyio.sleep(1))
    assert server.calls == 1


@pytest.mark.anyio
async def test_a_disconnect_is_received_once() -> None:
    """By one of those that listen, or read; all others learn it from that one."""
    server = Server()
    caller, request = server.caller()
    told: list[str] = []

    async def wait() -> None:
        with pytest.raises(ClientDisconnect):
            await caller.unless_gone(anyio.sleep(60))
        told.append("wait")

    async def read() -> None:
        told.append((await request.receive())["type"])

    async with anyio.create_task_group() as tasks:
        for each in (wait, read, wait, read):
            tasks.start_soon(each)
        await anyio.sleep(1)
        server.is_gone.set()
    assert sorted(told) == ["http.disconnect"] * 2 + ["wait"] * 2
    assert server.calls == 1


@pytest.mark.anyio
async def test_a_full_body_that_is_read_during_a_wait_lets_it_listen_again() -> None:
    """It paused when it had kept as much as it may; then the client hangs up."""
    messages: list[Message] = [
        {"type": "http.request", "body": b"x" * MOST_KEPT, "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        await anyio.sleep(0.01)
        return messages.pop(0)

    request = Request({"type": "http"}, receive)
    caller = Caller(request)
    async with anyio.create_task_group() as tasks:

        async def read() -> None:
            await anyio.sleep(1)
            assert len((await request.receive())["body"]) == MOST_KEPT

        tasks.start_soon(read)
        began = anyio.current_time()
        with pytest.raises(ClientDisconnect):
            await caller.unless_gone(anyio.sleep(60))
        assert anyio.current_time() - began == pytest.approx(1.01)
