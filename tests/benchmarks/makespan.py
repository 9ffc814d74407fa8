"""How long a batch of submissions takes on an account with limits, beside the least possible.

Two hundred prompts of about 30 s (log-normal, sigma 0.35) against the sandbox, in virtual time. In
the mixed batches every fifth, on average, is an edit that weighs three units. The ideal is list
scheduling in the order given, with full knowledge of durations, weights and limits, and without
any latency: each prompt is submitted at the first moment at which both limits allow it. The figure
of each row is the makespan over this ideal, from the start to the last result.

The peers use the official SDK as its users do: create, then poll as the quickstart says (20 s, then
every 2 s, for at most 120 s). "gather" starts all at once, "semaphore" as many as the account may
run, and "endless" is the semaphore with endless retries in place of the SDK's two. In the rows of
"two", two of a kind share the account and the batch. Lost is a prompt that was not completed.

Every request takes 0.1 s. "late" is the mean time from the end of a generation to the answer that
reports it. "unseen" and "idle" are shares of the account's slots: those whose generation had ended
and was not yet known to have, and all that stood empty until the last submission, those that the
ideal leaves empty subtracted. What is idle and not unseen waited for a refusal to pass, or was
not known to be free.

    python -m tests.benchmarks.makespan
    python -m tests.benchmarks.makespan --solution gather --account 10/30 --seeds 10 --json
"""

import argparse
import json
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from heapq import heappop, heappush
from itertools import groupby, product
from statistics import fmean
from typing import Any

import anyio
import httpx
from luma_agents import AsyncLuma, LumaError, NotFoundError

from luma_poll import LumaClient, Runner
from luma_poll.sandbox import DEFAULT_ACCOUNT, Sandbox
from luma_poll.sandbox.account_limits import HEAVY_EDIT, WINDOW, AccountLimits
from tests.virtual_time import VirtualTimeLoop

PROMPTS = 200
MEDIAN, SIGMA = 30.0, 0.35  # seconds, and of the logarithm
HEAVY_SHARE = 0.2
LATENCY = 0.1  # seconds
SEEDS = 3
HEAVY = {
    "model": "uni-1-max",
    "type": "image_edit",
    "source": {"url": "https://example.com/a.jpg"},
}
ACCOUNTS: dict[str, AccountLimits] = {
    "10/30": DEFAULT_ACCOUNT,
    "10/100": {"requests_per_minute": 100, "max_concurrent": 10},
    "60/600": {"requests_per_minute": 600, "max_concurrent": 60},
}


@dataclass(frozen=True)
class Request:
    """A prompt to submit, and what only the ideal knows of it."""

    parameters: dict[str, Any]
    duration: float
    units: int


@dataclass(frozen=True)
class Outcome:
    """How a solution did with one batch; times in seconds."""

    account: str
    weights: str
    solution: str
    seed: int
    makespan: float
    ideal: float
    ratio: float
    lost: int
    accepted: int
    refused_concurrency: int
    refused_rate: int
    polls: float
    late: float
    unseen: float
    idle: float


def make_requests(mixed: bool, seed: int, count: int) -> list[Request]:
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        duration = round(MEDIAN * draw.lognormvariate(0, SIGMA), 3)
        heavy = mixed and draw.random() < HEAVY_SHARE
        prompt = f"prompt {number} sandbox:duration={duration}"
        parameters = {"prompt": prompt, **(HEAVY if heavy else {})}
        requests.append(Request(parameters, duration, HEAVY_EDIT if heavy else 1))
    return requests


@dataclass(frozen=True)
class Run:
    """A generation on the account, in seconds since the start of the batch."""

    begins: float
    ends: float
    units: int


def ideal_runs(requests: Sequence[Request], account: AccountLimits) -> list[Run]:
    """Each request submitted in order, as soon as both limits allow it."""
    now = 0.0
    runs = []
    running: list[tuple[float, int]] = []  # a heap of ends and units
    window: deque[tuple[float, int]] = deque()
    slots, rate = account["max_concurrent"], account["requests_per_minute"]
    for request in requests:
        while running and (running[0][0] <= now or _units(running) + request.units > slots):
            now = max(now, heappop(running)[0])
        while window and (window[0][0] + WINDOW <= now or _units(window) + request.units > rate):
            now = max(now, window.popleft()[0] + WINDOW)
        heappush(running, (now + request.duration, request.units))
        window.append((now, request.units))
        runs.append(Run(now, now + request.duration, request.units))
    return runs


