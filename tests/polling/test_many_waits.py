"""Many waits on one poller, in virtual time, on asyncio and trio."""

from contextlib import aclosing
from functools import partial
from typing import Any

import anyio
import pytest
import trio.testing
from tenacity import wait_fixed

from luma_poll import NotFoundError, Poller, PollTimeoutError, RateLimitError
from tests.fakes import ID, URL, FakeClient, timed
from tests.polling.support import OTHER_ID, throttled, together
from tests.virtual_time import VirtualTimeLoop

pytestmark = pytest.mark.anyio

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


# --- one poller, several event loops -------------------------------------------------------------


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


# --- liveness: nobody starves, and no request is wasted ------------------------------------------


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
