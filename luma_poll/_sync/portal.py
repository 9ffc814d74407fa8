"""An event loop in a thread of its own, and the way into it from other threads."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from contextvars import Context
from typing import TypeVar

import anyio
from anyio.from_thread import BlockingPortal
from anyio.lowlevel import current_token

from luma_poll.errors import ConfigurationError

T = TypeVar("T")


def refuse_in_event_loop(instead: str) -> None:
    """Refuse to block an event loop.

    Args:
        instead: The code to write there, such as `await poller.wait(...)`.

    Raises:
        ConfigurationError: An event loop runs in this thread.
    """
    try:
        current_token()
    except RuntimeError:  # the base of anyio's and sniffio's errors for "there is none"
        return
    raise ConfigurationError(
        f"an event loop runs in this thread, and this call would block it: write `{instead}`, "
        "with the Poller, Runner and LumaClient of luma_poll"
    )


class Portal:
    """An event loop in a thread of its own, which starts with the first call.

    anyio's `start_blocking_portal` is a generator. If the garbage collector closes it after the
    loop is gone, in a forked process or at exit, it waits for that loop for ever.

    Args:
        owner: The name of the class that owns it, for messages.
        context: A context manager that is held open in the loop, such as a client.
    """

    def __init__(self, owner: str, context: AbstractAsyncContextManager[object]) -> None:
        self.owner = owner
        self._context = context
        # While it is held, the loop keeps running. It is reentrant, because a signal handler may
        # call `close` in a thread that already holds it.
        self._lock = threading.RLock()
        self._started: Future[BlockingPortal] = Future()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._closed = self._is_exiting = False

    def check(self) -> None:
        """Refuse a call after `close` or after a fork.

        Raises:
            ConfigurationError: It is closed, or this process was forked from the one it runs in.
        """
        if self._is_elsewhere():
            raise ConfigurationError(
                f"this {self.owner} was in use before the process was forked, and its thread runs "
                f"only in the parent: make a {self.owner} in each process, after the fork "
                "(with Celery, at the signal worker_process_init)"
            )
        if self._closed:
            raise ConfigurationError(f"this {self.owner} is closed: make another one")

    def run(self, function: Callable[[], T]) -> T:
        """Run a function in the loop, and return its result.

        Raises:
            ConfigurationError: It is closed, or this is a forked process.
        """
        with self._open() as portal:
            return portal.call(function)

    def read(self, function: Callable[[], T]) -> T:
        """Run a function in the loop if that runs, else here: for reading what the loop changes."""
        if self._thread is not None and not self.is_here():
            with suppress(ConfigurationError):
                return self.run(function)
        return function()

    def start(self, function: Callable[[], Awaitable[object]]) -> None:
        """Start a task in the loop, with the context variables of this thread.

        Raises:
            ConfigurationError: It is closed, or this is a forked process.
        """
        with self._open() as portal:
            portal.start_task_soon(function)

    @contextmanager
    def _open(self) -> Iterator[BlockingPortal]:
        """Yield the way into the loop, which cannot be closed during the block."""
        self.check()
        with self._lock:
            self.check()
            try:
                yield self._running()
            except RuntimeError as error:  # the loop has ended: a callback raised SystemExit
                raise ConfigurationError(f"the event loop of this {self.owner} ended") from error

    def is_here(self) -> bool:
        """Return True in the thread of the loop."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel the tasks in the loop, and end it with its thread. A second call does nothing.

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
            with suppress(RuntimeError):  # the loop has already ended
                portal.call(portal.stop, True)
        self._thread.join()

    def close_soon(self) -> None:
        """Close it in another thread: the garbage collector's must not wait."""
        if self._thread is not None and not self._closed and not self._is_elsewhere():
            threading.Thread(target=self.close, daemon=True).start()

    def _is_elsewhere(self) -> bool:
        return self._thread is not None and self._pid != os.getpid()

    def _running(self) -> BlockingPortal:
        if self._thread is None:
            atexit.register(self._leave_at_exit)
            self._pid = os.getpid()
            # A daemon, so that a program that forgets to close it can exit. Assigned before it is
            # started: a Ctrl-C in between must not lead to a second thread.
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
        # From now on the thread may no longer run, so iterators that are closed must not wait.
        self._closed = self._is_exiting = True

    def _run(self) -> None:
        try:
            # An empty context: since Python 3.14 a thread may inherit that of its parent.
            Context().run(anyio.run, self._main)
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _main(self) -> None:
        async with self._context, BlockingPortal() as portal:
            self._started.set_result(portal)
            await portal.sleep_until_stopped()
