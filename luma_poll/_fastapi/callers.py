"""The clients of an ASGI app, and how to notice that one has hung up during a wait for Luma.

Needs Starlette.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import anyio
from anyio.lowlevel import checkpoint_if_cancelled
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from luma_poll._tasks.beside import tasks_beside

T = TypeVar("T")

MOST_KEPT = 256 * 1024
"""Bytes of a body that are kept: enough for a form, and few enough for hundreds of requests."""
PATIENCE = 0.1
"""Seconds in which a listener may finish: a piece of a body passes middlewares in far less."""


class Inbox:
    """The messages of one request, for a listener that reads ahead and for the handler.

    Args:
        receive: The server's own `receive`, which only this may call from now on.
        more_body: True if some of the body is still to come.
    """

    def __init__(self, receive: Receive, *, more_body: bool) -> None:
        self._receive = receive
        self._receiving = anyio.Lock()  # of two concurrent calls, only one would get a disconnect
        self._listening = anyio.CancelScope()
        self._body = bytearray()
        self._more_body = more_body
        self._unread = False  # the handler has a piece of the body to read, perhaps an empty one
        self._was_read = anyio.Event()
        self._end: Message | Exception | None = None

    async def receive(self) -> Message:
        """Return the next message for the handler, in place of the server's own `receive`."""
        while not (self._unread or self._end):
            try:
                # Not acquire(), which begins with a checkpoint. Starlette's is_disconnected() calls
                # this in a scope that is already cancelled, to get only what is there at once.
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
        """Listen until the client hangs up; return False if that cannot be known.

        It pauses while `MOST_KEPT` bytes of an unfinished body are unread, so that the server stops
        reading from the client. The caller that cancels it must also call `stop_soon`.
        """
        while self._end is None:
            if self._is_full():
                await self._was_read.wait()
            async with self._receiving:
                await checkpoint_if_cancelled()
                if not (self._end or self._is_full()):
                    # Starlette's BaseHTTPMiddleware loses a message that comes during a
                    # cancellation.
                    with anyio.CancelScope(shield=self._more_body) as self._listening:
                        await self._take()
        return not isinstance(self._end, Exception)

    def stop_soon(self) -> None:
        """Let listeners finish with the piece of the body that is already on its way."""
        self._listening.deadline = anyio.current_time() + PATIENCE

    def _is_full(self) -> bool:
        return self._more_body and len(self._body) >= MOST_KEPT

    async def _take(self) -> None:
        try:
            message = await self._receive()
        except Exception as error:  # raised by a middleware, such as one that limits bodies
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
    """The client behind one request. When it hangs up, the waits of the handler end.

    Args:
        request: The handler's request, whose body is read through this from now on.
    """

    def __init__(self, request: Request) -> None:
        # Starlette has no public way to tell that a body was read, or to put one back.
        self._inbox = Inbox(request.receive, more_body=not request._stream_consumed)
        request._receive = self._inbox.receive
        self._listeners: dict[anyio.CancelScope, anyio.Event] = {}
        self._let_go = False

    async def unless_gone(self, awaitable: Awaitable[T]) -> T:
        """Await something; cancel it when the client hangs up.

        Raises:
            ClientDisconnect: The client has hung up.
        """
        async with tasks_beside() as tasks:
            tasks.start_soon(self._listen, tasks.cancel_scope)
            try:
                return await awaitable
            finally:
                tasks.cancel_scope.cancel()
                self._inbox.stop_soon()
        raise ClientDisconnect

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
        """Stop listening, and give the server's `receive` back to Starlette.

        Waits under way continue, even if the client hangs up.
        """
        self._let_go = True
        listeners = dict(self._listeners)
        for listening in listeners:
            listening.cancel()
        self._inbox.stop_soon()
        for ended in listeners.values():
            await ended.wait()
