"""A call into the event loop, and the work of the thread that waits for it."""

from __future__ import annotations

import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, Self, TypeVar

import anyio

from luma_poll._sync.portal import Portal
from luma_poll.errors import ConfigurationError

T = TypeVar("T")

_END: Any = object()
_PATIENCE = 0.1 if sys.platform == "win32" else None
"""Seconds between looks: on Windows, Ctrl-C does not reach a thread that sleeps on a lock."""


class Call(Generic[T]):
    """One coroutine in the loop, and the thread that waits for it.

    Meanwhile the coroutine may send the thread on errands: to take an item from an iterable, which
    may only work in that thread, or to yield one.

    Args:
        portal: The way into the loop.
        function: An async function, called in the loop with this call.
    """

    def __init__(self, portal: Portal, function: Callable[[Call[T]], Awaitable[T]]) -> None:
        self._portal = portal
        self._function = function
        # The thread sleeps on this queue only, so that Ctrl-C reaches it. None ends the call.
        self._inbox = SimpleQueue[_Errand | None]()
        self._scope: anyio.CancelScope | None = None
        self._has_ended = self._has_result = False
        self._result: T
        self._error: Exception | None = None
        self._is_given_up = False  # True when the thread has stopped waiting for the result

    # --- in the loop

    async def pull(self, items: Iterable[object]) -> AsyncGenerator[Any]:
        """Yield the items, each taken by the thread when it is asked for."""
        iterator = await self._send(_Errand(lambda: iter(items)))
        while (item := await self._send(_Errand(lambda: next(iterator, _END)))) is not _END:
            yield item

    async def hand_over(self, item: object) -> None:
        """Let the thread yield this; return when it asks for the next one."""
        await self._send(_Errand(None, item))

    async def _send(self, errand: _Errand) -> Any:
        self._inbox.put(errand)
        await errand.done.wait()
        if errand.error is not None:
            raise errand.error
        return errand.value

    async def _run(self) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                if not self._is_given_up:
                    self._result = await self._function(self)
                    self._has_result = True
        except Exception as error:
            self._error = error
        finally:
            self._has_ended = True
            self._inbox.put(None)

    def _give_up(self) -> None:
        self._is_given_up = True
        if self._scope is not None:
            self._scope.cancel()

    # --- in the thread

    def result(self) -> T:
        """Wait for the end."""
        steps = self.steps()
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result

    def steps(self) -> Generator[Any, None, T]:
        """Yield what is handed over, then return the result.

        If it is left early, for example by Ctrl-C, it cancels the coroutine and waits for its end.
        """
        try:
            self._portal.start(self._run)
            while (errand := self._receive()) is not None:
                if errand.function is None:
                    yield errand.value
                else:
                    errand.perform()
                self._portal.run(errand.done.set)
        finally:
            if not self._has_ended:
                self._leave()
        return self._outcome()

    def _receive(self) -> _Errand | None:
        while True:
            with suppress(Empty):
                return self._inbox.get(timeout=_PATIENCE)

    def _outcome(self) -> T:
        error, self._error = self._error, None
        if self._has_result:
            return self._result
        if error is None:
            error = ConfigurationError(
                f"this {self._portal.owner} was closed during the call. What was submitted may "
                "still finish, and be billed: wait for it again by its id"
            )
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, which would hold the error: a cycle

    def _leave(self) -> None:
        # The garbage collector may close an iterator in the loop's own thread, where waiting for
        # the loop would be a deadlock.
        if self._portal.is_here():
            self._give_up()
            return
        try:
            self._portal.run(self._give_up)
        except ConfigurationError:  # the portal was closed, which cancels all; or this is a fork
            return
        while self._scope is not None and not self._has_ended:
            self._receive()


class _Errand:
    """A task for the thread: to call a function for the coroutine, or to yield a value."""

    def __init__(self, function: Callable[[], object] | None, value: object = None) -> None:
        self.function = function
        self.value = value
        self.error: Exception | None = None
        self.done = anyio.Event()

    def perform(self) -> None:
        """Call the function, in the thread."""
        assert self.function is not None
        try:
            self.value = self.function()
        except Exception as error:
            self.error = error


class SyncIterator(Iterator[T], Generic[T]):
    """An iterator that waits for each item, and that can be closed, also as a context manager.

    Closing it cancels the waits that are under way. It closes itself at its end, and when a loop is
    left by `break`, unless you keep it.

    Args:
        portal: The way into the loop.
        open_items: A function, called in the loop with the call, that opens the async iterator.
        owner: The session, kept alive because its event loop ends with it.
    """

    def __init__(
        self,
        portal: Portal,
        open_items: Callable[[Call[None]], AbstractAsyncContextManager[AsyncIterator[T]]],
        owner: object,
    ) -> None:
        async def hand_over_each(call: Call[None]) -> None:
            async with open_items(call) as items:
                async for item in items:
                    await call.hand_over(item)

        self._steps: Generator[T, None, None] = Call(portal, hand_over_each).steps()
        self._owner = owner

    def __next__(self) -> T:
        return next(self._steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is under way. A second call does nothing."""
        self._steps.close()
