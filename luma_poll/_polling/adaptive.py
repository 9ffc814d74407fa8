"""A schedule that learns how long generations take, and polls when they are likely to end.

The ages of generations at their ends are counted in a histogram over logarithmic bins. Together
with prior knowledge it gives the chance of an end in each bin. From those chances follow the polls
that cost least (plan.py).
"""

from __future__ import annotations

import json
import math
import random
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul
from statistics import NormalDist
from typing import Any, Self

from tenacity import RetryCallState
from tenacity.wait import wait_base

from luma_poll._arguments import check_number
from luma_poll._polling.plan import Plan, plan_polls
from luma_poll.errors import ConfigurationError
from luma_poll.models import LONGEST_AGE, Generation

BINS = 122
STEP = math.log(LONGEST_AGE) / (BINS - 2)
LOGS = [-math.inf, *(STEP * number for number in range(BINS - 1)), math.inf]
EDGES = [0.0, *map(math.exp, LOGS[1:-1]), 2 * LONGEST_AGE]
"""Bounds of the bins in seconds: one up to 1 s, then each 7 % longer, one beyond an hour."""

# Prior knowledge of a model: the median time in seconds (from Luma's quickstart and video guide,
# and resellers' pages), the standard deviation of its logarithm, and how many observed ends that is
# worth. The last two are guesses, wide enough that an error of a factor of two does little harm.
PUBLISHED = {"uni-1": (30.0, 0.7, 1.0), "uni-1-max": (69.0, 0.7, 1.0), "ray-3.2": (60.0, 0.7, 1.0)}
UNKNOWN = (37.0, 1.5, 0.3)

# How much each source counts, as a number of observed ends.
CURVE_WEIGHT = 5.0  # a log-normal curve through the ends, which decides while they are few
OTHERS_WEIGHT = 2.0  # all other kinds together, for an unknown model
# A heavy tail of stragglers, which no curve predicts.
DOUBT = [b - a for a, b in pairwise(-0.4 * (1 + math.exp(log) / 90) ** -2 for log in LOGS)]
# The weights of failures, most of them in the first seconds, and of successes.
EARLY = [0.27 * (b - a) for a, b in pairwise(map(NormalDist(math.log(3), 0.5).cdf, LOGS))]
LATE_FAILURES, NO_FAILURES = 0.03, 8.0
MEMORY, SHORT_MEMORY = 200.0, 10.0  # after this many further ends, an end counts 1/e
CHANGE = 1 / 200  # chance, at each end, that the usual time changes from now on
BANDWIDTH = 0.12  # an end is smoothed by this standard deviation of the logarithm of its age
KERNEL = [NormalDist(0, BANDWIDTH).pdf(STEP * number) * STEP for number in range(-7, 8)]
JITTER = 0.15  # share of a gap, both ways
PATIENCE = 10.0  # an estimate is made again when one in this many ends is new
MAX_KINDS = 64
VERSION = 1

Kind = tuple[str | None, str | None]
Weights = Sequence[float]
End = tuple[int, Weights]  # an end, spread over bins: the first bin, and the weights from there
NOTHING: Weights = (0.0,) * BINS


@dataclass(slots=True)
class _Seen:
    """The ends of one kind. Failures count separately: they do not show how long others take."""

    ends: Weights = NOTHING
    failures: Weights = NOTHING
    lately: Weights = NOTHING  # the latest of `ends`
    odds: float = CHANGE  # the odds that only these are still valid

    def suspect(self, usual: End, changed: End) -> bool:
        """Return True if perhaps only the latest ends are still valid (Shiryaev, 1963).

        Once that is likely, the older ends are forgotten.
        """
        self.odds = (self.odds + CHANGE) * sum(changed[1]) / sum(usual[1])
        if self.odds < 2 * CHANGE:
            self.lately, self.odds = NOTHING, CHANGE
            return False
        self.lately = _faded(self.lately, SHORT_MEMORY, changed)
        if self.odds > 1:
            self.ends, self.lately, self.odds = self.lately, NOTHING, CHANGE
        return True


