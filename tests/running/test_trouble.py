"""A Runner among cancellations, crashes and nonsense: no slot is lost, and nothing hangs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio
import pytest

from luma_poll import Runner
from tests.running.fakes import FakeAccount
from tests.virtual_time import VirtualTimeLoop

IDLE = "Runner(running=0, in_flight=0, waiting=0)"


# --- a submission that nobody waits for any more -------------------------------------------------


@pytest.mark.anyio
async def test_a_cancelled_submission_leaves_its_slot() -> None:
    """Nobody waits for the generation that it became: the next run must not wait for its end."""
    api = FakeAccount(latency=4)
    runner = Runner(api, max_running=1)
    with anyio.move_on_after(1):
        await runner.run("a red fox")
    assert len(api.accepted) == 1
    assert repr(runner) == IDLE
    with anyio.fail_after(100):
        assert (await runner.run("a grey owl")).state == "completed"


@pytest.mark.parametrize("answer", [{}, LookupError("a bug of the client")])
@pytest.mark.anyio
async def test_a_run_that_breaks_off_lets_the_next_one_have_its_turn(answer: Any) -> None:
    """Cancelled, or by an exception of the client: the next one waited for its answer."""
    api = FakeAccount(latency=4)
    api.answers = [answer]
    runner = Runner(api)

    async def first() -> None:
        with suppress(LookupError), anyio.move_on_after(1 if answer == {} else 100):
            await runner.run("a red fox")

    with anyio.fail_after(100):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await anyio.sleep(0.5)
            tasks.start_soon(runner.run, "a grey owl")
    assert repr(runner) == IDLE


def test_asyncios_own_cancellation_at_every_moment_leaves_no_trace() -> None:
    """Before the submission, during it, and while it is waited for; others are not held up."""

    async def main(moment: float) -> None:
        api = FakeAccount(capacity=2, latency=1, duration=3)
        runner = Runner(api, max_running=2)
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(runner.run(f"prompt {number}")) for number in range(6)]
            await asyncio.sleep(moment)
            for run in runs[:3]:
                run.cancel()
        assert all(run.result().state == "completed" for run in runs[3:])
        assert repr(runner) == IDLE
        assert len({params["prompt"] for _, _, params in api.accepted}) == len(api.accepted)

    for step in range(60):
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as loop:
            loop.run(asyncio.wait_for(main(step * 0.25), 500))
