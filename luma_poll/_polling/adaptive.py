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
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
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
EDGES = [0.0, *map(math.exp, LOGS[1:-1]), 2 * LONGEST_AGE]
"""Seconds. Between them lie the bins: one to 1 s, then each 7 % longer, one beyond an hour."""
PER_GAP, COARSE, FINE = 3.0, 0.5, 6.0
"""Places where a poll may be planned: for each poll that is likely; in a bin at least, at most."""

# Of a model beforehand: seconds that half of its generations take (Luma's quickstart and video
# guide, resellers' pages); the standard deviation of their logarithm, and how many ends that is
# worth (guesses: so wide that an error of factor two is no disaster).
PUBLISHED = {"uni-1": (30.0, 0.7, 1.0), "uni-1-max": (69.0, 0.7, 1.0), "ray-3.2": (60.0, 0.7, 1.0)}
UNKNOWN = (37.0, 1.5, 0.3)

# How much each thing counts, in ends that were seen.
CURVE_WEIGHT = 5.0  # a log-normal curve through them: it decides while they are few
OTHERS_WEIGHT = 2.0  # all other kinds together, for a model of which nothing is known
# A heavy tail of stragglers, which no curve foretells.
DOUBT = [b - a for a, b in pairwise(-0.4 * (1 + math.exp(log) / 90) ** -2 for log in LOGS)]
# Failures and what has not failed, before any was seen; most fail in their first seconds.
FAILED_WEIGHT, NOT_FAILED_WEIGHT, EARLY_SHARE = 0.2, 5.0, 0.9
EARLY = [b - a for a, b in pairwise(map(NormalDist(math.log(3), 0.5).cdf, LOGS))]

MEMORY, SHORT_MEMORY = 200.0, 10.0  # ends after which one counts 1/e
CHANGE = 1 / 200  # chance at each end that generations take another time from now on
BANDWIDTH = 0.12  # standard deviation of the logarithm of the age by which an end is smoothed
KERNEL = [NormalDist(0, BANDWIDTH).pdf(STEP * number) * STEP for number in range(-7, 8)]
JITTER = 0.15  # share of a gap, both ways
PATIENCE = 16.0  # an estimate is made again when this share of the ends is new
MAX_KINDS = 64
VERSION = 1

Kind = tuple[str | None, str | None]
Weights = Sequence[float]
Plan = tuple[Weights, Weights]  # seconds: places, and the time of the next poll after each
End = tuple[int, Weights]  # an end that is spread over some bins: the first, and weights from there
NOTHING: Weights = (0.0,) * BINS
NO_END: End = (0, ())


@dataclass(slots=True)
class _Seen:
    """The ends of one kind. Failures are kept apart: they do not tell how long the others take."""

    ends: Weights = NOTHING
    failures: Weights = NOTHING
    lately: Weights = NOTHING  # the latest of `ends`
    odds: float = CHANGE  # that only these hold

    def add(self, end: End, failure: End) -> None:
        self.ends = _faded(self.ends, end, MEMORY)
        self.failures = _faded(self.failures, failure, MEMORY)

    def suspect(self, usual: End, changed: End) -> bool:
        """Forget what does not hold any more. True if there may have been a change.

        Two explanations, and Bayes' rule (A. N. Shiryaev, "On optimum methods in quickest detection
        problems", Theory of Probability and Its Applications 8, 1963): all ends tell how long it
        takes, or there was a change and only those seen lately do.
        """
        self.odds = (self.odds + CHANGE) * sum(changed[1]) / sum(usual[1])
        if self.odds < 2 * CHANGE:
            self.lately, self.odds = NOTHING, CHANGE
            return False
        self.lately = _faded(self.lately, _smoothed(changed), SHORT_MEMORY)
        if self.odds > 1:
            self.ends, self.lately, self.odds = self.lately, NOTHING, CHANGE
        return True


