"""The client that waits for an answer of an ASGI app: it is heard while the app waits for Luma.

Needs Starlette.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

T = TypeVar("T")

MOST_KEPT = 256 * 1024  # bytes: a form fits, and hundreds of them fit into a server
PATIENCE = 0.1  # seconds: a piece of a body is on its way through middlewares for far less


class Inbox:
    """The messages of one request: listeners hear them early, and its handler misses none.

    Args:
        receive: The server's, which nobody else may call from now on.
        more_body: Whether there is any of the body to come.
    """

    def __init__(self, receive: Receive, *, more_body: bool) -> None:
        self._receive = receive
        self._receiving = anyio.Lock()  # a server tells only one listener that they have gone
        self._listening = anyio.CancelScope()
        self._body = bytearray()
        self._more_body = more_body
        self._unread = False  # there is a piece of the body for the handler, which may be empty
        self._was_read = anyio.Event()
        self._end: Message | Exception | None = None

    async def receive(self) -> Message:
        """The next message for the handler, in place of the server's own `receive`."""
        while not (self._unread or self._end):
            try:
                # Not acquire(): Starlette's is_disconnected(), which asks only for what is there,
                # is cancelled beforehand, and would not get as far as to ask.
                self._receiving.acquire_nowait()
            except anyio.WouldBlock:
                await self._receiving.acquire()
            try:
                if not (self._unread or self._end):
                    await self._take()
            finally:
                self._receiving.release()
        if self._unread:
            return self._hand_over()
        if isinstance(self._end, Exception):
            raise self._end
        assert self._end is not None
        return self._end

    async def until_gone(self) -> bool:
        """Listen until the client hangs up; False if that cannot be known.

        It pauses while `MOST_KEPT` bytes of an unfinished body are unread: the server then takes
        no more from the client. Whoever cancels it calls `stop_soon` too.
        """
        while self._end is None:
            if self._is_full():
                await self._was_read.wait()
            async with self._receiving:
                await checkpoint_if_cancelled()
                if not (self._end or self._is_full()):
                    # Starlette's BaseHTTPMiddleware loses a message that comes as it is cancelled.
                    with anyio.CancelScope(shield=self._more_body) as self._listening:
                        await self._take()
        return not isinstance(self._end, Exception)

    def stop_soon(self) -> None:
        """Let listeners take the piece of the body that is on its way, but wait for none."""
        self._listening.deadline = anyio.current_time() + PATIENCE

    def _is_full(self) -> bool:
        return self._more_body and len(self._body) >= MOST_KEPT

    async def _take(self) -> None:
        try:
            message = await self._receive()
        except Exception as error:  # of a middleware, such as one that limits bodies
            self._end = error
            return
        if message["type"] == "http.disconnect":
            self._end = message
        else:
            self._body += message.get("body", b"")
            self._more_body = message.get("more_body", False)
            self._unread = True

    def _hand_over(self) -> Message:
        body = bytes(self._body)
        self._body.clear()
        self._unread = False
        self._was_read.set()
        self._was_read = anyio.Event()
        return {"type": "http.request", "body": body, "more_body": self._more_body}


class Caller:
    """The client behind one request: when it hangs up, the waits of its handler end.

    Args:
        request: The handler's, which reads its body through this from now on.
    """

    def __init__(self, request: Request) -> None:
        # Starlette has no public way to learn that a body has been read, nor to give one back.
        self._inbox = Inbox(request.receive, more_body=not request._stream_consumed)
        request._receive = self._inbox.receive
        self._listeners: dict[anyio.CancelScope, anyio.Event] = {}
        self._let_go = False

    async def unless_gone(self, awaitable: Awaitable[T]) -> T:
        """Await it; cancel it when the client hangs up.

        Raises:
            ClientDisconnect: It did.
        """
        if self._let_go:
            return await awaitable
        results: list[T] = []
        error = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, tasks.cancel_scope)
            try:
                results.append(await awaitable)
            except Exception as raised:
                error = raised  # the task group would wrap it
            finally:
                tasks.cancel_scope.cancel()
                self._inbox.stop_soon()
        if error is not None:
            raise error
        if not results:
            raise ClientDisconnect
        return results[0]

    async def _listen(self, wait: anyio.CancelScope) -> None:
        if self._let_go:
            return
        with anyio.CancelScope() as listening:
            ended = self._listeners[listening] = anyio.Event()
            try:
                if await self._inbox.until_gone():
                    wait.cancel()
            finally:
                del self._listeners[listening]
                ended.set()

    async def let_go(self) -> None:
        """Stop listening: from here on the server's `receive` is Starlette's own again.

        Waits under way go on, whether the client is there or not.
        """
        self._let_go = True
        listeners = dict(self._listeners)
        for listening in listeners:
            listening.cancel()
        self._inbox.stop_soon()
        for ended in listeners.values():
            await ended.wait()
