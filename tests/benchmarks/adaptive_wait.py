"""AdaptiveWait beside the optimum and beside what others do, in simulated time.

A job is polled at once, then as the schedule says, until the first poll at or after its end. What
that costs: the seconds from the end to that poll, plus 0.2 s for each poll, the first included.
Costs are divided by the least possible for the same durations (see default_wait.py). AdaptiveWait
has first watched 0, 10, 50 or 200 jobs of the same durations, through its own polls only.

    python -m tests.benchmarks.adaptive_wait                                 the tables
    python -m tests.benchmarks.adaptive_wait --picture docs/adaptive-wait.svg

Those named "fresh" and "held out" were not looked at when its constants were chosen: it was tuned
on TUNED only. The parameters of the fresh ones were drawn at random, with the seed FRESH_SEED.
After ± stands the standard error of an average, over SEEDS draws of the jobs that were watched.
"""

import argparse
import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

from tenacity import (
    Future,
    RetryCallState,
    Retrying,
    wait_chain,
    wait_exponential,
    wait_fixed,
    wait_random,
)

from luma_poll import DEFAULT_WAIT, AdaptiveWait, Generation
from luma_poll._polling.plan import plan_polls
from tests.benchmarks.default_wait import (
    DISTRIBUTIONS,
    GRID,
    REQUEST_COST,
    SAMPLES,
    Durations,
    Wait,
    centres,
    cost_of,
    log_normal,
    optimal_times,
    optimum,
)

SEEDS = 6
DRIFT_SEEDS = 16
FRESH_SEED = 17
JOB = Generation(id="a job", state="processing", model="a model", type="a type")
PEERS: dict[str, Wait] = {
    "0.1 s": wait_fixed(0.1),
    "0.5 s": wait_fixed(0.5),
    "1 s": wait_fixed(1),
    "2 s": wait_fixed(2),
    "6 ± 1.5 s": wait_random(4.5, 7.5),
    "30 s": wait_fixed(30),
    "20 s, then 2 s": wait_chain(wait_fixed(20), wait_fixed(2)),
    "1 s x 1.5 to 20 s": wait_exponential(multiplier=1, exp_base=1.5, max=20),
    "1 s x 2 to 60 s": wait_exponential(multiplier=1, exp_base=2, max=60),
    "DEFAULT_WAIT": DEFAULT_WAIT,
}
WATCHED = (0, 10, 50, 200)


class Outcome(NamedTuple):
    """What a schedule did with a distribution."""

    polls: float
    late: float
    late_95: float
    ratio: float
    error: float = 0.0


class Failure(float):
    """The duration of a job that fails."""


# --- durations -----------------------------------------------------------------------------------


def plain(median: float, sigma: float) -> Durations:
    return log_normal(median, sigma, SAMPLES)


def mixed(*parts: tuple[float, Durations]) -> Durations:
    """Shares of several distributions."""
    drawn: list[float] = []
    for share, durations in parts:
        count = round(SAMPLES * share)
        drawn += [durations[int(p * len(durations))] for p in centres(count)]
    return sorted(drawn)


def queued(median: float, sigma: float, share: float, mean: float) -> Durations:
    """Some jobs wait in a queue first, exponentially."""
    draw = random.Random(7)
    return sorted(
        job + (draw.expovariate(1 / mean) if draw.random() < share else 0.0)
        for job in plain(median, sigma)
    )


def early(median: float, sigma: float, share: float, latest: float) -> Durations:
    """Some jobs fail in their first seconds."""
    return mixed(
        (share, [Failure(1 + (latest - 1) * p) for p in centres(1000)]),
        (1 - share, plain(median, sigma)),
    )


def weibull(scale: float, shape: float) -> Durations:
    return [scale * (-math.log1p(-p)) ** (1 / shape) for p in centres(SAMPLES)]


PUBLISHED = {
    "image": plain(30, 0.35),
    "image, 9 % moderated": early(30, 0.35, 0.09, 5),
    "video": plain(60, 0.45),
    "large image": plain(69, 0.4),
    "image, as seen by integrators": plain(16, 0.35),
}
MODELS = {"image": "uni-1", "image, 9 % moderated": "uni-1", "video": "ray-3.2"}
MODELS |= {"large image": "uni-1-max", "image, as seen by integrators": "uni-1"}


