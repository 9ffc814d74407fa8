"""Workers that die, stop for a while, or are deployed: nothing is submitted twice, none is lost."""

import asyncio
import json
import random
import signal
from functools import partial
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from luma_poll._fleet.submission import MOST_AT_ONCE
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app
from tests.fleet.processes import Api, Postgres, Process, Processes, tally, until

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def results(of: Process, prefix: str, count: int) -> list[dict[str, Any]]:
    ends: list[dict[str, Any]] = await asyncio.gather(
        *(of.call("result", key=f"{prefix}-{n}") for n in range(count))
    )
    return ends


async def settled(of: Process, prefix: str, count: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The results, and the keys that are unknown; an answer may still be late on a busy machine."""
    while True:
        ends = await results(of, prefix, count)
        unknown = await of.call("unknown")
        if len(unknown) == tally(ends)["SubmissionUnknownError"]:
            return ends, unknown
        await asyncio.sleep(0.2)


async def test_kills_with_submissions_in_flight(database: str) -> None:
    """Each key has an end and an id of its own, or is called unknown; none has two ids."""
    api = Api(Sandbox(speed=20), answers_after=0.1)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, *workers = await asyncio.gather(
            processes.start(worker=False), *(processes.start() for _ in range(3))
        )
        await caller.call("submit_many", count=60, prompt="a fox", prefix="k")
        for worker in workers[1:]:
            enough = min(len(api.submissions) + 9, 60)
            await until(partial(api.has_had, enough))
            await asyncio.sleep(random.random() * 0.1)
            await worker.kill()
        ends, unknown = await settled(caller, "k", 60)
    assert api.twice == {}
    assert set(tally(ends)) <= {"completed", "SubmissionUnknownError"}
    assert len({end["id"] for end in ends if "id" in end}) == tally(ends)["completed"]
    assert len(unknown) <= 2 * MOST_AT_ONCE


@ON_SQLITE
async def test_a_dead_workers_waits_are_taken_over(database: str) -> None:
    """They end with the ids that they had, and nothing is submitted for them."""
    api = Api(Sandbox(speed=1))
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, first = await asyncio.gather(processes.start(worker=False), processes.start())
        await caller.call("submit_many", count=30, prompt="sandbox:duration=4", prefix="k")
        await until(lambda: len(api.accepted) >= 30)
        second = await processes.start()
        await first.kill()
        ends = await results(caller, "k", 30)
        assert tally(ends) == {"completed": 30}
        assert {end["id"] for end in ends} == {ids[0] for ids in api.accepted.values()}
        assert api.twice == {}
        assert len(api.submissions) == 30
        await second.stop()


@ON_POSTGRESQL
async def test_a_deploy_leaves_nothing_unknown(database: str) -> None:
    """SIGTERM waits for the answers under way; the next worker continues at once."""
    api = Api(Sandbox(speed=20), answers_after=0.2)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, first = await asyncio.gather(processes.start(worker=False), processes.start())
        await caller.call("submit_many", count=20, prompt="a fox", prefix="k")
        await until(lambda: len(api.submissions) >= 5)
        second = asyncio.create_task(processes.start())
        await first.stop()
        await second
        ends = await results(caller, "k", 20)
    assert tally(ends) == {"completed": 20}
    assert api.twice == {}


@ON_POSTGRESQL  # a process that is stopped in the middle of a write holds up all of SQLite
async def test_a_worker_that_was_only_slow_does_no_harm(database: str) -> None:
    """Its answer arrives late, and heals what was unknown; nothing is posted twice."""
    api = Api(Sandbox(speed=20), answers_after=0.5)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, slow = await asyncio.gather(processes.start(worker=False), processes.start())
        await caller.call("submit_many", count=5, prompt="a fox", prefix="k")
        await until(lambda: len(api.submissions) >= 5)
        slow.signal(signal.SIGSTOP)
        await processes.start()
        assert tally(await results(caller, "k", 5)) == {"SubmissionUnknownError": 5}
        assert len(await caller.call("unknown")) == 5
        slow.signal(signal.SIGCONT)
        ends, unknown = await settled(caller, "k", 5)
        while unknown:
            ends, unknown = await settled(caller, "k", 5)
    assert {end["id"] for end in ends} == {ids[0] for ids in api.accepted.values()}
    assert len(api.submissions) == 5


@ON_POSTGRESQL
async def test_the_same_key_from_two_processes_is_submitted_once(database: str) -> None:
    """Both have the same end, and other parameters under the key are an error."""
    api = Api(Sandbox(speed=20))
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        one, other = await asyncio.gather(processes.start(), processes.start())
        await asyncio.gather(
            *(each.call("submit", prompt="a fox", key="order-17") for each in (one, other))
        )
        refused = await other.call("submit", prompt="another fox", key="order-17")
        ends = [await each.call("result", key="order-17") for each in (one, other)]
        missing = await one.call("result", key="order-18")
    assert refused["error"] == missing["error"] == "ConfigurationError"
    assert ends[0] == ends[1]
    assert len(api.submissions) == 1


@ON_SQLITE
async def test_an_operator_resolves_an_unknown(database: str) -> None:
    """With the id that the account shows it is waited for; without one it is submitted again."""
    api = Api(Sandbox(speed=20), answers_after=30)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, first = await asyncio.gather(processes.start(worker=False), processes.start())
        await caller.call("submit_many", count=2, prompt="a fox", prefix="k")
        await until(lambda: len(api.submissions) >= 2)
        early = await caller.call("resolve", key="k-0", resubmit=True)
        await first.kill()
        api.released.set()
        await processes.start()
        assert tally(await results(caller, "k", 2)) == {"SubmissionUnknownError": 2}
        await caller.call("resolve", key="k-0", generation_id=api.accepted["a fox 0"][0])
        await caller.call("resolve", key="k-1", resubmit=True)
        ends = await results(caller, "k", 2)
        again = await caller.call("resolve", key="k-0", resubmit=True)
    assert early["error"] == again["error"] == "ConfigurationError"
    assert [end["id"] for end in ends] == [
        api.accepted["a fox 0"][0],
        api.accepted["a fox 1"][1],
    ]
    assert len(api.submissions) == 3


@ON_POSTGRESQL
async def test_limits_hold_over_all_workers(database: str) -> None:
    """Those on what runs at once, on what begins in a minute, and on polls in a second."""
    limits = {"max_running": 4, "submissions_per_minute": 9, "max_rate": 10.0}
    sandbox = Sandbox(speed=1, max_concurrent=4)
    api = Api(sandbox)
    async with (
        api.serve() as base_url,
        Processes(database, base_url, fleet=limits, poll_every=0.05) as processes,
    ):
        workers = await asyncio.gather(*(processes.start() for _ in range(3)))
        await workers[0].call("submit_many", count=12, prompt="sandbox:duration=1", prefix="k")
        began = anyio.current_time()
        states: dict[str, list[str]] = {}
        while len(states.get("SUCCESS", ())) < 9:
            states = await workers[0].call("states")
            await asyncio.sleep(0.2)
        assert anyio.current_time() - began < 60
    assert len(api.submissions) == len(api.accepted) == 9  # no 429: four at once was the limit
    assert {state: len(keys) for state, keys in states.items()} == {"SUCCESS": 9, "ENQUEUED": 3}
    in_a_second = [sum(first <= at < first + 1 for at in api.polls) for first in api.polls]
    assert max(in_a_second) <= 13


@ON_POSTGRESQL
async def test_a_dead_workers_callbacks_are_delivered(database: str) -> None:
    """Whatever the limits on what runs: a callback that pauses is none of it."""
    heard: list[bytes] = []
    is_up = False

    async def receiver(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await Request(scope, receive).body())
        await Response(status_code=204 if is_up else 503)(scope, receive, send)

    api = Api(Sandbox(speed=50))
    options = {"max_running": 1, "callback_secrets": ["c2VjcmV0"], "allow_private_callbacks": True}
    async with (
        api.serve() as base_url,
        serve_app(receiver, "127.0.0.1", 0) as hook,
        Processes(database, base_url, fleet=options, pauses=[0, 0.2, 1, 1, 1, 1]) as processes,
    ):
        caller, first = await asyncio.gather(processes.start(worker=False), processes.start())
        await caller.call("submit_many", count=3, prompt="a fox", prefix="k", callback=hook)
        await results(caller, "k", 3)
        await until(lambda: len(heard) >= 3)
        await first.kill()
        is_up = True
        heard.clear()
        await processes.start()
        await until(lambda: len({json.loads(body)["data"]["key"] for body in heard}) == 3)
        await caller.call("submit", key="another", prompt="a fox")
        assert (await caller.call("result", key="another"))["state"] == "completed"


@ON_POSTGRESQL
async def test_an_outage_of_the_database_loses_nothing(database: str, postgres: Postgres) -> None:
    """Ids that arrive meanwhile are recorded when it is back, and nobody is taken for dead."""
    api = Api(Sandbox(speed=10), answers_after=0.3)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, *_ = await asyncio.gather(
            processes.start(worker=False), *(processes.start() for _ in range(2))
        )
        await caller.call("submit_many", count=24, prompt="a fox", prefix="k")
        await until(partial(api.has_had, 8))
        await asyncio.to_thread(postgres.stop)
        await asyncio.sleep(2)
        await asyncio.to_thread(postgres.start)
        ends, unknown = await settled(caller, "k", 24)
    assert unknown == []
    assert tally(ends) == {"completed": 24}
    assert api.twice == {}
