"""When `max_rate` binds: let polls queue for a turn, or make requests dearer for everybody?

Jobs come at random and are polled by an AdaptiveWait that has watched a hundred of them; the polls
share a rate of 30 per second, the longest overdue first. "Queue" leaves the request cost at 0.2 s;
"price" takes the cost, of nine from 0.2 to 50 s, that gives the least mean delay: a price that is
found on the way cannot do better.

    python -m tests.benchmarks.crowd
"""

import heapq
import math
import random
from collections.abc import Callable
from statistics import fmean

from luma_poll import AdaptiveWait
from tests.benchmarks.adaptive_wait import Failure, delay, watch
from tests.benchmarks.default_wait import REQUEST_COST, Wait

RATE = 30.0
JOBS = 4000
PRICES = [REQUEST_COST * 2**number for number in range(9)]

Draw = Callable[[random.Random], float]


def log_normal(median: float, sigma: float) -> Draw:
    return lambda draw: median * math.exp(draw.gauss(0, sigma))


def early_failures(median: float, sigma: float) -> Draw:
    job = log_normal(median, sigma)
    return lambda draw: Failure(draw.uniform(1, 4)) if draw.random() < 0.1 else job(draw)


KINDS: dict[str, Draw] = {
    "30 s": log_normal(30, 0.35),
    "60 s": log_normal(60, 0.5),
    "45 s, 10 % fail early": early_failures(45, 0.35),
}


def taught(price: float, draw: Draw) -> AdaptiveWait:
    """It has learned the same at any price."""
    seen = random.Random(5)
    random.seed(5)
    teacher = AdaptiveWait(REQUEST_COST)
    watch(teacher, [draw(seen) for _ in range(100)])
    return AdaptiveWait.from_json(teacher.to_json(), request_cost=price)


def run(wait: Wait, arrivals: float, rate: float, draw: Draw) -> tuple[float, float]:
    """Mean delay of the jobs in the middle, and polls per job."""
    came = random.Random(1)
    random.seed(1)
    now, jobs = 0.0, []
    for _ in range(JOBS):
        now += came.expovariate(arrivals)
        jobs.append((now, draw(came)))
    queue = [(began, number, 1) for number, (began, _) in enumerate(jobs)]
    late, polls, turn = [], 0, 0.0
    while queue:
        due, number, count = heapq.heappop(queue)
        now = max(due, turn)
        turn = now + 1 / rate
        polls += 1
        began, duration = jobs[number]
        age = now - began
        if age < duration:
            heapq.heappush(queue, (now + delay(wait, age, count), number, count + 1))
        elif JOBS // 5 < number < JOBS * 4 // 5:
            late.append(age - duration)
    return fmean(late), polls / JOBS


def main() -> None:
    print("| jobs | wanted / rate | queue | price | at | gain |\n|---|---|---|---|---|---|")
    for name, draw in KINDS.items():
        wait = taught(REQUEST_COST, draw)
        _, polls = run(wait, 1, math.inf, draw)
        for load in (1, 2, 4):
            arrivals = load * RATE / polls
            queue, _ = run(wait, arrivals, RATE, draw)
            by_price = {
                price: run(taught(price, draw), arrivals, RATE, draw)[0] for price in PRICES
            }
            price, least = min(by_price.items(), key=lambda entry: entry[1])
            print(
                f"| {name} | {load} | {queue:.2f} s | {least:.2f} s | {price:g} s | "
                f"{1 - least / queue:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
