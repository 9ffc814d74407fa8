"""A schedule that learns how long generations take, and polls when they are likely to end.

With the hazard rate h(t) of the end at age t, and c the seconds of delay that one request is worth,
the best density of polls is about sqrt(h(t) / 2c) (J. B. Keller, "Optimum checking schedules for
systems subject to random failure", Management Science 21, 1974). The hazard rate comes from a
histogram of ages at the end, over logarithmic bins: a prior, and what was observed.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Self

from tenacity import RetryCallState
from tenacity.wait import wait_base

from luma_poll._arguments import check_positive
from luma_poll.errors import ConfigurationError
from luma_poll.models import LONGEST_AGE, Generation

BINS = 120
STEP = math.log(LONGEST_AGE) / BINS
AGES = [0.0, *(math.exp(STEP * number) for number in range(BINS + 1))]
"""Seconds. Between them lie the bins: one to 1 s, then each 7 % longer."""
EDGES = [*AGES, math.inf]
"""A last bin is for whatever is beyond an hour."""

PRIOR_SCALE = 90.0
PRIOR_WEIGHT = 3.0
"""Observations that the prior is worth."""
OTHERS_WEIGHT = 2.0
"""Observations that all other kinds together are worth."""
MEMORY = 150.0
"""Observations after which one counts 1/e."""
BANDWIDTH = 0.12
"""Standard deviation of the logarithm of the age by which an observation is smoothed."""
JITTER = 0.15
"""Share of a gap, both ways."""
MAX_KINDS = 64
VERSION = 1

Kind = tuple[str | None, str | None]
Weights = list[float]


class AdaptiveWait(wait_base):
    """A schedule that learns from each generation that ends: `Poller(client, wait=AdaptiveWait())`.

    It estimates how long generations take, for each model and type, from a prior that fits the
    times that Luma has published (images about 30 s, short videos under two minutes). A few ends
    outweigh the prior, and old ones fade. All memory it needs is a few kilobytes a kind. Share one
    between pollers, and keep it over a restart with `to_json`.

    It learns as a part of tenacity's sums and chains too. A function of your own that calls it has
    to pass `observe` on.

    Args:
        request_cost: Seconds of delay that one request is worth. Less polls more often.
        shortest: Seconds between two polls, at least.
        longest: Seconds between two polls, at most.

    Raises:
        ConfigurationError: An argument is not a number above 0, or `shortest` exceeds `longest`.
    """

    def __init__(
        self, request_cost: float = 0.2, *, shortest: float = 0.5, longest: float = 60.0
    ) -> None:
        self._cost = _seconds("request_cost", request_cost)
        self._shortest = _seconds("shortest", shortest)
        self._longest = _seconds("longest", longest)
        if self._shortest > self._longest:
            raise ConfigurationError(f"shortest ({shortest:g} s) exceeds longest ({longest:g} s)")
        self._kinds: dict[Kind, Weights] = {}  # the most recently observed last
        self._all: Weights = [0.0] * len(PRIOR)
        self._plans: dict[Kind | None, Weights] = {}

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds until the next poll."""
        plan = self._plan(_kind_of(retry_state))
        age = max(0.0, retry_state.seconds_since_start or 0.0)
        polls = _interpolate(AGES, plan, age) + random.uniform(1 - JITTER, 1 + JITTER)
        gap = _interpolate(plan, AGES, polls) - age
        return min(max(gap, self._shortest), self._longest)

    def observe(self, generation: Generation, *, after: float, by: float) -> None:
        """Learn from a generation that has ended. The poller calls it.

        Args:
            generation: The last snapshot.
            after: Seconds: the age at which it was last known not to have ended.
            by: Seconds: the age at which it was known to have ended.
        """
        kind = (generation.model, generation.type)
        seen = _smoothed(_between(self._estimate(kind), max(0.0, after), by))
        own = self._kinds.pop(kind, [0.0] * len(PRIOR))
        self._kinds[kind] = _faded(own, seen)
        self._all = _faded(self._all, seen)
        if len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._plans.clear()

    def to_json(self) -> str:
        """Everything that was learned, as text for `from_json`."""
        kinds = [
            {"model": model, "type": type_, "weights": [round(weight, 6) for weight in weights]}
            for (model, type_), weights in self._kinds.items()
        ]
        everything = [round(weight, 6) for weight in self._all]
        return json.dumps({"version": VERSION, "all": everything, "kinds": kinds})

    @classmethod
    def from_json(cls, text: str | bytes, **options: float) -> Self:
        """Make a schedule from everything that another one had learned.

        Args:
            text: The text from `to_json`.
            options: `request_cost`, `shortest` and `longest`, which are not part of the text.

        Raises:
            ConfigurationError: The text is not of this version of `to_json`, or an option is
                unusable.
        """
        restored = cls(**options)
        try:
            learned = json.loads(text)
            if learned["version"] != VERSION:
                raise ValueError(f"it has version {learned['version']!r}, not {VERSION}")
            restored._all = _checked(learned["all"])
            restored._kinds = {
                (entry["model"], entry["type"]): _checked(entry["weights"])
                for entry in learned["kinds"][-MAX_KINDS:]
            }
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigurationError(
                f"this text is not from AdaptiveWait.to_json: {error}"
            ) from None
        return restored

    def _plan(self, kind: Kind | None) -> Weights:
        """How many polls there are to be up to each of AGES."""
        if kind not in self._kinds:
            kind = None
        if kind not in self._plans:
            self._plans[kind] = _planned(self._estimate(kind), self._cost)
        return self._plans[kind]

    def _estimate(self, kind: Kind | None) -> Weights:
        """How many of some observations end in each bin."""
        own = self._kinds.get(kind) if kind is not None else None
        if own is None:
            return [
                PRIOR_WEIGHT * prior + seen for prior, seen in zip(PRIOR, self._all, strict=True)
            ]
        share = OTHERS_WEIGHT / max(sum(self._all), OTHERS_WEIGHT)
        return [
            PRIOR_WEIGHT * prior + share * others + seen
            for prior, others, seen in zip(PRIOR, self._all, own, strict=True)
        ]


