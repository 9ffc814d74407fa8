"""Waits for one id that come and go beside one that stays."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any

import anyio
import pytest
from tenacity import wait_fixed

from luma_poll import (
    APIStatusError,
    Generation,
    LumaError,
    NotFoundError,
    Poller,
    PollEvent,
    PollTimeoutError,
    RateLimitError,
    ServerError,
)
from luma_poll._polling.streams import MOST_CUTS, Streams
from tests.fakes import ID, FakeClient, snapshot

pytestmark = pytest.mark.anyio


def streams_of(poller: Poller) -> Streams:
    return poller._streams


async def leave_after(seconds: float, wait: Callable[[], Awaitable[object]]) -> None:
    """Take part in a wait, and leave before its end."""
    with anyio.move_on_after(seconds):
        await wait()


@pytest.mark.parametrize(
    ("every", "stays", "latency"),
    [(0.5, 0.9, 1.0), (0.05, 0.15, 0.2), (0.02, 0.15, 0.2), (0.1, 0.25, 0.3), (0.01, 0.5, 3.0)],
)
async def test_the_one_that_stays_is_served(every: float, stays: float, latency: float) -> None:
    """However many take part in its requests and leave in the middle of them."""
    client = FakeClient(at=lambda now: "completed" if now > began + 8 else "processing")
    client.latency = latency
    began = anyio.current_time()
    poller = Poller(client, timeout=60)

    async def crowd() -> None:
        while True:
            await anyio.sleep(every)
            tasks.start_soon(leave_after, stays, partial(poller.wait, ID))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(crowd)
        assert await poller.wait(ID)
        tasks.cancel_scope.cancel()
    # Alone it needs three, at 0, 5 and 10 s; each may cost two that are cut short.
    assert len(client.calls) <= 3 * (1 + MOST_CUTS)
    assert anyio.current_time() - began < 12 + 3 * (1 + MOST_CUTS) * latency


@pytest.mark.parametrize("leavers", range(1, 9))
@pytest.mark.parametrize("timeout", [50, 60, 70])
async def test_two_that_leave_cost_two_requests_and_more_do_not(
    leavers: int, timeout: float
) -> None:
    """All came at the same time, and those that ask always leave in the middle."""
    client = FakeClient("completed", latency=1)
    poller = Poller(client, timeout=timeout)
    began = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for number in range(leavers):
            tasks.start_soon(leave_after, 0.9 * (number + 1), partial(poller.wait, ID, timeout=60))
        assert await poller.wait(ID)
        elapsed = anyio.current_time() - began
    assert elapsed <= 0.9 * MOST_CUTS + 1 + 0.1
    assert client.most_under_way <= 4
    assert repr(poller).endswith("in_flight=0, generations=0)")
    assert not len(streams_of(poller)._loop.kept.ends), "nothing is left of ended waits"


@pytest.mark.parametrize(
    ("leavers", "rounds", "at_once"), [(1, 1, 1), (2, 2, 1), (5, 2, 4), (6, 3, 4), (30, 5, 16)]
)
async def test_however_many_leave_together_the_next_ones_are_twice_as_many(
    leavers: int, rounds: int, at_once: int
) -> None:
    """Each leaves in the middle of its own request: nobody could choose worse."""
    leaves: ContextVar[anyio.CancelScope | None] = ContextVar("leaves", default=None)

    class Worst(FakeClient):
        async def get(self, generation_id: str) -> Any:
            if (scope := leaves.get()) is not None:
                scope.deadline = anyio.current_time() + 0.9
            return await super().get(generation_id)

    client = Worst("completed", latency=1)
    poller = Poller(client, max_rate=None)
    began = anyio.current_time()

    async def leave() -> None:
        with anyio.CancelScope() as scope:
            leaves.set(scope)
            await poller.wait(ID)

    async with anyio.create_task_group() as tasks:
        for _ in range(leavers):
            tasks.start_soon(leave)
        await anyio.sleep(0.01)
        assert await poller.wait(ID)
        assert anyio.current_time() - began == pytest.approx(0.9 * rounds + 1)
        assert client.most_under_way == at_once


async def test_the_first_answer_of_several_requests_is_that_of_all_waits() -> None:
    """Those that asked by themselves are called back: what they ask is known."""
    client = FakeClient((1, "completed"), (50, "completed"), latency=1)
    poller = Poller(client, timeout=60)
    began = anyio.current_time()
    ended: list[float] = []

    async def stay() -> None:
        assert await poller.wait(ID)
        ended.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for seconds in (0.5, 0.9):
            tasks.start_soon(leave_after, seconds, partial(poller.wait, ID, timeout=90))
            await anyio.sleep(0.01)  # the first one asks first
        for _ in range(3):
            tasks.start_soon(stay)
    assert client.most_under_way == 3
    assert ended == pytest.approx([2.91] * 3)


async def poll_beside_leavers(client: FakeClient, *leaves_at: float, newcomer: float) -> None:
    """Three wait; others come half a second before they leave, in the middle of their requests."""
    poller = Poller(client, timeout=60, wait=wait_fixed(10))

    async def leave(at: float) -> None:
        await anyio.sleep(max(0, at - 0.5))
        with anyio.move_on_after(0.5):
            await poller.wait(ID, timeout=90)

    async def come_later() -> None:
        await anyio.sleep(newcomer)
        await poller.wait(ID)

    async with anyio.create_task_group() as tasks:
        for at in leaves_at:
            tasks.start_soon(leave, at)
        await anyio.sleep(0.01)
        for _ in range(3):
            tasks.start_soon(poller.wait, ID)
        tasks.start_soon(come_later)


async def test_an_answer_begins_the_count_of_cut_requests_again() -> None:
    """Two that are cut short with an answer between them make nobody ask by itself."""
    client = FakeClient("processing", "processing", "completed", latency=1)
    await poll_beside_leavers(client, 11.4, 22.8, newcomer=5)
    assert client.most_under_way == 1
    assert len(client.calls) == 5


async def test_a_request_that_is_called_back_counts_as_no_cut() -> None:
    """Its wait has an answer: the next cut is the first one again."""
    client = FakeClient("processing", "completed", latency=1)
    poller = Poller(client, timeout=60, wait=wait_fixed(10))

    async with anyio.create_task_group() as tasks:
        for seconds in (0.5, 0.9):
            tasks.start_soon(leave_after, seconds, partial(poller.wait, ID, timeout=90))
            await anyio.sleep(0.01)
        for _ in range(3):
            tasks.start_soon(poller.wait, ID)
        await anyio.sleep(10.5)
        assert len(client.calls) == 2 + 3
        client._answers = iter(["completed"])
        tasks.start_soon(leave_after, 1.9, partial(poller.wait, ID, timeout=90))  # asks at 11.9
    assert client.times[5:] == pytest.approx([11.91, 12.42], abs=0.02)


async def test_who_was_called_back_once_is_missed_all_the_same_when_it_leaves() -> None:
    """Its request is cut short like any other: then the one that came first asks."""
    poller = Poller(FakeClient("completed", latency=1), max_rate=1)
    began = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, "other")
        await anyio.sleep(0.01)
        # It queues, and is called back by the next one.
        tasks.start_soon(leave_after, 1.5, partial(poller.wait, ID, timeout=90))
        await anyio.sleep(0.01)
        tasks.start_soon(leave_after, 0.5, partial(poller.wait, ID, timeout=100))
        await anyio.sleep(0.01)
        tasks.start_soon(leave_after, 9, partial(poller.wait, ID, timeout=60))
        await anyio.sleep(0.01)
        tasks.start_soon(leave_after, 2.5, partial(poller.wait, ID, timeout=80))
        await anyio.sleep(0.01)
        assert await poller.wait(ID, timeout=70)
        assert anyio.current_time() - began == pytest.approx(3)


async def test_an_ended_stream_serves_no_wait_that_comes_later() -> None:
    """Somebody still holds a snapshot of it: what has ended long ago has no URLs that work."""
    client = FakeClient("processing", "completed")
    poller = Poller(client, wait=wait_fixed(10))

    async def hold() -> None:
        async with aclosing(poller.watch(ID)) as snapshots:
            async for _ in snapshots:
                await anyio.sleep(300)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await anyio.sleep(0.01)
        assert await poller.wait(ID)
        await anyio.sleep(60)
        assert await poller.wait(ID)
        assert client.times == [0, 10, 70]
        tasks.cancel_scope.cancel()


async def test_who_stays_longest_takes_over_after_an_answer_that_is_no_news() -> None:
    """It came during the request, and sleeps; the one that asked before does not ask again."""
    client = FakeClient(at=lambda now: "processing", latency=2)
    poller = Poller(client, wait=wait_fixed(10))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(poller.wait, ID, timeout=200))
        await anyio.sleep(13)
        tasks.start_soon(partial(poller.wait, ID, timeout=300))
        await anyio.sleep(27)
        assert client.times == [0, 12, 24, 36]
        tasks.cancel_scope.cancel()


async def test_each_wait_raises_an_error_of_its_own_with_the_cause() -> None:
    """What the client raised is not lost where several waits end with it."""
    missing = NotFoundError("HTTP 404", status_code=404)
    missing.__cause__ = ValueError("the client's own")
    poller = Poller(FakeClient(missing, latency=1))
    errors: list[NotFoundError] = []

    async def wait() -> None:
        with pytest.raises(NotFoundError) as caught:
            await poller.wait(ID)
        errors.append(caught.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(wait)
    assert errors[0] is not errors[1]
    assert [str(error.__cause__) for error in errors] == ["the client's own"] * 2


async def test_a_newcomer_does_not_count_what_was_cut_short_before_it_came() -> None:
    """It relies on the one that asks, as ever."""
    client = FakeClient("completed", latency=1)
    poller = Poller(client, timeout=60)

    async with anyio.create_task_group() as tasks:
        for seconds in (0.5, 0.9):
            tasks.start_soon(leave_after, seconds, partial(poller.wait, ID, timeout=90))
            await anyio.sleep(0.01)
        tasks.start_soon(poller.wait, ID)
        await anyio.sleep(1)
        tasks.start_soon(poller.wait, ID)
    assert client.most_under_way == 1
    assert len(client.calls) == 3


async def test_after_a_deadline_the_latest_one_asks() -> None:
    """A deadline is no departure: the one that stays longest asks, not the one that came first."""
    client = FakeClient("completed", latency=20)
    poller = Poller(client)
    began = anyio.current_time()

    async def give_up(timeout: float) -> None:
        with pytest.raises(PollTimeoutError):
            await poller.wait(ID, timeout=timeout)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_up, 10)
        await anyio.sleep(1)
        tasks.start_soon(give_up, 15)
        await anyio.sleep(1)
        assert await poller.wait(ID, timeout=300)
    assert anyio.current_time() - began == pytest.approx(30)


async def test_no_request_outlives_its_waits() -> None:
    """When the last one has gone, nothing is under way."""
    client = FakeClient("completed", latency=100)
    poller = Poller(client)
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(poller.wait, ID)
            await anyio.sleep(number)
        tasks.cancel_scope.cancel()
    assert client.under_way == {ID: 0}


async def test_ended_waits_leave_nothing() -> None:
    """Thousands end beside one that stays."""
    client = FakeClient(at=lambda now: "processing")
    poller = Poller(client, max_rate=None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, "other")
        for number in range(500):
            with pytest.raises(PollTimeoutError):
                await poller.wait(f"{number % 7}", timeout=0.5)
        assert len(streams_of(poller)._loop.kept.ends) == 1
        assert len(streams_of(poller)) == 1
        tasks.cancel_scope.cancel()


# --- a 429 elsewhere -----------------------------------------------------------------------------


def slow_beside_busy(id: str) -> Any:
    busy = RateLimitError("HTTP 429", status_code=429, retry_after=60)
    return (1, busy) if id == "other" else (5, snapshot("completed", id=id))


class ById(FakeClient):
    """Answers by the id."""

    def __init__(self, answer: Callable[[str], Any]) -> None:
        super().__init__("completed")
        self.answer = answer

    async def get(self, generation_id: str) -> Any:
        self.calls.append((anyio.current_time(), generation_id))
        seconds, answer = self.answer(generation_id)
        await anyio.sleep(seconds)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.mark.parametrize("others", [(), (300,), (300, 15), (15,)])
async def test_an_answer_on_its_way_counts_for_all_that_share_it(others: tuple[float, ...]) -> None:
    """A 429 of another generation asks for more quiet than they have, but nothing more is asked."""
    poller = Poller(ById(slow_beside_busy), max_rate=None)
    ended: list[float] = []
    began = anyio.current_time()

    async def wait(timeout: float) -> None:
        assert await poller.wait("slow", timeout=timeout)
        ended.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for timeout in (*others, 20):
            tasks.start_soon(wait, timeout)
        tasks.start_soon(poller.wait, "other")
        await anyio.sleep(2)
        tasks.start_soon(wait, 10)  # comes during the quiet, and shares the answer too
        await anyio.sleep(4)
        tasks.cancel_scope.cancel()
    assert ended == pytest.approx([5.0] * (len(others) + 2))


async def test_the_spared_waits_end_when_the_answer_is_no_news() -> None:
    """It says what was known before; the quiet came meanwhile."""
    asked = count(1)

    def answer(id: str) -> Any:
        if id == "other":
            return 1, RateLimitError("HTTP 429", status_code=429, retry_after=60)
        return 0 if next(asked) == 1 else 5, snapshot("processing", id=id)

    poller = Poller(ById(answer), max_rate=None, wait=wait_fixed(10))
    began = anyio.current_time()
    ended: list[float] = []

    async def wait(timeout: float) -> None:
        with pytest.raises(PollTimeoutError, match="quiet"):
            await poller.wait("slow", timeout=timeout)
        ended.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(poller.wait, "slow", timeout=200))
        for timeout in (20, 30):
            tasks.start_soon(wait, timeout)
        await anyio.sleep(11)  # the second request is under way, from 10 to 15
        tasks.start_soon(poller.wait, "other")
        await anyio.sleep(8)
        tasks.cancel_scope.cancel()
    assert ended == pytest.approx([15.0] * 2)


async def test_all_that_watch_see_each_state_at_once() -> None:
    """Not only the one that asks."""
    client = FakeClient("queued", "processing", "completed")
    poller = Poller(client, wait=wait_fixed(10))
    began = anyio.current_time()
    seen: list[tuple[str, float]] = []

    async def look(timeout: float) -> None:
        async for generation in poller.watch(ID, timeout=timeout):
            seen.append((generation.state, anyio.current_time() - began))

    async with anyio.create_task_group() as tasks:
        for timeout in (100, 200, 300):
            tasks.start_soon(look, timeout)
    times = [("queued", 0.0)] * 3 + [("processing", 10.0)] * 3 + [("completed", 20.0)] * 3
    assert seen == times


async def test_the_spared_waits_end_when_the_request_is_cut_short() -> None:
    """There is no answer on its way any more: all that the quiet outlasts are told at once."""
    poller = Poller(ById(slow_beside_busy), max_rate=None)
    began = anyio.current_time()
    ended: list[float] = []

    async def leave() -> None:
        with anyio.move_on_after(3):
            await poller.wait("slow", timeout=300)

    async def wait(timeout: float) -> None:
        with pytest.raises(PollTimeoutError, match="quiet"):
            await poller.wait("slow", timeout=timeout)
        ended.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for each in (leave, partial(poller.wait, "slow", timeout=200)):
            tasks.start_soon(each)
            await anyio.sleep(0.01)
        for timeout in (15, 20, 25):
            tasks.start_soon(wait, timeout)
        tasks.start_soon(poller.wait, "other")
        await anyio.sleep(6)
        tasks.cancel_scope.cancel()
    assert ended == pytest.approx([3.0] * 3)


async def test_the_spared_waits_end_when_the_answer_is_no_end() -> None:
    """They are told so at once, rather than at their deadlines."""

    def answer(id: str) -> Any:
        seconds, what = slow_beside_busy(id)
        return seconds, what if id == "other" else snapshot("processing", id=id)

    poller = Poller(ById(answer), max_rate=None)
    began = anyio.current_time()

    async def wait() -> None:
        with pytest.raises(PollTimeoutError, match="quiet"):
            await poller.wait("slow", timeout=20)
        assert anyio.current_time() - began == pytest.approx(5)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(
                poller.wait,
                "slow",
            )
        tasks.start_soon(wait)
        tasks.start_soon(poller.wait, "other")
        await anyio.sleep(6)
        tasks.cancel_scope.cancel()


# --- somebody else's words -----------------------------------------------------------------------


def foreign(status: int = 404) -> APIStatusError:
    return APIStatusError("HTTP, a page of nginx", status_code=status, in_api_words=False)


@pytest.mark.parametrize("status", [302, 400, 401, 402, 403, 404, 421, 499])
@pytest.mark.parametrize("times", [1, 2])
async def test_a_gateway_that_refuses_for_a_moment_ends_no_wait(status: int, times: int) -> None:
    """A page of a proxy says nothing of the generation."""
    client = FakeClient("processing", *[foreign(status)] * times, "completed")
    assert await Poller(client, wait=wait_fixed(20)).wait(ID)


@pytest.mark.parametrize(("interval", "polls"), [(20, 3), (5, 3), (2, 6), (0.5, 21)])
async def test_a_gateway_that_keeps_refusing_is_believed(interval: float, polls: int) -> None:
    """Three polls in a row, over ten seconds at least."""
    client = FakeClient("processing", foreign())
    with pytest.raises(APIStatusError, match="nginx"):
        await Poller(client, wait=wait_fixed(interval)).wait(ID)
    assert len(client.calls) == 1 + polls


async def test_another_answer_in_between_begins_the_count_again() -> None:
    """A fault, a snapshot, or the API's own words: it is not a row."""
    row = [foreign(), foreign()]
    for in_api_words in (True, False):
        broken = ServerError("HTTP 502", status_code=502, in_api_words=in_api_words)
        client = FakeClient(*row, broken, *row, "queued", *row, broken, *row, "completed")
        assert await Poller(client, wait=wait_fixed(20)).wait(ID)
    missing = NotFoundError("HTTP 404", status_code=404)
    client = FakeClient("processing", *row, missing, *row, "completed")
    assert await Poller(client, wait=wait_fixed(20)).wait(ID)


