"""How good is the default wait between two polls, and why these constants?

A wait by id polls at once, then after each delay of its schedule, until the first poll at or after
the end of the generation. A schedule costs, in seconds, the mean time from that end to the poll
that sees it, plus 0.2 s for each request, the first poll included. Each cost is divided by the
least cost of any schedule for the same durations, known beforehand: the optimal inspection times
of R. E. Barlow, L. C. Hunter and F. Proschan, "Optimum checking procedures", Journal of the Society
for Industrial and Applied Mathematics 11 (1963), found here by dynamic programming. So 1.00 is
perfect, and out of reach for a schedule that has to serve all of these durations.

The default is plain exponential backoff: after poll k it waits min(first * factor**k, cap) seconds,
plus or minus up to 0.5 s of jitter.

    python tests/benchmarks/default_wait.py            the default and its peers
    python tests/benchmarks/default_wait.py --search   the best of a grid of first, factor and cap
"""

import random
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, product
from math import ceil, exp, inf, log, log1p
from operator import add
from statistics import NormalDist, fmean
from typing import NamedTuple

from tenacity import RetryCallState, Retrying, wait_chain, wait_exponential, wait_fixed, wait_random

from luma_poll import DEFAULT_WAIT
from luma_poll._polling.schedules import JITTER

REQUEST_COST = 0.2  # seconds of delay that one request is worth
GRID = 0.25  # seconds between the possible inspection times of the optimum
SAMPLES = 3000  # durations that stand for one distribution
RUNS = 200  # random repetitions of a schedule in the table
SEARCH_RUNS = 10
SEED = 1963

FIRSTS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 8, 10, 15, 20, 25, 30)
FACTORS = (1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.08, 1.1, 1.15, 1.2, 1.3, 1.5, 2)
CAPS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30)

Wait = Callable[[RetryCallState], float]
Durations = Sequence[float]  # sorted, in seconds


class Cost(NamedTuple):
    """The mean price of one wait."""

    late: float  # seconds from the end of the generation to the poll that sees it
    polls: float

    @property
    def total(self) -> float:
        return self.late + REQUEST_COST * self.polls


def backoff(first: float, factor: float, cap: float) -> Wait:
    """Exponential backoff with the jitter of the default."""
    plain = wait_exponential(multiplier=first, exp_base=factor, max=cap)
    return plain + wait_random(-JITTER, JITTER)


PEERS: dict[str, Wait] = {
    "6 +-1.5": wait_random(4.5, 7.5),
    "20, 2": wait_chain(wait_fixed(20), wait_fixed(2)),
    "2": wait_fixed(2),
    "1 x1.5 <20": wait_exponential(multiplier=1, exp_base=1.5, max=20),
    "1": wait_fixed(1),
    "1 x2 <60": wait_exponential(multiplier=1, exp_base=2, max=60),
}


def centres(n: int) -> list[float]:
    """The middles of n equal parts of the interval from 0 to 1."""
    return [(i + 0.5) / n for i in range(n)]


def log_normal(median: float, sigma: float, n: int) -> list[float]:
    """Evenly spread quantiles: less noise than random draws."""
    normal = NormalDist(log(median), sigma)
    return [exp(normal.inv_cdf(p)) for p in centres(n)]


def variants(median: float, sigma: float) -> dict[str, Durations]:
    """A log-normal, and the same with each of three troubles."""
    queued, failed, second = SAMPLES * 15 // 100, SAMPLES * 9 // 100, SAMPLES * 40 // 100
    queue = [-median * log1p(-p) for p in centres(queued)]
    random.Random(SEED).shuffle(queue)
    late = map(add, log_normal(median, sigma, queued), queue)
    early = [1 + 4 * p for p in centres(failed)]
    hump = log_normal(2.2 * median, sigma, second)
    return {
        "plain": log_normal(median, sigma, SAMPLES),
        "queue": sorted([*log_normal(median, sigma, SAMPLES - queued), *late]),
        "early failures": sorted(log_normal(median, sigma, SAMPLES - failed) + early),
        "two humps": sorted(log_normal(median, sigma, SAMPLES - second) + hump),
    }


DISTRIBUTIONS = {
    f"{median:g} s, {name}": durations
    for median, sigma in ((27.0, 0.3), (62.0, 0.45), (170.0, 0.5))
    for name, durations in variants(median, sigma).items()
}
GUARD = log_normal(12.0, 0.3, SAMPLES)  # a short job: not in the average, but not to be punished
LONGEST = max(durations[-1] for durations in DISTRIBUTIONS.values())


def optimum(durations: Durations) -> float:
    """The least cost of any schedule that polls at multiples of GRID, the poll at 0 included."""
    return cost_of([optimal_times(durations)], durations).total


