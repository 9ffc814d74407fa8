"""What a fleet survives, and what it costs: real processes, databases and sockets.

    python -m tests.benchmarks.fleet_kills
    python -m tests.benchmarks.fleet_kills kills waits --database postgresql

kills: 25 workers are killed one after the other while submissions are in flight.
takeover: three workers, 300 waits of 60 seconds; one worker is killed in the middle.
slow: a worker is stopped for 15 seconds with submissions in flight, and goes on.
outage: PostgreSQL is stopped for 40 seconds while three workers submit and wait.
waits: one worker, 1,000 pending waits: memory, threads, CPU time and statements.
rates: three workers, 300 waits: the most polls in any second at max_rate=30.
history: how much of the database a long wait takes.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from luma_poll.sandbox import Sandbox
from tests.fleet.processes import (
    Api,
    Postgres,
    Process,
    Processes,
    postgres_server,
    tally,
    until,
)

PACE = {"heartbeat": 2.0, "patience": 6.0}


def say(*words: object) -> None:
    print(*words, flush=True)


async def results(of: Process, keys: list[str]) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(of.call("result", key=key) for key in keys)))


async def settled(of: Process, keys: list[str]) -> list[dict[str, Any]]:
    while True:
        ends = await results(of, keys)
        unknown = await of.call("unknown")
        if len(unknown) == tally(ends)["SubmissionUnknownError"]:
            return ends
        await asyncio.sleep(1)


@contextlib.asynccontextmanager
async def fleet(
    database: str, api: Api, **settings: Any
) -> AsyncIterator[tuple[Processes, Process]]:
    given = {"fleet": PACE, "poll_every": 1.0, "result_every": 1.0, **settings}
    async with api.serve() as base_url, Processes(database, base_url, **given) as processes:
        yield processes, await processes.start(worker=False)


def report(api: Api, keys: list[str], ends: list[dict[str, Any]]) -> None:
    count = tally(ends)
    unknown = [key for key, end in zip(keys, ends, strict=True) if end.get("error")]
    not_accepted = [key for key in unknown if f"a fox {key[2:]}" not in api.accepted]
    known = {end["id"] for end in ends if "id" in end}
    lost = [
        ids
        for key, ids in ((k, api.accepted.get(f"a fox {k[2:]}")) for k in keys)
        if ids and not known & set(ids) and key not in unknown
    ]
    say(f"  {len(keys)} keys: {dict(count)}")
    say(
        f"  lost {len(lost)}, twice {len(api.twice)}, unknown {len(unknown)},"
        f" of which the API had not accepted {len(not_accepted)}"
    )


async def kills(database: str, _: Postgres | None) -> None:
    rounds, keys = 25, [f"k-{n}" for n in range(300)]
    api = Api(Sandbox(speed=20), answers_after=0.2)
    pace = {"heartbeat": 0.2, "patience": 0.8}
    async with fleet(database, api, fleet=pace, poll_every=0.2) as (processes, caller):
        began = time.monotonic()
        await caller.call("submit_many", count=len(keys), prompt="a fox", prefix="k")
        worker = await processes.start()
        for _round in range(rounds):
            await until(partial(api.has_had, min(len(api.submissions) + 3, 270)))
            await asyncio.sleep(random.random() * 0.3)
            starting = asyncio.create_task(processes.start())
            await worker.kill()
            worker = await starting
        ends = await settled(caller, keys)
        say(f"  {rounds} kills in {time.monotonic() - began:.0f} s")
        report(api, keys, ends)


async def takeover(database: str, _: Postgres | None) -> None:
    keys = [f"k-{n}" for n in range(300)]
    api = Api(Sandbox(speed=1))
    async with fleet(database, api) as (processes, caller):
        workers = [await processes.start() for _ in range(3)]
        began = time.monotonic()
        prompt = "sandbox:duration=60"
        await caller.call("submit_many", count=len(keys), prompt=prompt, prefix="k")
        await until(lambda: len(api.accepted) == len(keys))
        say(f"  {len(keys)} submitted after {time.monotonic() - began:.1f} s")
        owned = [len(await worker.call("mine")) for worker in workers]
        most = owned.index(max(owned))
        lost = await workers[most].call("mine")
        await asyncio.sleep(10)
        killed = time.monotonic()
        await workers[most].kill()
        living = [each for each in workers if each is not workers[most]]
        taken: dict[str, float] = {}
        while len(taken) < len(lost):
            for each in living:
                for key in await each.call("mine"):
                    if key in lost:
                        taken.setdefault(key, time.monotonic() - killed)
            await asyncio.sleep(0.05)
        first, last = min(taken.values()), max(taken.values())
        say(f"  {len(lost)} waits of the dead taken over after {first:.1f} to {last:.1f} s")
        ends = await results(caller, keys)
        say(
            f"  {dict(tally(ends))}, twice {len(api.twice)}, makespan"
            f" {time.monotonic() - began:.1f} s, submissions {len(api.submissions)}"
        )


async def slow(database: str, server: Postgres | None) -> None:
    if server is None:
        say("  only with PostgreSQL: a process that is stopped in a write holds up all of SQLite")
        return
    keys = [f"k-{n}" for n in range(40)]
    api = Api(Sandbox(speed=10), answers_after=1.0)
    async with fleet(database, api) as (processes, caller):
        stopped = await processes.start()
        await caller.call("submit_many", count=len(keys), prompt="a fox", prefix="k")
        await until(lambda: api.has_had(12))
        stopped.signal(signal.SIGSTOP)
        await processes.start()
        await asyncio.sleep(15)
        say(f"  unknown while it is stopped: {len(await caller.call('unknown'))}")
        stopped.signal(signal.SIGCONT)
        await asyncio.sleep(5)
        ends = await settled(caller, keys)
        report(api, keys, ends)


async def outage(database: str, server: Postgres | None) -> None:
    if server is None:
        say("  only with PostgreSQL")
        return
    keys = [f"k-{n}" for n in range(200)]
    api = Api(Sandbox(speed=2), answers_after=0.5)
    async with fleet(database, api, fleet={**PACE, "max_running": 60}) as (processes, caller):
        await asyncio.gather(*(processes.start() for _ in range(3)))
        began = time.monotonic()
        await caller.call("submit_many", count=len(keys), prompt="a fox", prefix="k")
        await until(lambda: api.has_had(30))
        await asyncio.to_thread(server.stop)
        say(f"  stopped with {len(api.submissions)} submissions made")
        await asyncio.sleep(40)
        await asyncio.to_thread(server.start)
        back = time.monotonic()
        ends = await settled(caller, keys)
        say(
            f"  all ended {time.monotonic() - back:.0f} s after it was back,"
            f" {time.monotonic() - began:.0f} s in all"
        )
        report(api, keys, ends)


async def waits(database: str, _: Postgres | None) -> None:
    keys = [f"k-{n}" for n in range(1000)]
    api = Api(Sandbox(speed=1))
    async with fleet(database, api, poll_every=20.0) as (processes, caller):
        worker = await processes.start()
        idle = await worker.call("usage")
        prompt = "sandbox:duration=120"
        await caller.call("submit_many", count=len(keys), prompt=prompt, prefix="k")
        await until(lambda: len(api.accepted) == len(keys))
        await asyncio.sleep(5)
        before = await worker.call("usage")
        await asyncio.sleep(30)
        after = await worker.call("usage")
        await results(caller, keys[-20:])
        states: dict[str, list[str]] = {}
        while len(states.get("SUCCESS", ())) < len(keys):
            await asyncio.sleep(2)
            states = await caller.call("states")
        end = await worker.call("usage")
        say(f"  idle {idle['mb']:.0f} MB, {idle['threads']} threads")
        say(
            f"  1,000 waits pending: {after['mb']:.0f} MB, {after['threads']} threads,"
            f" {(after['cpu'] - before['cpu']) / 30 * 100:.1f} % of a core,"
            f" {(after['statements'] - before['statements']) / 30:.1f} statements a second"
        )
        background = (after["statements"] - before["statements"]) / 30
        busy = end["statements"] - idle["statements"] - background * (end["now"] - idle["now"])
        say(
            f"  {busy / len(keys):.1f} statements of the worker a wait, beside those for idling"
            f" ({background:.1f} a second); CPU {(end['cpu'] - idle['cpu']) * 1000 / len(keys):.0f}"
            " ms a wait"
        )


async def rates(database: str, _: Postgres | None) -> None:
    keys = [f"k-{n}" for n in range(300)]
    api = Api(Sandbox(speed=1))
    async with fleet(database, api, poll_every=0.5) as (processes, caller):
        await asyncio.gather(*(processes.start() for _ in range(3)))
        prompt = "sandbox:duration=30"
        await caller.call("submit_many", count=len(keys), prompt=prompt, prefix="k")
        await until(lambda: len(api.accepted) == len(keys))
        await asyncio.sleep(20)
        late = asyncio.create_task(processes.start())
        ends = await results(caller, keys)
        await late
        most = max(sum(first <= at < first + 1 for at in api.polls) for first in api.polls[::5])
        say(f"  {dict(tally(ends))}, {len(api.polls)} polls, at most {most} in any second")


async def history(database: str, _: Postgres | None) -> None:
    api = Api(Sandbox(speed=1))
    async with fleet(database, api, poll_every=0.2) as (processes, caller):
        await processes.start()
        await caller.call("submit", key="k", prompt="sandbox:duration=40")
        await results(caller, ["k"])
        say(
            f"  {len(api.polls)} polls; steps of the workflow (rows, bytes):"
            f" {await caller.call('history', key='k')}"
        )


@contextlib.contextmanager
def database_of(kind: str) -> Iterator[tuple[str, Postgres | None]]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/fleet.db", None
    else:
        with postgres_server() as server:
            yield server.new_database(), server


Campaign = Callable[[str, Postgres | None], Coroutine[Any, Any, None]]
CAMPAIGNS: dict[str, Campaign] = {
    each.__name__: each for each in (kills, takeover, slow, outage, waits, rates, history)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaigns", nargs="*", choices=[[], *CAMPAIGNS])
    parser.add_argument("--database", choices=["sqlite", "postgresql"])
    given = parser.parse_args()
    for name in given.campaigns or CAMPAIGNS:
        for kind in [given.database] if given.database else ["sqlite", "postgresql"]:
            say(f"{name}, {kind}")
            with database_of(kind) as (database, server):
                asyncio.run(CAMPAIGNS[name](database, server))


if __name__ == "__main__":
    main()
