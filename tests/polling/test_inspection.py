"""The planned polls against the best that a search of all finds."""

import math
from bisect import bisect_left
from itertools import pairwise
from statistics import NormalDist, fmean

import pytest

from luma_poll._polling.plan import Plan, plan_polls

STEP = 0.5  # seconds between the ages that the search tries
LAST = 120
EDGES = [float(second) for second in range(LAST + 1)] + [1000.0]


def durations(*humps: tuple[float, float]) -> list[float]:
    """Some thousand, in equal shares of log-normals."""
    shares = [(number + 0.5) / 1000 for number in range(1000)]
    drawn = [
        math.exp(NormalDist(math.log(median), spread).inv_cdf(share))
        for median, spread in humps
        for share in shares
    ]
    return sorted(end for end in drawn if end < LAST)


def chances(ends: list[float]) -> list[float]:
    """An end in each bin of EDGES."""
    below = [bisect_left(ends, edge) for edge in EDGES]
    return [float(b - a) for a, b in pairwise(below)]


def mean_cost(polls: list[float], ends: list[float], cost: float) -> float:
    seen = [bisect_left(polls, end) for end in ends]
    return fmean(polls[n] - end + cost * n for n, end in zip(seen, ends, strict=True))


def polls_of(plan: Plan) -> list[float]:
    polls = [0.0]
    while polls[-1] < LAST:
        polls.append(polls[-1] + plan.gap(polls[-1]))
    return polls


def best_cost(ends: list[float], cost: float) -> float:
    """The least of any polls at multiples of STEP."""
    ages = [STEP * number for number in range(round(LAST / STEP) + 1)]
    done = [bisect_left(ends, age) for age in ages]
    least = [0.0] * len(ages)
    for i in reversed(range(len(ages) - 1)):
        least[i] = min(
            ages[j] * (done[j] - done[i]) + cost * (len(ends) - done[i]) + least[j]
            for j in range(i + 1, len(ages))
        )
    return least[0] / len(ends) - fmean(ends)


@pytest.mark.parametrize("cost", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(
    "humps", [[(30.0, 0.3)], [(12.0, 0.5)], [(3.0, 0.4), (60.0, 0.15)], [(60.0, 0.1)]]
)
def test_no_schedule_costs_much_less(humps: list[tuple[float, float]], cost: float) -> None:
    """All polls cost at most 3 % more than the best, which a search over all of them finds."""
    ends = durations(*humps)
    plan = plan_polls(chances(ends), EDGES, cost)
    assert mean_cost(polls_of(plan), ends, cost) < 1.03 * best_cost(ends, cost)


def test_only_proportions_count() -> None:
    """Chances need not add up to one."""
    some = chances(durations((30, 0.3)))
    plan = plan_polls(some, EDGES, 0.2)
    same = plan_polls([chance / 4 for chance in some], EDGES, 0.2)
    assert same.polls == pytest.approx(plan.polls)


@pytest.mark.parametrize("age", [0, 0.3, 59.9, 120, 119.99, 1e9])
def test_there_is_always_a_next_poll(age: float) -> None:
    """At any age, later than that."""
    assert plan_polls(chances(durations((30, 0.3))), EDGES, 0.2).gap(age) > 0
