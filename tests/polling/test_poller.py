"""The loop, in virtual time, on asyncio and trio."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any
from uuid import UUID

import anyio
import pytest
import trio.testing
from anyio import to_thread
from anyio.lowlevel import checkpoint
from tenacity import RetryCallState, wait_chain, wait_fixed

from luma_poll import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ContentModeratedError,
    Generation,
    GenerationError,
    InsufficientBalanceError,
    InvalidResponseError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    PermissionDeniedError,
    Poller,
    PollEvent,
    PollTimeoutError,
    RateLimitError,
    ServerError,
    UnprocessableEntityError,
)
from luma_poll._api.answers import note_answer
from tests.fakes import ID, URL, FakeClient, snapshot
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

OTHER_ID = "9b2f6a8e-0000-4000-8000-000000000000"
BUSY = ServerError("HTTP 503", status_code=503)


def throttled(retry_after: float | None) -> RateLimitError:
    return RateLimitError("HTTP 429", status_code=429, retry_after=retry_after)


async def timed(pending: Awaitable[Any]) -> tuple[float, Any]:
    """How long it took, and what came out: a result, or one of our errors."""
    began = anyio.current_time()
    try:
        result = await pending
    except LumaError as error:
        result = error
    return round(anyio.current_time() - began, 6), result


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[tuple[float, Any]]:
    results: dict[int, tuple[float, Any]] = {}

    async def run(number: int, call: Callable[[], Awaitable[Any]]) -> None:
        results[number] = await timed(call())

    async with anyio.create_task_group() as tasks:
        for number, call in enumerate(calls):
            tasks.start_soon(run, number, call)
    return [results[number] for number in range(len(calls))]


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


# --- faults --------------------------------------------------------------------------------------

TRANSIENT: list[Exception] = [
    APIConnectionError("refused"),
    InvalidResponseError("not a generation"),
    ServerError("500", status_code=500),
    BUSY,
    throttled(None),
    RateLimitError("408", status_code=408),
    ConnectionResetError("reset by peer"),
    TimeoutError("timed out"),
]


@pytest.mark.parametrize("fault", TRANSIENT)
async def test_a_transient_fault_never_ends_a_wait(fault: Exception) -> None:
    """As the first answer, in the middle, in a burst: the schedule is the only retry."""
    client = FakeClient(fault, "queued", fault, fault, "processing", fault, "completed")
    assert await Poller(client, wait=wait_fixed(5)).wait(ID)
    assert client.times == [0, 5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize("rubbish", ["<html>", None, [], {}, 7, object(), {"id": ID}])
async def test_an_answer_that_is_no_generation_is_polled_through(rubbish: object) -> None:
    """A proxy's page with status 200 is trouble, not the end."""
    answers = iter([rubbish, snapshot()])
    events: list[PollEvent] = []

    class Client(FakeClient):
        async def get(self, generation_id: str) -> Any:
            return next(answers)

    assert await Poller(Client(), on_poll=events.append).wait(ID)
    assert isinstance(events[0].error, InvalidResponseError)
    assert events[0].error.generation_id == ID


@pytest.mark.parametrize(
    "error",
    [
        BadRequestError("400", status_code=400),
        AuthenticationError("401", status_code=401),
        InsufficientBalanceError("402", status_code=402),
        PermissionDeniedError("403", status_code=403),
        UnprocessableEntityError("422", status_code=422),
    ],
    ids=lambda error: error.status_code,
)
async def test_a_permanent_error_ends_a_wait_at_once(error: APIError) -> None:
    """What will not change is not asked again."""
    client = FakeClient("queued", error)
    elapsed, raised = await timed(Poller(client, wait=wait_fixed(5)).wait(ID))
    assert elapsed == 5
    assert type(raised) is type(error)


async def test_an_outage_at_the_deadline_is_the_cause() -> None:
    """The error tells the last good state and what was wrong at the end."""
    client = FakeClient("processing", BUSY)
    await anyio.sleep(10)
    _, error = await timed(Poller(client).wait(ID, timeout=60))
    assert "(the last poll failed: HTTP 503)" in str(error)
    assert "after 60.0 s" in str(error)
    assert isinstance(error, PollTimeoutError)
    assert isinstance(error.__cause__, ServerError)
    assert error.last_generation is not None
    assert error.last_generation.state == "processing"