@dataclass(slots=True)
class _Estimate:
    """Chances of an end in each bin, and the polls that follow from them."""

    usual: Weights
    changed: Weights  # if only the latest ends hold
    failed: Weights
    plan: Plan
    fresh_for: float  # ends


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
        self._estimates: dict[Kind | None, _Estimate] = {}

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds until the next poll."""
        plan = self._estimate(_kind_of(retry_state)).plan
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
        estimate = self._estimate(kind)
        suspicious = False
        if generation.state == "failed":
            seen.add(NO_END, _smoothed(_between(estimate.failed, after, by)))
        else:
            usual = _between(estimate.usual, after, by)
            end = _smoothed(usual)
            seen.add(end, NO_END)
            suspicious = seen.suspect(usual, _between(estimate.changed, after, by))
            self._all = _faded(self._all, end, MEMORY)
        for known in (kind, None):
            self._outdate(known, suspicious=suspicious)
        if len(self._kinds) > MAX_KINDS:
            oldest = next(iter(self._kinds))
            del self._kinds[oldest]
            self._estimates.pop(oldest, None)

    def to_json(self) -> str:
        """Everything that was learned (but not a mere suspicion of a change) for `from_json`."""
        everything = [round(weight, 6) for weight in self._all]
        kinds = [
            {
                "model": model,
                "type": type_,
                "weights": [round(weight, 6) for weight in seen.ends],
                "failures": [round(weight, 6) for weight in seen.failures],
            }
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
                (entry["model"], entry["type"]): _Seen(
                    _checked(entry["weights"]), _checked(entry.get("failures", NOTHING))
                )
                for entry in learned["kinds"][-MAX_KINDS:]
            }
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigurationError(
                f"this text is not from AdaptiveWait.to_json: {error}"
            ) from None
        return restored

    def _estimate(self, kind: Kind | None) -> _Estimate:
        if kind not in self._kinds:  # it is taken to be like its model, or else like all others
            kind = (kind[0], None) if kind and kind[0] in PUBLISHED else None
        if kind not in self._estimates:
            seen = self._kinds.get(kind, _Seen()) if kind else _Seen(self._all)
            usual, changed = self._chances(kind, seen.ends), self._chances(kind, seen.lately)
            share = seen.odds / (1 + seen.odds)
            ends = [a + share * (b - a) for a, b in zip(usual, changed, strict=True)]
            failed = [
                failure + FAILED_WEIGHT * (EARLY_SHARE * early + (1 - EARLY_SHARE) * end)
                for failure, early, end in zip(seen.failures, EARLY, ends, strict=True)
            ]
            weight = NOT_FAILED_WEIGHT + sum(seen.ends)
            both = [weight * end + failure for end, failure in zip(ends, failed, strict=True)]
            plan = _planned(_normalized(both), self._cost)
            calm = seen.odds == CHANGE
            fresh_for = calm * (sum(seen.ends) + sum(seen.failures)) / PATIENCE
            self._estimates[kind] = _Estimate(usual, changed, failed, plan, fresh_for)
        return self._estimates[kind]

    def _outdate(self, kind: Kind | None, *, suspicious: bool) -> None:
        """Count an end, and drop an estimate that it has made worthless."""
        if kind in self._estimates:
            self._estimates[kind].fresh_for -= 1
            if suspicious or self._estimates[kind].fresh_for < 0:
                del self._estimates[kind]

    def _chances(self, kind: Kind | None, ends: Weights) -> Weights:
        """How likely an end is in each bin, if `ends` are what was seen."""
        known = PUBLISHED.get(kind[0] or "") if kind else None
        curve = _curve(ends, *(known or UNKNOWN))
        others = 0.0 if known or not kind else OTHERS_WEIGHT / max(sum(self._all), OTHERS_WEIGHT)
        parts = [
            seen + CURVE_WEIGHT * drawn + doubt + others * other
            for seen, drawn, doubt, other in zip(ends, curve, DOUBT, self._all, strict=True)
        ]
        return _normalized(parts)


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


def _gap(plan: Plan, age: float) -> float:
    """Seconds to the next poll, as planned for the nearest place."""
    places, polls = plan
    number = bisect_right(places, min(age, LONGEST_AGE)) - 1
    if number + 1 < len(places) and places[number + 1] - age < age - places[number]:
        number += 1
    return polls[number] - places[number]


def _planned(chances: Weights, cost: float) -> Plan:
    """Some places, and the time of the next poll after each, so that all polls cost least.

    From the last place back. With a share S(t) ended by t, a poll at t leaves to pay: cost for each
    generation that has not ended, and the least, over all later u, of u (S(u) - S(t)) and what a
    poll at u leaves. Each u is a straight line in S(t), and the lowest one moves only towards
    smaller u: so it is enough to keep those that are lowest somewhere, and the time is linear.
    """
    places, ended = _places(chances, cost)
    times, heights = [LONGEST_AGE], [LONGEST_AGE * ended[-1]]  # of the lines
    plan, best = [LONGEST_AGE + 60], 0
    for time, share in zip(reversed(places[:-1]), reversed(ended[:-1]), strict=True):
        best = min(best, len(times) - 1)
        least = heights[best] - times[best] * share
        while best + 1 < len(times) and heights[best + 1] - times[best + 1] * share <= least:
            best += 1
            least = heights[best] - times[best] * share
        plan.append(times[best])
        height = least + time * share + cost * (1 - share)
        while len(times) > 1 and (  # the last line is nowhere the lowest
            (height - heights[-2]) * (times[-2] - times[-1])
            <= (heights[-1] - heights[-2]) * (times[-2] - time)
        ):
            times.pop()
            heights.pop()
        times.append(time)
        heights.append(height)
    return places, plan[::-1]


def _places(chances: Weights, cost: float) -> tuple[list[float], list[float]]:
    """Seconds, from 0 to LONGEST_AGE, and the share ended by then.

    More of them where polls will be close: J. B. Keller, "Optimum checking schedules for systems
    subject to random failure", Management Science 21, 1974.
    """
    places, ended, before, left = [0.0], [0.0], 0.0, 1.0
    for chance, (start, end) in zip(chances[:-1], pairwise(EDGES[:-1]), strict=True):
        polls = math.sqrt(chance / left * (end - start) / (2 * cost))
        after = before + min(max(PER_GAP * polls, COARSE), FINE)
        count = int(after) - int(before)
        for number in range(1, count + 1):
            places.append(start + (end - start) * number / count)
            ended.append(1 - left + chance * number / count)
        before, left = after, left - chance
    places[-1], ended[-1] = LONGEST_AGE, 1 - left
    return places, ended


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
    scale = 1 / math.sqrt(2 * variance)
    below = [0.5 * math.erfc((middle - log) * scale) for log in LOGS]
    return [b - a for a, b in pairwise(below)]


def _quartiles(ends: Weights) -> Iterator[float]:
    """Of the logarithm of the age."""
    below = [0.0, *accumulate(ends)]
    for share in (0.25, 0.5, 0.75):
        target = share * below[-1]
        number = bisect_right(below, target) - 1
        yield STEP * max(0.0, number - 1 + (target - below[number]) / ends[number])


def _between(chances: Weights, after: float, by: float) -> End:
    """The chance of an end in each bin of an interval."""
    after = min(max(0.0, after), LONGEST_AGE)
    by = min(max(after + 0.01, by), EDGES[-1])
    first, last = bisect_right(EDGES, after) - 1, bisect_left(EDGES, by)
    return first, [
        chances[n] * (min(EDGES[n + 1], by) - max(EDGES[n], after)) / (EDGES[n + 1] - EDGES[n])
        for n in range(first, last)
    ]


def _smoothed(end: End) -> End:
    """One end in all, which spills over into the bins around."""
    first, parts = end
    total = sum(parts)
    padded = [*NOTHING[:14], *parts, *NOTHING[:14]]
    spread = [sum(map(mul, KERNEL, padded[n : n + 15])) / total for n in range(len(parts) + 14)]
    return first - 7, spread


def _faded(old: Weights, seen: End, memory: float) -> Weights:
    keep = math.exp(-1 / memory)
    new = [keep * before for before in old]
    for number, weight in enumerate(seen[1], seen[0]):
        new[min(max(number, 0), BINS - 1)] += weight
    return new


def _normalized(parts: Weights) -> Weights:
    total = sum(parts)
    return [part / total for part in parts]


def _checked(weights: Any) -> Weights:
    checked = [float(weight) for weight in weights]
    if len(checked) != BINS or not all(0 <= weight < 1e6 for weight in checked):
        raise ValueError(f"there must be {BINS} weights from 0 up")
    return checked
