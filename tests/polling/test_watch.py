"""`watch`, schedules and events, in virtual time, on asyncio and trio."""

import logging
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from tenacity import RetryCallState, wait_fixed

from luma_poll import ConfigurationError, NotFoundError, Poller, PollEvent, PollTimeoutError
from tests.fakes import ID, FakeClient, snapshot, timed
from tests.polling.support import BUSY

pytestmark = pytest.mark.anyio

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