def _seconds(name: str, value: float) -> float:
    checked = check_positive(name, value)
    if checked is None or checked == math.inf:
        raise ConfigurationError(f"{name} must be a number of seconds above 0, not {value!r}")
    return checked


def _kind_of(state: RetryCallState) -> Kind | None:
    if state.outcome is None or state.outcome.failed:
        return None  # an error does not tell of what
    latest = state.outcome.result()
    return (latest.model, latest.type) if isinstance(latest, Generation) else None


def _planned(weights: Weights, cost: float) -> Weights:
    left = sum(weights)
    polls = [0.0]
    for weight, (start, end) in zip(weights[:-1], pairwise(AGES), strict=True):
        hazard = math.log(left / (left - weight))  # over the whole bin
        polls.append(math.sqrt(hazard * (end - start) / (2 * cost)))
        left -= weight
    return list(accumulate(polls))


def _interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The height at `x` of the line through the points, continued beyond the last one."""
    number = min(bisect_right(xs, x), len(xs) - 1)
    x0, x1, y0, y1 = xs[number - 1], xs[number], ys[number - 1], ys[number]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _between(weights: Weights, after: float, by: float) -> Weights:
    """One observation that lies in an interval, shared out over its bins as `weights` says."""
    parts = [
        weight * _overlap(start, end, after, by)
        for weight, (start, end) in zip(weights, pairwise(EDGES), strict=True)
    ]
    total = sum(parts)
    return [part / total for part in parts] if total else parts


def _overlap(start: float, end: float, after: float, by: float) -> float:
    """The share of a bin that lies in an interval."""
    common = min(end, by) - max(start, after)
    if end == math.inf:
        return float(by > start)
    return max(0.0, common) / (end - start)


def _smoothed(weights: Weights) -> Weights:
    smooth = [0.0] * len(weights)
    for number, weight in enumerate(weights):
        if weight:
            for offset, share in enumerate(KERNEL, number - len(KERNEL) // 2):
                smooth[min(max(offset, 0), len(weights) - 1)] += weight * share
    return smooth


def _faded(old: Weights, seen: Weights) -> Weights:
    keep = math.exp(-1 / MEMORY)
    return [keep * before + now for before, now in zip(old, seen, strict=True)]


def _checked(weights: Any) -> Weights:
    checked = [float(weight) for weight in weights]
    if len(checked) != len(PRIOR) or not all(0 <= weight < 1e6 for weight in checked):
        raise ValueError(f"there must be {len(PRIOR)} weights from 0 up")
    return checked


def _prior() -> Weights:
    """A heavy tail: the longer a generation has lasted, the longer it is taken to go on.

    The density of polls that follows from it is close to that of DEFAULT_WAIT. Its median of 37 s
    is between the 30 s of an image and the minute of a short video.
    https://docs.agents.lumalabs.ai (quickstart; FAQ; video guide)
    """
    alive = [(1 + edge / PRIOR_SCALE) ** -2 for edge in EDGES]
    return [before - after for before, after in pairwise(alive)]


def _kernel() -> Weights:
    reach = math.ceil(3 * BANDWIDTH / STEP)
    heights = [math.exp(-0.5 * (n * STEP / BANDWIDTH) ** 2) for n in range(-reach, reach + 1)]
    return [height / sum(heights) for height in heights]


PRIOR = _prior()
KERNEL = _kernel()