async def test_a_404_after_a_200_has_to_be_repeated() -> None:
    """The id existed a moment ago; the API's word is believed the second time."""
    missing = NotFoundError("HTTP 404", status_code=404)
    client = FakeClient("processing", missing, "processing", missing, missing)
    with pytest.raises(NotFoundError):
        await Poller(client, wait=wait_fixed(20)).wait(ID)
    assert len(client.calls) == 5
    never_seen = FakeClient(missing)
    with pytest.raises(NotFoundError):
        await Poller(never_seen).wait(ID)
    assert len(never_seen.calls) == 1


async def test_a_timeout_says_that_the_last_request_had_no_answer() -> None:
    """So that nobody takes it for a slow generation."""
    client = FakeClient("processing", (1e6, "completed"))
    with pytest.raises(PollTimeoutError, match=r"the last request, sent 15\.0 s before, had no"):
        await Poller(client, wait=wait_fixed(5)).wait(ID, timeout=20)


# --- a snapshot as JSON --------------------------------------------------------------------------


async def test_a_snapshot_may_be_a_mapping() -> None:
    """A line of `--json`; its result is named by its id, never by its text."""
    client = FakeClient("completed")
    poller = Poller(client)
    line = snapshot("queued").model_dump()
    assert await poller.wait(line)
    done = snapshot("completed").model_dump()
    broken = {"id": ID, "state": "completed", "output": [{"url": 7}]}
    results = await poller.wait_all([line, done, broken, {"id": None, "state": "x"}])
    assert [result.generation_id for result in results] == [ID, ID, ID, "None"]
    assert [result.ok for result in results] == [True, True, True, False]
    with pytest.raises(LumaError, match="iterable of ids"):
        await poller.wait_all(line)


