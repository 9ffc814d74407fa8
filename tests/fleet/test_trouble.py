"""A worker that the API does not serve, a database out of reach, and what workers know."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from luma_poll import RateLimitError
from luma_poll._api.outcomes import Accepted, NotAccepted
from luma_poll._fleet.capacity import account_of, facts_of
from luma_poll._fleet.engine import Database
from luma_poll._fleet.trouble import LONGEST_PAUSE, Trouble
from luma_poll._running.account import Account
from luma_poll.dbos import SUBMIT_TRIES, Fleet, FleetDatabaseError
from luma_poll.models import Generation
from tests.virtual_time import VirtualTimeLoop

KIND = ("uni-1", "image")
FULL = RateLimitError(
    "HTTP 429", status_code=429, detail="Concurrent limit reached (4)", retry_after=60.0
)


def test_a_worker_in_trouble_asks_later_each_time() -> None:
    """Up to half a minute; what was sent together is one sign, and an acceptance ends it."""
    trouble, now = Trouble(), 100.0
    assert trouble.begin(now, "HTTP 401")
    assert not trouble.begin(now, "HTTP 401")
    assert 0.7 <= trouble.pause(now) <= 1.0
    for _ in range(9):
        now += LONGEST_PAUSE
        trouble.begin(now, "HTTP 401")
    assert LONGEST_PAUSE * 0.7 <= trouble.pause(now) <= LONGEST_PAUSE
    assert trouble.is_on
    assert trouble.end()
    assert not trouble.end()
    assert (trouble.is_on, trouble.pause(now), trouble.why) == (False, 0.0, None)


def learned() -> Account:
    account = Account()
    for number in range(4):
        account.begin(KIND)
        account.end(KIND, Accepted(Generation(id=str(number), state="queued")), number)
    account.begin(KIND)
    account.end(KIND, NotAccepted(FULL), 5.0)
    return account


def test_what_one_worker_learns_all_know() -> None:
    """The same decisions follow, by way of the database."""
    account = learned()
    again = account_of(facts_of(account), {KIND: 4}, {})
    assert again.may_submit_at(KIND) == account.may_submit_at(KIND)
    account.finish(KIND)
    again = account_of(facts_of(account), {KIND: 3}, {})
    assert again.may_submit_at(KIND) == account.may_submit_at(KIND) < 5.0
    assert facts_of(again) == facts_of(account)


def test_a_busy_minute_is_no_longer_than_a_quiet_one() -> None:
    """What is kept of it does not grow with the submissions."""
    account = Account()
    for number in range(3000):
        account.begin(KIND)
        account.end(KIND, Accepted(Generation(id=str(number), state="queued")), number / 100)
        account.finish(KIND)
    assert len(facts_of(account)) < 3000
    again = account_of(facts_of(account), {}, {})
    assert again._window._used == account._window._used == 3000


def test_facts_of_another_release_are_learned_again() -> None:
    """Whatever they are: what runs is known to fit."""
    for facts in ("{}", "[]", "null", "not JSON", '{"_allowed": "many"}', '{"": "set", "of": 3}'):
        account = account_of(facts, {KIND: 3}, {})
        assert account.running == 3
        account.finish(KIND)
        assert account.may_submit_at(KIND) < 5.0


def test_an_outage_of_the_database_is_outlasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Almost as long as the tries may take: no long pause ends them early."""
    outage = SUBMIT_TRIES - 1.0

    async def submit() -> None:
        fleet = Fleet(database=f"sqlite:///{tmp_path}/fleet.db")
        began = anyio.current_time()

        async def call(*_: Any) -> str:
            if anyio.current_time() - began < outage:
                raise FleetDatabaseError("the database is out of reach")
            return "recorded"

        monkeypatch.setattr(Database, "call", call)
        assert await fleet._reached(lambda: "") == "recorded"
        assert outage <= anyio.current_time() - began <= SUBMIT_TRIES

    anyio.run(submit, backend_options={"loop_factory": VirtualTimeLoop})
