"""Schedules: tenacity wait strategies that decide when to poll again.

Any callable that takes a `tenacity.RetryCallState` and returns seconds will do: `wait_fixed(2)`,
`wait_chain(...)`, `wait_exponential(...) + wait_random(-1, 1)`. The state has:

- `attempt_number`: the number of answers so far, from 1;
- `seconds_since_start`: the age of the generation in seconds, as far as known, on anyio's clock;
- `outcome`: the latest answer: `outcome.result()` returns the `Generation` or raises the error.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, cast

import tenacity
from tenacity.wait import WaitBaseT

from luma_poll._arguments import shown
from luma_poll._logging import fields, logger
from luma_poll.errors import ConfigurationError
from luma_poll.models import Generation

Schedule: TypeAlias = WaitBaseT

# Chosen by measurement: see docs/adaptive-wait.md and tests/benchmarks/default_wait.py.
FIRST_DELAY = 4.5
FACTOR = 1.02
LONGEST_DELAY = 8.0
JITTER = 0.5

DEFAULT_WAIT: Schedule = tenacity.wait_exponential(
    multiplier=FIRST_DELAY, exp_base=FACTOR, max=LONGEST_DELAY
) + tenacity.wait_random(-JITTER, JITTER)
"""Exponential backoff with a cap, and jitter both ways: 4.5 s x 1.02 to 8 s, each +- 0.5 s."""

SPEED = "LUMA_POLL_SPEED"
"""The environment variable that speeds up schedules by a factor, for tests with a fast sandbox."""


class Observer(Protocol):
    """A schedule that learns: the poller calls its `observe` at each end."""

    def observe(self, generation: Generation, /, *, after: float, by: float) -> None:
        """Learn that a generation ended at an age between `after` and `by` seconds."""
        ...


def tell_end(schedule: Schedule, generation: Generation, *, after: float, by: float) -> None:
    """Report the end of a generation to `schedule`, and to the parts of a sum or a chain.

    An exception in `observe` is logged and dropped: the generation has ended all the same.
    """
    observers = {id(each): each for each in _observers(schedule)}  # by id: some are not hashable
    for observer in observers.values():
        try:
            observer.observe(generation, after=after, by=by)
        except Exception as error:
            logger.exception(
                "the schedule's observe raised; generation %s has ended",
                generation.id,
                extra=fields(generation=generation, error=error),
            )


def _observers(schedule: object) -> Iterator[Observer]:
    if hasattr(schedule, "observe"):
        yield cast(Observer, schedule)
    # Tenacity's names for the parts of a sum and of a chain; each has one of them.
    for part in (*getattr(schedule, "wait_funcs", ()), *getattr(schedule, "strategies", ())):
        yield from _observers(part)


def next_delay(
    schedule: Schedule, answer: Generation | Exception, *, attempt: int, born: float, now: float
) -> float:
    """Ask `schedule` how many seconds to wait after `answer`.

    Args:
        schedule: The wait strategy.
        answer: The latest answer, or the transient error in its place.
        attempt: How many answers there have been.
        born: When the generation was submitted, or else first seen, on the clock of `now`.
        now: The time of the answer.

    Raises:
        ConfigurationError: The schedule returned something that is not a number of seconds.
    """
    outcome = tenacity.Future(attempt)
    if isinstance(answer, Exception):
        outcome.set_exception(answer)
    else:
        outcome.set_result(answer)
    nothing: Any = None  # tenacity has no function to call here
    state = tenacity.RetryCallState(nothing, nothing, (), {})
    state.attempt_number = attempt
    state.outcome = outcome
    # tenacity would stamp the state with time.monotonic(); the library's clock is anyio's.
    state.start_time, state.outcome_timestamp = born, now
    delay: Any = schedule(state)
    try:
        seconds = float(delay) if isinstance(delay, (int, float)) else math.nan
    except OverflowError:
        seconds = math.nan
    if math.isnan(seconds):
        raise ConfigurationError(
            f"the schedule {shown(schedule)} returned {shown(delay)[:50]}, not seconds"
        )
    return max(0.0, seconds)


def scaled_by_environment(schedule: Schedule) -> Schedule:
    """Return the schedule, sped up by the factor in `LUMA_POLL_SPEED` if that is set.

    Raises:
        ConfigurationError: The variable is not a number above 0.
    """
    given = os.environ.get(SPEED)
    if not given:
        return schedule
    try:
        speed = float(given)
    except ValueError:
        speed = math.nan
    if not 0 < speed < math.inf:
        raise ConfigurationError(f"{SPEED} must be a number above zero, not {shown(given)[:50]}")
    return _Scaled(schedule, speed)


class _Scaled:
    """A schedule in fast motion: it sees longer ages, and its delays become shorter."""

    def __init__(self, schedule: Schedule, speed: float) -> None:
        self._schedule = schedule
        self._speed = speed

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        state = copy.copy(retry_state)
        ends = state.outcome_timestamp or 0.0
        state.start_time = ends - (ends - state.start_time) * self._speed
        return self._schedule(state) / self._speed

    def observe(self, generation: Generation, /, *, after: float, by: float) -> None:
        tell_end(self._schedule, generation, after=after * self._speed, by=by * self._speed)