# --- places in the queue -------------------------------------------------------------------------


async def test_requests_that_are_cut_short_do_not_go_before_those_of_others() -> None:
    """Each had its turn: waits that leave one after the other starve no other generation."""
    poller = Poller(FakeClient("completed", latency=0.5), max_rate=1)
    began = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for number in range(9):
            tasks.start_soon(leave_after, number + 0.2, partial(poller.wait, "left"))
            await anyio.sleep(0.01)  # the first one asks
        await poller.wait("other")  # is due before the second request began
        assert anyio.current_time() - began == pytest.approx(2.5)
        tasks.cancel_scope.cancel()


async def test_a_snapshot_that_is_handed_in_takes_a_queued_poll_back() -> None:
    """The first poll waits for its turn; then somebody knows more, and it is not due any more."""
    client = FakeClient(at=lambda now: "processing")
    poller = Poller(client, wait=wait_fixed(20), max_rate=0.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, "first")
        await anyio.sleep(0.1)
        tasks.start_soon(poller.wait, ID)
        await anyio.sleep(0.1)
        tasks.start_soon(partial(poller.wait, snapshot("queued"), timeout=60))
        await anyio.sleep(10)
        assert [called for _, called in client.calls] == ["first"]
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("latency", [0, 100])
async def test_an_end_that_is_handed_in_ends_all_waits(latency: float) -> None:
    """Those that sleep, and the one whose request is under way."""
    poller = Poller(FakeClient("processing", latency=latency), wait=wait_fixed(50))
    began = anyio.current_time()
    ended: list[float] = []

    async def wait() -> None:
        assert await poller.wait(ID)
        ended.append(anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.sleep(1)
        assert await poller.wait(snapshot("completed"), timeout=60)
    assert ended == pytest.approx([1.0] * 3)


async def test_old_snapshots_that_are_handed_in_put_no_poll_off() -> None:
    """More is known already: however many come with what they were told at the submission."""
    client = FakeClient(at=lambda now: "processing")
    poller = Poller(client, wait=wait_fixed(20))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, ID)
        for _ in range(20):
            await anyio.sleep(5)
            tasks.start_soon(partial(poller.wait, snapshot("queued"), timeout=200))
        await anyio.sleep(1)
        assert client.times == [0, 20, 40, 60, 80, 100]
        tasks.cancel_scope.cancel()