async def test_a_404_is_not_believed_right_after_a_snapshot() -> None:
    """Who was handed a snapshot knows that the id exists; after 10 s a 404 is final."""
    missing = NotFoundError("404", status_code=404)
    client = FakeClient(missing, missing, "completed")
    assert await Poller(client, wait=wait_fixed(3)).wait(snapshot("queued"))
    client = FakeClient(missing)
    elapsed, error = await timed(Poller(client, wait=wait_fixed(5)).wait(snapshot("queued")))
    assert isinstance(error, NotFoundError)
    assert elapsed == 10


async def test_an_error_that_is_nobodys_trouble_but_the_codes_is_raised() -> None:
    """A bug in a client is not polled through."""
    with pytest.raises(ZeroDivisionError):
        await Poller(FakeClient(ZeroDivisionError())).wait(ID)


# --- Retry-After ---------------------------------------------------------------------------------


async def test_retry_after_is_the_least_time_until_the_next_request() -> None:
    """For the wait that got it; the schedule may want longer."""
    client = FakeClient(throttled(30), throttled(1), "completed")
    assert await Poller(client, wait=wait_fixed(5)).wait(ID)
    assert client.times == [0, 30, 35]


async def test_one_429_quiets_every_wait_of_the_poller() -> None:
    """The API asks a client, not a generation, to slow down."""
    client = FakeClient("queued", throttled(60), "completed")
    poller = Poller(client, wait=wait_fixed(5))
    await together(lambda: poller.wait(ID), lambda: poller.wait(OTHER_ID))
    assert client.times[2] == pytest.approx(60, abs=0.1)


async def test_a_retry_after_past_the_deadline_fails_now_with_the_cause() -> None:
    """Sleeping for nothing helps nobody; waits with more time go on."""
    client = FakeClient("queued", throttled(100), "completed")
    poller = Poller(client, wait=wait_fixed(10), max_rate=None)
    (short, error), (asleep, other_error), (long, outputs) = await together(
        lambda: poller.wait(ID, timeout=60),
        lambda: poller.wait(OTHER_ID, timeout=50),
        lambda: poller.wait(ID, timeout=300),
    )
    assert isinstance(error, PollTimeoutError)
    assert isinstance(error.__cause__, RateLimitError)
    assert "100 s of quiet" in str(error)
    assert isinstance(other_error, PollTimeoutError)
    assert isinstance(other_error.__cause__, RateLimitError)
    assert short == asleep == 0
    assert long == 100
    assert outputs


async def test_a_wait_that_queues_for_its_turn_hears_of_a_quiet_time() -> None:
    """It fails at once too, if the quiet time outlasts it; with more time it goes on after it."""
    client = FakeClient((2, throttled(100)), "completed")
    poller = Poller(client, max_rate=0.1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timed, poller.wait(ID, timeout=50))
        await anyio.sleep(1)
        (short, error), (long, outputs) = await together(
            lambda: poller.wait(OTHER_ID, timeout=60),
            lambda: poller.wait("third", timeout=300),
        )
    assert isinstance(error, PollTimeoutError)
    assert isinstance(error.__cause__, RateLimitError)
    assert (short, error.attempts, error.elapsed) == (1, 0, 1)
    assert long == 101
    assert outputs


async def test_the_limits_hold_after_a_quiet_time() -> None:
    """Those that were sent away from the queue give back no turn that they did not have."""
    client = FakeClient((1, throttled(10)), "completed", latency=0.5)
    poller = Poller(client, max_in_flight=1, max_rate=None)
    await together(*[lambda i=i: poller.wait(f"id-{i}") for i in range(10)])
    assert len(client.calls) == 11
    assert client.most_under_way == 1


async def test_a_shorter_quiet_time_does_not_cut_a_longer_one() -> None:
    """Two answers were under way together: the longer one holds."""
    client = FakeClient((1, throttled(60)), (2, throttled(5)), "completed")
    poller = Poller(client, wait=wait_fixed(1), max_rate=None)
    await together(lambda: poller.wait(ID), lambda: poller.wait(OTHER_ID))
    assert client.times[2] == 61


@pytest.mark.parametrize(("retry_after", "second"), [(0.5, 0.5), (None, 0.1), (0.0, 0.1)])
async def test_a_short_retry_after_is_kept_to_the_moment(
    retry_after: float | None, second: float
) -> None:
    """Not longer than asked, and nothing where nothing was asked."""
    client = FakeClient(throttled(retry_after), "completed")
    await Poller(client, wait=wait_fixed(0.1)).wait(ID)
    assert client.times == [0, second]


