"""What one poll costs as the waits become more, with and without 429s.

A client that answers at once, in virtual time, so that all the processor's time is the library's.
Every wait polls every 20 s. The rate grows with the waits, so that each is polled about as often;
with 429s, every 50th answer asks for 5 s of quiet. The stall is the longest time for which one turn
of the event loop keeps all others waiting, once all waits have begun: with thousands due at the end
of a quiet, it is what a deadline may overrun. The ratio is to 100 waits without 429s. The garbage
collector is off: a full pass of it over 10,000 waits would be the longest stall, whatever they do.

With `--joins` it measures what a wait costs that comes to, or leaves, the many for one generation.

    python -m tests.benchmarks.growth
    python -m tests.benchmarks.growth --joins
    python -m tests.benchmarks.growth --waits 100 1000 --polls 5000
"""

import argparse
import asyncio
import gc
import json
import time
from dataclasses import dataclass, field
from typing import Any

import anyio
from tenacity import wait_fixed, wait_random

from luma_poll import Generation, Poller, RateLimitError
from tests.virtual_time import VirtualTimeLoop

SCHEDULE = wait_fixed(20) + wait_random(-2, 2)


@dataclass
class Client:
    """Answers at once: "processing", or a 429; ends the benchmark after enough polls."""

    throttled_every: int | None
    last: int
    warm_up: int
    polls: int = 0
    began: float = 0.0
    done: anyio.Event = field(default_factory=anyio.Event)

    @property
    def generations(self) -> "Client":
        return self

    async def get(self, generation_id: str) -> Any:
        self.polls += 1
        if self.polls == self.warm_up:
            self.began = time.process_time()
        if self.polls == self.last:
            self.done.set()
        if self.throttled_every and self.polls % self.throttled_every == 0:
            raise RateLimitError("HTTP 429", status_code=429, retry_after=5.0)
        return Generation.model_construct(id=generation_id, state="processing", output=[])


async def run(waits: int, polls: int, throttled_every: int | None) -> tuple[float, float]:
    """Microseconds of a poll, and milliseconds of the longest stall."""
    client = Client(throttled_every, last=waits + polls, warm_up=waits)
    # 429s leave a hundredth of the time or less: what is overdue then comes as fast as it may.
    poller = Poller(client, wait=SCHEDULE, timeout=None, max_rate=waits * 10, max_in_flight=None)
    loop: Any = asyncio.get_running_loop()
    select, stall, woke = loop._selector.select, 0.0, time.process_time()

    def timed_select(timeout: float | None = None) -> Any:
        nonlocal stall, woke
        if waits < client.polls < client.last:
            stall = max(stall, time.process_time() - woke)
        events = select(timeout)
        woke = time.process_time()
        return events

    loop._selector.select = timed_select
    async with anyio.create_task_group() as tasks:
        for number in range(waits):
            tasks.start_soon(poller.wait, f"{number}")
        await client.done.wait()
        cost = (time.process_time() - client.began) / polls
        tasks.cancel_scope.cancel()
    return cost * 1e6, stall * 1e3


def measure(waits: int, polls: int, throttled_every: int | None) -> tuple[float, float]:
    gc.collect()
    gc.disable()
    return anyio.run(
        run, waits, polls, throttled_every, backend_options={"loop_factory": VirtualTimeLoop}
    )


async def come_and_go(waits: int, times: int) -> tuple[float, float]:
    """Microseconds of a wait that comes to so many for one generation, and of one that leaves."""
    poller = Poller(Client(None, last=0, warm_up=0), wait=wait_fixed(600), timeout=None)
    async with anyio.create_task_group() as tasks:
        for _ in range(waits):
            tasks.start_soon(poller.wait, "same")
        await anyio.sleep(1)
        scopes: list[anyio.CancelScope] = []

        async def visit() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await poller.wait("same", timeout=10_000)

        began = time.process_time()
        for _ in range(times):
            tasks.start_soon(visit)
            await anyio.sleep(0.001)
        came = time.process_time()
        for scope in reversed(scopes):
            scope.cancel()
            await anyio.sleep(0.001)
        left = time.process_time()
        tasks.cancel_scope.cancel()
    return (came - began) / times * 1e6, (left - came) / times * 1e6


def measure_joins(counts: list[int]) -> None:
    print("| waits for one id | one comes | one leaves |\n|---|---|---|")
    for waits in counts:
        gc.collect()
        gc.disable()
        loop = {"loop_factory": VirtualTimeLoop}
        came, left = anyio.run(come_and_go, waits, 1000, backend_options=loop)
        print(f"| {waits:,} | {came:.0f} µs | {left:.0f} µs |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waits", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--polls", type=int, default=20_000)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    parser.add_argument("--joins", action="store_true", help="what a wait costs that comes or goes")
    arguments = parser.parse_args()
    if arguments.joins:
        measure_joins(arguments.waits)
        return
    first = None
    rows = []
    if not arguments.json:
        print("| waits | 429s | a poll | ratio | longest stall |\n|---|---|---|---|---|")
    for throttled_every in (None, 50):
        for waits in arguments.waits:
            cost, stall = measure(waits, arguments.polls, throttled_every)
            first = first or cost
            often = f"every {throttled_every}th" if throttled_every else "none"
            row = {"waits": waits, "throttled": often, "microseconds": cost}
            rows.append({**row, "to_first": cost / first, "stall_ms": stall})
            if not arguments.json:
                figures = f"{cost:.0f} µs | {cost / first:.2f} | {stall:.1f} ms"
                print(f"| {waits:,} | {often} | {figures} |", flush=True)
    if arguments.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
