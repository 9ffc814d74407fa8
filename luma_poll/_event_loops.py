"""Which event loop is this, and does the one before still run?"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from anyio.lowlevel import current_token

from luma_poll.errors import ConfigurationError


class LoopGuard:
    """Notices when what belongs to one event loop is used in another.

    Connections and locks are of use in the event loop alone in which they were made. Whoever keeps
    some calls `enter` before each use, and makes them anew when it says so::

        if self._guard.enter():
            self._slots = anyio.Semaphore(100)

    Args:
        owner: What is guarded, for the message: a class of ours.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._loop: weakref.ref[Any] | None = None
        self._pid = 0
        self._lock = threading.Lock()  # event loops run in threads

    def enter(self) -> bool:
        """True for the first time in this event loop: make anew what belonged to an earlier one.

        An event loop that does not run any more, whether it is closed or not, has lost its claim.

        Raises:
            ConfigurationError: Another event loop is at it, and still runs.
        """
        token: Any = current_token()
        loop = getattr(token, "native_token", token)  # anyio below 4.11 has the native one alone
        if self._loop is not None and self._loop() is loop:
            return False
        with self._lock:
            if self._is_taken():
                raise ConfigurationError(
                    f"this {self._owner} is in use in another event loop, which still runs: "
                    f"make a {self._owner} for each event loop, and so for each thread"
                )
            self._loop, self._pid = weakref.ref(loop), os.getpid()
        return True

    def _is_taken(self) -> bool:
        # After a fork, the parent's event loop runs in the parent alone.
        forked = self._pid != os.getpid()
        return self._loop is not None and not forked and _runs(self._loop())


def _runs(loop: Any) -> bool:
    if hasattr(loop, "is_running"):  # asyncio's, uvloop's
        return bool(loop.is_running())
    if not hasattr(loop, "run_sync_soon"):  # trio's, below; or None: nobody has it any more
        return False
    try:
        loop.run_sync_soon(_nothing, idempotent=True)
    except RuntimeError:  # trio.RunFinishedError
        return False
    return True


def _nothing() -> None:
    pass
