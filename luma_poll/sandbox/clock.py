"""The sandbox's clock: anyio's, so it is virtual if the event loop's is."""

import time

import anyio
from anyio.lowlevel import RunVar


def is_reached(moment: float, now: float) -> bool:
    """Return True from `moment` on (both in seconds), but for rounding errors."""
    return now >= moment - 1e-6  # sums of floats may differ in their last digits


class SandboxClock:
    """Seconds since its first use, by the clock of the running event loop.

    It never goes back: a second event loop continues where the first one stopped, plus the wall
    time that passed between the two.
    """

    def __init__(self) -> None:
        self._origin = RunVar[float]("luma_poll_sandbox_origin")
        self._epoch: float | None = None
        self._latest = 0.0

    def now(self) -> float:
        """Return the seconds since the first use."""
        if self._origin.get(None) is None:
            self._origin.set(self._find_origin())
        self._latest = anyio.current_time() - self._origin.get()
        return self._latest

    def timestamp(self, moment: float) -> float:
        """Return the Unix time of a moment on this clock."""
        return (self._epoch or 0.0) + moment

    def _find_origin(self) -> float:
        wall_time = time.time()
        if self._epoch is None:
            self._epoch = wall_time
        return anyio.current_time() - max(self._latest, wall_time - self._epoch)
