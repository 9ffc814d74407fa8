"""A sleep that another task can end."""

from __future__ import annotations

import anyio


class Alarm:
    """A sleep of one task, until a time or until another task wakes it."""

    def __init__(self) -> None:
        self._woken = anyio.Event()

    async def sleep(self, until: float) -> None:
        """Sleep until this time on anyio's clock; not at all if it was woken since the last time.

        Args:
            until: Seconds on anyio's clock; inf for no limit.
        """
        with anyio.CancelScope(deadline=until):
            await self._woken.wait()
        self._woken = anyio.Event()

    def wake(self) -> None:
        """End the sleep; if nobody sleeps, the next one ends at once."""
        self._woken.set()
