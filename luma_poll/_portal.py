"""An event loop in a thread of its own, for programs that have none: the way into it and back."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import anyio
from anyio.from_thread import BlockingPortal
from anyio.lowlevel import current_token

from luma_poll.errors import ConfigurationError

T = TypeVar("T")

_END: Any = object()
_PATIENCE = 0.1 if sys.platform == "win32" else None
"""Seconds: on Windows Ctrl-C does not reach a thread that sleeps on a lock."""


def refuse_in_event_loop(instead: str) -> None:
    """Refuse to block an event loop.

    Args:
        instead: What to write there, such as `await poller.wait(...)`.

    Raises:
        ConfigurationError: One runs in this thread.
    """
    try:
        current_token()
    except RuntimeError:  # anyio's and sniffio's errors for "there is none" are both this
        return
    raise ConfigurationError(
        f"an event loop runs in this thread, and this call would block it: write `{instead}`, "
        "with the Poller, Runner and LumaClient of luma_poll"
    )


class Portal:
    """An event loop in a thread of its own. It starts with the first call.

    anyio's `start_blocking_portal` is a generator, which would wait for ever for a loop that is
    gone where the collector closes it: in a forked process, and while the interpreter exits.

    Args:
        owner: Whose it is, for messages: a class of ours.
        context: Held open in the loop, such as a client.
    """

    def __init__(self, owner: str, context: AbstractAsyncContextManager[object]) -> None:
        self.owner = owner
        self._context = context
        # Whoever holds it knows that the loop runs. A signal handler may close what its own thread
        # is using, so it can be taken twice.
        self._lock = threading.RLock()
        self._started: Future[BlockingPortal] = Future()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = self._is_exiting = False

    def check(self) -> None:
        """Refuse what cannot work any more.

        Raises:
            ConfigurationError: It is closed, or this process was forked from the one it runs in.
        """
        if self._is_elsewhere():
            raise ConfigurationError(
                f"this {self.owner} was in use before the process was forked, and its thread runs "
                f"in the parent alone: make a {self.owner} in each process, after the fork "
                "(with Celery, at the signal worker_process_init)"
            )
        if self._closed:
            raise ConfigurationError(f"this {self.owner} is closed: make another one")

    def run(self, function: Callable[[], object]) -> None:
        """Run a function in the loop.

        Raises:
            ConfigurationError: As `check`.
        """
        self.check()
        with self._lock:
            self.check()
            try:
                self._running().call(function)
            except RuntimeError as error:  # it has ended by itself: a callback raised SystemExit
                raise ConfigurationError(f"the event loop of this {self.owner} ended") from error

    def start(self, function: Callable[[], Awaitable[object]]) -> None:
        """Start a task in the loop, in the context of this thread.

        Raises:
            ConfigurationError: As `check`.
        """
        self.check()
        with self._lock:
            self.check()
            try:
                self._running().start_task_soon(function)
            except RuntimeError as error:
                raise ConfigurationError(f"the event loop of this {self.owner} ended") from error

    def is_here(self) -> bool:
        """True in the thread of the loop."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel the tasks in the loop, and end it with its thread. Harmless if it is closed.

        Raises:
            ConfigurationError: This is the thread of the loop.
        """
        if self.is_here():
            raise ConfigurationError(f"this {self.owner} cannot be closed by its own callback")
        if self._is_exiting or self._is_elsewhere():
            return
        atexit.unregister(self._leave_at_exit)
        with self._lock:
            self._closed = True
            if self._thread is None:
                return
            portal = self._started.result()
            with suppress(RuntimeError):  # it has ended by itself
                portal.call(portal.stop, True)
        self._thread.join()

    def close_soon(self) -> None:
        """Close it in another thread, from whatever thread the collector runs in."""
        if self._thread is not None and not self._closed and not self._is_elsewhere():
            threading.Thread(target=self.close, daemon=True).start()

    def _is_elsewhere(self) -> bool:
        return self._thread is not None and self._pid != os.getpid()

    def _running(self) -> BlockingPortal:
        if self._thread is None:
            atexit.register(self._leave_at_exit)
            self._pid = os.getpid()
            # A daemon: nobody who forgets to close it waits for it at exit. Kept before it starts:
            # if Ctrl-C comes meanwhile, it has started all the same.
            self._thread = threading.Thread(
                target=self._run, name=f"luma-poll {self.owner}", daemon=True
            )
            try:
                self._thread.start()
            except RuntimeError:  # no more threads
                self._thread = None
                raise
        return self._started.result()

    def _leave_at_exit(self) -> None:
        # From now on the thread may stand still, while the collector closes iterators.
        self._closed = self._is_exiting = True

    def _run(self) -> None:
        try:
            Context().run(anyio.run, self._main)  # Python 3.14 may hand a thread its parent's
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _main(self) -> None:
        async with self._context, BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()


class Call(Generic[T]):
    """One coroutine in the loop, and the thread that waits for it.

    The coroutine may send the thread on errands meanwhile: take an item of an iterable, which may
    know only that thread, or yield one.

    Args:
        portal: The way into the loop.
        function: Called in the loop, with this call.
    """

    def __init__(self, portal: Portal, function: Callable[[Call[T]], Awaitable[T]]) -> None:
        self._portal = portal
        self._function = function
        # The thread sleeps on this alone, so that Ctrl-C reaches it. None: the task has ended.
        self._inbox = SimpleQueue[_Errand | None]()
        self._scope: anyio.CancelScope | None = None
        self._has_ended = self._has_result = False
        self._result: T
        self._error: Exception | None = None
        self.given_up = False
        """True if nobody waits for the result any more."""

    # --- in the loop

    async def pull(self, items: Iterable[Any]) -> AsyncGenerator[Any]:
        """The items, which the thread takes one by one, when each is asked for."""
        iterator = await self._send(_Errand(lambda: iter(items)))
        while (item := await self._send(_Errand(lambda: next(iterator, _END)))) is not _END:
            yield item

    async def hand_over(self, item: object) -> None:
        """Let the thread yield this; returns when it comes for the next one."""
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
                if not self.given_up:
                    self._result = await self._function(self)
                    self._has_result = True
        except Exception as error:
            self._error = error
        finally:
            self._has_ended = True
            self._inbox.put(None)

    def _give_up(self) -> None:
        self.given_up = True
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

        Left early, for example by Ctrl-C, it cancels the coroutine, and waits for the end of that.
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
                f"this {self._portal.owner} was closed during the call. A generation that is under "
                "way may still finish: wait for it again by its id"
            )
        try:
            raise error
        finally:
            del error  # with its traceback it would keep this frame alive, and itself

    def _leave(self) -> None:
        if self._portal.is_here():  # the collector closes an iterator, in whatever thread it runs
            self._give_up()
            return
        try:
            self._portal.run(self._give_up)
        except ConfigurationError:  # closed: that has cancelled it; or this is a forked process
            return
        while self._scope is not None and not self._has_ended:
            self._receive()


class _Errand:
    """Something that the thread is to do, or to yield, for a coroutine."""

    def __init__(self, function: Callable[[], object] | None, value: object = None) -> None:
        self.function = function
        self.value = value
        self.error: Exception | None = None
        self.done = anyio.Event()

    def perform(self) -> None:
        """Do it, in the thread."""
        assert self.function is not None
        try:
            self.value = self.function()
        except Exception as error:
            self.error = error
