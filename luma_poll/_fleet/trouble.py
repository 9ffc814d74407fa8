"""Faults of the service, which are the worker's and no key's. Decided without I/O or a clock."""

from __future__ import annotations

import math

from luma_poll._tasks.backoff import backoff

FIRST_PAUSE = 1.0
"""Seconds until one request finds out if a fault is over."""
LONGEST_PAUSE = 30.0
"""The most that this grows to, doubling."""


class Trouble:
    """A worker that the API does not serve: it submits nothing, but one probe at a time.

    It begins with an answer that the next submission would get too: a wrong key, no funds, no
    connection, or none that can be understood. A submission that the API accepts ends it.
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
        """Note a fault; returns True for one that the log has to report.

        Args:
            now: Seconds on any clock that is always the same one.
            why: For people.
        """
        is_news = why != self.why
        self.why = why
        if now < self._until:
            return is_news  # sent together with the one before: no second sign
        self._failures += 1
        self._until = now + backoff(self._failures, FIRST_PAUSE, LONGEST_PAUSE)
        return is_news

    def end(self) -> bool:
        """Note that the API serves this worker; returns True if it did not before."""
        was_on, self.why = self.is_on, None
        self._failures, self._until = 0, -math.inf
        return was_on

    def pause(self, now: float) -> float:
        """Return the seconds until the next probe."""
        return max(0.0, self._until - now)