def fresh() -> dict[str, Durations]:
    """Six families; where their parameters lie was left to chance."""
    draw = random.Random(FRESH_SEED)

    def median() -> float:
        return round(math.exp(draw.uniform(math.log(12), math.log(240))))

    def spread() -> float:
        return round(draw.uniform(0.2, 0.6), 2)

    a, b, c, d, e, f = (median() for _ in range(6))
    shape, least = round(draw.uniform(3, 12)), round(c / draw.uniform(2, 4))
    logistic = [
        b * (p / (1 - p)) ** (spread_b / 2) for spread_b in (spread(),) for p in centres(SAMPLES)
    ]
    gamma = sorted(draw.gammavariate(shape, a / shape) for _ in range(SAMPLES))
    return {
        f"gamma {a} s, shape {shape}": gamma,
        f"log-logistic {b} s": [min(age, 3000.0) for age in logistic],
        f"{least} s and log-normal {c - least} s": [
            least + age for age in plain(c - least, spread())
        ],
        f"queue, {d} s": queued(d, spread(), draw.uniform(0.1, 0.3), d * draw.uniform(0.5, 1.5)),
        f"fail early, {e} s": early(e, spread(), draw.uniform(0.03, 0.12), draw.uniform(3, 8)),
        f"two humps, {f} s": mixed(
            (0.6, plain(f, 0.25)), (0.4, plain(f * draw.uniform(2, 4), 0.3))
        ),
    }


FRESH = fresh()
FAILING = {
    name: [Failure(age) if age <= 5 else age for age in durations]
    for name, durations in DISTRIBUTIONS.items()
    if "early failures" in name
}
TUNED = (
    DISTRIBUTIONS
    | FAILING
    | {
        "Weibull 40 s": weibull(40, 1.6),
        "Weibull 200 s": weibull(200, 4),
        "log-normal 10 s": plain(10, 0.35),
        "log-normal 400 s": plain(400, 0.4),
        "log-normal 55 s, narrow": plain(55, 0.18),
        "log-normal 90 s, wide": plain(90, 0.75),
        "queue, 45 s": queued(45, 0.25, 0.3, 60),
        "6 % fail early, 140 s": early(140, 0.25, 0.06, 6),
        "two humps, 25 and 110 s": mixed((0.75, plain(25, 0.25)), (0.25, plain(110, 0.25))),
    }
)
HELD_OUT = {
    "log-normal 15 s": plain(15, 0.3),
    "log-normal 20 s": plain(20, 0.45),
    "log-normal 45 s, narrow": plain(45, 0.25),
    "log-normal 45 s, wide": plain(45, 0.6),
    "log-normal 100 s": plain(100, 0.35),
    "log-normal 150 s": plain(150, 0.5),
    "log-normal 300 s, narrow": plain(300, 0.3),
    "log-normal 300 s, wide": plain(300, 0.6),
    "Weibull 60 s": weibull(60, 2),
    "Weibull 120 s": weibull(120, 3),
    "queue, 20 s": queued(20, 0.3, 0.3, 30),
    "queue, 80 s": queued(80, 0.4, 0.2, 120),
    "queue, 200 s": queued(200, 0.3, 0.25, 200),
    "8 % fail early, 30 s": early(30, 0.3, 0.08, 4),
    "10 % fail early, 90 s": early(90, 0.35, 0.1, 6),
    "10 % fail early, 200 s": early(200, 0.4, 0.1, 5),
    "two humps, 20 and 60 s": mixed((0.6, plain(20, 0.25)), (0.4, plain(60, 0.3))),
    "two humps, 40 and 150 s": mixed((0.5, plain(40, 0.3)), (0.5, plain(150, 0.3))),
    "two humps, 30 and 240 s": mixed((0.7, plain(30, 0.3)), (0.3, plain(240, 0.3))),
}
WRONG = {
    f"prior wrong: {median} s, {width}": plain(median, sigma)
    for median in (3, 4, 6, 12, 300, 600)
    for width, sigma in (("narrow", 0.3), ("wide", 0.6))
}


# --- the simulator -------------------------------------------------------------------------------


def delay(wait: Wait, age: float, polls: int, job: Generation = JOB) -> float:
    state = RetryCallState(Retrying(), None, (), {})
    state.outcome = Future(polls)
    state.outcome.set_result(job)
    state.start_time, state.outcome_timestamp, state.attempt_number = 0.0, age, polls
    return float(wait(state))


