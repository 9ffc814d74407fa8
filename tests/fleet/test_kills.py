"""Workers that die, stop for a while, or are deployed: nothing is submitted twice, none is lost."""

import asyncio
import random
import signal
from functools import partial

import pytest

from luma_poll._fleet.sender import MOST_AT_ONCE
from luma_poll.sandbox import Sandbox
from tests.fleet.processes import (
    PATIENT,
    Api,
    Processes,
    results,
    settled,
    tally,
    until,
)

ON_SQLITE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
ON_POSTGRESQL = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


async def test_kills_with_submissions_in_flight(database: str) -> None:
    """Each key has an end and an id of its own, or is called unknown; none has two ids."""
    api = Api(Sandbox(speed=50), answers_after=0.1)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, *workers = await asyncio.gather(
            processes.start(worker=False), *(processes.start() for _ in range(3))
        )
        await caller.call("submit_many", count=40, prompt="a fox", prefix="k")
        for worker in workers[1:]:
            enough = min(len(api.submissions) + 6, 40)
            await until(partial(api.has_had, enough))
            await asyncio.sleep(random.random() * 0.1)
            await worker.kill()
        ends, unknown = await settled(caller, "k", 40)
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
    async with api.serve() as base_url, Processes(database, base_url, fleet=PATIENT) as processes:
        caller, first = await asyncio.gather(processes.start(worker=False), processes.start())
        await caller.call("submit_many", count=20, prompt="a fox", prefix="k")
        await until(lambda: len(api.submissions) >= 5)
        second = asyncio.create_task(processes.start())
        await first.stop()
        await second
        ends = await results(caller, "k", 20)
    assert tally(ends) == {"completed": 20}
    assert api.twice == {}


@pytest.mark.posix
@ON_POSTGRESQL  # a process that is stopped in the middle of a write holds up all of SQLite
async def test_a_worker_that_was_only_slow_does_no_harm(database: str) -> None:
    """Its answer arrives late, and heals what was unknown; nothing is posted twice."""
    api = Api(Sandbox(speed=20), answers_after=30)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller, slow = await asyncio.gather(processes.start(worker=False), processes.start())
        await caller.call("submit", key="k-0", prompt="a fox 0")
        await until(lambda: len(api.submissions) >= 1)
        slow.signal(signal.SIGSTOP)
        await processes.start()
        assert tally(await results(caller, "k", 1)) == {"SubmissionUnknownError": 1}
        assert await caller.call("keys", state="unknown") == ["k-0"]
        slow.signal(signal.SIGCONT)
        api.released.set()
        ends, unknown = await settled(caller, "k", 1)
        while unknown:
            ends, unknown = await settled(caller, "k", 1)
    assert {end["id"] for end in ends} == {ids[0] for ids in api.accepted.values()}
    assert len(api.submissions) == 1