@dataclass(slots=True)
class _Estimate:
    """The chances of an end in each bin, and the polls that follow from them."""

    usual: Weights
    changed: Weights  # the chances if only the latest ends are still valid
    failed: Weights
    plan: Plan
    fresh_for: float  # the number of further ends for which it is good enough


class AdaptiveWait(wait_base):
    """A schedule that learns from each generation that ends: `Poller(client, wait=AdaptiveWait())`.

    It estimates how long generations take, for each model and type. It starts from published times
    for the model. A few observed ends outweigh those, old ones fade, and a sudden change is noticed
    after one or two. Share one between pollers, and keep it across restarts with `to_json`.

    It also learns as a part of tenacity's sums and chains. If you call it from a function of your
    own, give that function an `observe` that passes on the call.

    Args:
        request_cost: Seconds of delay that one request is worth. Quartering it doubles the polls
            and halves the delay; lower it if delay costs money.
        shortest: The least seconds between two polls.
        longest: The most seconds between two polls.

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
        self._lock = threading.Lock()

    def __call__(self, retry_state: RetryCallState) -> float:
        """Return the seconds until the next poll."""
        with self._lock:
            plan = self._estimate(_kind_of(retry_state)).plan
        age = max(0.0, retry_state.seconds_since_start or 0.0)
        gap = plan.gap(age)
        # A long gap may lead to an age at which ends are likely and gaps short: so must jitter be.
        jitter = random.uniform(-JITTER, JITTER) * min(gap, plan.gap(age + gap))
        return min(max(gap + jitter, self._shortest), self._longest)

    def observe(self, generation: Generation, *, after: float, by: float) -> None:
        """Learn from a generation that has ended. The poller calls this.

        Args:
            generation: The last snapshot.
            after: The age, in seconds, at which it was last seen not to have ended.
            by: The age, in seconds, at which it was seen to have ended.
        """
        with self._lock:  # the pollers of several threads may share it
            self._learn(generation, after, by)

    def _learn(self, generation: Generation, after: float, by: float) -> None:
        kind = (generation.model, generation.type)
        self._kinds[kind] = seen = self._kinds.pop(kind, _Seen())
        estimate = self._estimate(kind)
        estimate.fresh_for -= 1
        failed = generation.state == "failed"
        end = _between(estimate.failed if failed else estimate.usual, after, by)
        seen.ends = _faded(seen.ends, MEMORY, None if failed else end)
        seen.failures = _faded(seen.failures, MEMORY, end if failed else None)
        if not failed:
            self._all = _faded(self._all, MEMORY, end)
            if seen.suspect(end, _between(estimate.changed, after, by)):
                estimate.fresh_for = -1
        if estimate.fresh_for < 0:
            del self._estimates[kind]
            self._estimates.pop(None, None)
        if len(self._kinds) > MAX_KINDS:
            oldest = next(iter(self._kinds))
            del self._kinds[oldest]
            self._estimates.pop(oldest, None)

    def to_json(self) -> str:
        """Return all that was learned, as text for `from_json`; a suspected change is left out."""
        with self._lock:
            kinds = [
                {"model": kind[0], "type": kind[1]}
                | {"weights": _rounded(seen.ends), "failures": _rounded(seen.failures)}
                for kind, seen in self._kinds.items()
            ]
            return json.dumps({"version": VERSION, "all": _rounded(self._all), "kinds": kinds})

    @classmethod
    def from_json(cls, text: str | bytes, **options: float) -> Self:
        """Return a schedule that knows what another one had learned.

            poller = Poller(client, wait=AdaptiveWait.from_json(path.read_text()))

        Args:
            text: The text from `to_json`.
            options: `request_cost`, `shortest` and `longest`, which are not part of the text.

        Returns:
            The schedule.

        Raises:
            ConfigurationError: The text is not from `to_json`, or an option is unusable.
        """
        restored = cls(**options)
        try:
            learned = json.loads(text)
            if learned["version"] != VERSION:
                raise ValueError(f"it has version {learned['version']!r}, not {VERSION}")
            restored._all = _checked(learned["all"])
            for entry in learned["kinds"][-MAX_KINDS:]:
                kind = entry["model"], entry["type"]
                ends, failures = entry["weights"], entry.get("failures", NOTHING)
                restored._kinds[kind] = _Seen(_checked(ends), _checked(failures))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = f"this text is not from AdaptiveWait.to_json: {error}"
            raise ConfigurationError(message) from None
        return restored

    def _estimate(self, kind: Kind | None) -> _Estimate:
        if kind not in self._kinds:  # assumed to be like its model, or else like all others
            kind = (kind[0], None) if kind and kind[0] in PUBLISHED else None
        if kind not in self._estimates:
            seen = self._kinds.get(kind, _Seen()) if kind else _Seen(self._all)
            usual, changed = self._chances(kind, seen.ends), self._chances(kind, seen.lately)
            share = seen.odds / (1 + seen.odds)
            ends = [a + share * (b - a) for a, b in zip(usual, changed, strict=True)]
            failures = zip(seen.failures, EARLY, ends, strict=True)
            failed = [known + early + LATE_FAILURES * end for known, early, end in failures]
            weight = NO_FAILURES + sum(seen.ends)
            both = [weight * end + failure for end, failure in zip(ends, failed, strict=True)]
            plan = plan_polls(both, EDGES, self._cost)
            fresh_for = (sum(seen.ends) + sum(seen.failures)) / PATIENCE * (seen.odds == CHANGE)
            self._estimates[kind] = _Estimate(usual, changed, failed, plan, fresh_for)
        return self._estimates[kind]

    def _chances(self, kind: Kind | None, ends: Weights) -> Weights:
        """Return the chance of an end in each bin, given the observed `ends`."""
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
    checked = check_number(name, value)
    if checked == math.inf:
        raise ConfigurationError(f"{name} must be a number of seconds above 0, not {value!r}")
    return checked


def _kind_of(state: RetryCallState) -> Kind | None:
    if state.outcome is None or state.outcome.failed:
        return None  # an error does not tell the kind
    latest = state.outcome.result()
    return (latest.model, latest.type) if isinstance(latest, Generation) else None


def _curve(ends: Weights, median: float, spread: float, weight: float) -> Weights:
    """Return a log-normal through the quartiles of `ends`: a mean would follow a few stragglers."""
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
    """Yield the quartiles of the logarithm of the age."""
    below = [0.0, *accumulate(ends)]
    for share in (0.25, 0.5, 0.75):
        target = share * below[-1]
        number = bisect_right(below, target) - 1
        yield STEP * max(0.0, number - 1 + (target - below[number]) / ends[number])


def _between(chances: Weights, after: float, by: float) -> End:
    """Return the chance of an end in each bin of an interval."""
    after = min(max(0.0, after), LONGEST_AGE)
    by = min(max(after + 0.01, by), EDGES[-1])
    first, last = bisect_right(EDGES, after) - 1, bisect_left(EDGES, by)
    return first, [
        chances[n] * (min(EDGES[n + 1], by) - max(EDGES[n], after)) / (EDGES[n + 1] - EDGES[n])
        for n in range(first, last)
    ]


def _faded(old: Weights, memory: float, end: End | None) -> Weights:
    """Return the weights after one more end, which is spread in proportion and smoothed."""
    keep = math.exp(-1 / memory)
    new = [keep * before for before in old]
    if end:
        first, parts = end
        total = sum(parts)
        padded = [*NOTHING[:14], *parts, *NOTHING[:14]]
        for number in range(len(parts) + 14):
            place = min(max(first - 7 + number, 0), BINS - 1)
            new[place] += sum(map(mul, KERNEL, padded[number : number + 15])) / total
    return new


def _rounded(weights: Weights) -> Weights:
    return [round(weight, 6) for weight in weights]


def _checked(weights: Any) -> Weights:
    checked = [float(weight) for weight in weights]
    if len(checked) != BINS or not all(0 <= weight < 1e6 for weight in checked):
        raise ValueError(f"there must be {BINS} weights of at least 0")
    return checked