async def test_a_quiet_time_does_not_outlive_itself() -> None:
    """A wait that begins after it is not delayed."""
    client = FakeClient(throttled(100), "completed")
    poller = Poller(client)
    await timed(poller.wait(ID, timeout=10))
    await anyio.sleep(100)
    elapsed, outputs = await timed(poller.wait(ID, timeout=10))
    assert (elapsed, len(outputs)) == (0, 1)


async def test_a_hint_on_a_good_answer_is_the_least_time_to_the_next_poll_of_it() -> None:
    """Of that generation alone: the others of the poller are not held up."""
    polled: dict[str, list[float]] = {ID: [], OTHER_ID: []}
    began = anyio.current_time()

    class Client(FakeClient):
        async def get(self, generation_id: str) -> Any:
            polled[generation_id].append(round(anyio.current_time() - began, 6))
            hint = 20.0 if generation_id == ID else None
            return note_answer(snapshot("queued", id=generation_id), retry_after=hint)

    poller = Poller(Client(), wait=wait_fixed(5), max_rate=None)
    await together(lambda: poller.wait(ID, timeout=39), lambda: poller.wait(OTHER_ID, timeout=12))
    assert polled == {ID: [0, 20], OTHER_ID: [0, 5, 10, 11]}


async def test_the_repr_tells_the_limits_and_what_is_under_way() -> None:
    """Requests in flight, and the generations that are waited for."""
    poller = Poller(FakeClient("completed", latency=5), max_in_flight=1)
    seen: list[str] = []

    async def look() -> None:
        await anyio.sleep(1)
        seen.append(repr(poller))

    await together(lambda: poller.wait(ID), lambda: poller.wait(OTHER_ID), look)
    assert [*seen, repr(poller)] == [
        "Poller(max_in_flight=1, max_rate=30.0, in_flight=1, generations=2)",
        "Poller(max_in_flight=1, max_rate=30.0, in_flight=0, generations=0)",
    ]


# --- many waits ----------------------------------------------------------------------------------


async def test_waits_for_one_id_share_one_stream_of_requests() -> None:
    """Fifty tabs cost as many requests as one."""
    client = FakeClient("queued", "processing", "completed", latency=0.2)
    poller = Poller(client, wait=wait_fixed(5))
    results = await together(*[lambda: poller.wait(ID)] * 50)
    assert len(client.calls) == 3
    assert {elapsed for elapsed, _ in results} == {10.6}
    assert all(len(outputs) == 1 for _, outputs in results)


async def test_each_wait_on_a_stream_keeps_its_own_deadline() -> None:
    """The wait that polls may end; the others go on without a gap."""
    client = FakeClient(*["processing"] * 9, "completed")
    poller = Poller(client, wait=wait_fixed(10))
    results = await together(*[lambda t=t: poller.wait(ID, timeout=t) for t in (12.0, 33.0, 300.0)])
    assert [elapsed for elapsed, _ in results] == [12.0, 33.0, pytest.approx(72)]
    assert [type(result) for _, result in results] == [PollTimeoutError, PollTimeoutError, list]
    assert client.most_under_way == 1


async def test_a_wait_that_joins_counts_its_own_requests() -> None:
    """Those before it came are not its attempts."""
    client = FakeClient("processing")
    poller = Poller(client, wait=wait_fixed(10))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timed, poller.wait(ID, timeout=100))
        await anyio.sleep(45)
        _, error = await timed(poller.wait(ID, timeout=10))
        tasks.cancel_scope.cancel()
    assert isinstance(error, PollTimeoutError)
    assert client.times == [0, 10, 20, 30, 40, 50, 54]
    assert error.attempts == 2


async def test_the_wait_that_polls_may_be_cancelled() -> None:
    """Another takes over at once, and asks once."""
    client = FakeClient((30, "processing"), "completed")
    poller = Poller(client)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancelled_one() -> None:
                with anyio.move_on_after(3):
                    await poller.wait(ID)

            tasks.start_soon(cancelled_one)
            await anyio.sleep(1)
            elapsed, outputs = await timed(poller.wait(ID))
    assert not scope.cancelled_caught
    assert elapsed == 2
    assert outputs
    assert client.times == [0, 3]


async def test_each_wait_raises_an_error_of_its_own() -> None:
    """A shared exception would mix the tracebacks of its raisers."""
    cause = OSError("below")
    missing = NotFoundError("404", status_code=404)
    missing.__cause__ = cause
    poller = Poller(FakeClient(missing, latency=1))
    results = await together(*[lambda: poller.wait(ID)] * 3)
    errors = [error for _, error in results]
    assert len({id(error) for error in errors}) == 3
    assert all(type(e) is NotFoundError and e.__cause__ is cause for e in errors)


