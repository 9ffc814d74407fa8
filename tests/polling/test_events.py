"""The seam for telemetry: the events of waits and polls, in order, with their times."""

from contextlib import aclosing
from typing import Any

import anyio
import pytest
from tenacity import wait_fixed

from luma_poll import (
    AuthenticationError,
    ConfigurationError,
    OutputNotFoundError,
    Poller,
    PollTimeoutError,
    RateLimitError,
)
from luma_poll.events import (
    Event,
    PollBegan,
    PollEnded,
    WaitBegan,
    WaitEnded,
    WaitStateChanged,
)
from tests.fakes import ID, FakeClient, snapshot

pytestmark = pytest.mark.anyio

BUSY = RateLimitError("HTTP 429", status_code=429, retry_after=30)
REFUSED = AuthenticationError("HTTP 401", status_code=401)


class Seen(list[Any]):
    """An observer that keeps its events."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


def observed(client: FakeClient, **options: Any) -> tuple[Poller, Seen]:
    poller = Poller(client, wait=wait_fixed(10), **options)
    seen = Seen()
    poller.observe(seen)
    return poller, seen


async def test_the_events_of_a_wait() -> None:
    """Begin, polls and states, end: in this order, all with the same wait."""
    poller, seen = observed(FakeClient("queued", "processing", "completed", latency=0.5))
    await poller.wait(ID, timeout=60)
    assert [type(event) for event in seen] == [
        WaitBegan,
        *(PollBegan, PollEnded, WaitStateChanged),
        *(PollBegan, PollEnded, WaitStateChanged),
        *(PollBegan, PollEnded),
        WaitEnded,
    ]
    assert {event.wait for event in seen} == {seen[0].wait}
    assert (seen[0].wait.generation_id, seen[0].wait.timeout) == (ID, 60)
    assert [event.attempt for event in seen.of(PollBegan)] == [1, 2, 3]
    assert [event.duration for event in seen.of(PollEnded)] == [0.5, 0.5, 0.5]
    assert [event.is_end for event in seen.of(PollEnded)] == [False, False, True]
    assert [event.generation.state for event in seen.of(WaitStateChanged)] == [
        "queued",
        "processing",
    ]
    end = seen[-1]
    assert (end.outcome, end.duration, end.polls, end.error) == ("completed", 21.5, 3, None)
    assert end.generation.state == "completed"


async def test_when_the_end_was_noticed() -> None:
    """The end came after the last request that was answered "still running": 10.5 s before."""
    poller, seen = observed(FakeClient("processing", "completed", latency=0.5))
    await poller.wait(ID)
    first, last = seen.of(PollEnded)
    assert (first.age, first.unfinished) == (0.5, 0.5)
    assert (last.age, last.unfinished) == (11.0, 11.0)


@pytest.mark.parametrize(
    ("answer", "outcome", "error"),
    [
        ("completed", "completed", None),
        ("failed", "failed", None),
        ("processing", "timeout", PollTimeoutError),
        (snapshot("completed", output=[]), "failed", OutputNotFoundError),
        (REFUSED, "error", AuthenticationError),
        (ZeroDivisionError("a bug of the client's"), "error", ZeroDivisionError),
    ],
)
async def test_every_outcome(answer: Any, outcome: str, error: type[Exception] | None) -> None:
    """A wait has one end, and it says how."""
    poller, seen = observed(FakeClient(answer))
    (result,) = await poller.wait_all([ID], timeout=60)
    (end,) = seen.of(WaitEnded)
    assert end.outcome == outcome
    assert type(end.error) is (error or type(None))
    assert result.ok is (outcome == "completed")


async def test_a_wait_of_which_the_caller_is_cancelled() -> None:
    """The request under way has an end, without an answer, and so has the wait."""
    poller, seen = observed(FakeClient("completed", latency=5))
    with anyio.move_on_after(2):
        await poller.wait(ID)
    poll, end = seen[-2:]
    assert (poll.answer, poll.duration, poll.is_end) == (None, 2, False)
    assert (end.outcome, end.duration, end.polls, end.generation) == ("cancelled", 2, 1, None)


async def test_a_caller_who_leaves() -> None:
    """To break off `watch` is a cancellation too."""
    poller, seen = observed(FakeClient("processing"))
    async with aclosing(poller.watch(ID)) as snapshots:
        await anext(snapshots)
    assert seen[-1].outcome == "cancelled"


async def test_a_snapshot_that_has_ended() -> None:
    """It costs no request, and the events say why."""
    poller, seen = observed(FakeClient("processing"))
    await poller.wait(snapshot())
    begin, end = seen
    assert begin.snapshot.is_terminal
    assert (end.outcome, end.polls, end.duration) == ("completed", 0, 0)


async def test_the_time_in_the_queue() -> None:
    """At one request a second the third wait is two seconds late: `max_rate` is too low."""
    poller, seen = observed(FakeClient("completed"), max_rate=1)
    await poller.wait_all([f"{number}{ID[1:]}" for number in range(3)])
    assert sorted(round(event.queued, 6) for event in seen.of(PollBegan)) == [0, 1, 2]


async def test_the_quiet_that_the_api_asks_for() -> None:
    """Each answer says by how much it prolongs the quiet: no second is counted twice."""
    client = FakeClient((1, BUSY), (10, BUSY), "completed")
    poller, seen = observed(client, max_rate=None)
    await poller.wait_all([ID, f"2{ID[1:]}"])
    quiets = [event.quiet for event in seen.of(PollEnded)]
    assert quiets == [30, 9, 0, 0], "30 s from 1 on, and 30 s from 10 on"


async def test_waits_that_share_a_stream() -> None:
    """The one that asks names the others, and each of them counts the request."""
    poller, seen = observed(FakeClient("processing", "completed"))
    async with anyio.create_task_group() as tasks:
        for timeout in (100, 200, 300):
            tasks.start_soon(lambda seconds: poller.wait(ID, timeout=seconds), timeout)
    assert sorted(event.sharing for event in seen.of(WaitBegan)) == [1, 2, 3]
    *_, last = seen.of(PollEnded)
    assert last.wait.timeout == 300, "the one that stays longest asks"
    assert {other.timeout for other in last.others} == {100, 200}
    assert [end.polls for end in seen.of(WaitEnded)] == [2, 2, 2]


async def test_an_observer_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, the other observers hear of the event, and the wait continues."""

    def broken(event: Event) -> None:
        raise RuntimeError("of the observer")

    poller, seen = observed(FakeClient("processing", "completed"))
    poller.observe(broken)
    assert await poller.wait(ID)
    assert seen[-1].outcome == "completed"
    raised = [each for each in caplog.records if each.levelname == "ERROR"]
    assert len(raised) == len(seen)
    assert raised[0].__dict__["error_type"] == "RuntimeError"


