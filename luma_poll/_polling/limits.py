"""The limits of requests: how many at the same time, how many per second, and when none."""

from __future__ import annotations

import math

import anyio
import anyio.lowlevel

from luma_poll._polling.decisions import Quiet
from luma_poll._tasks.alarm import Alarm
from luma_poll._tasks.heap import Heap

# Timers fire a little late. Up to this many seconds are made up for at the next start.
_LATENESS = 0.05


class RequestLimits:
    """A queue from which requests start one by one, the longest overdue first.

    A quiet that the API asks for holds up the head of the queue: one request sleeps until it ends,
    and the others keep their places.

    Args:
        max_in_flight: The most requests under way at the same time; None for no limit.
        max_rate: The most requests started per second, evenly spaced; None for no limit.

    Attributes:
        quiet: The quiet during which no request starts.
        in_flight: The number of requests under way.
    """

    def __init__(self, max_in_flight: int | None, max_rate: float | None) -> None:
        self.quiet = Quiet()
        self._most = math.inf if max_in_flight is None else max_in_flight
        self.in_flight = 0
        self.set_max_rate(max_rate)
        self._next_start = -math.inf
        self._queue = Heap[Alarm]()

    def set_max_rate(self, max_rate: float | None) -> None:
        """Change how many requests may start per second; None for no limit."""
        self._interval = 0.0 if max_rate is None else 1.0 / max_rate

    async def acquire(self, due: float) -> float:
        """Wait for a turn; `release` must follow.

        Args:
            due: Since when the request is due, in seconds on anyio's clock.

        Returns:
            The seconds that it waited because of other requests, without those of a quiet.
        """
        asked = anyio.current_time()
        ticket = Alarm()
        # Before any await: a waiter that takes over a poll is in the queue before the other leaves.
        place = self._queue.push(due, ticket)
        try:
            await anyio.lowlevel.checkpoint()
            while (turn := self._turn_of(ticket)) > anyio.current_time():
                await ticket.sleep(turn)
            # A request that is cancelled at the very moment of its turn must not use up a start.
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
        """Return when it may start; inf while others are before it."""
        if self.in_flight >= self._most or self._queue.first() is not ticket:
            return math.inf
        return max(self._next_start, self.quiet.until)

    def _wake_first(self) -> None:
        first = self._queue.first()
        if first is not None:
            first.wake()