async def test_an_ended_generation_is_asked_for_anew() -> None:
    """Its URLs live an hour: a later wait brings fresh ones."""
    client = FakeClient("completed")
    poller = Poller(client)
    await poller.wait(ID)
    await poller.wait(ID)
    assert len(client.calls) == 2


async def test_requests_are_spread_over_time() -> None:
    """Many waits that start together do not fire together: `max_rate` holds from the start."""
    client = FakeClient("completed")
    poller = Poller(client, max_rate=10)
    await together(*[lambda i=i: poller.wait(f"id-{i}") for i in range(50)])
    assert client.times == [pytest.approx(i / 10, abs=1e-3) for i in range(50)]


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    """`max_in_flight` holds over all waits."""
    client = FakeClient("completed", latency=1)
    poller = Poller(client, max_in_flight=3, max_rate=None)
    results = await together(*[lambda i=i: poller.wait(f"id-{i}") for i in range(10)])
    assert client.most_under_way == 3
    assert max(elapsed for elapsed, _ in results) == 4


async def test_the_longest_overdue_goes_first() -> None:
    """Under a binding rate, no wait starves while others poll often."""
    client = FakeClient(at=lambda now: "completed" if now - began >= 60 else "processing")
    began = anyio.current_time()
    poller = Poller(client, wait=wait_fixed(1), max_rate=1)
    await together(*[lambda i=i: poller.wait(f"id-{i}") for i in range(10)])
    polled = [generation_id for _, generation_id in client.calls[:60]]
    assert {polled.count(f"id-{i}") for i in range(10)} == {6}


async def test_a_cancelled_wait_gives_its_turn_back() -> None:
    """Neither a queued nor a running request holds a slot after its wait is gone."""
    client = FakeClient((1000, "queued"), (1000, "queued"), "completed")
    poller = Poller(client, max_in_flight=2, max_rate=None)
    with anyio.move_on_after(5):
        await together(*[lambda i=i: poller.wait(f"id-{i}") for i in range(10)])
    results = await together(*[lambda i=i: poller.wait(f"id-{i}") for i in range(10)])
    assert {elapsed for elapsed, _ in results} == {0}
    assert repr(poller).endswith("generations=0)")


# --- watch ---------------------------------------------------------------------------------------


async def test_watch_yields_the_first_snapshot_and_every_change() -> None:
    """A failed generation is yielded, not raised."""
    client = FakeClient("queued", "queued", "processing", BUSY, "processing", "failed")
    states = [generation.state async for generation in Poller(client).watch(ID)]
    assert states == ["queued", "processing", "failed"]


async def test_watch_begins_with_the_snapshot_that_was_handed_in() -> None:
    """It is the first answer."""
    client = FakeClient("queued", "completed")
    seen = [generation.state async for generation in Poller(client).watch(snapshot("queued"))]
    assert seen == ["queued", "completed"]


async def test_a_watch_that_joins_gets_the_current_state_at_once() -> None:
    """A browser that comes back need not wait for the next poll."""
    client = FakeClient("processing")
    poller = Poller(client, wait=wait_fixed(60))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, ID)
        await anyio.sleep(10)
        async with aclosing(poller.watch(ID)) as snapshots:
            elapsed, first = await timed(anext(snapshots))
        assert (elapsed, first.state, len(client.calls)) == (0, "processing", 1)
        tasks.cancel_scope.cancel()


async def test_a_watch_that_is_left_early_leaves_nothing() -> None:
    """The next wait is not held by it, and it does not poll on."""
    client = FakeClient("queued", "processing", "completed")
    poller = Poller(client)
    async with aclosing(poller.watch(ID)) as snapshots:
        async for _ in snapshots:
            break
    assert repr(poller).endswith("generations=0)")
    await anyio.sleep(600)
    assert len(client.calls) == 1


async def test_a_slow_watcher_does_not_slow_a_wait() -> None:
    """Who takes a minute for each snapshot delays nobody else."""
    client = FakeClient("queued", "processing", "completed")
    poller = Poller(client, wait=wait_fixed(5))
    states = []

    async def watch_slowly() -> None:
        async for generation in poller.watch(ID):
            states.append(generation.state)
            await anyio.sleep(60)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_slowly)
        await checkpoint()
        elapsed, _ = await timed(poller.wait(ID))
    assert elapsed == 10
    assert states == ["queued", "completed"]


