"""Faults and `Retry-After` during a wait, in virtual time, on asyncio and trio."""

from typing import Any

import anyio
import pytest
from tenacity import wait_fixed

from luma_poll import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    BadRequestError,
    InsufficientBalanceError,
    InvalidResponseError,
    NotFoundError,
    PermissionDeniedError,
    Poller,
    PollEvent,
    PollTimeoutError,
    RateLimitError,
    ServerError,
    UnprocessableEntityError,
)
from luma_poll._api.answers import note_answer
from tests.fakes import ID, FakeClient, snapshot, timed
from tests.polling.support import BUSY, OTHER_ID, throttled, together

pytestmark = pytest.mark.anyio

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
