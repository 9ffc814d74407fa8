"""A Runner among cancellations, crashes and nonsense: no slot is lost, and nothing hangs."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from tenacity import wait_fixed
from trio.testing import MockClock

from luma_poll import Generation, Journal, Poller, RateLimitError, Runner
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


# --- one generation, several runs ----------------------------------------------------------------


@pytest.mark.anyio
async def test_an_id_that_the_api_gives_twice_takes_one_slot() -> None:
    """And leaves it, although both runs see its end."""
    api = FakeAccount(duration=10)
    submit = api.create

    async def create(**params: Any) -> Generation:
        generation = await submit(**params)
        return generation.model_copy(update={"id": api.accepted[0][1]})

    api.create = create  # type: ignore[method-assign]
    runner = Runner(api, max_running=2)
    with anyio.fail_after(100):
        results = await runner.run_all([f"prompt {number}" for number in range(5)])
    assert all(result.ok for result in results)
    assert repr(runner) == IDLE


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_generation_counts_as_long_as_one_run_waits_for_it(tmp_path: Path, backend: str) -> None:
    """Two runs with one key: that one of them is cancelled frees no slot; the end does."""
    api = FakeAccount(duration=0.3, latency=0.0, clock=time.monotonic)

    async def main() -> None:
        with Journal(tmp_path / "runs.db") as journal:
            runner = Runner(api, Poller(api, wait=wait_fixed(0.02)), journal=journal)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner.run, "a red fox", key="k"))
                with anyio.move_on_after(0.1):
                    await runner.run("a red fox", key="k")
                assert repr(runner) == "Runner(running=1, in_flight=0, waiting=0)"
                assert list(runner.submitted) == [api.accepted[0][1]]
            assert repr(runner) == IDLE
            assert runner.submitted == {}

    anyio.run(main, backend=backend)


# --- one event loop after the other --------------------------------------------------------------


def test_the_times_of_one_event_loop_mean_nothing_in_the_next() -> None:
    """Trio's clock begins anew: a pause that a refusal asked for must not last for days."""
    api = FakeAccount(capacity=3, duration=10)
    runner = Runner(api)

    async def first(refusal: str) -> None:
        await anyio.sleep(50_000)
        await runner.run("a red fox")
        api.answers = [RateLimitError(refusal, status_code=429, detail=refusal, retry_after=60)]
        with anyio.move_on_after(3):
            await runner.run("a grey owl")

    async def second() -> None:
        api.forget_all()
        with anyio.fail_after(100):
            assert all(result.ok for result in await runner.run_all(["a hare", "a hedgehog"]))

    for refusal in ("Rate limit exceeded", "Too many concurrent jobs"):
        trio.run(first, refusal, clock=MockClock(autojump_threshold=0))
        trio.run(second, clock=MockClock(autojump_threshold=0))
