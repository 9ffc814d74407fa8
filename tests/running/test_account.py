"""What may be submitted now: pure decisions, against a model of an account."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luma_poll import APIConnectionError, Generation, RateLimitError
from luma_poll._api.headers import RateLimit
from luma_poll._api.outcomes import Accepted, NotAccepted, Unknown
from luma_poll._running.account import FULL_PROBE, Account

LIGHT = ("uni-1", "image")
HEAVY = ("uni-1-max", "image_edit")
LIVE = "Concurrent generation capacity reached (limit={limit} weight units; this request needs {w})"
SHORT = "Concurrent generation limit reached ({limit})"
DOCUMENTED = "Too many concurrent jobs"


def full(detail: str = DOCUMENTED, retry_after: float | None = 60.0) -> RateLimitError:
    return RateLimitError(detail, status_code=429, detail=detail, retry_after=retry_after)


def accept(
    account: Account, kind: tuple[str, ...], now: float, rate_limit: RateLimit | None = None
) -> None:
    account.end(kind, Accepted(Generation(id="1", state="queued"), rate_limit), now)


def refuse(account: Account, kind: tuple[str, ...], now: float, error: RateLimitError) -> None:
    account.end(kind, NotAccepted(error), now)


def fail(account: Account, kind: tuple[str, ...], now: float, *, unreachable: bool = False) -> None:
    error = APIConnectionError("refused", request_sent=False, retryable=unreachable)
    account.end(kind, NotAccepted(error), now)


def lose(account: Account, kind: tuple[str, ...]) -> None:
    account.end(kind, Unknown(APIConnectionError("reset")), 0.0)


def submit(account: Account, now: float = 0.0, kind: tuple[str, ...] = LIGHT) -> None:
    account.begin(kind)
    accept(account, kind, now)


def room(account: Account, now: float, kind: tuple[str, ...] = LIGHT) -> bool:
    return account.may_submit_at(kind) <= now


def test_it_begins_with_one_and_then_doubles() -> None:
    """As TCP does: an unknown account is not met with everything at once."""
    account, begun = Account(), []
    for _ in range(4):
        number = 0
        while room(account, 0.0):
            account.begin(LIGHT)
            number += 1
        begun.append(number)
        for _ in range(number):
            accept(account, LIGHT, 0.0)
    assert begun == [1, 2, 4, 8]


def test_a_full_account_is_asked_again_after_an_end() -> None:
    """Not after 60 s: time frees no slot, an end does."""
    account = Account()
    for _ in range(3):
        submit(account)
    account.begin(LIGHT)
    refuse(account, LIGHT, 1.0, full())
    assert not room(account, 2.0)
    account.finish(LIGHT)
    assert room(account, 2.0)
    submit(account, 2.0)
    assert not room(account, 3.0)


@pytest.mark.parametrize("text", [LIVE, SHORT, DOCUMENTED, "CONCURRENT jobs: too many"])
def test_every_spelling_of_a_full_account_is_understood(text: str) -> None:
    """The documented sentence is not the one that is seen live."""
    account = Account()
    submit(account)
    account.begin(LIGHT)
    refuse(account, LIGHT, 0.0, full(text.format(limit=1, w=1)))
    assert not room(account, 5.0)
    account.finish(LIGHT)
    assert room(account, 5.0)


def test_a_rate_429_quiets_all_submissions() -> None:
    """It is waited out, to the second."""
    account = Account()
    submit(account)
    account.begin(LIGHT)
    refuse(account, LIGHT, 10.0, full("Rate limit exceeded", 17.0))
    account.finish(LIGHT)
    assert account.may_submit_at(HEAVY) == account.may_submit_at(LIGHT) == 27.0


def test_with_nothing_of_ours_under_way_the_retry_after_is_the_latest_time() -> None:
    """Others fill the account: no end of ours will tell when to try again."""
    account = Account()
    account.begin(LIGHT)
    refuse(account, LIGHT, 100.0, full(retry_after=60.0))
    assert 100.0 < account.may_submit_at(LIGHT) <= 160.0
    account.begin(LIGHT)
    refuse(account, LIGHT, 160.0, full(retry_after=5.0))
    assert account.may_submit_at(LIGHT) == 165.0


def test_weights_are_learned_from_refusals() -> None:
    """A heavy request then waits for as many units as it needs, and light ones for theirs."""
    account = Account()
    for _ in range(8):
        submit(account)
    account.begin(HEAVY)
    refuse(account, HEAVY, 0.0, full(LIVE.format(limit=10, w=3)))
    assert account.weight(HEAVY) == 3
    assert room(account, 0.0, LIGHT)  # two units are left of ten
    assert not room(account, 0.0, HEAVY)
    account.finish(LIGHT)
    assert room(account, 0.0, HEAVY)


def test_weights_are_learned_from_the_fall_of_the_window() -> None:
    """By the least that was seen, as others on the account make it fall by more."""
    account = Account()
    for now, left in ((0.0, 27), (1.0, 23), (2.0, 20), (3.0, 17)):
        account.begin(HEAVY)
        accept(account, HEAVY, now, RateLimit(30, left))
    assert account.weight(HEAVY) == 3


def test_submissions_at_the_same_time_teach_no_weight() -> None:
    """Their answers may come in any order."""
    account = Account()
    account.begin(LIGHT)
    accept(account, LIGHT, 0.0, RateLimit(30, 29))
    account.begin(LIGHT)
    account.begin(LIGHT)
    accept(account, LIGHT, 1.0, RateLimit(30, 27))
    accept(account, LIGHT, 1.0, RateLimit(30, 28))
    assert account.weight(LIGHT) == 1


def test_the_minute_is_not_overdrawn() -> None:
    """Who knows that nothing is left waits until the oldest of his own leaves the window."""
    account = Account()
    for second in range(3):
        account.begin(LIGHT)
        accept(account, LIGHT, float(second), RateLimit(3, 2 - second))
    for _ in range(3):
        account.finish(LIGHT)
    assert account.may_submit_at(LIGHT) == 60.0
    account.begin(LIGHT)
    assert account.may_submit_at(LIGHT) == 61.0


def test_where_others_use_up_the_minute_a_refusal_says_until_when() -> None:
    """Too little of ours leaves the window to make room, so asking is the only way to learn."""
    account = Account()
    account.begin(HEAVY)
    refuse(account, HEAVY, 0.0, full(LIVE.format(limit=30, w=3)))
    account.begin(LIGHT)
    accept(account, LIGHT, 15.0, RateLimit(30, 0))
    assert account.may_submit_at(LIGHT) == 75.0
    assert room(account, 16.0, HEAVY)
    account.begin(HEAVY)
    refuse(account, HEAVY, 16.0, full("Rate limit exceeded", 3.0))
    assert account.may_submit_at(HEAVY) == 19.0


def test_what_is_learned_is_forgotten_slowly() -> None:
    """After a pause that doubles once, one more is tried; when it succeeds, more."""
    account = Account()
    for _ in range(4):
        submit(account)
    now, pauses = 0.0, []
    for _ in range(4):
        account.begin(LIGHT)
        refuse(account, LIGHT, now, full())
        pauses.append(account.may_submit_at(LIGHT) - now)
        now += pauses[-1]
    assert pauses == [15.0, 30.0, 30.0, 30.0]
    submit(account, now)
    assert room(account, now)


def test_a_limit_of_the_whole_account_is_not_doubted_soon() -> None:
    """Where ours alone reach the limit that it named, a minute passes before it is tried."""
    account = Account()
    for _ in range(10):
        submit(account)
    account.begin(LIGHT)
    refuse(account, LIGHT, 0.0, full(SHORT.format(limit=10)))
    assert account.may_submit_at(LIGHT) == FULL_PROBE


def test_a_request_that_can_never_fit_is_known() -> None:
    """To wait for room for it would be to wait for ever."""
    account = Account()
    account.begin(HEAVY)
    refuse(account, HEAVY, 0.0, full(LIVE.format(limit=2, w=3)))
    assert account.cannot_fit(HEAVY)
    assert not account.cannot_fit(LIGHT)


def test_the_users_own_limits_hold() -> None:
    """`max_running` over all that run, `max_submissions` over all that may have been accepted."""
    account = Account(max_running=2, max_submissions=3)
    submit(account)
    submit(account)
    assert account.may_submit_at(LIGHT) == math.inf
    account.finish(LIGHT)
    account.begin(LIGHT)
    lose(account, LIGHT)  # it may have been accepted
    account.finish(LIGHT)
    assert account.is_exhausted


def test_a_submission_that_was_not_accepted_does_not_count() -> None:
    """The purse is open again."""
    account = Account(max_submissions=1)
    account.begin(LIGHT)
    assert account.may_submit_at(LIGHT) == math.inf
    fail(account, LIGHT, 0.0)
    assert room(account, 0.0)


def test_without_a_connection_all_pause_a_little() -> None:
    """Longer each time, but no more than a few seconds."""
    account, now, pauses = Account(), 0.0, []
    for _ in range(8):
        account.begin(LIGHT)
        fail(account, LIGHT, now, unreachable=True)
        pauses.append(account.may_submit_at(LIGHT) - now)
        now += pauses[-1]
    assert pauses == sorted(pauses)
    assert 0 < pauses[0] < 1
    assert pauses[-1] == 5.0


def test_an_abandoned_generation_still_occupies_the_account() -> None:
    """Nobody waits for it, but the API counts it until it ends."""
    account = Account()
    for _ in range(3):
        submit(account)
    account.begin(LIGHT)
    refuse(account, LIGHT, 0.0, full())
    account.abandon(LIGHT, until=3600.0)
    assert not room(account, 1.0)
    account.finish(LIGHT)
    assert room(account, 1.0)


def test_an_abandoned_generation_counts_for_max_running_until_its_end() -> None:
    """Which somebody sees, or which comes by itself after an hour."""
    account = Account(max_running=2)
    submit(account)
    submit(account)
    account.abandon(LIGHT, until=3600.0)
    account.abandon(LIGHT, until=1800.0)
    assert account.is_held_up
    assert account.may_submit_at(LIGHT) == 1800.0
    account.recall(3600.0)
    assert not account.is_held_up
    assert room(account, 1.0)


@settings(max_examples=120, deadline=None)
@given(
    capacity=st.integers(1, 12),
    others=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 300)), max_size=3),
    weights=st.lists(st.sampled_from([1, 1, 1, 3]), min_size=1, max_size=25),
    duration=st.integers(1, 90),
    text=st.sampled_from([LIVE, SHORT, DOCUMENTED]),
    tells=st.booleans(),
)
def test_any_account_is_used_and_never_besieged(
    capacity: int,
    others: list[tuple[int, int]],
    weights: list[int],
    duration: int,
    text: str,
    tells: bool,
) -> None:
    """It always ends; it is idle only while refused; refusals are few: a probe, then a pause.

    `others` hold units of the account until their ends. Steps of a second; answers at once.
    """
    account = Account()
    todo = [(HEAVY if weight == 3 else LIGHT, weight) for weight in weights if weight <= capacity]
    running: list[tuple[int, tuple[str, ...], int]] = []
    refused: list[int] = []
    submissions: list[tuple[int, int]] = []
    now, idle = 0, 0
    while todo or running:
        for end, kind, weight in [each for each in running if each[0] <= now]:
            running.remove((end, kind, weight))
            account.finish(kind)
        taken_by_others = sum(units for units, end in others if end > now)
        while todo and account.may_submit_at(todo[0][0]) <= now:
            kind, weight = todo[0]
            account.begin(kind)
            recent = sum(units for begun, units in submissions if begun > now - 60)
            if sum(each[2] for each in running) + weight + taken_by_others > capacity:
                refused.append(now)
                refuse(account, kind, float(now), full(text.format(limit=capacity, w=weight)))
                continue
            left = RateLimit(10_000, 10_000 - recent - weight) if tells else None
            accept(account, kind, float(now), left)
            submissions.append((now, weight))
            running.append((now + duration, kind, weight))
            del todo[0]
        fits = (
            sum(each[2] for each in running) + taken_by_others + (todo[0][1] if todo else math.inf)
        )
        idle = idle + 1 if fits <= capacity else 0
        assert idle <= FULL_PROBE
        now += 1
        assert now < 20_000, "it never ends"
    ends = len(weights) + len(others)
    assert len(refused) <= 2 * ends + now / 15 + 8


# --- answers that mislead ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Too many concurrent jobs (1 minute)",
        "Too many concurrent jobs (3 running, 10 allowed)",
        "Concurrent generations (0) are not available (2 left)",
    ],
)
def test_other_numbers_are_no_limit(text: str) -> None:
    """A limit is learned where the text names one; a heavy request is not given up for a number."""
    account = Account()
    for _ in range(5):
        submit(account)
    account.begin(HEAVY)
    refuse(account, HEAVY, 0.0, full(f"{text}; this request needs 3"))
    assert not account.cannot_fit(HEAVY)
    assert account.may_submit_at(LIGHT) < FULL_PROBE  # as where no limit is named


def test_a_limit_counts_as_long_as_refusals_name_it() -> None:
    """The plan may be another one by now."""
    account = Account()
    account.begin(HEAVY)
    refuse(account, HEAVY, 0.0, full(LIVE.format(limit=2, w=3)))
    assert account.cannot_fit(HEAVY)
    account.begin(HEAVY)
    refuse(account, HEAVY, 60.0, full(DOCUMENTED))
    assert not account.cannot_fit(HEAVY)


def test_a_weight_that_was_only_guessed_gives_up_no_request() -> None:
    """The window fell by the submissions of others, too."""
    account = Account()
    for now, left in ((0.0, 40), (1.0, 28)):
        account.begin(LIGHT)
        accept(account, LIGHT, now, RateLimit(60, left))
    assert account.weight(LIGHT) == 12
    account.begin(LIGHT)
    refuse(account, LIGHT, 2.0, full(SHORT.format(limit=10)))
    assert not account.cannot_fit(LIGHT)


def test_a_weight_that_was_too_high_leaves_no_room_that_was_never_seen() -> None:
    """Two that were thought to weigh 12 each prove that two run, and not that 24 do."""
    account = Account()
    for now, left in ((0.0, 60), (1.0, 48), (2.0, 47)):
        account.begin(LIGHT)
        accept(account, LIGHT, now, RateLimit(60, left))
    assert account.weight(LIGHT) == 1
    number = 0
    while room(account, 3.0):
        account.begin(LIGHT)
        number += 1
    assert number <= 4


@pytest.mark.parametrize("text", [DOCUMENTED, "Rate limit exceeded"])
@pytest.mark.parametrize("retry_after", [0.0, 0.001])
def test_no_hint_makes_it_ask_all_the_time(text: str, retry_after: float) -> None:
    """The API's own is at least a second; less is a mistake of something in between."""
    account = Account()
    account.begin(LIGHT)
    refuse(account, LIGHT, 0.0, full(text, retry_after))
    assert account.may_submit_at(LIGHT) >= 1.0


