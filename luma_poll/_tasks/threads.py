"""Threads for what blocks, which nobody else can use up."""

from __future__ import annotations

import anyio
from anyio.lowlevel import RunVar

THREADS = 8
"""Threads of one event loop that work for this library at the same time."""
_limiters: RunVar[anyio.CapacityLimiter] = RunVar("luma_poll_threads")


def own_threads() -> anyio.CapacityLimiter:
    """Return the limiter of this event loop, for `anyio.to_thread.run_sync`.

    anyio's own 40 threads belong to the app: handlers of FastAPI that are written with `def` run
    there, and may all be waiting for a download that needs one more.
    """
    try:
        return _limiters.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(THREADS)
        _limiters.set(limiter)
        return limiter
