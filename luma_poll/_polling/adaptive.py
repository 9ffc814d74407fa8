"""A schedule that learns how long generations take, and polls when they are likely to end.

Ages at the end are counted in a histogram over logarithmic bins. With what is known beforehand it
gives the chance of an end in each bin, and dynamic programming the polls that cost least for it
(R. E. Barlow, L. C. Hunter and F. Proschan, "Optimum checking procedures", Journal of the Society
for Industrial and Applied Mathematics 11, 1963).
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from operator import mul
from statistics import NormalDist
from typing import Any, Self

from tenacity import RetryCallState
from tenacity.wait import wait_base

from luma_poll._arguments import check_positive
from luma_poll.errors import ConfigurationError
from luma_poll.models import LONGEST_AGE, Generation

BINS = 122
STEP = math.log(LONGEST_AGE) / (BINS - 2)
LOGS = [-math.inf, *(STEP * number for number in range(BINS - 1)), math.inf]
EDGES = [math.exp(log) for log in LOGS]
"""Seconds. Between them lie the bins: one to 1 s, then each 7 % longer, one beyond an hour."""
FINE = 6
PLACES = [a + (b - a) * n / FINE for a, b in pairwise(EDGES[:-1]) for n in range(FINE)]
"""Seconds: where a poll may be planned."""

# Of a model beforehand: seconds that half of its generations take (Luma's quickstart and video
# guide, resellers' pages); the standard deviation of their logarithm, and how many ends that is
# worth (guesses: so wide that an error of factor two is no disaster).
PUBLISHED = {"uni-1": (30.0, 0.7, 1.0), "uni-1-max": (69.0, 0.7, 1.0), "ray-3.2": (60.0, 0.7, 1.0)}
UNKNOWN = (37.0, 1.5, 0.3)

# How much each thing counts, in ends that were seen.
CURVE_WEIGHT = 5.0  # a log-normal curve through them: it decides while they are few
OTHERS_WEIGHT = 2.0  # all other kinds together, for a model of which nothing is known
EARLY = NormalDist(math.log(3), 0.5)
# For what no curve foretells: failures in the first seconds, and a heavy tail of stragglers.
DOUBTS = [0.1 * EARLY.cdf(log) - 0.4 * (1 + math.exp(log) / 90) ** -2 for log in LOGS]
DOUBT = [b - a for a, b in pairwise(DOUBTS)]

MEMORY, SHORT_MEMORY = 200.0, 10.0  # ends after which one counts 1/e
CHANGE = 1 / 200  # chance at each end that generations take another time from now on
BANDWIDTH = 0.12  # standard deviation of the logarithm of the age by which an end is smoothed
KERNEL = [NormalDist(0, BANDWIDTH).pdf(STEP * number) * STEP for number in range(-7, 8)]
JITTER = 0.15  # share of a gap, both ways
MAX_KINDS = 64
VERSION = 1

Kind = tuple[str | None, str | None]
Weights = Sequence[float]
Line = tuple[float, float]  # minus its slope, and its height at 0
NOTHING: Weights = (0.0,) * BINS


@dataclass(slots=True)
class _Seen:
    """The ends of one kind: all of them, those seen lately, and the odds that only these hold."""

    ends: Weights = NOTHING
    lately: Weights = NOTHING
    odds: float = CHANGE


class AdaptiveWait(wait_base):
    """A schedule that learns from each generation that ends: `Poller(client, wait=AdaptiveWait())`.

    It estimates how long generations take, for each model and type. It begins with what has been
    published for the model; a few ends outweigh that, old ones fade, and a sudden change is noticed
    after one or two. Share one between pollers, and keep it over a restart with `to_json`.

    It learns as a part of tenacity's sums and chains too. A function of your own that calls it has
    to pass `observe` on.

    Args:
        request_cost: Seconds of delay that one request is worth. A quarter of it is twice the
            polls and half the delay: take less where each second of delay costs money.
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
        self._kinds: dict[Kind, _Seen] = {}  # the most recently observed last
        self._all: Weights = NOTHING
        self._plans: dict[Kind | None, Weights] = {}

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds until the next poll."""
        plan = self._plan(_kind_of(retry_state))
        age = max(0.0, retry_state.seconds_since_start or 0.0)
        gap = _gap(plan, age)
        # After a long gap to where an end is likely, the gaps are short: so is the jitter.
        jitter = random.uniform(-JITTER, JITTER) * min(gap, _gap(plan, age + gap))
        return min(max(gap + jitter, self._shortest), self._longest)

    def observe(self, generation: Generation, *, after: float, by: float) -> None:
        """Learn from a generation that has ended. The poller calls it.

        Args:
            generation: The last snapshot.
            after: Seconds: the age at which it was last known not to have ended.
            by: Seconds: the age at which it was known to have ended.
        """
        kind = (generation.model, generation.type)
        self._kinds[kind] = seen = self._kinds.pop(kind, _Seen())
        # Two explanations, and Bayes' rule (A. N. Shiryaev, "On optimum methods in quickest
        # detection problems", Theory of Probability and Its Applications 8, 1963): all ends tell
        # how long it takes, or there was a change and only those seen lately do.
        usual, end = _between(self._chances(kind, seen.ends), after, by)
        changed, lately = _between(self._chances(kind, seen.lately), after, by)
        seen.odds = (seen.odds + CHANGE) * changed / usual
        seen.ends = _faded(seen.ends, end, MEMORY)
        seen.lately = _faded(seen.lately, lately, SHORT_MEMORY)
        if seen.odds > 1:
            seen.ends = seen.lately
        if not 2 * CHANGE <= seen.odds <= 1:
            seen.lately, seen.odds = NOTHING, CHANGE
        self._all = _faded(self._all, end, MEMORY)
        if len(self._kinds) > MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._plans.clear()

    def to_json(self) -> str:
        """Everything that was learned (but not a mere suspicion of a change) for `from_json`."""
        everything = [round(weight, 6) for weight in self._all]
        kinds = [
            {"model": model, "type": type_, "weights": [round(weight, 6) for weight in seen.ends]}
            for (model, type_), seen in self._kinds.items()
        ]
        return json.dumps({"version": VERSION, "all": everything, "kinds": kinds})

    @classmethod
    def from_json(cls, text: str | bytes, **options: float) -> Self:
        """Make a schedule from everything that another one had learned.

        Args:
            text: The text from `to_json`.
            options: `request_cost`, `shortest` and `longest`, which are not part of the text.

        Raises:
            ConfigurationError: The text is not from this `to_json`, or an option is unusable.
        """
        restored = cls(**options)
        try:
            learned = json.loads(text)
            if learned["version"] != VERSION:
                raise ValueError(f"it has version {learned['version']!r}, not {VERSION}")
            restored._all = _checked(learned["all"])
            restored._kinds = {
                (entry["model"], entry["type"]): _Seen(_checked(entry["weights"]))
                for entry in learned["kinds"][-MAX_KINDS:]
            }
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigurationError(
                f"this text is not from AdaptiveWait.to_json: {error}"
            ) from None
        return restored

    def _plan(self, kind: Kind | None) -> Weights:
        """The time of the next poll after one at each of PLACES."""
        if kind not in self._kinds and (kind is None or kind[0] not in PUBLISHED):
            kind = None  # it is taken to be like all others
        if kind not in self._plans:
            seen = _Seen(self._all) if kind is None else self._kinds.get(kind, _Seen())
            usual, changed = self._chances(kind, seen.ends), self._chances(kind, seen.lately)
            share = seen.odds / (1 + seen.odds)
            chances = [a + share * (b - a) for a, b in zip(usual, changed, strict=True)]
            self._plans[kind] = _planned(chances, self._cost)
        return self._plans[kind]

    def _chances(self, kind: Kind | None, ends: Weights) -> Weights:
        """How likely an end is in each bin, if `ends` are what was seen."""
        known = PUBLISHED.get(kind[0] or "") if kind else None
        curve = _curve(ends, *(known or UNKNOWN))
        others = 0.0 if known or not kind else OTHERS_WEIGHT / max(sum(self._all), OTHERS_WEIGHT)
        parts = [
            seen + CURVE_WEIGHT * drawn + doubt + others * other
            for seen, drawn, doubt, other in zip(ends, curve, DOUBT, self._all, strict=True)
        ]
        total = sum(parts)
        return [part / total for part in parts]


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


def _gap(plan: Weights, age: float) -> float:
    place = bisect_right(PLACES, age) - 1
    return plan[place] - PLACES[place]


def _planned(chances: Weights, cost: float) -> Weights:
    """The time of the next poll after one at each of PLACES, so that all of them cost least.

    From the last place back. With a share S(t) ended by t, a poll at t leaves to pay: cost for each
    generation that has not ended, and the least, over all later u, of u (S(u) - S(t)) and what a
    poll at u leaves. Each u is a straight line in S(t), and the lowest one moves only towards
    smaller u: so it is enough to keep those that are lowest somewhere, and the time is linear.
    """
    ended = [0.0, *accumulate(chance / FINE for chance in chances[:-1] for _ in range(FINE))]
    lines = [(LONGEST_AGE, LONGEST_AGE * ended.pop())]
    plan, best = [], 0
    for time, share in zip(reversed(PLACES), reversed(ended), strict=True):
        best = min(best, len(lines) - 1)
        later, height = lines[best]
        for then, other in islice(lines, best + 1, None):
            if other - then * share > height - later * share:
                break
            later, height, best = then, other, best + 1
        plan.append(later)
        height += time * share + cost * (1 - share) - later * share
        while len(lines) > 1 and _is_nowhere_lowest(lines[-1], lines[-2], (time, height)):
            lines.pop()
        lines.append((time, height))
    return plan[::-1]


def _is_nowhere_lowest(line: Line, left: Line, right: Line) -> bool:
    return (right[1] - left[1]) * (left[0] - line[0]) <= (line[1] - left[1]) * (left[0] - right[0])


def _curve(ends: Weights, median: float, spread: float, weight: float) -> Weights:
    """A log-normal through `ends`, and through what is known beforehand.

    By its quartiles: the mean and the variance would follow a few early failures or stragglers.
    """
    middle, variance, count = math.log(median), spread**2, sum(ends)
    if count > 0.01:
        low, seen, high = _quartiles(ends)
        width = max(0.0, ((high - low) / 1.349) ** 2 - BANDWIDTH**2)
        share = count / (weight + count)
        variance += share * (width - variance + (1 - share) * (seen - middle) ** 2)
        middle += share * (seen - middle)
    below = map(NormalDist(middle, math.sqrt(variance)).cdf, LOGS)
    return [b - a for a, b in pairwise(below)]


def _quartiles(ends: Weights) -> Iterator[float]:
    """Of the logarithm of the age."""
    below = [0.0, *accumulate(ends)]
    for share in (0.25, 0.5, 0.75):
        target = share * below[-1]
        number = bisect_right(below, target) - 1
        yield STEP * max(0.0, number - 1 + (target - below[number]) / ends[number])


def _between(chances: Weights, after: float, by: float) -> tuple[float, Weights]:
    """The chance of an end in an interval, and one end in it: shared out by chance, smoothed."""
    after = max(0.0, after)
    by = max(after + 0.01, by)
    parts = [
        chance * max(0.0, min(end, by) - max(start, after)) / (end - start)
        for chance, (start, end) in zip(chances[:-1], pairwise(EDGES[:-1]), strict=True)
    ]
    total = sum(parts) + (beyond := chances[-1] * (by > LONGEST_AGE))
    padded = [*NOTHING[:7], *parts, beyond, *NOTHING[:7]]
    return total, [sum(map(mul, KERNEL, padded[n : n + 15])) / total for n in range(BINS)]


def _faded(old: Weights, seen: Weights, memory: float) -> Weights:
    keep = math.exp(-1 / memory)
    return [keep * before + now for before, now in zip(old, seen, strict=True)]


def _checked(weights: Any) -> Weights:
    checked = [float(weight) for weight in weights]
    if len(checked) != BINS or not all(0 <= weight < 1e6 for weight in checked):
        raise ValueError(f"there must be {BINS} weights from 0 up")
    return checked