async def test_watch_ends_by_its_deadline() -> None:
    """It raises as `wait` does."""
    snapshots = Poller(FakeClient("queued")).watch(ID, timeout=60)
    assert (await anext(snapshots)).state == "queued"
    with pytest.raises(PollTimeoutError):
        await anext(snapshots)


# --- schedules and events ------------------------------------------------------------------------


async def test_a_schedule_sees_the_polls_the_age_and_the_answer() -> None:
    """The state that tenacity's strategies read is filled, on anyio's clock."""
    seen: list[tuple[int, float | None, Any]] = []

    def schedule(state: RetryCallState) -> float:
        assert state.outcome is not None
        error = state.outcome.exception()
        answer = error if error is not None else state.outcome.result()
        seen.append((state.attempt_number, state.seconds_since_start, answer))
        return 100 * state.attempt_number

    client = FakeClient("queued", BUSY, "completed")
    await Poller(client, wait=schedule).wait(ID)
    assert seen == [(1, 0, snapshot("queued")), (2, 100, BUSY)]


@pytest.mark.parametrize("delay", [float("nan"), "5", None])
async def test_a_schedule_that_gives_no_seconds_is_a_clear_error(delay: Any) -> None:
    """It is named, rather than slept on."""
    with pytest.raises(ConfigurationError, match="schedule"):
        await Poller(FakeClient("queued"), wait=lambda _: delay).wait(ID)


async def test_a_schedule_of_zero_is_bounded_by_the_rate() -> None:
    """Nobody hammers the API by mistake."""
    client = FakeClient("queued")
    await timed(Poller(client, wait=lambda _: -1).wait(ID, timeout=10))
    assert 280 <= len(client.calls) <= 301


async def test_on_poll_tells_of_every_poll() -> None:
    """Metrics and progress bars read it."""
    events: list[PollEvent] = []
    client = FakeClient("queued", BUSY, "completed")
    await Poller(client, wait=wait_fixed(7), on_poll=events.append).wait(ID)
    assert events == [
        PollEvent(ID, 1, snapshot("queued"), None, elapsed=0, next_delay=7),
        PollEvent(ID, 2, None, BUSY, elapsed=7, next_delay=7),
        PollEvent(ID, 3, snapshot("completed"), None, elapsed=14, next_delay=None),
    ]


async def test_polls_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each at DEBUG, trouble at INFO, by the id of the generation."""
    caplog.set_level(logging.DEBUG, "luma_poll")
    await Poller(FakeClient("queued", BUSY, "throttled", "completed")).wait(ID)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", f"generation {ID}: queued"),
        ("INFO", "polling on after: HTTP 503"),
        ("DEBUG", f"generation {ID}: throttled"),
        (
            "WARNING",
            f"generation {ID} is in a state that luma-poll does not know, 'throttled': polling on",
        ),
        ("DEBUG", f"generation {ID}: completed"),
    ]


async def test_a_permanent_error_is_reported_once() -> None:
    """To `on_poll`, with no next poll; it is raised, so it is not logged as trouble."""
    events: list[PollEvent] = []
    missing = NotFoundError("404", status_code=404)
    await timed(Poller(FakeClient(missing), on_poll=events.append).wait(ID))
    assert events == [PollEvent(ID, 1, None, missing, elapsed=0, next_delay=None)]


async def test_on_poll_foretells_the_last_poll() -> None:
    """The delay is the one that will be slept, shortened by the deadline."""
    events: list[PollEvent] = []
    client = FakeClient("queued")
    poller = Poller(client, wait=wait_fixed(29.8), on_poll=events.append)
    await timed(poller.wait(ID, timeout=60))
    assert [event.next_delay for event in events] == [
        pytest.approx(29.8),
        pytest.approx(29.2),
        None,
    ]
    assert [event.elapsed for event in events] == [0, pytest.approx(29.8), 59]


async def test_on_poll_foretells_a_short_delay() -> None:
    """Below a second too."""
    events: list[PollEvent] = []
    await Poller(
        FakeClient("queued", "completed"), wait=wait_fixed(0.25), on_poll=events.append
    ).wait(ID)
    assert events[0].next_delay == 0.25


async def test_an_exception_in_on_poll_is_logged_and_never_ends_a_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broken metric loses no generation."""

    def broken(event: PollEvent) -> None:
        raise RuntimeError("no metrics today")

    assert await Poller(FakeClient("queued", "completed"), on_poll=broken).wait(ID)
    assert "no metrics today" in caplog.text


# --- bad input -----------------------------------------------------------------------------------

