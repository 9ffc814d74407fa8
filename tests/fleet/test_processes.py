"""Several processes, one account, one database: keys, limits, callbacks and outages."""

import asyncio
import json
from functools import partial

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app
from tests.fleet.processes import (
    PATIENT,
    Api,
    Postgres,
    Processes,
    results,
    settled,
    tally,
    until,
)

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


@ON_POSTGRESQL
async def test_the_same_key_from_two_processes_is_submitted_once(database: str) -> None:
    """Both have the same end, and other parameters under the key are an error."""
    api = Api(Sandbox(speed=20))
    async with api.serve() as base_url, Processes(database, base_url, fleet=PATIENT) as processes:
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
        caller = await processes.start(worker=False)
        await caller.call("operate", method="migrate")
        for number in range(2):
            worker = await processes.start()
            await caller.call("submit", key=f"k-{number}", prompt=f"a fox {number}")
            await until(partial(api.has_had, number + 1))
            early = await caller.call("resolve", keys=[f"k-{number}"], resubmit=True)
            await worker.kill()
        api.released.set()
        await processes.start()
        assert tally(await results(caller, "k", 2)) == {"SubmissionUnknownError": 2}
        await caller.call("resolve", keys=["k-0"], generation_id=api.accepted["a fox 0"][0])
        await caller.call("resolve", keys=["k-1"], resubmit=True)
        ends = await results(caller, "k", 2)
        again = await caller.call("resolve", keys=["k-0"], resubmit=True)
    assert early["error"] == again["error"] == "ConfigurationError"
    assert [end["id"] for end in ends] == [
        api.accepted["a fox 0"][0],
        api.accepted["a fox 1"][1],
    ]
    assert len(api.submissions) == 3


@ON_POSTGRESQL
async def test_limits_hold_over_all_workers(database: str) -> None:
    """Those on what runs at once, on what begins in a minute, and on polls in a second."""
    limits = PATIENT | {"max_running": 4, "submissions_per_minute": 9, "max_rate": 10.0}
    sandbox = Sandbox(speed=1, max_concurrent=4)
    api = Api(sandbox)
    async with (
        api.serve() as base_url,
        Processes(database, base_url, fleet=limits, poll_every=0.05) as processes,
    ):
        workers = await asyncio.gather(*(processes.start() for _ in range(3)))
        await workers[0].call("submit_many", count=12, prompt="sandbox:duration=1", prefix="k")
        began = anyio.current_time()
        counts: dict[str, int] = {}
        while counts.get("completed", 0) < 9:
            counts = await workers[0].call("counts")
            await asyncio.sleep(0.2)
        assert anyio.current_time() - began < 60
    assert len(api.submissions) == len(api.accepted) == 9  # no 429: four at once was the limit
    assert (counts["completed"], counts["queued"]) == (9, 3)
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
