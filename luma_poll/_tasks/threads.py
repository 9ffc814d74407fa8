"""Threads for blocking calls, reserved for this library."""

from __future__ import annotations

import anyio
from anyio.lowlevel import RunVar

THREADS = 8
"""The most threads per event loop that work for this library at the same time."""
_limiters: RunVar[anyio.CapacityLimiter] = RunVar("luma_poll_threads")


def own_threads() -> anyio.CapacityLimiter:
    """Return the limiter of this event loop, for `anyio.to_thread.run_sync`.

    anyio's own 40 threads belong to the app: FastAPI's handlers that are written with `def` run
    there, and all 40 may be waiting for a download that would need one more.
    """
    try:
        return _limiters.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _limiters.set(limiter)
        return limiter