BAD_IDS: list[Any] = ["", "  ", ".", "..", None, 7, b"bytes", "\ud800", object(), Generation]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_a_bad_id_is_refused_before_any_request(bad: Any) -> None:
    """The error is ours, and nothing was sent."""
    client = FakeClient("completed")
    with pytest.raises(ConfigurationError):
        await Poller(client).wait(bad)
    assert client.calls == []


@pytest.mark.parametrize("bad", [0, -1, float("nan"), "5", True, ...])
async def test_a_bad_timeout_is_refused_before_any_request(bad: Any) -> None:
    """For one wait and for the poller; the message names the parameter."""
    client = FakeClient("completed")
    with pytest.raises(ConfigurationError, match="timeout"):
        await Poller(client).wait(ID, timeout=bad)
    with pytest.raises(ConfigurationError, match="timeout"):
        Poller(client, timeout=bad)
    assert client.calls == []


async def async_callback(event: PollEvent) -> None: ...


@pytest.mark.parametrize(
    "arguments",
    [
        {"wait": 5},
        {"max_in_flight": 0},
        {"max_in_flight": 2.5},
        {"max_rate": 0},
        {"max_rate": float("nan")},
        {"on_poll": "print"},
        {"on_poll": async_callback},
    ],
)
async def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any]) -> None:
    """The message names the parameter."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Poller(FakeClient(), **arguments)


async def test_a_client_that_cannot_get_is_refused() -> None:
    """The mistake shows where it is made."""
    with pytest.raises(ConfigurationError, match=r"str has no generations\.get"):
        Poller("client")  # type: ignore[arg-type]


# --- what was handed in while a request is under way ---------------------------------------------


async def test_a_terminal_snapshot_ends_the_waits_at_once() -> None:
    """Also the one whose request hangs, and whatever that would have brought later."""
    client = FakeClient((90, "processing"))
    poller = Poller(client, timeout=100)

    async def hand_in_later() -> list[Any]:
        await anyio.sleep(5)
        return await poller.wait(snapshot("completed"))

    results = await together(lambda: poller.wait(ID), hand_in_later)
    assert [(at, outputs[0].url) for at, outputs in results] == [(5.0, URL)] * 2
    assert client.times == [0]
    assert client.under_way[ID] == 0


async def test_one_snapshot_handed_in_often_is_one_answer() -> None:
    """A completed one without outputs yet is asked about, not given up."""
    client = FakeClient("completed")
    early = snapshot("completed", output=[])
    poller = Poller(client, wait=wait_fixed(2))
    results = await together(*[lambda: poller.wait(early)] * 6)
    assert [(at, outputs[0].url) for at, outputs in results] == [(2.0, URL)] * 6
    assert client.times == [0]


async def test_a_snapshot_counts_where_there_were_only_errors() -> None:
    """It is proof that the id exists, and it is the last that is known."""
    client = FakeClient(BUSY, NotFoundError("HTTP 404", status_code=404), BUSY)
    poller = Poller(client, wait=wait_fixed(2), timeout=30)

    async def hand_in_later() -> Any:
        await anyio.sleep(1)
        return await poller.wait(snapshot("queued"))

    for _, error in await together(lambda: poller.wait(ID), hand_in_later):
        assert isinstance(error, PollTimeoutError)
        assert error.last_generation == snapshot("queued")


# --- one poller, several event loops --------------------------------------------------------------


def test_a_poller_outlives_its_event_loop() -> None:
    """The next one may have an earlier clock: no limit of the old one holds anybody up."""
    poller = Poller(FakeClient(throttled(600), "completed"), wait=wait_fixed(2), max_rate=0.1)

    async def wait_in_vain() -> None:
        await anyio.sleep(10_000)
        with pytest.raises(PollTimeoutError, match="600 s of quiet"):
            await poller.wait(ID, timeout=5)

    async def wait() -> float:
        took, outputs = await timed(poller.wait(ID, timeout=700))
        assert outputs[0].url == URL
        return took

    anyio.run(wait_in_vain, backend_options={"loop_factory": VirtualTimeLoop})
    assert anyio.run(wait, backend_options={"loop_factory": VirtualTimeLoop}) <= 10
    clock = trio.testing.MockClock(autojump_threshold=0)
    assert trio.run(wait, clock=clock) <= 10  # before anyio 4.14 its run ignores the clock


# --- liveness: nobody starves, and no request is wasted -------------------------------------------


async def test_the_wait_that_stays_longest_asks() -> None:
    """Shorter deadlines throw no request away, and all that lie beyond the answer get it."""
    client = FakeClient("completed", latency=1.5)
    poller = Poller(client)
    results = await together(*[partial(poller.wait, ID, timeout=t) for t in [*range(1, 200), 600]])
    assert client.times == [0]
    assert {elapsed for elapsed, _ in results[1:]} == {1.5}
    assert [type(result) for _, result in results] == [PollTimeoutError] + [list] * 199


async def test_who_stays_longer_takes_over_before_the_request_is_sent() -> None:
    """A wait that queues for its turn leaves it to a newcomer with a later deadline."""
    client = FakeClient((1, "queued"), (3, "completed"))
    poller = Poller(client, max_rate=0.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(timed, poller.wait(OTHER_ID, timeout=1.5))
        await anyio.sleep(0.5)
        tasks.start_soon(timed, poller.wait(ID, timeout=2))
        await anyio.sleep(0.5)
        elapsed, outputs = await timed(poller.wait(ID, timeout=60))
    assert len(outputs) == 1
    assert elapsed == 4  # its turn came at 2.0, and the answer 3 s later
    assert client.times == [0, 2]


async def test_a_stream_of_short_visitors_does_not_starve_a_long_one() -> None:
    """Whoever comes and goes meanwhile, one request is enough."""
    client = FakeClient("completed", latency=3)
    poller = Poller(client)

    async def visitor(number: int) -> None:
        await anyio.sleep(2 * number)
        await timed(poller.wait(ID, timeout=2.9))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(visitor, number)
        await anyio.sleep(1)
        elapsed, outputs = await timed(poller.wait(ID, timeout=60))
        tasks.cancel_scope.cancel()
    assert len(outputs) == 1
    assert elapsed == pytest.approx(4.9)  # the visitor's request ended at 2.9, then its own
    assert len(client.calls) == 2


async def test_a_paused_watch_does_not_ask() -> None:
    """The one that stays longest reads a snapshot for hours: the others do not wait for it."""
    client = FakeClient("queued", "processing", "completed")
    poller = Poller(client, wait=wait_fixed(5))
    async with aclosing(poller.watch(ID, timeout=None)) as snapshots:
        assert (await anext(snapshots)).state == "queued"
        elapsed, outputs = await timed(poller.wait(ID, timeout=60))
        assert (elapsed, len(outputs)) == (10, 1)
        assert [each.state async for each in snapshots] == ["completed"]
    assert client.times == [0, 5, 10]


async def test_a_watch_that_returns_takes_part_again() -> None:
    """After a pause it asks what has become due meanwhile."""
    client = FakeClient("queued", "completed")
    poller = Poller(client, wait=wait_fixed(5))
    async with aclosing(poller.watch(ID)) as snapshots:
        await anext(snapshots)
        await anyio.sleep(60)
        assert (await anext(snapshots)).state == "completed"
    assert client.times == [0, 60]


async def test_the_last_poll_is_not_lost_when_the_one_that_asks_is_cancelled() -> None:
    """A poll that brought no answer was none: another wait asks before its own deadline."""
    client = FakeClient("processing", (60, "processing"), "completed")
    poller = Poller(client, wait=wait_fixed(500))

    async def cancelled_one() -> None:
        with anyio.move_on_after(99.5):
            await poller.wait(ID, timeout=100.2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancelled_one)
        elapsed, outputs = await timed(poller.wait(ID, timeout=100))
    assert len(outputs) == 1
    assert elapsed == 99.5
    assert client.times == [0, 99, 99.5]


async def test_a_shorter_deadline_has_its_last_poll() -> None:
    """The one that asks asks for the deadlines of all, also of those that come later."""
    began = anyio.current_time()
    client = FakeClient(at=lambda now: "completed" if now - began >= 25 else "processing")
    poller = Poller(client, wait=wait_fixed(400))

    async def later() -> Any:
        await anyio.sleep(10)
        return await poller.wait(ID, timeout=20)

    (long, _), (short, outputs) = await together(lambda: poller.wait(ID, timeout=600), later)
    assert client.times == [0, 29]
    assert (long, short) == (29, 29)
    assert len(outputs) == 1


async def test_a_long_retry_after_ends_only_the_waits_that_it_outlasts() -> None:
    """Also one that queues and one that sleeps, at once; the others are polled after it."""
    client = FakeClient("queued", throttled(100), "completed")
    poller = Poller(client, wait=wait_fixed(10), max_rate=0.1)
    calls = [partial(poller.wait, f"{n}", timeout=60 if n % 2 else 600) for n in range(8)]
    results = await together(*calls)
    short = [result for number, result in enumerate(results) if number % 2]
    assert {elapsed for elapsed, _ in short} == {10}
    assert all(isinstance(error.__cause__, RateLimitError) for _, error in short)
    assert all(isinstance(r, list) for n, (_, r) in enumerate(results) if not n % 2)


# --- what a schedule, an answer and an argument may not do ----------------------------------------


async def test_a_schedule_that_cannot_learn_loses_no_result(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What its `observe` raises is logged and dropped: the generation is paid for."""

    class Broken:
        def __call__(self, state: RetryCallState) -> float:
            return 5.0

        def observe(self, generation: Generation, *, after: float, by: float) -> None:
            raise ZeroDivisionError("learned nothing")

    client = FakeClient("queued", "completed")
    assert await Poller(client, wait=Broken()).wait(ID)
    assert "learned nothing" in caplog.text


