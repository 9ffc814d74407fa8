"""What a caller, a schedule and an answer may not do to a poller, in virtual time."""

from typing import Any

import anyio
import pytest
from tenacity import RetryCallState, wait_fixed

from luma_poll import (
    ConfigurationError,
    Generation,
    InvalidResponseError,
    NotFoundError,
    Poller,
    PollEvent,
    PollTimeoutError,
)
from tests.fakes import ID, URL, FakeClient, snapshot, timed
from tests.polling.support import BUSY, OTHER_ID, together

pytestmark = pytest.mark.anyio

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


# --- what a schedule, an answer and an argument may not do ---------------------------------------


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