def test_refusals_of_submissions_that_were_sent_together_count_once() -> None:
    """Ten at a time are refused for one reason: the pause is not that after ten refusals."""
    account = Account()
    for _ in range(4):
        submit(account)
    for _ in range(5):
        account.begin(LIGHT)
    for _ in range(4):
        refuse(account, LIGHT, 0.0, full())
    accept(account, LIGHT, 0.0)
    assert account.may_submit_at(LIGHT) == 15.0
    account.finish(LIGHT)
    assert room(account, 0.0)


def test_what_an_earlier_process_submitted_counts() -> None:
    """It runs on the account like any other."""
    account = Account(max_running=1)
    account.adopt(LIGHT)
    assert account.running == 1
    assert not room(account, 0.0)
    account.finish(LIGHT)
    assert room(account, 0.0)


def test_what_is_in_flight_counts_for_what_is_held_up() -> None:
    """With one in flight and one that may run unseen, both places are taken."""
    account = Account(max_running=2)
    account.begin(LIGHT)
    lose(account, LIGHT)
    account.begin(LIGHT)
    assert account.is_held_up


def test_the_last_unit_of_the_minute_is_used() -> None:
    """There is room for exactly one more."""
    account = Account()
    account.begin(LIGHT)
    accept(account, LIGHT, 0.0, RateLimit(limit=2, remaining=1))
    account.finish(LIGHT)
    assert room(account, 0.0)
    account.begin(LIGHT)
    accept(account, LIGHT, 0.0, RateLimit(limit=2, remaining=0))
    account.finish(LIGHT)
    assert not room(account, 0.0)
    assert room(account, 60.0)
