"""The queue of requests, in virtual time, on asyncio and trio."""

from typing import Any

import anyio
import pytest

from luma_poll._polling.decisions import Quiet
from luma_poll._polling.limits import RequestLimits

pytestmark = pytest.mark.anyio


async def order_of(limits: RequestLimits, *dues: float, hold: float = 0.0) -> list[Any]:
    """The dues and their times of starting, in the order in which they start."""
    began, started = anyio.current_time(), []

    async def request(due: float) -> None:
        await limits.acquire(due)
        started.append((due, round(anyio.current_time() - began, 6)))
        await anyio.sleep(hold)
        limits.release()

    async with anyio.create_task_group() as tasks:
        for due in dues:
            tasks.start_soon(request, due)
    return started


async def test_the_longest_overdue_goes_first_after_a_quiet() -> None:
    """The quiet delays all and changes no order, however they came to queue."""
    limits = RequestLimits(None, 1.0)
    limits.quiet = Quiet(anyio.current_time() + 30)
    assert await order_of(limits, 5, 3, 9, 1, 3) == [(1, 30), (3, 31), (3, 32), (5, 33), (9, 34)]


async def test_a_quiet_that_grows_while_they_queue_holds_them() -> None:
    """Nobody leaves the queue for it, and only the first sleeps until it ends."""
    limits = RequestLimits(1, None)

    async def grow() -> None:
        await anyio.sleep(5)
        limits.quiet = Quiet(anyio.current_time() + 20)

    limits.quiet = Quiet(anyio.current_time() + 10)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(grow)
        assert await order_of(limits, 2, 1, hold=3) == [(1, 25), (2, 28)]


async def test_a_request_that_leaves_passes_its_turn_on() -> None:
    """At every place of the queue: the first one too."""
    limits = RequestLimits(1, 1.0)
    await limits.acquire(0)

    async def leave(due: float) -> None:
        with anyio.move_on_after(5):
            await limits.acquire(due)
            pytest.fail("there is no room")

    async with anyio.create_task_group() as tasks:
        for due in (1.0, 2.0, 3.0):
            tasks.start_soon(leave, due)
        tasks.start_soon(limits.acquire, 4.0)
        await anyio.sleep(6)
        limits.release()


async def test_the_rate_may_change() -> None:
    """From the next start on; one that is planned keeps its time."""
    limits = RequestLimits(None, 1.0)
    assert await order_of(limits, 1, 2) == [(1, 0), (2, 1)]
    limits.set_max_rate(10.0)
    assert await order_of(limits, 3, 4, 5) == [(3, 1), (4, 1.1), (5, 1.2)]


async def test_whoever_leaves_at_the_tick_of_its_turn_takes_no_start() -> None:
    """The next one has that turn, rather than the one a second later."""
    limits = RequestLimits(1, 1.0)
    began = anyio.current_time()

    async def leave() -> None:
        with leaving:
            await limits.acquire(1)
            pytest.fail("it has left")

    await limits.acquire(0)
    async with anyio.create_task_group() as tasks:
        leaving = anyio.CancelScope()
        tasks.start_soon(leave)
        await anyio.sleep(5)
        limits.release()  # the turn has come,
        leaving.cancel()  # and it is left before the task runs
        assert await order_of(limits, 2) == [(2, 0)]
    assert anyio.current_time() - began == pytest.approx(5)


async def test_what_a_start_is_late_is_made_up_for_by_a_twentieth_of_a_second() -> None:
    """Two slots come free long after their turns: the starts stay a second apart, nearly."""
    limits = RequestLimits(2, 1.0)
    began = anyio.current_time()

    async def hold_until(end: float) -> None:
        await limits.acquire(0)
        await anyio.sleep_until(began + end)
        limits.release()

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(hold_until, 10)
        assert await order_of(limits, 1, 2, 3) == [(1, 10), (2, 10.95), (3, 11.95)]


async def test_a_request_is_told_how_long_it_waited_for_others() -> None:
    """The time of a quiet does not count."""
    limits = RequestLimits(None, 1.0)
    assert await limits.acquire(0) == 0
    assert await limits.acquire(0) == pytest.approx(1)
    limits.quiet = Quiet(anyio.current_time() + 20)
    waited: list[float] = []

    async def request(due: float) -> None:
        waited.append(await limits.acquire(due))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request, 1)
        tasks.start_soon(request, 2)
    assert waited == pytest.approx([0, 1])
    await anyio.sleep(10)
    assert await limits.acquire(0) == 0
