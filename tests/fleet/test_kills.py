"""Workers that die, stop for a while, or are deployed: nothing is submitted twice, none is lost."""

import asyncio
import random
import signal
from typing import Any

import pytest

from luma_poll.sandbox import Sandbox
from tests.fleet.processes import Api, Processes, tally

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def results(of: Any, prefix: str, count: int) -> list[dict[str, Any]]:
    return await asyncio.gather(*(of.call("result", key=f"{prefix}-{n}") for n in range(count)))


async def until(condition: Any) -> None:
    while not await condition():
        await asyncio.sleep(0.05)


async def test_kills_with_submissions_in_flight(database: str) -> None:
    """Each key has an end, an id of its own, or is called unknown; none has two."""
    api = Api(Sandbox(speed=20), answers_after=0.05)
    random.seed(3)
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        caller = await processes.start(worker=False)
        await caller.call("submit_many", count=60, prompt="a fox", prefix="k")
        for _ in range(3):
            worker = await processes.start()
            before = len(api.submissions)
            async with asyncio.timeout(20):
                while len(api.submissions) < before + 9 and len(api.accepted) < 60:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(random.random() * 0.05)
            await worker.kill()
        await processes.start()
        ends = await results(caller, "k", 60)
        assert api.twice == {}
        assert set(tally(ends)) <= {"completed", "SubmissionUnknownError"}
        known = {end["id"] for end in ends if "id" in end}
        assert len(known) == tally(ends)["completed"]
        unknown = await caller.call("unknown")
        assert len(unknown) == tally(ends)["SubmissionUnknownError"]
        assert 1 <= len(unknown) <= 24