async def test_a_leaver_that_does_not_ask_costs_its_stream_no_place() -> None:
    """All are equally overdue: the one that came first goes first, whoever leaves beside it."""
    client = FakeClient("completed")
    poller = Poller(client, max_rate=1)

    async def leave() -> None:
        with anyio.move_on_after(0.5):
            await poller.wait("shared", timeout=60)

    async with anyio.create_task_group() as tasks:
        for wait in (partial(poller.wait, "first"), partial(poller.wait, "shared"), leave):
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
        for number in range(5):
            tasks.start_soon(poller.wait, f"{number}")
    assert [generation_id for _, generation_id in client.calls][:2] == ["first", "shared"]


async def test_an_answer_that_was_an_error_keeps_no_frames_alive() -> None:
    """It stays with its wait as the cause of a timeout: without a traceback, also of its cause."""
    events: list[PollEvent] = []
    poller = Poller(
        FakeClient(ConnectionResetError("reset"), ServerError("HTTP 503", status_code=503)),
        on_poll=events.append,
        wait=wait_fixed(5),
    )
    with pytest.raises(PollTimeoutError) as caught:
        await poller.wait(ID, timeout=10)
    errors = [event.error for event in events]
    assert len(errors) > 1
    for error in [*errors, caught.value.__cause__]:
        while error is not None:
            assert error.__traceback__ is None
            error = error.__cause__


