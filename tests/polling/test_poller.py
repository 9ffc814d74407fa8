"""One wait from its first poll to its end, in virtual time, on asyncio and trio."""

import asyncio
import gc
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import anyio
import pytest
from anyio import to_thread
from tenacity import wait_chain, wait_fixed

from luma_poll import (
    ConfigurationError,
    ContentModeratedError,
    GenerationError,
    OutputNotFoundError,
    Poller,
    PollTimeoutError,
)
from tests.fakes import ID, URL, FakeClient, snapshot, timed
from tests.polling.support import OTHER_ID
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio


async def test_time_is_virtual() -> None:
    """An hour passes in no time, so no other test here measures the real clock."""
    began = time.monotonic()
    await anyio.sleep(3600)
    assert time.monotonic() - began < 60


# --- the way of a wait ---------------------------------------------------------------------------


async def test_wait_returns_the_outputs_at_the_polls_of_the_schedule() -> None:
    """The first poll is immediate, then the schedule decides."""
    client = FakeClient("queued", "processing", "processing", "completed")
    schedule = wait_chain(wait_fixed(5), wait_fixed(7), wait_fixed(11))
    outputs = await Poller(client, wait=schedule).wait(ID)
    assert client.times == [0, 5, 12, 23]
    assert [output.url for output in outputs] == [URL]


async def test_a_finished_generation_costs_one_request() -> None:
    """What is already done is returned at once."""
    client = FakeClient("completed")
    elapsed, outputs = await timed(Poller(client).wait(ID))
    assert (elapsed, len(client.calls), len(outputs)) == (0, 1, 1)


async def test_the_default_schedule_backs_off_with_jitter() -> None:
    """Two waits do not march in step, and the gaps stay within the cap."""
    gaps = []
    for _ in range(2):
        client = FakeClient("processing")
        await timed(Poller(client).wait(ID, timeout=120))
        gaps.append([b - a for a, b in zip(client.times, client.times[1:-1], strict=False)])
    assert gaps[0] != gaps[1]
    assert all(2 < gap < 15 for gap in [*gaps[0], *gaps[1]])


async def test_an_id_may_be_a_uuid() -> None:
    """A UUID is asked for in its usual form."""
    client = FakeClient("completed")
    await Poller(client).wait(UUID(ID))
    assert client.calls[0][1] == ID


async def test_a_failure_raises_the_error_of_its_code() -> None:
    """A failed generation is a typed error that keeps the snapshot."""
    failed = snapshot("failed", failure_code="content_moderated", failure_reason="flagged")
    with pytest.raises(ContentModeratedError, match=f"{ID}.*content_moderated: flagged") as caught:
        await Poller(FakeClient("queued", failed)).wait(ID)
    assert caught.value.generation == failed
    assert caught.value.failure_reason == "flagged"


@pytest.mark.parametrize("code", [None, "solar_flare"])
async def test_an_unknown_failure_code_is_kept(code: str | None) -> None:
    """A code of tomorrow, or none at all, raises the plain error."""
    with pytest.raises(GenerationError) as caught:
        await Poller(FakeClient(snapshot("failed", failure_code=code))).wait(ID)
    assert type(caught.value) is GenerationError
    assert (caught.value.failure_code, caught.value.retryable) == (code, False)


async def test_an_unknown_state_is_polled_through_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A state that nobody knows yet is not the end, and does not flood the log."""
    client = FakeClient("queued", "throttled", "throttled", "processing", "completed")
    poller = Poller(client)
    assert await poller.wait(ID)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "'throttled'" in warnings[0].getMessage()


async def test_a_state_may_go_backwards() -> None:
    """The API promises no order of states, so none is asked for."""
    client = FakeClient("processing", "queued", "processing", "completed")
    assert await Poller(client).wait(ID)


async def test_completed_without_outputs_is_asked_again_then_an_error() -> None:
    """The outputs may come late; if they do not, that is an error of its own."""
    late = FakeClient(snapshot(output=[]), snapshot(output=None), "completed")
    assert await Poller(late, wait=wait_fixed(5)).wait(ID)
    never = FakeClient(snapshot(output=[]))
    with pytest.raises(OutputNotFoundError, match="completed without any output") as caught:
        await Poller(never, wait=wait_fixed(5)).wait(ID)
    assert never.times == [0, 5, 10, 15]
    assert caught.value.failure_code == "output_not_found"


# --- snapshots in place of ids -------------------------------------------------------------------


async def test_a_terminal_snapshot_costs_nothing() -> None:
    """What is already known is not asked for again."""
    client = FakeClient()
    poller = Poller(client)
    assert await poller.wait(snapshot("completed"))
    with pytest.raises(GenerationError):
        await poller.wait(snapshot("failed"))
    assert client.calls == []


async def test_a_snapshot_counts_as_the_first_answer() -> None:
    """The schedule begins with it, so the first request is not immediate."""
    client = FakeClient("completed")
    schedule = wait_chain(wait_fixed(5), wait_fixed(60))
    elapsed, _ = await timed(Poller(client, wait=schedule).wait(snapshot("queued")))
    assert (elapsed, len(client.calls)) == (5, 1)


async def test_any_object_that_looks_like_a_generation_is_a_snapshot() -> None:
    """The official SDK's objects are not ours, and serve all the same."""

    class Theirs:
        id = ID
        state = "queued"

    client = FakeClient(Theirs(), "completed")
    assert await Poller(client).wait(Theirs())
    assert len(client.calls) == 2