async def test_a_schedule_of_an_impossible_number_is_a_clear_error() -> None:
    """An integer that no float can hold."""
    with pytest.raises(ConfigurationError, match="schedule"):
        await Poller(FakeClient("queued"), wait=lambda _: 10**400).wait(ID)


class Unprintable:
    """An object that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("bad", [10**5000, -(10**5000), Unprintable()], ids=["big", "low", "mute"])
async def test_what_cannot_be_shown_is_refused_all_the_same(bad: Any) -> None:
    """As an id, in a batch, as any argument: our error, and the others of the batch go on."""
    poller = Poller(FakeClient("completed"))
    with pytest.raises(ConfigurationError):
        await poller.wait(bad)
    results = await poller.wait_all([ID, bad, OTHER_ID])
    assert [type(result.error) for result in results] == [
        type(None),
        ConfigurationError,
        type(None),
    ]
    with pytest.raises(ConfigurationError, match="timeout"):
        await poller.wait(ID, timeout=bad)
    with pytest.raises(ConfigurationError, match="wait must"):
        Poller(FakeClient(), wait=bad)


async def test_an_answer_about_another_generation_is_polled_through() -> None:
    """It is never taken for the result; at the deadline the id is still the way to go on."""
    client = FakeClient(snapshot(id=OTHER_ID), "completed")
    assert await Poller(client, wait=wait_fixed(5)).wait(ID)
    assert client.times == [0, 5]
    _, error = await timed(Poller(FakeClient(snapshot(id=OTHER_ID))).wait(ID, timeout=30))
    assert isinstance(error, PollTimeoutError)
    assert isinstance(error.__cause__, InvalidResponseError)


@pytest.mark.parametrize("output", ["nope", {"url": URL}, [{"type": "image"}]])
async def test_outputs_that_cannot_be_read_are_polled_through(output: Any) -> None:
    """The file exists and is paid for, so nobody is told to submit again."""

    class Theirs:
        id, state = ID, "completed"

        def __init__(self, output: Any) -> None:
            self.output = output

    client = FakeClient(Theirs(output), "completed")
    assert await Poller(client, wait=wait_fixed(5)).wait(ID)
    poller = Poller(FakeClient(Theirs(output)))
    for subject in (ID, Theirs(output)):
        _, error = await timed(poller.wait(subject, timeout=60))
        assert isinstance(error, PollTimeoutError)
        assert "wait again with the same id" in str(error)


async def test_outputs_of_which_some_cannot_be_read_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The rest is delivered, and the snapshot keeps all of it."""
    client = FakeClient(snapshot(output=[{"url": URL}, {"type": "exr"}]))
    assert [output.url for output in await Poller(client).wait(ID)] == [URL]
    assert f"generation {ID}: 1 of its outputs cannot be read" in caplog.text


async def test_unknown_states_do_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    """An API that makes up states is logged a hundred times, not for ever."""
    client = FakeClient(*[f"state-{number}" for number in range(300)], "completed")
    assert await Poller(client, wait=wait_fixed(1)).wait(ID)
    assert sum("does not know" in record.getMessage() for record in caplog.records) == 100


async def test_a_kept_error_keeps_no_frames_alive() -> None:
    """Neither it nor its cause: an outage must not hold the memory of the requests."""
    events: list[PollEvent] = []
    client = FakeClient(ConnectionResetError("reset"), "completed")
    await Poller(client, on_poll=events.append).wait(ID)
    assert events[0].error is not None
    assert events[0].error.__traceback__ is None
    assert events[0].error.__cause__ is not None
    assert events[0].error.__cause__.__traceback__ is None


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
