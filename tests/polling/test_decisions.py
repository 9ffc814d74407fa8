"""What next? The pure rules of a wait, without an event loop."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tenacity import wait_fixed

from luma_poll import Generation, PollTimeoutError, RateLimitError
from luma_poll._api.answers import note_answer
from luma_poll._polling.decisions import (
    Deadline,
    Deadlines,
    Poll,
    Progress,
    Quiet,
    Raise,
    Return,
    Sleep,
    decide,
)
from tests.fakes import ID, snapshot

BUSY = RateLimitError("HTTP 429", status_code=429, retry_after=30)


def progress_after(*answers: tuple[float, Any], interval: float = 10) -> Progress:
    """A generation first seen at 0, with answers to polls at these times."""
    progress = Progress(ID, started=0.0)
    for at, answer in answers:
        progress.begin_poll(at)
        progress.record(answer, at)
        progress.consult(wait_fixed(interval), at)
    return progress


def what_next(
    progress: Progress,
    now: float,
    *,
    timeout: float | None = 100,
    quiet: Quiet = Quiet(),  # noqa: B008 (frozen)
    others: tuple[Deadline, ...] = (),
    asks: bool = True,
) -> Any:
    deadline = Deadline(0.0, timeout)
    asks_for = Deadlines([deadline, *others]) if asks else None
    return decide(progress, deadline, quiet, now=now, attempts=0, asks_for=asks_for)


PROCESSING = snapshot("processing")


@pytest.mark.parametrize(
    ("answers", "now", "expected"),
    [
        ([], 0, Poll(0)),  # the first poll is immediate
        ([(98.4, PROCESSING)], 98.5, Sleep(99)),  # too early to be the last one
        ([], 50, Poll(0)),  # and stays due since then
        ([(0, PROCESSING)], 0, Sleep(10)),
        ([(0, PROCESSING)], 10, Poll(10)),
        ([(0, PROCESSING)], 12, Poll(10)),
        ([(95, PROCESSING)], 95, Sleep(99)),  # the last poll comes before the deadline
        ([(95, PROCESSING)], 99.5, Poll(99)),
        ([(99, PROCESSING)], 99, Sleep(100)),  # and only once
        ([(98.6, PROCESSING)], 98.6, Sleep(100)),  # a poll just before is as good
        ([(98, snapshot())], 98, Return(snapshot())),
        ([(98, snapshot())], 500, Return(snapshot())),  # an answer beats the deadline
    ],
)
def test_a_wait_that_asks(
    answers: list[tuple[float, Generation]], now: float, expected: Any
) -> None:
    """Sleep until it is due, then poll, once more before the deadline, and return the end."""
    assert what_next(progress_after(*answers), now) == expected


def test_a_wait_for_which_another_one_asks() -> None:
    """It sleeps until its deadline, and then it ends."""
    assert what_next(progress_after(), 0, asks=False) == Sleep(100)
    assert what_next(progress_after((0, PROCESSING)), 50, asks=False) == Sleep(100)
    assert isinstance(what_next(progress_after(), 100, asks=False), Raise)


def test_the_one_that_asks_asks_for_the_deadlines_of_all() -> None:
    """A wait that ends earlier has its last poll too."""
    progress = progress_after((0, PROCESSING), interval=60)
    assert what_next(progress, 0, others=(Deadline(0.0, 30.0),)) == Sleep(29)
    assert what_next(progress, 29, others=(Deadline(0.0, 30.0),)) == Poll(29)
    assert what_next(progress, 30, others=(Deadline(0.0, 30.0),)) == Sleep(60)


def test_a_quiet_delays_a_poll_and_keeps_its_place() -> None:
    """The key of the queue is the time since when it is due, not the end of the quiet."""
    progress = progress_after((0, PROCESSING), (10, BUSY))
    quiet = Quiet(40.0, BUSY)
    assert what_next(progress, 10, quiet=quiet) == Sleep(20)
    assert what_next(progress, 25, quiet=quiet) == Poll(20)
    assert progress.next_poll(Deadlines([Deadline(0.0, 100.0)]), quiet, now=10) == 40


def test_a_quiet_past_the_deadline_ends_the_wait() -> None:
    """At once, with its cause, whoever asks."""
    for asks in (True, False):
        decision = what_next(progress_after(), 1, quiet=Quiet(100.0, BUSY), asks=asks)
        assert isinstance(decision.error, PollTimeoutError)
        assert decision.error.__cause__ is BUSY


def test_a_request_that_was_cut_short_is_as_if_it_had_not_been() -> None:
    """For the last poll too: nobody knows the answer."""
    progress = progress_after((0, PROCESSING), interval=500)
    progress.begin_poll(99)
    assert what_next(progress, 99.5) == Poll(99)
    assert progress.polls == 2, "it was sent"


def test_a_replay_needs_no_schedule() -> None:
    """To record an answer asks nobody: whoever replays a log sets the times of it."""
    progress = Progress(ID, started=0.0)
    progress.begin_poll(0)
    assert progress.record(PROCESSING, 0)
    assert what_next(progress, 0) == Poll(0), "nobody has said when to ask again"
    progress.due = 7.5
    assert what_next(progress, 0) == Sleep(7.5)
    progress.begin_poll(7.5)
    assert progress.record(snapshot(), 8)
    assert not progress.record(PROCESSING, 9), "a late answer changes nothing"
    assert what_next(progress, 9) == Return(snapshot())


times = st.floats(0, 1000)


@given(
    answered=st.lists(times, max_size=4).map(sorted),
    interval=st.sampled_from([0.1, 1.0, 7.0, 300.0]),
    now=times,
    timeout=st.one_of(st.none(), st.floats(0.01, 1000)),
    quiet_until=st.one_of(st.just(-math.inf), times),
)
def test_a_wait_is_never_stuck(
    answered: list[float], interval: float, now: float, timeout: float | None, quiet_until: float
) -> None:
    """It ends, asks what is due, or sleeps no longer than until the next poll or its deadline."""
    progress = progress_after(*((at, PROCESSING) for at in answered), interval=interval)
    now = max([now, *answered])
    deadline = Deadline(0.0, timeout)
    quiet = Quiet(quiet_until, BUSY if quiet_until > now else None)
    match what_next(progress, now, timeout=timeout, quiet=quiet):
        case Raise():
            assert now >= deadline.at or quiet.until >= deadline.at
        case Poll(due):
            assert due <= now < deadline.at
        case Sleep(until):
            assert now < until <= deadline.at
            assert until <= max(progress.due, deadline.at - deadline.margin) or until == deadline.at
            if until == deadline.at:  # it polls no more: the last answer is fresh, or quiet reigns
                last = answered[-1] if answered else -math.inf
                fresh = last >= deadline.at - 1.5 * deadline.margin - 1e-9
                assert fresh or progress.due >= deadline.at or deadline.at == math.inf
        case other:
            pytest.fail(f"{other}")


def test_a_request_that_is_cut_short_goes_behind_those_that_were_due_when_it_began() -> None:
    """It stays due, but it has had its turn."""
    progress = progress_after((0, PROCESSING))
    assert what_next(progress, 12) == Poll(10)
    progress.begin_poll(12)
    assert what_next(progress, 13) == Poll(12)


def test_an_answer_counts_from_when_its_own_request_was_sent() -> None:
    """Not from the last one, where several are under way: the last poll is still to come."""
    progress = Progress(ID, started=0.0)
    progress.begin_poll(90)
    progress.begin_poll(99.5)
    progress.record(PROCESSING, 99.6, asked=90)
    progress.due = 200
    assert what_next(progress, 99.6) == Poll(99.6)


def test_the_hint_of_the_latest_answer_counts() -> None:
    """One that comes later and has none takes the earlier one back."""
    hinted = snapshot("queued")
    note_answer(hinted, retry_after=60)
    progress = Progress(ID, started=0.0)
    assert progress.hand_in(hinted, 0)
    progress.due = 5
    assert what_next(progress, 5) == Sleep(60)
    progress.begin_poll(5)  # as one that was under way when the snapshot came
    progress.record(PROCESSING, 6)
    progress.due = 15
    assert what_next(progress, 6) == Sleep(15)


def test_a_hint_past_a_deadline_makes_no_last_poll_for_it() -> None:
    """The others are polled when the schedule says so."""
    progress = Progress(ID, started=0.0)
    progress.begin_poll(5)
    progress.record(note_answer(snapshot("queued"), retry_after=30), 5)
    progress.due = 60
    assert what_next(progress, 6, others=(Deadline(0, 10),)) == Sleep(60)


def test_a_stop_past_the_deadline_right_after_the_last_poll_is_no_stop() -> None:
    """That poll is as good as one more."""
    deadline = Deadline(0, 100)
    assert deadline.after_a_stop(now=150, last_poll=99.2) is deadline
    assert deadline.after_a_stop(now=150, last_poll=90).at > 150


def test_a_snapshot_that_is_handed_in_tells_that_it_still_runs() -> None:
    """The end is later than that, for all that learns how long generations take."""
    progress = Progress(ID, started=0.0)
    progress.hand_in(snapshot("queued"), 3)
    assert progress.unfinished_at == 3
