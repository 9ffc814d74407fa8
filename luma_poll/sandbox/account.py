"""The two limits on submissions of one API client: requests per minute and concurrent jobs.

Polling counts towards neither (rate-limits guide).
"""

from collections import deque
from heapq import heappop, heappush

from luma_poll.sandbox.clock import is_reached

WINDOW = 60.0  # seconds; it slides
MAX_ACTIVE = 3600.0  # seconds: a job counts as concurrent for at most one hour


class Usage:
    """What one API client has submitted; moments are seconds of the sandbox's clock."""

    def __init__(self) -> None:
        self._submitted: deque[float] = deque()
        self._job_ends: list[float] = []  # a heap, so that only ended jobs are ever looked at

    def count_requests(self, now: float) -> int:
        """How many requests are in the window that ends at `now`."""
        while self._submitted and is_reached(self._submitted[0] + WINDOW, now):
            self._submitted.popleft()
        return len(self._submitted)

    def count_jobs(self, now: float) -> int:
        """How many jobs are active at the moment `now`."""
        while self._job_ends and is_reached(self._job_ends[0], now):
            heappop(self._job_ends)
        return len(self._job_ends)

    @property
    def window_frees(self) -> float:
        """The moment when the oldest request leaves the window, if there is one."""
        return self._submitted[0] + WINDOW

    def add_request(self, now: float) -> None:
        """Record a request at the moment `now`."""
        self._submitted.append(now)

    def add_job(self, now: float, ends: float) -> None:
        """Record a job that starts at the moment `now` and ends at `ends`."""
        heappush(self._job_ends, min(ends, now + MAX_ACTIVE))