async def test_a_last_poll_that_nobody_needs_is_taken_back() -> None:
    """It queues for the sake of a wait that then leaves."""
    client = FakeClient(at=lambda now: "processing")
    poller = Poller(client, wait=wait_fixed(100), max_in_flight=1)

    async def leave() -> None:
        with anyio.move_on_after(9.5):
            await poller.wait(ID, timeout=10)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, ID)
        tasks.start_soon(leave)
        await anyio.sleep(8.5)
        client.latency = 2
        tasks.start_soon(poller.wait, "other")  # takes the only slot until 10.5
        await anyio.sleep(10)
        assert [called for _, called in client.calls] == [ID, "other"]
        tasks.cancel_scope.cancel()


async def test_the_foretold_delay_is_none_where_a_quiet_outlasts_all_deadlines() -> None:
    """There will be no next poll."""
    events: list[PollEvent] = []
    busy = RateLimitError("HTTP 429", status_code=429, retry_after=60)
    poller = Poller(FakeClient(busy), on_poll=events.append, wait=wait_fixed(2))
    with pytest.raises(PollTimeoutError):
        await poller.wait(ID, timeout=30)
    assert [event.next_delay for event in events] == [None]


async def test_the_age_of_a_generation_never_falls() -> None:
    """An answer that makes it younger is not believed, nor one that is absurd."""
    ages: list[float] = []

    def schedule(state: Any) -> float:
        ages.append(round(state.seconds_since_start))
        return 10.0

    def aged(created: str, answered: str) -> Generation:
        generation = snapshot("processing", created_at=created)
        vars(generation)["_date"] = f"Wed, 08 Apr 2026 {answered} GMT"
        return generation

    day = "2026-04-08T"
    client = FakeClient(
        aged(f"{day}12:00:00Z", "12:00:50"),
        aged(f"{day}12:00:55Z", "12:01:00"),
        aged("2020-04-08T12:00:00Z", "12:01:10"),
        aged(f"{day}10:59:30Z", "12:00:00"),
        "completed",
    )
    assert await Poller(client, wait=schedule).wait(ID)
    assert ages == [50, 60, 70, 3630]
