"""Guards for what belongs to one event loop and must not be used in another."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from anyio.lowlevel import current_token

from luma_poll.errors import ConfigurationError

T = TypeVar("T")


class LoopGuard:
    """A guard that notices when an object is used in another event loop than before.

    Connections and locks only work in the event loop in which they were created. Their owner calls
    `enter` before each use, and creates new ones when it returns True:

        if self._guard.enter():
            self._slots = anyio.Semaphore(100)

    Args:
        owner: The name of the guarded class, for the message.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._loop: weakref.ref[Any] | None = None
        self._pid = 0
        self._lock = threading.Lock()  # event loops run in threads

    def enter(self) -> bool:
        """Claim the object for this event loop.

        A loop that no longer runs has lost its claim, closed or not.

        Returns:
            True on the first call in this event loop: create again what belonged to another one.

        Raises:
            ConfigurationError: Another event loop that still runs has claimed it.
        """
        token: Any = current_token()
        loop = getattr(token, "native_token", token)  # anyio before 4.11 returns the native one
        if self._loop is not None and self._loop() is loop:
            return False
        with self._lock:
            if self._is_taken():
                raise ConfigurationError(
                    f"this {self._owner} is in use in another event loop, which still runs: "
                    f"create a {self._owner} for each event loop, and so for each thread"
                )
            self._loop, self._pid = weakref.ref(loop), os.getpid()
        return True

    def _is_taken(self) -> bool:
        # After a fork, the event loop of the parent runs in the parent only.
        forked = self._pid != os.getpid()
        return self._loop is not None and not forked and _runs(self._loop())


class PerLoop(Generic[T]):
    """An object that belongs to one event loop, and is made again in another.

    Args:
        owner: The name of the class that keeps it, for the message.
        make: Makes the object.

    Attributes:
        kept: The object of the event loop in which it was used last.
    """

    def __init__(self, owner: str, make: Callable[[], T]) -> None:
        self._guard = LoopGuard(owner)
        self._make = make
        self.kept: T = make()

    def enter(self) -> T:
        """Return the object of this event loop; make it if there is none.

        Raises:
            ConfigurationError: Another event loop that still runs has claimed it.
        """
        if self._guard.enter():
            self.kept = self._make()
        return self.kept


def _runs(loop: Any) -> bool:
    if hasattr(loop, "is_running"):  # asyncio's, uvloop's
        return bool(loop.is_running())
    if not hasattr(loop, "run_sync_soon"):  # neither trio's (below) nor alive
        return False
    try:
        loop.run_sync_soon(_nothing, idempotent=True)
    except RuntimeError:  # trio.RunFinishedError
        return False
    return True


def _nothing() -> None:
    pass
