"""A process that was stopped, and goes on after the deadline."""

import asyncio

import pytest

from luma_poll import LumaError, Poller, PollTimeoutError
from tests.fakes import ID, FakeClient
from tests.virtual_time import VirtualTimeLoop

TIMEOUT = 8.0


def stopped(
    client: FakeClient, *, waits: int = 1, timeouts: tuple[float, ...] = (TIMEOUT,)
) -> list[object]:
    """The results of waits whose process stands still from 3 to 20 s."""

    async def wait(poller: Poller, timeout: float) -> object:
        try:
            return await poller.wait(ID, timeout=timeout)
        except LumaError as error:
            return error

    async def live() -> list[object]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        poller = Poller(client)
        pending = [asyncio.ensure_future(wait(poller, each)) for each in timeouts * waits]
        await asyncio.sleep(3)
        loop._virtual.now += 17  # all timers up to then are late
        return list(await asyncio.gather(*pending))

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(live())


@pytest.mark.parametrize("timeouts", [(TIMEOUT,), (8.0, 6.0, 12.0), (8.0, 8.0, 8.0)])
def test_it_asks_once_more_before_it_gives_up(timeouts: tuple[float, ...]) -> None:
    """The generation has completed meanwhile; all waits get it from one request."""
    client = FakeClient("processing", "completed", latency=0.5)
    results = stopped(client, timeouts=timeouts)
    assert all(isinstance(result, list) for result in results), results
    assert len(client.calls) == 2


def test_it_asks_once_more_where_it_was_stopped_in_the_middle_of_a_request() -> None:
    """That one has no answer."""
    client = FakeClient((1e6, "completed"), "completed", latency=0.5)
    (result,) = stopped(client)
    assert isinstance(result, list), result
    assert len(client.calls) == 2


def test_it_gives_up_when_that_answer_is_no_end() -> None:
    """At once: it has had its time."""
    client = FakeClient(at=lambda now: "processing", latency=0.5)
    (error,) = stopped(client)
    assert isinstance(error, PollTimeoutError)
    assert error.elapsed == pytest.approx(20.5)
    assert len(client.calls) == 2


def test_it_gives_up_when_there_is_no_answer() -> None:
    """The network may not be back yet: ten seconds are enough."""
    client = FakeClient("processing", (1e6, "completed"))
    (error,) = stopped(client)
    assert isinstance(error, PollTimeoutError)
    assert error.elapsed == pytest.approx(30)
    assert "had no answer" in str(error)