def idle_share(runs: Sequence[Run], slots: int) -> float:
    """The share of the account's slots not in use, until the last submission."""
    last = max(run.begins for run in runs)
    used = sum((min(run.ends, last) - run.begins) * run.units for run in runs)
    return 1 - used / (slots * last)


def _units(entries: Iterable[tuple[float, int]]) -> int:
    return sum(units for _, units in entries)


# --- the account, at some distance ---------------------------------------------------------------


@dataclass
class Wire(httpx.AsyncBaseTransport):
    """The way to a sandbox: it takes time, and when an end is first reported is noted."""

    sandbox: Sandbox
    latency: float
    seen: dict[str, float] = field(default_factory=dict)
    polls: int = 0

    def __post_init__(self) -> None:
        self._inner = httpx.ASGITransport(app=self.sandbox.app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await anyio.sleep(self.latency / 2)
        response = await self._inner.handle_async_request(request)
        content = await response.aread()
        await anyio.sleep(self.latency / 2)
        if request.method == "GET" and response.status_code == 200:
            self.polls += 1
            generation = json.loads(content)
            if generation["state"] in ("completed", "failed"):
                self.seen.setdefault(generation["id"], anyio.current_time())
        return httpx.Response(response.status_code, headers=response.headers, content=content)


# --- solutions -----------------------------------------------------------------------------------

Solution = Callable[[Wire, Sequence[Request], int], Awaitable[int]]
"""Runs requests on an account of so many slots; returns how many were completed."""


@asynccontextmanager
async def official_client(wire: Wire, **options: Any) -> AsyncIterator[AsyncLuma]:
    http_client = httpx.AsyncClient(transport=wire)
    async with AsyncLuma(
        auth_token="key", base_url="http://localhost/v1", http_client=http_client, **options
    ) as client:
        # Its first request asks a thread for the platform, for which virtual time does not wait.
        try:
            await client.with_options(max_retries=0).generations.get("nothing")
        except NotFoundError:
            yield client


async def generate(client: AsyncLuma, request: Request) -> bool:
    """As the quickstart says."""
    generation = await client.generations.create(**request.parameters)
    await anyio.sleep(20)
    with anyio.fail_after(100):
        while True:
            generation = await client.generations.get(generation.id)
            if generation.state in ("completed", "failed"):
                return generation.state == "completed"
            await anyio.sleep(2)


async def generate_all(wire: Wire, requests: Sequence[Request], limit: int, **options: Any) -> int:
    """At most `limit` at once."""
    semaphore = anyio.Semaphore(limit)
    completed = 0

    async def run(request: Request) -> None:
        nonlocal completed
        async with semaphore:
            with suppress(LumaError, TimeoutError):  # then it is lost
                is_completed = await generate(client, request)
                completed += is_completed

    async with official_client(wire, **options) as client, anyio.create_task_group() as group:
        for request in requests:
            group.start_soon(run, request)
    return completed


async def gather(wire: Wire, requests: Sequence[Request], slots: int) -> int:
    return await generate_all(wire, requests, len(requests))


async def semaphore(wire: Wire, requests: Sequence[Request], slots: int) -> int:
    return await generate_all(wire, requests, slots)


async def endless(wire: Wire, requests: Sequence[Request], slots: int) -> int:
    return await generate_all(wire, requests, slots, max_retries=1_000_000)


async def runner(wire: Wire, requests: Sequence[Request], slots: int) -> int:
    async with httpx.AsyncClient(transport=wire) as http_client:
        client = LumaClient("key", base_url="http://localhost/v1", http_client=http_client)
        return await _run_all(client, requests)


async def runner_over_sdk(wire: Wire, requests: Sequence[Request], slots: int) -> int:
    async with official_client(wire) as client:
        return await _run_all(client, requests)


async def _run_all(client: Any, requests: Sequence[Request]) -> int:
    results = await Runner(client).run_all([request.parameters for request in requests])
    return sum(result.ok for result in results)


SOLUTIONS: dict[str, tuple[Solution, int]] = {
    "gather": (gather, 1),
    "semaphore": (semaphore, 1),
    "endless": (endless, 1),
    "two endless": (endless, 2),
    "runner": (runner, 1),
    "runner, SDK": (runner_over_sdk, 1),
    "two runners": (runner, 2),
}
"""Each with how many of a kind share the account and the batch."""


# --- the benchmark -------------------------------------------------------------------------------


async def run_batch(
    account: AccountLimits,
    requests: Sequence[Request],
    solution: Solution,
    copies: int,
    latency: float,
) -> dict[str, Any]:
    """All figures of an `Outcome` that are measured."""
    sandbox = Sandbox(seed=1, **account)
    wires = [Wire(sandbox, latency) for _ in range(copies)]
    completed = [0] * copies
    started = anyio.current_time()
    assert sandbox.running == 0  # also starts the sandbox's clock

    async def run(number: int) -> None:
        share, slots = requests[number::copies], account["max_concurrent"]
        completed[number] = await solution(wires[number], share, slots)

    async with anyio.create_task_group() as group:
        for number in range(copies):
            group.start_soon(run, number)

    makespan, slots = anyio.current_time() - started, account["max_concurrent"]
    perfect = ideal_runs(requests, account)
    ideal = max(run.ends for run in perfect)
    accepted = {
        record.generation_id or "": Run(record.at, record.ends, record.units)
        for record in sandbox.submissions
        if record.ends is not None
    }
    seen = {key: moment - started for wire in wires for key, moment in wire.seen.items()}
    late = {key: moment - accepted[key].ends for key, moment in seen.items()}
    unseen = sum(seconds * accepted[key].units for key, seconds in late.items())
    return {
        "makespan": makespan,
        "ideal": ideal,
        "ratio": makespan / ideal,
        "lost": len(requests) - sum(completed),
        "accepted": len(accepted),
        "refused_concurrency": sandbox.refusals["concurrency"],
        "refused_rate": sandbox.refusals["rate"],
        "polls": sum(wire.polls for wire in wires) / len(accepted),
        "late": fmean(late.values()),
        "unseen": unseen / slots / makespan,
        "idle": idle_share([*accepted.values()], slots) - idle_share(perfect, slots),
    }


def measure(options: argparse.Namespace) -> Iterator[Outcome]:
    for account, mixed, solution, seed in product(
        options.account, (False, True), options.solution, range(options.seeds)
    ):
        function, copies = SOLUTIONS[solution]
        requests = make_requests(mixed, seed, options.prompts)
        random.seed(seed)
        figures = anyio.run(
            run_batch,
            ACCOUNTS[account],
            requests,
            function,
            copies,
            options.latency,
            backend_options={"loop_factory": VirtualTimeLoop},
        )
        yield Outcome(account, "mixed" if mixed else "equal", solution, seed, **figures)


COLUMNS = {
    "ideal": ("ideal s", ".0f"),
    "ratio": ("ratio", ".3f"),
    "worst": ("worst", ".3f"),
    "lost": ("lost", ".1f"),
    "refused_concurrency": ("429 slots", ".1f"),
    "refused_rate": ("429 rate", ".1f"),
    "polls": ("polls", ".1f"),
    "late": ("late s", ".2f"),
    "unseen": ("unseen", ".1%"),
    "idle": ("idle", ".1%"),
}
"""Figures in the table: title and format."""


def show(outcomes: Sequence[Outcome]) -> None:
    """A line for each account, weights and solution: means over the batches."""
    titles = "".join(f"{title:>10}" for title, _ in COLUMNS.values())
    print(f"{'account':8}{'weights':9}{'solution':12}{titles}")
    for key, group in groupby(outcomes, lambda each: (each.account, each.weights, each.solution)):
        rows = [asdict(outcome) for outcome in group]
        figures = {name: fmean(row[name] for row in rows) for name in COLUMNS if name != "worst"}
        figures["worst"] = max(row["ratio"] for row in rows)
        if figures["lost"]:  # a makespan without all of the work says nothing
            figures["ratio"] = figures["worst"] = math.nan
        cells = "".join(f"{figures[name]:>10{style}}" for name, (_, style) in COLUMNS.items())
        print("{:8}{:9}{:12}".format(*key) + cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--solution", nargs="+", choices=SOLUTIONS, default=list(SOLUTIONS))
    parser.add_argument("--account", nargs="+", choices=ACCOUNTS, default=list(ACCOUNTS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="batches of each kind")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="in a batch")
    parser.add_argument("--latency", type=float, default=LATENCY, help="seconds of each request")
    parser.add_argument("--json", action="store_true", help="every batch, as JSON")
    options = parser.parse_args()
    outcomes = list(measure(options))
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=2))
    else:
        show(outcomes)


if __name__ == "__main__":
    main()