async def test_observers_of_a_wait_are_those_of_its_begin() -> None:
    """No wait is observed by halves: late observers hear of later waits, others of its end too."""
    poller, seen = Poller(FakeClient("processing", "completed"), wait=wait_fixed(10)), Seen()
    stop, late = poller.observe(seen), Seen()
    async with aclosing(poller.watch(ID)) as snapshots:
        await anext(snapshots)
        stop()
        poller.observe(late)
        async for _ in snapshots:
            pass
    assert seen[-1].outcome == "completed"
    assert late == []


async def test_a_schedule_that_raises_ends_the_poll_too() -> None:
    """Begin and end of a poll are always a pair."""
    client = FakeClient("processing")
    poller = Poller(client, wait=lambda state: "soon")  # type: ignore[arg-type]
    seen = Seen()
    poller.observe(seen)
    (result,) = await poller.wait_all([ID])
    assert not result.ok
    kinds = [WaitBegan, PollBegan, PollEnded, WaitEnded]
    assert [type(event) for event in seen] == kinds


async def test_an_observer_that_is_added_twice_is_ended_once() -> None:
    """Each `observe` has its own end, which is harmless when called again."""
    poller, seen = Poller(FakeClient("completed")), Seen()
    stop, _ = poller.observe(seen), poller.observe(seen)
    stop()
    stop()
    await poller.wait(ID)
    assert [type(event) for event in seen] == [WaitBegan, PollBegan, PollEnded, WaitEnded]


async def _coroutine(event: Event) -> None: ...


@pytest.mark.parametrize("observer", [None, 3, _coroutine])
async def test_an_observer_that_is_no_function(observer: Any) -> None:
    """It is refused at once, rather than never awaited."""
    with pytest.raises(ConfigurationError, match="an observer must be a function"):
        Poller(FakeClient()).observe(observer)