def poll_times(wait: Wait, until: float, job: Generation = JOB) -> list[float]:
    """The polls of one job, the first at or after `until` included."""
    times = [0.0]
    while times[-1] < until:
        times.append(times[-1] + delay(wait, times[-1], len(times), job))
    return times


def ended(job: Generation, duration: float) -> Generation:
    state = "failed" if isinstance(duration, Failure) else "completed"
    return job.model_copy(update={"state": state})


def watch(wait: AdaptiveWait, durations: Sequence[float], job: Generation = JOB) -> None:
    """Let it learn from jobs that it polls itself."""
    for duration in durations:
        *_, after, by = poll_times(wait, duration, job)
        wait.observe(ended(job, duration), after=after, by=by)


least_cost = cache(optimum)


def simulate(make: Callable[[int], Wait], durations: Durations, job: Generation = JOB) -> Outcome:
    """The mean over all durations, and over some schedules that `make(seed)` gives."""
    late: list[float] = []
    costs: list[float] = []
    all_polls = 0
    for seed in range(SEEDS):
        random.seed(seed)
        times = poll_times(make(seed), durations[-1], job)
        ends = durations[:: SAMPLES // 500]
        seen = [bisect_left(times, end) for end in ends]
        delays = [times[number] - end for number, end in zip(seen, ends, strict=True)]
        polls = sum(seen) + len(seen)
        costs.append(fmean(delays) + REQUEST_COST * polls / len(ends))
        late += delays
        all_polls += polls
    late.sort()
    least = least_cost(tuple(durations))
    return Outcome(
        all_polls / len(late),
        fmean(late),
        late[len(late) * 95 // 100],
        fmean(costs) / least,
        stdev(costs) / least / math.sqrt(SEEDS),
    )


def after_watching(jobs: int, durations: Durations, job: Generation = JOB) -> Callable[[int], Wait]:
    def make(seed: int) -> Wait:
        wait = AdaptiveWait(REQUEST_COST)
        watch(wait, random.Random(1000 + seed).choices(durations, k=jobs), job)
        return wait

    return make


def drift(before: Durations, after: Durations) -> list[tuple[float, float]]:
    """Cost over optimum, and its standard error, in each fifty jobs after a sudden change."""
    least = least_cost(tuple(after))
    ratios: list[list[float]] = [[], [], [], []]
    for seed in range(DRIFT_SEEDS):
        random.seed(seed)
        draw = random.Random(2000 + seed)
        wait = AdaptiveWait(REQUEST_COST)
        watch(wait, draw.choices(before, k=200))
        for part in ratios:
            costs = []
            for duration in draw.choices(after, k=50):
                *_, last, by = times = poll_times(wait, duration)
                wait.observe(ended(JOB, duration), after=last, by=by)
                costs.append(by - duration + REQUEST_COST * len(times))
            part.append(fmean(costs) / least)
    return [(fmean(part), stdev(part) / math.sqrt(DRIFT_SEEDS)) for part in ratios]


# --- what cannot be better -----------------------------------------------------------------------


def with_gaps_up_to(longest: float, durations: Durations) -> float:
    """Cost over optimum of the best schedule that knows everything, with such gaps only."""
    last, most = math.ceil(durations[-1] / GRID), round(longest / GRID)
    done = [bisect_right(durations, number * GRID) for number in range(last + 1)]
    cost = [0.0] * (last + 1)
    for i in reversed(range(last)):
        later = range(i + 1, min(last, i + most) + 1)
        least = min((done[j] - done[i]) * j * GRID + cost[j] for j in later)
        cost[i] = least + REQUEST_COST * (len(durations) - done[i])
    total = (cost[0] - sum(durations)) / len(durations) + REQUEST_COST
    return total / least_cost(tuple(durations))


def by_the_true_shape(durations: Durations, jobs: int, doubt: float) -> float:
    """Cost over optimum of one that is told log-normals, and the exact durations of some jobs.

    Args:
        durations: Those of all jobs.
        jobs: It is told of so many.
        doubt: Share that it gives to anything else: a heavy tail.
    """
    edges = [number / 2 for number in range(1, 7201)]
    ratios = []
    for seed in range(2 * SEEDS):
        seen = [math.log(age) for age in random.Random(1000 + seed).choices(durations, k=jobs)]
        curve = NormalDist(fmean(seen), stdev(seen))
        ended = [
            (1 - doubt) * curve.cdf(math.log(age)) + doubt * (1 - (1 + age / 90) ** -2)
            for age in edges
        ]
        chances = [b - a for a, b in pairwise([0.0, *ended, 1.0])]
        plan = plan_polls(chances, [0.0, *edges, 7200.0], REQUEST_COST)
        times = [0.0]
        while times[-1] < durations[-1]:
            times.append(times[-1] + plan.gap(times[-1]))
        ratios.append(cost_of([times], durations).total / least_cost(tuple(durations)))
    return fmean(ratios)


# --- what it prints ------------------------------------------------------------------------------


def show_learning(title: str, distributions: dict[str, Durations]) -> None:
    """Cost over optimum after some jobs, and that of the default."""
    print(f"\n| {title} |" + "".join(f" {n} jobs |" for n in WATCHED) + " DEFAULT_WAIT |")
    print("|---|" + "---|" * (len(WATCHED) + 1))
    rows = []
    for name, durations in distributions.items():
        job = JOB.model_copy(update={"model": MODELS.get(name, JOB.model)})
        row = [simulate(after_watching(jobs, durations, job), durations, job) for jobs in WATCHED]
        rows.append([*row, simulate(lambda seed: DEFAULT_WAIT, durations)])
        print(
            f"| {name} |" + "".join(f" {outcome.ratio:.2f} |" for outcome in rows[-1]), flush=True
        )
    columns = list(zip(*rows, strict=True))
    means = [fmean(outcome.ratio for outcome in column) for column in columns]
    errors = [
        math.hypot(*(outcome.error for outcome in column)) / len(column) for column in columns
    ]
    worst = [max(outcome.ratio for outcome in column) for column in columns]
    both = zip(means, errors, strict=True)
    print("| **average** |" + "".join(f" **{mean:.3f}** ± {error:.3f} |" for mean, error in both))
    print("| **worst** |" + "".join(f" **{ratio:.2f}** |" for ratio in worst))


def show_limits() -> None:
    print("\n| a schedule that | cost / optimum |\n|---|---|")
    for name in ("log-normal 15 s", "log-normal 150 s", "log-normal 300 s, narrow"):
        for doubt in (0.0, 0.01):
            ratio = by_the_true_shape(HELD_OUT[name], 50, doubt)
            print(f"| was told 50 of {name}, {doubt:.0%} doubt | {ratio:.3f} |", flush=True)
    for name in ("96 s and log-normal 117 s", "queue, 200 s", "log-normal 300 s, narrow"):
        ratio = with_gaps_up_to(60, (FRESH | HELD_OUT)[name])
        print(f"| knows all of {name}, but no gap exceeds 60 s | {ratio:.3f} |", flush=True)


def compare(distributions: dict[str, Durations]) -> dict[str, Outcome]:
    """Each schedule, averaged over the distributions."""
    found: dict[str, list[Outcome]] = {}
    for durations in distributions.values():
        for name, wait in PEERS.items():
            found.setdefault(name, []).append(simulate(lambda seed, wait=wait: wait, durations))  # type: ignore[misc]
        for jobs in WATCHED:
            outcome = simulate(after_watching(jobs, durations), durations)
            found.setdefault(f"AdaptiveWait, after {jobs}", []).append(outcome)
    return {
        name: Outcome(*map(fmean, zip(*outcomes, strict=True))) for name, outcomes in found.items()
    }


def show_peers(found: dict[str, Outcome]) -> None:
    print(
        "\n| schedule | polls | mean delay | 95 % within | cost / optimum |\n|---|---|---|---|---|"
    )
    for name, outcome in sorted(found.items(), key=lambda entry: entry[1].ratio):
        polls, late, late_95, ratio, _ = outcome
        print(f"| {name} | {polls:.1f} | {late:.2f} s | {late_95:.1f} s | {ratio:.2f} |")


def frontier(distributions: dict[str, Durations]) -> list[tuple[float, float]]:
    """Mean polls and mean delay of the optimum, for requests from dear to cheap."""
    points = []
    for number in range(13):
        price = 25.6 / 2**number
        costs = [
            cost_of([optimal_times(durations, price)], durations)
            for durations in distributions.values()
        ]
        points.append((fmean(cost.polls for cost in costs), fmean(cost.late for cost in costs)))
    return points


# --- the picture ---------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 470, 64, 56, 34, 24
POLLS, LATE = (1.5, 2000.0), (0.03, 60.0)
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #333 } .page { fill: #fff }
  .grid { stroke: #ddd } .axis { fill: #666 }
  .frontier { fill: none; stroke: #2a78d6; stroke-width: 2.5 } .best { fill: #2a78d6 }
  .peer { fill: #999 } .ours { fill: #e0662f } .ours-text { font-weight: 600; fill: #c2501c }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .page { fill: #17181c } .grid { stroke: #3a3a3a } .axis { fill: #999 }
    .ours-text { fill: #ff9a66 } .best { fill: #6aa9f0 } .frontier { stroke: #6aa9f0 }
  }
"""
LABELS = dict.fromkeys(PEERS, (9, 4, "start")) | {
    "AdaptiveWait, after 200": (-8, 16, "end"),
    "AdaptiveWait, after 0": (9, -12, "start"),
    "DEFAULT_WAIT": (9, 20, "start"),
}
"""Where a label stands from its point; some points are too close to have one."""


def place(polls: float, late: float) -> tuple[float, float]:
    """Logarithmic on both axes."""

    def share(value: float, bounds: tuple[float, float]) -> float:
        return math.log(value / bounds[0]) / math.log(bounds[1] / bounds[0])

    x = LEFT + share(polls, POLLS) * (WIDTH - LEFT - RIGHT)
    return round(x, 1), round(HEIGHT - BOTTOM - share(late, LATE) * (HEIGHT - BOTTOM - TOP), 1)


def label(x: float, y: float, text: object, *, to: str = "start", style: str = "") -> str:
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{to}">{text}</text>'


def draw(found: dict[str, Outcome], best: list[tuple[float, float]]) -> str:
    """An SVG, for light and dark pages."""
    floor = HEIGHT - BOTTOM
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Mean delay against mean number of polls, for each schedule</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="8"/>',
        label((WIDTH + LEFT) / 2, HEIGHT - 12, "polls per generation", to="middle"),
        label(LEFT - 48, TOP - 14, "seconds from the end to the poll that sees it"),
    ]
    for polls in (2, 5, 10, 20, 50, 100, 200, 500, 1000):
        x, _ = place(polls, 1)
        lines.append(f'<path class="grid" d="M{x} {TOP}V{floor}"/>')
        lines.append(label(x, floor + 18, polls, to="middle", style="axis"))
    for late in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50):
        _, y = place(2, late)
        lines.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        lines.append(label(LEFT - 8, y + 4, late, to="end", style="axis"))
    points = "L".join("{} {}".format(*place(*point)) for point in best)
    lines.append(f'<path class="frontier" d="M{points}"/>')
    x, y = place(*best[-3])
    lines.append(label(x - 10, y + 16, "the optimum", to="end", style="best"))
    for name, outcome in found.items():
        x, y = place(outcome.polls, outcome.late)
        ours = "AdaptiveWait" in name
        lines.append(f'<circle class="{"ours" if ours else "peer"}" cx="{x}" cy="{y}" r="5"/>')
        if name in LABELS:
            dx, dy, to = LABELS[name]
            text = name.replace(" x ", " × ")  # noqa: RUF001
            lines.append(label(x + dx, y + dy, text, to=to, style="ours-text" if ours else ""))
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, help="draw the comparison into this file instead")
    options = parser.parse_args()
    if options.picture:
        options.picture.write_text(draw(compare(HELD_OUT), frontier(HELD_OUT)))
        return
    show_learning("published timings", PUBLISHED)
    show_learning("fresh", FRESH)
    show_learning("held out", HELD_OUT)
    show_learning("far from the prior", WRONG)
    show_learning("those it was tuned on", TUNED)
    show_peers(compare(HELD_OUT))
    show_limits()
    print("\n| after 200 jobs the durations change | jobs 1-50 | 51-100 | 101-150 | 151-200 |")
    print("|---|---|---|---|---|")
    for first, then in ((30, 60), (60, 30), (30, 150), (150, 30)):
        parts = drift(plain(first, 0.3), plain(then, 0.3))
        print(
            f"| {first} s to {then} s |"
            + "".join(f" {mean:.2f} ± {error:.2f} |" for mean, error in parts)
        )


if __name__ == "__main__":
    main()
