"""A thousand waits on a bad day, over real sockets: is any lost, wrong or late, is anything left?

The sandbox replaces a share of its answers to polls by faults of every kind: error statuses,
rubbish, resets, truncation, garbage, trickles and silence. Every generation has a known end:
two in three complete, the others fail with a known code. Beside them, some waits have short
deadlines that no generation meets, to measure by how much a deadline is overrun.

    python tests/benchmarks/soak.py
    python tests/benchmarks/soak.py --waits 200 --faults 0.6 --backend uvloop

Everything runs in one process, on loopback, and stops by itself.
"""

import argparse
import asyncio
import gc
import os
import stat
import time
from collections import Counter
from collections.abc import Callable

import anyio
from tenacity import wait_fixed, wait_random

from luma_poll import (
    GenerationError,
    LumaClient,
    LumaError,
    Poller,
    PollEvent,
    PollTimeoutError,
)
from luma_poll._client.connections import MAX_CONNECTIONS
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.faults import HTTP_FAULTS, SOCKET_FAULTS

CODES = ["", "", "content_moderated", "", "", "a_code_of_tomorrow"]
SHORT = 200  # waits with a deadline that comes first
TIMEOUT = 120.0
SHORT_TIMEOUT = 2.0


class Tally:
    def __init__(self) -> None:
        self.finished = self.lost = self.wrong = self.polls = 0
        self.errors: Counter[str] = Counter()
        self.overruns: list[float] = []


async def wait_for_end(poller: Poller, generation_id: str, code: str, tally: Tally) -> None:
    """A wait that must bring the end that the prompt has scripted."""
    found = None
    try:
        outputs = await poller.wait(generation_id, timeout=TIMEOUT)
        found = "" if len(outputs) == 1 else "no output"
    except GenerationError as error:
        found = error.failure_code
    except LumaError as error:
        tally.lost += 1
        tally.errors[type(error).__name__] += 1
        return
    tally.finished += 1
    tally.wrong += found != code


async def wait_in_vain(poller: Poller, generation_id: str, tally: Tally) -> None:
    """A wait that must end by its deadline."""
    began = anyio.current_time()
    try:
        await poller.wait(generation_id, timeout=SHORT_TIMEOUT)
    except PollTimeoutError:
        tally.overruns.append(anyio.current_time() - began - SHORT_TIMEOUT)
    else:
        tally.wrong += 1


def count_polls(tally: Tally) -> Callable[[PollEvent], None]:
    def count(event: PollEvent) -> None:
        tally.polls += 1

    return count


def count_sockets() -> int:
    """The open sockets of this process, closed ones that wait for the collector excepted."""
    gc.collect()
    modes = [os.fstat(int(name)).st_mode for name in os.listdir("/dev/fd") if is_open(int(name))]
    return sum(map(stat.S_ISSOCK, modes))


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # that of the listing itself
        return False
    return True


async def soak(options: argparse.Namespace) -> None:
    tally = Tally()
    tasks_before, sockets_before = len(asyncio.all_tasks()), count_sockets()
    sandbox = Sandbox(faults=options.faults, seed=options.seed)
    # A Retry-After that reaches past a deadline ends a wait early, so these get no 429.
    kinds = [kind for kind in (*HTTP_FAULTS, *SOCKET_FAULTS) if kind != "429"]
    in_vain = Sandbox(faults=dict.fromkeys(kinds, options.faults / len(kinds)), seed=options.seed)

    async with (
        sandbox.serve() as base_url,
        in_vain.serve() as other_base_url,
        LumaClient("key", base_url=base_url, timeout=1.0) as client,
        LumaClient("key", base_url=other_base_url, timeout=1.0) as other_client,
    ):
        wait = wait_fixed(1.5) + wait_random(-0.5, 0.5)
        poller = Poller(client, wait=wait, max_rate=None, on_poll=count_polls(tally))
        other_poller = Poller(other_client, wait=wait, max_rate=None)
        ended: list[tuple[str, str]] = []
        for number in range(options.waits):
            code = CODES[number % len(CODES)]
            script = f"sandbox:duration={3 + number % 12}" + (code and f" sandbox:fail={code}")
            ended.append(((await client.generations.create(f"a fox {script}")).id, code))
        endless = [
            (await other_client.generations.create("slow sandbox:duration=100000")).id
            for _ in range(SHORT // 2)  # two waits for each share a stream of requests
        ]

        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for generation_id, code in ended:
                tasks.start_soon(wait_for_end, poller, generation_id, code, tally)
        seconds = time.perf_counter() - began
        async with anyio.create_task_group() as tasks:
            for generation_id in endless * 2:
                tasks.start_soon(wait_in_vain, other_poller, generation_id, tally)

        now = await client.generations.create("the next request works at once")
        slots = sum(
            MAX_CONNECTIONS - each._connections._turns.kept.requests.value
            for each in (client, other_client)
        )
        streams = len(poller._streams) + len(other_poller._streams)
    await asyncio.sleep(0.1)
    sockets_left = count_sockets() - sockets_before
    tasks_left = len(asyncio.all_tasks()) - tasks_before

    served = sandbox.faults_served.total()
    print(f"{options.waits} waits, {options.faults:.0%} faults, {options.backend}: {seconds:.1f} s")
    print(f"finished {tally.finished}, lost {tally.lost} {dict(tally.errors)}, wrong {tally.wrong}")
    print(f"polls {tally.polls}, faults served {served} of {len(sandbox.faults_served)} kinds")
    print(
        f"{len(tally.overruns)} deadlines, overrun by {max(tally.overruns) * 1000:.1f} ms at most"
    )
    print(
        f"left: streams {streams}, slots {slots}, tasks {tasks_left}, sockets {sockets_left}; "
        f"next request: {now.state}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--waits", type=int, default=1000)
    parser.add_argument("--faults", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--backend", choices=["asyncio", "uvloop"], default="asyncio")
    options = parser.parse_args()
    backend_options = {"use_uvloop": options.backend == "uvloop"}
    anyio.run(soak, options, backend_options=backend_options)


if __name__ == "__main__":
    main()