# --- the deadline --------------------------------------------------------------------------------


async def test_a_deadline_ends_the_wait_with_a_way_to_go_on() -> None:
    """The error has the id, the last snapshot, and says not to submit again."""
    client = FakeClient("queued", "processing")
    elapsed, error = await timed(Poller(client, wait=wait_fixed(10)).wait(ID, timeout=35))
    assert isinstance(error, PollTimeoutError)
    assert isinstance(error, TimeoutError)
    assert elapsed == 35
    assert (error.generation_id, error.elapsed, error.attempts) == (ID, 35, 5)
    assert error.last_generation is not None
    assert error.last_generation.state == "processing"
    assert error.__cause__ is None
    for words in (ID, "'processing'", "may still finish and be billed", "same id"):
        assert words in str(error)


@pytest.mark.parametrize(
    ("interval", "timeout", "polls"),
    [
        (10, 35, [0, 10, 20, 30, 34]),  # the last sleep is shortened
        (10, 30, [0, 10, 20, 29]),  # also where a poll falls on the deadline
        (7, 29, [0, 7, 14, 21, 28]),  # a poll on the last moment is the last one
        (2, 4.2, [0, 2, 3.78]),  # a short timeout leaves less time for the last answer
        (2, 12.3, [0, 2, 4, 6, 8, 10, 11.3]),
        (3, 10.3, [0, 3, 6, 9]),  # just polled: no burst at the end
        (60, 1, [0, 0.9]),
        (0.25, 1, [0, 0.25, 0.5, 0.75, 0.9]),
    ],
)
async def test_one_last_poll_happens_just_before_the_deadline(
    interval: float, timeout: float, polls: list[float]
) -> None:
    """The last sleep is shortened, and there is no burst of polls."""
    client = FakeClient("processing")
    elapsed, _ = await timed(Poller(client, wait=wait_fixed(interval)).wait(ID, timeout=timeout))
    assert client.times == polls
    assert elapsed == timeout


async def test_a_generation_that_ends_just_before_the_deadline_is_caught() -> None:
    """That is what the last poll is for."""
    client = FakeClient(at=lambda now: "completed" if now - began >= 28 else "processing")
    began = anyio.current_time()
    assert await Poller(client, wait=wait_fixed(20)).wait(ID, timeout=30)
    assert client.times == [0, 20, 29]


async def test_the_deadline_bounds_a_request_that_hangs() -> None:
    """A client that never answers does not hold a wait."""
    client = FakeClient("queued", latency=10_000)
    elapsed, error = await timed(Poller(client, timeout=45).wait(ID))
    assert elapsed == 45
    assert isinstance(error, PollTimeoutError)
    assert "has not answered" in str(error)


async def test_an_answer_on_its_way_at_the_last_moment_counts() -> None:
    """A finished answer that arrives in time is not thrown away."""
    client = FakeClient("processing", "processing", (0.99, "completed"))
    elapsed, outputs = await timed(Poller(client, wait=wait_fixed(20)).wait(ID, timeout=30))
    assert elapsed == 29.99
    assert len(outputs) == 1


async def test_without_a_timeout_a_wait_goes_on() -> None:
    """None means no limit, for one wait and for the poller."""
    began = anyio.current_time()
    client = FakeClient(at=lambda now: "completed" if now - began > 86_400 else "queued")
    assert await Poller(client, wait=wait_fixed(60)).wait(ID, timeout=None)
    assert await Poller(client, timeout=None).wait(ID)


# --- threads -------------------------------------------------------------------------------------


def test_a_poller_in_two_threads_is_a_clear_error() -> None:
    """A second event loop that runs at the same time is refused; the first one is not disturbed."""
    first_asks, second_has_tried = threading.Event(), threading.Event()

    class Client(FakeClient):
        async def get(self, generation_id: str) -> Any:
            first_asks.set()
            await to_thread.run_sync(second_has_tried.wait, 10)
            return snapshot(id=generation_id)

    poller = Poller(Client(), timeout=20)

    def in_a_thread() -> Any:
        first_asks.wait(10)
        try:
            return anyio.run(timed, poller.wait(OTHER_ID))[1]
        finally:
            second_has_tried.set()

    with ThreadPoolExecutor() as pool:
        second = pool.submit(in_a_thread)
        _, outputs = anyio.run(timed, poller.wait(ID))
    assert len(outputs) == 1
    assert isinstance(second.result(), ConfigurationError)
    assert "event loop" in str(second.result())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_was_closed_in_the_middle_of_a_request_leaves_nothing() -> None:
    """Neither its stream nor its slot holds up the next loop, before and after it is collected."""
    poller = Poller(FakeClient((1000, "queued"), "completed"), max_in_flight=1)
    loop = VirtualTimeLoop()
    tasks = [loop.create_task(poller.wait(ID, timeout=600))]
    loop.run_until_complete(asyncio.sleep(5))
    loop.close()
    for _ in range(2):
        elapsed, outputs = anyio.run(
            timed, poller.wait(ID), backend_options={"loop_factory": VirtualTimeLoop}
        )
        assert (elapsed, len(outputs)) == (0, 1)
        tasks.clear()
        gc.collect()
    assert repr(poller).endswith("generations=0)")
