"""How many requests may be under way, and how many may start in a second."""

from __future__ import annotations

import heapq
import math
from itertools import count

import anyio
import anyio.lowlevel

# A timer wakes a little late. What it is late is made up for, as long as it is no more than this.
_LATENESS = 0.05


class _Ticket:
    """A request that waits for its turn."""

    def __init__(self) -> None:
        self.woken = anyio.Event()
        self.put_off = False
        self.gone = False


class RequestLimits:
    """Lets requests start one by one, the longest overdue first.

    Args:
        max_in_flight: Requests under way at the same time; None for no limit.
        max_rate: Requests started per second, evenly spaced; None for no limit.
    """

    def __init__(self, max_in_flight: int | None, max_rate: float | None) -> None:
        self._free = math.inf if max_in_flight is None else max_in_flight
        self._interval = 0.0 if max_rate is None else 1.0 / max_rate
        self._next_start = -math.inf
        self._numbers = count()
        self._queue: list[tuple[float, int, _Ticket]] = []
        self._gone = 0  # tickets in the queue whose owner has left

    async def acquire(self, due: float) -> bool:
        """Wait for a turn. True: the request may start, and `release` must follow it.

        False: there is no turn, because `put_off` was called.

        Args:
            due: Since when the request is due, in seconds on anyio's clock.
        """
        await anyio.lowlevel.checkpoint()
        asked = anyio.current_time()
        ticket = _Ticket()
        heapq.heappush(self._queue, (due, next(self._numbers), ticket))
        try:
            while not ticket.put_off:
                first = self._queue[0][2] is ticket and self._free >= 1
                now = anyio.current_time()
                # In another event loop, with another clock, the old time may be far ahead.
                self._next_start = min(self._next_start, now + self._interval)
                if first and self._next_start <= now:
                    start = max(self._next_start, asked, now - _LATENESS)
                    self._next_start = start + self._interval
                    self._free -= 1
                    return True
                with anyio.CancelScope(deadline=self._next_start if first else math.inf):
                    await ticket.woken.wait()
                ticket.woken = anyio.Event()
            return False
        finally:
            ticket.gone = True
            self._gone += 1
            self._wake_first()

    def release(self) -> None:
        """End a request that `acquire` let start."""
        self._free += 1
        self._wake_first()

    def put_off(self) -> None:
        """Send away everybody who waits for a turn, to think again."""
        for _, _, ticket in self._queue:
            ticket.put_off = True
            ticket.woken.set()

    def _wake_first(self) -> None:
        while self._queue and self._queue[0][2].gone:
            heapq.heappop(self._queue)
            self._gone -= 1
        if self._gone > len(self._queue) / 2:  # behind one that waits for long
            self._queue = [entry for entry in self._queue if not entry[2].gone]
            heapq.heapify(self._queue)
            self._gone = 0
        if self._queue:
            self._queue[0][2].woken.set()
