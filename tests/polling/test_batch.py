"""Many waits at once, in virtual time, on asyncio and trio."""

import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import anyio
import pytest
from tenacity import wait_fixed

from luma_poll import (
    ConfigurationError,
    ContentModeratedError,
    GenerationError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    Poller,
    PollResult,
    PollTimeoutError,
)
from tests.fakes import ID, URL, FakeClient, snapshot

pytestmark = pytest.mark.anyio


class TimedClient(FakeClient):
    """Generation `n` (its id is that number) ends `n` seconds after the first request of all."""

    def __init__(self, *, failing: tuple[int, ...] = (), missing: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.failing, self.missing = failing, missing
        self.waits = 0

    async def get(self, generation_id: str) -> Any:
        now = anyio.current_time()
        self.calls.append((now, generation_id))
        number = int(generation_id)
        if number in self.missing:
            raise NotFoundError("HTTP 404", status_code=404, generation_id=generation_id)
        if now - self.calls[0][0] < number:
            return snapshot("processing", id=generation_id)
        if number in self.failing:
            return snapshot("failed", id=generation_id, failure_code="content_moderated")
        return snapshot(id=generation_id)


def poller_of(client: FakeClient, **options: Any) -> Poller:
    return Poller(client, **{"wait": wait_fixed(1), "max_rate": None, **options})


async def test_results_come_as_they_end() -> None:
    """The first to end is the first result, wherever it stands."""
    client = TimedClient()
    seen = []
    began = anyio.current_time()
    async with poller_of(client).as_completed(["7", "1", "4"]) as results:
        async for result in results:
            seen.append((result.generation_id, round(anyio.current_time() - began)))
            assert result.ok
            assert result.outputs[0].url == URL
    assert seen == [("1", 1), ("4", 4), ("7", 7)]


async def test_wait_all_keeps_the_order_of_the_input() -> None:
    """One result for each, at the place of its id."""
    results = await poller_of(TimedClient()).wait_all(["7", "1", "4"])
    assert [result.generation_id for result in results] == ["7", "1", "4"]
    assert all(result.ok for result in results)


async def test_a_failure_is_the_result_of_its_own_id_alone() -> None:
    """Failed, missing, timed out, no id at all: the others are there."""
    client = TimedClient(failing=(2,), missing=(3,))
    poller = poller_of(client)
    results = await poller.wait_all(["1", "2", "3", "400", " ", "4"], timeout=50)
    assert [type(result.error) for result in results] == [
        type(None),
        ContentModeratedError,
        NotFoundError,
        PollTimeoutError,
        ConfigurationError,
        type(None),
    ]
    assert [result.ok for result in results] == [True, False, False, False, False, True]
    assert [result.generation_id for result in results] == ["1", "2", "3", "400", "", "4"]
    states = [result.generation and result.generation.state for result in results]
    assert states == ["completed", "failed", None, "processing", None, "completed"]
    for result in results:
        if result.error is not None:
            with pytest.raises(type(result.error)):
                _ = result.outputs


async def test_an_error_that_is_not_ours_is_a_result_too() -> None:
    """A client may raise what it likes: it costs one wait, not the batch."""

    class Odd(TimedClient):
        async def get(self, generation_id: str) -> Any:
            if generation_id == "2":
                raise LookupError("odd")
            return await super().get(generation_id)

    results = await poller_of(Odd()).wait_all(["1", "2", "3"])
    assert [repr(result.error) for result in results] == ["None", "LookupError('odd')", "None"]
    assert not isinstance(results[1].error, LumaError)


async def test_snapshots_and_uuids_are_taken_too() -> None:
    """Whatever `wait` takes; what is known costs no request."""
    client = FakeClient("completed")
    known = snapshot("failed", id="1", failure_code="content_moderated")
    results = await poller_of(client).wait_all([known, UUID(ID)])
    assert [result.generation_id for result in results] == ["1", ID]
    assert isinstance(results[0].error, GenerationError)
    assert client.calls == [(client.calls[0][0], ID)]


async def test_duplicates_are_answered_from_one_stream() -> None:
    """A result for each, requests for one."""
    client = TimedClient()
    results = await poller_of(client).wait_all(["3"] * 50)
    assert [result.ok for result in results] == [True] * 50
    assert client.times == [0, 1, 2, 3]


async def test_nothing_to_wait_for() -> None:
    """An empty batch ends at once."""
    poller = poller_of(TimedClient())
    assert await poller.wait_all([]) == []
    async with poller.as_completed(iter(())) as results:
        assert [result async for result in results] == []


async def test_ids_are_taken_as_there_is_room() -> None:
    """An endless supply is no trouble: never more than `limit` waits or results are there."""
    taken = 0

    def for_ever() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield str(taken % 5)

    got = 0
    client = TimedClient()
    async with poller_of(client).as_completed(for_ever(), limit=10) as results:
        async for result in results:
            assert result.ok
            got += 1
            assert taken <= got + 10
            if got == 200:
                break


async def test_a_slow_consumer_holds_the_batch_back() -> None:
    """Results that nobody takes do not pile up."""
    taken: list[str] = []

    def ids() -> Iterator[str]:
        for number in range(100):
            taken.append(str(number))
            yield "0"

    async with poller_of(TimedClient()).as_completed(ids(), limit=7) as results:
        await anyio.sleep(60)
        assert len(taken) == 7
        await anext(results)
        await anyio.sleep(60)
        assert len(taken) == 8


async def test_an_async_iterable_is_taken_as_it_comes() -> None:
    """Waits begin while more ids are still on their way; the generator is closed at the end."""
    closed = False

    async def ids() -> AsyncIterator[str]:
        nonlocal closed
        try:
            for number in (1, 2, 3):
                await anyio.sleep(10)
                yield str(number)
        finally:
            closed = True

    began = anyio.current_time()
    async with poller_of(TimedClient()).as_completed(ids()) as results:
        times = [round(anyio.current_time() - began) async for _ in results]
    assert times == [11, 20, 30]
    assert closed


async def test_an_async_generator_is_closed_when_the_block_is_left() -> None:
    """In the task that ran it, not by the garbage collector."""
    closed = []

    async def ids() -> AsyncIterator[str]:
        try:
            while True:
                yield "0"
        finally:
            closed.append(True)

    async with poller_of(TimedClient()).as_completed(ids(), limit=3) as results:
        await anext(results)
    assert closed == [True]


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_of_the_iterable_comes_after_the_results(is_async: bool) -> None:
    """What was begun is not lost."""

    def ids() -> Iterator[str]:
        yield "5"
        yield "3"
        raise LookupError("no more ids")

    async def ids_async() -> AsyncIterator[str]:
        for generation_id in ids():
            yield generation_id

    seen = []

    async def wait() -> None:
        generations = ids_async() if is_async else ids()
        async with poller_of(TimedClient()).as_completed(generations) as results:
            async for result in results:
                seen.append(result.generation_id)

    with pytest.raises(LookupError, match="no more ids"):
        await wait()
    assert seen == ["3", "5"]


async def test_leaving_the_block_cancels_the_rest() -> None:
    """At once, and nothing is left of them."""
    client = FakeClient("processing", latency=0.5)
    poller = poller_of(client)
    began = anyio.current_time()
    async with poller.as_completed(map(str, range(100)), timeout=None):
        await anyio.sleep(10.2)
    assert round(anyio.current_time() - began, 3) == 10.2
    assert repr(poller).endswith("generations=0)")
    assert sum(client.under_way.values()) == 0
    asked = len(client.calls)
    await anyio.sleep(100)
    assert len(client.calls) == asked


async def test_an_error_in_the_block_is_raised_as_it_is() -> None:
    """Not inside a group: `except` sees what was raised."""
    poller = poller_of(FakeClient("processing"))

    async def fail() -> None:
        async with poller.as_completed([ID]):
            await anyio.sleep(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert repr(poller).endswith("generations=0)")


async def test_the_error_of_a_result_may_be_raised() -> None:
    """The natural way to stop at the first failure."""
    poller = poller_of(TimedClient(failing=(2,)))

    async def stop_at_the_first_failure() -> None:
        async with poller.as_completed(["1", "2", "300"]) as results:
            async for result in results:
                assert result.outputs

    with pytest.raises(ContentModeratedError):
        await stop_at_the_first_failure()
    assert repr(poller).endswith("generations=0)")


async def test_a_batch_is_cancelled_with_what_is_around_it() -> None:
    """By a time limit of the caller, or by the failure of a task beside it."""
    poller = poller_of(FakeClient("processing", latency=0.5))
    with anyio.move_on_after(5) as scope:
        await poller.wait_all(map(str, range(50)))
    assert scope.cancelled_caught

    async def fail_later() -> None:
        await anyio.sleep(3)
        raise ZeroDivisionError

    async def wait_beside_a_failure() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poller.wait_all, map(str, range(50)))
            tasks.start_soon(fail_later)

    with pytest.raises(ExceptionGroup) as caught:
        await wait_beside_a_failure()
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert repr(poller).endswith("generations=0)")


async def test_several_consumers_share_the_results() -> None:
    """Each result goes to one of them."""
    seen: list[str] = []

    async def consume(results: AsyncIterator[PollResult]) -> None:
        async for result in results:
            await anyio.sleep(2)
            seen.append(result.generation_id)

    async with (
        poller_of(TimedClient()).as_completed(map(str, range(20)), limit=5) as results,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(3):
            tasks.start_soon(consume, results)
    assert sorted(map(int, seen)) == list(range(20))


async def test_results_end_with_their_block() -> None:
    """Asking later is a mistake that is told."""
    async with poller_of(TimedClient()).as_completed(["0"]) as results:
        pass
    with pytest.raises(RuntimeError, match="block"):
        await anext(results)


async def test_the_timeout_of_a_wait_counts_from_its_own_beginning() -> None:
    """Those that begin late have as long as the first."""
    client = FakeClient("processing")
    began = anyio.current_time()
    results = await poller_of(client).wait_all(["1", "2", "3"], timeout=10, limit=1)
    assert {type(result.error) for result in results} == {PollTimeoutError}
    assert round(anyio.current_time() - began, 3) == 30


@pytest.mark.no_cover
async def test_first_polls_are_spread() -> None:
    """A thousand ids are no burst: the rate holds from the first request on."""
    client = FakeClient("completed")
    results = await Poller(client, max_rate=50).wait_all(map(str, range(1000)))
    assert all(result.ok for result in results)
    gaps = [b - a for a, b in zip(client.times, client.times[1:], strict=False)]
    assert min(gaps) >= 0.0199
    assert client.times[-1] == pytest.approx(999 / 50, abs=0.01)


@pytest.mark.no_cover
async def test_no_wait_starves_when_the_rate_binds() -> None:
    """Everybody is polled about as often as everybody else."""
    client = FakeClient("processing")
    poller = poller_of(client, max_rate=10)
    await poller.wait_all(map(str, range(100)), timeout=200)
    counts = [sum(asked == str(n) for _, asked in client.calls) for n in range(100)]
    assert sum(counts) == pytest.approx(2000, abs=20)
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize("ids", [ID, b"abc", None, 5, UUID(ID), snapshot()])
async def test_one_id_is_no_batch(ids: Any) -> None:
    """Not even a string, although one can iterate over its characters."""
    poller = poller_of(FakeClient("completed"))
    with pytest.raises(ConfigurationError, match="iterable of ids"):
        poller.as_completed(ids)
    with pytest.raises(ConfigurationError, match="iterable of ids"):
        await poller.wait_all(ids)


@pytest.mark.parametrize(
    "arguments", [{"limit": 0}, {"limit": 2.5}, {"limit": True}, {"timeout": 0}, {"timeout": "1"}]
)
async def test_a_bad_argument_is_refused_before_any_request(arguments: dict[str, Any]) -> None:
    """The message names it."""
    client = FakeClient("completed")
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        poller_of(client).as_completed([ID], **arguments)
    assert client.calls == []


async def test_a_result_pickles_and_hides_signatures() -> None:
    """It may go to another process, and into a log."""
    (result,) = await poller_of(FakeClient("completed")).wait_all([ID])
    assert pickle.loads(pickle.dumps(result)) == result
    assert "5ec4e7" not in repr(result)
    assert ID in repr(result)


@pytest.mark.no_cover
async def test_a_million_ids_are_not_a_million_tasks() -> None:
    """Scaled down to what a test may take: 5,000 ids, 100 waits at most."""
    client = FakeClient("completed", latency=0.01)
    done = 0
    poller = poller_of(client, max_in_flight=None)
    async with poller.as_completed(map(str, range(5_000)), limit=100) as results:
        async for _ in results:
            done += 1
    assert done == 5_000
    assert client.most_under_way == 100


async def test_a_result_has_the_id_that_was_given() -> None:
    """However the API spells it: who asked must be able to tell which one it is."""
    answer = snapshot(id=ID.upper())
    (result,) = await poller_of(FakeClient(answer)).wait_all([f" {ID}\n"])
    assert result.generation_id == ID


async def test_a_result_without_outputs_has_its_snapshot() -> None:
    """Completed without any output: the error knows the snapshot, and so does the result."""
    empty = snapshot("completed", output=[])
    (result,) = await poller_of(FakeClient(empty)).wait_all([ID])
    assert result.generation == empty
    assert isinstance(result.error, OutputNotFoundError)


async def test_what_the_iterable_raises_keeps_its_cause() -> None:
    """A database that went away is told as the iterable told it."""
    cause = OSError("the database went away")

    def ids() -> Iterator[str]:
        yield "0"
        raise RuntimeError("no more ids") from cause

    with pytest.raises(RuntimeError, match="no more ids") as caught:
        await poller_of(TimedClient()).wait_all(ids())
    assert caught.value.__cause__ is cause
