"""Faults of the service, which concern the worker and no single key. No I/O, no clock."""

from __future__ import annotations

import math

from luma_poll._tasks.backoff import backoff

FIRST_PAUSE = 1.0
"""Seconds until one request tests whether a fault is over."""
LONGEST_PAUSE = 30.0
"""The most seconds that this grows to, doubling each time."""


class Trouble:
    """The trouble of a worker that the API does not serve: it sends only one probe at a time.

    It begins with an answer that the next submission would get, too: a wrong key, no funds, no
    connection, or an unreadable answer. It ends when the API accepts a submission.
    """

    def __init__(self) -> None:
        self.why: str | None = None
        self._failures = 0
        self._until = -math.inf

    @property
    def is_on(self) -> bool:
        """True until a submission is accepted."""
        return self._failures > 0

    def begin(self, now: float, why: str) -> bool:
        """Note a fault; return True if it is new, so that the log should report it.

        Args:
            now: The time in seconds, by the same clock in every call.
            why: The fault, for people.
        """
        is_news = why != self.why
        self.why = why
        if now < self._until:
            return is_news  # it was sent before the pause began: no second sign
        self._failures += 1
        self._until = now + backoff(self._failures, FIRST_PAUSE, LONGEST_PAUSE)
        return is_news

    def end(self) -> bool:
        """Note that the API serves this worker; return True if it did not before."""
        was_on, self.why = self.is_on, None
        self._failures, self._until = 0, -math.inf
        return was_on

    def pause(self, now: float) -> float:
        """Return the seconds until the next probe."""
        return max(0.0, self._until - now)