def optimal_times(durations: Durations, request_cost: float = REQUEST_COST) -> list[float]:
    """The polls of the schedule that costs least."""
    last = ceil(durations[-1] / GRID)
    done = [bisect_right(durations, i * GRID) for i in range(last + 1)]
    sums = [0.0, *accumulate(durations)]
    cost = [0.0] * (last + 1)  # of all that is not done at i, if the latest poll was at i
    then = [last] * (last + 1)  # the next poll after one at i
    best = last
    for i in reversed(range(last)):
        # With more done the best next poll is never earlier: look no further than the one after i.
        now, least, latest = done[i], inf, best
        for j in range(i + 1, latest + 1):
            late = (done[j] - now) * j * GRID - (sums[done[j]] - sums[now])
            if late + cost[j] < least:
                least, best = late + cost[j], j
        cost[i], then[i] = least + request_cost * (len(durations) - now), best
    times = [0]
    while times[-1] < last:
        times.append(then[times[-1]])
    return [time * GRID for time in times]


def poll_times(wait: Wait) -> list[float]:
    """The polls of one endless wait, from 0 to beyond the longest duration."""
    state = RetryCallState(Retrying(), None, (), {})
    state.start_time = 0.0
    times = [0.0]
    while times[-1] < LONGEST:
        state.attempt_number, state.outcome_timestamp = len(times), times[-1]
        times.append(times[-1] + wait(state))
    return times


def cost_of(runs: Sequence[Sequence[float]], durations: Durations) -> Cost:
    """The mean over all durations and all runs of a schedule."""
    seen_at = polls = 0.0
    for times in runs:
        done = 0
        for number, time in enumerate(times, 1):
            now = bisect_right(durations, time, done)
            seen_at += (now - done) * time
            polls += (now - done) * number
            done = now
            if done == len(durations):
                break
    waits = len(runs) * len(durations)
    return Cost(seen_at / waits - fmean(durations), polls / waits)


def repeat(wait: Wait, runs: int) -> list[list[float]]:
    """The same random numbers for each schedule, so that differences are not luck."""
    random.seed(SEED)
    return [poll_times(wait) for _ in range(runs)]


def row(name: str, cells: Sequence[float]) -> None:
    print(f"{name:22}", *(f"{cell:>10.2f}" for cell in cells))


def show_table(default: Wait) -> None:
    """Print cost / optimum of each schedule; the last two columns are the default's."""
    schedules = {"default": default, **PEERS}
    runs = {name: repeat(wait, RUNS) for name, wait in schedules.items()}
    columns: dict[str, list[float]] = {name: [] for name in schedules}
    print(f"{'':22}", *(f"{name:>10}" for name in (*schedules, "optimum s", "late s", "polls")))
    for name, durations in {**DISTRIBUTIONS, "12 s (guard)": GUARD}.items():
        least = optimum(durations)
        costs = [cost_of(runs[schedule], durations) for schedule in schedules]
        ratios = [cost.total / least for cost in costs]
        if name in DISTRIBUTIONS:
            for column, ratio in zip(columns.values(), ratios, strict=True):
                column.append(ratio)
        row(name, [*ratios, least, *costs[0]])
    row("average without guard", [fmean(column) for column in columns.values()])
    row("worst without guard", [max(column) for column in columns.values()])


def search() -> None:
    """Print the schedules of the grid with the least average ratio, and how flat the basin is."""
    optima = {name: optimum(durations) for name, durations in DISTRIBUTIONS.items()}
    guard = optimum(GUARD)
    found = []
    for first, factor, cap in product(FIRSTS, FACTORS, CAPS):
        if first < cap:
            runs = repeat(backoff(first, factor, cap), SEARCH_RUNS)
            ratios = [cost_of(runs, DISTRIBUTIONS[name]).total / optima[name] for name in optima]
            short = cost_of(runs, GUARD).total / guard
            found.append((fmean(ratios), max(ratios), short, first, factor, cap))
    found.sort()
    least = found[0][0]
    near = [entry for entry in found if entry[0] <= 1.01 * least]
    near.sort(key=lambda entry: entry[2])
    for title, entries in (("least average", found), ("within 1 %, by guard", near)):
        print(f"{title}:\naverage  worst  guard  first  factor  cap")
        for entry in entries[:12]:
            print("{:7.3f}  {:5.2f}  {:5.2f}  {:5g}  {:6g}  {:3g}".format(*entry))
    for limit in (1.01, 1.02, 1.05):
        firsts = [first for average, _, _, first, _, _ in found if average <= limit * least]
        print(f"within {limit - 1:.0%}: {len(firsts)}, first {min(firsts)} to {max(firsts)} s")


if __name__ == "__main__":
    if "--search" in sys.argv[1:]:
        search()
    else:
        print("cost / optimum of luma_poll.DEFAULT_WAIT and of its peers")
        show_table(DEFAULT_WAIT)
