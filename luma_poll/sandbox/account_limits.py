"""The two limits of an account on its submissions, both counted in units.

A submission weighs one unit or more. Polling counts towards neither limit (rate-limits guide).
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final, TypedDict

from luma_poll.sandbox.clock import is_reached

WINDOW = 60.0  # seconds; a sliding window
MAX_ACTIVE = 3600.0  # seconds: a generation counts as running for at most one hour


class AccountLimits(TypedDict):
    """The arguments of a `Sandbox` that limit an account."""

    requests_per_minute: int
    max_concurrent: int


DEFAULT_ACCOUNT: Final[AccountLimits] = {"requests_per_minute": 30, "max_concurrent": 10}
"""A new account's limits, as seen in September 2026; `Sandbox(**DEFAULT_ACCOUNT)` has them."""

# The one weight above 1 that has been seen live. Those of other models and types are not known.
HEAVY_EDIT = 3


def default_weight(request: Mapping[str, Any]) -> int:
    """Return the weight that was seen live: 3 units for an edit by `uni-1-max`, else 1."""
    heavy = request["model"] == "uni-1-max" and request["type"] == "image_edit"
    return HEAVY_EDIT if heavy else 1


@dataclass(slots=True)
class SubmissionRecord:
    """A `POST /generations` with a valid key, and the sandbox's answer.

    Attributes:
        at: When it came, in seconds since the sandbox was first used.
        units: Its weight.
        generation_id: The id of the generation; None if it was refused.
        ends: When that generation completes or fails, in seconds as for `at`; None if it was
            refused.
        refused: `"rate"` or `"concurrency"` for the two limits, otherwise the status, such as
            `"400"`; None if it was accepted.
        polls: The number of polls of its generation.
        downloads: The number of requests for its outputs, whole or in part.
        params: The parameters of the body, including `prompt`; empty if it was refused.
    """

    at: float
    units: int
    generation_id: str | None = None
    ends: float | None = None
    refused: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict, compare=False)
    polls: int = field(default=0, compare=False)
    downloads: int = field(default=0, compare=False)


class Account:
    """The submissions that count towards the limits; times are seconds on the sandbox's clock."""

    def __init__(self) -> None:
        self._window: deque[tuple[float, int]] = deque()
        self._window_units = 0
        self._running: list[tuple[float, int]] = []  # a heap, so only ended ones are looked at
        self._running_units = 0

    def units_in_window(self, now: float) -> int:
        """Return the units submitted in the minute that ends at `now`."""
        while self._window and is_reached(self._window[0][0] + WINDOW, now):
            self._window_units -= self._window.popleft()[1]
        return self._window_units

    def units_running(self, now: float) -> int:
        """Return the units of the generations that run at `now`."""
        while self._running and is_reached(self._running[0][0], now):
            self._running_units -= heappop(self._running)[1]
        return self._running_units

    def count_running(self, now: float) -> int:
        """Return the number of generations that run at `now`."""
        self.units_running(now)
        return len(self._running)

    def window_frees(self, now: float) -> float:
        """Return when the oldest submission leaves the window."""
        return (self._window[0][0] if self._window else now) + WINDOW

    def count_submission(self, now: float, units: int) -> None:
        """Record a submission in the window."""
        self._window.append((now, units))
        self._window_units += units

    def start(self, now: float, ends: float, units: int) -> None:
        """Record a generation that runs from `now` until `ends`."""
        heappush(self._running, (min(ends, now + MAX_ACTIVE), units))
        self._running_units += units
