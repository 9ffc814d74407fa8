"""How many requests may be under way, how many may start in a second, and when none may."""

from __future__ import annotations

import math

import anyio
import anyio.lowlevel

from luma_poll._polling.decisions import Quiet
from luma_poll._tasks.alarm import Alarm
from luma_poll._tasks.heap import Heap

# A timer wakes a little late. What it is late is made up for, as long as it is no more than this.
_LATENESS = 0.05


class RequestLimits:
    """Lets requests start one by one, the longest overdue first.

    The quiet that the API asks for is held here, at the head of the queue: one request sleeps
    until it ends, and all the others keep their places and sleep on.

    Args:
        max_in_flight: Requests under way at the same time; None for no limit.
        max_rate: Requests started per second, evenly spaced; None for no limit.

    Attributes:
        quiet: Until it ends, no request starts.
        in_flight: Requests under way.
    """

    def __init__(self, max_in_flight: int | None, max_rate: float | None) -> None:
        self.quiet = Quiet()
        self._most = math.inf if max_in_flight is None else max_in_flight
        self.in_flight = 0
        self.set_max_rate(max_rate)
        self._next_start = -math.inf
        self._queue = Heap[Alarm]()

    def set_max_rate(self, max_rate: float | None) -> None:
        """Let so many requests start per second from now on; None for no limit."""
        self._interval = 0.0 if max_rate is None else 1.0 / max_rate

    async def acquire(self, due: float) -> float:
        """Wait for a turn; `release` must follow.

        Args:
            due: Since when the request is due, in seconds on anyio's clock.

        Returns:
            Seconds that it waited for others: those of a quiet do not count.
        """
        asked = anyio.current_time()
        ticket = Alarm()
        # At once: whoever takes over from another has a place before the other leaves.
        place = self._queue.push(due, ticket)
        try:
            await anyio.lowlevel.checkpoint()
            while (turn := self._turn_of(ticket)) > anyio.current_time():
                await ticket.sleep(turn)
            # Whoever leaves, or is called back, at the tick of its turn takes nobody's start.
            await anyio.lowlevel.checkpoint_if_cancelled()
            on_time = max(self._next_start, self.quiet.until, asked)
            now = anyio.current_time()
            self._next_start = max(on_time, now - _LATENESS) + self._interval
            self.in_flight += 1
            return now - max(asked, self.quiet.until)
        finally:
            self._queue.remove(place)
            self._wake_first()

    def release(self) -> None:
        """End a request whose turn `acquire` gave."""
        self.in_flight -= 1
        self._wake_first()

    def _turn_of(self, ticket: Alarm) -> float:
        """The time at which it may start; inf as long as that depends on others."""
        if self.in_flight >= self._most or self._queue.first() is not ticket:
            return math.inf
        return max(self._next_start, self.quiet.until)

    def _wake_first(self) -> None:
        first = self._queue.first()
        if first is not None:
            first.wake()
