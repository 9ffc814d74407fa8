"""A Runner among cancellations, crashes and nonsense: no slot is lost, and nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import luma_agents
import pytest
import trio
from tenacity import wait_fixed
from trio.testing import MockClock

from luma_poll import (
    Generation,
    InvalidResponseError,
    Journal,
    LumaClient,
    Poller,
    RateLimitError,
    Runner,
)
from tests.fakes import ID, OUTPUT
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
    api = FakeAccount(duration=3600, latency=0.0, clock=time.monotonic)

    async def main() -> None:
        with Journal(tmp_path / "runs.db") as journal:
            submitted = anyio.Event()
            poller = Poller(api, wait=wait_fixed(0.02))
            runner = Runner(api, poller, journal=journal, on_submit=lambda _: submitted.set())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner.run, "a red fox", key="k"))
                await submitted.wait()
                with anyio.move_on_after(0.1):
                    await runner.run("a red fox", key="k")
                assert repr(runner) == "Runner(running=1, in_flight=0, waiting=0)"
                assert list(runner.outstanding) == [api.accepted[0][1]]
                api.end_in(0)
            assert repr(runner) == IDLE
            assert runner.outstanding == {}

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


# --- answers that are hardly readable ------------------------------------------------------------


class Unreadable:
    """The API over HTTP: accepts a submission with this answer, and completes it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(201, json=self.answer)
        return httpx.Response(200, json={"id": ID, "state": "completed", "output": OUTPUT})


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        {"id": ID},
        {"id": ID, "state": None},
        {"id": ID, "state": "completed", "output": [{"url": None}]},
    ],
)
@pytest.mark.asyncio  # in real time: the SDK looks up its headers in a thread
async def test_the_id_in_an_answer_that_is_otherwise_unreadable_is_not_lost(
    answer: Any, official: bool
) -> None:
    """It was accepted, and is billed: it is waited for."""
    async with httpx.AsyncClient(transport=httpx.MockTransport(Unreadable(answer))) as http_client:
        client: Any = (luma_agents.AsyncLuma if official else LumaClient)(
            auth_token="luma-api-x", http_client=http_client
        )
        runner = Runner(client, Poller(client, wait=wait_fixed(0.01)))
        (result,) = await runner.run_all(["a red fox"])
    assert result.ok
    assert result.submitted == (ID,)


@pytest.mark.anyio
async def test_a_submission_by_hand_gives_the_id_too() -> None:
    """It was accepted: polls tell the rest."""
    transport = httpx.MockTransport(Unreadable({"id": ID}))
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = LumaClient(auth_token="luma-api-x", http_client=http_client)
        generation = await client.generations.create("a red fox")
    assert (generation.id, generation.state) == (ID, "queued")


@pytest.mark.parametrize("unusable", ["", "..", "x" * 2000, None, 7])
@pytest.mark.anyio
async def test_an_id_that_cannot_be_one_is_an_unreadable_answer(unusable: Any) -> None:
    """And not a mistake of the caller's: the generation may be running."""
    transport = httpx.MockTransport(Unreadable({"id": unusable, "state": "queued"}))
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = LumaClient(auth_token="luma-api-x", http_client=http_client)
        runner = Runner(client)
        (result,) = await runner.run_all(["a red fox"])
    assert isinstance(result.error, InvalidResponseError)
    assert result.error.may_have_been_accepted
    assert len(str(result.error)) < 500
    assert "before you submit it again" in result.error.__notes__[0]
    assert (result.submitted, repr(runner)) == ((), IDLE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seconds", [1, 5])
def test_a_loop_that_was_closed_in_the_middle_leaves_nothing(seconds: float) -> None:
    """Of a submission or a wait: the next loop has all slots, before and after it is collected."""
    api = FakeAccount(latency=2, duration=10)
    runner = Runner(api, max_running=1)
    loop = VirtualTimeLoop()
    tasks = [loop.create_task(runner.run("a red fox")) for _ in range(2)]
    loop.run_until_complete(asyncio.sleep(seconds))
    loop.close()
    for _ in range(2):
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as next_loop:
            next_loop.run(asyncio.wait_for(runner.run("a grey owl"), 100))
        assert repr(runner) == IDLE
        tasks.clear()
        gc.collect()
    assert repr(runner) == IDLE
