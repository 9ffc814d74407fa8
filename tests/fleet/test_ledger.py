"""The statements of a fleet: permits, limits, and what the death of a worker leaves."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from luma_poll import ConfigurationError, RateLimitError
from luma_poll._api.outcomes import Accepted, NotAccepted
from luma_poll._fleet.ends import end_of
from luma_poll._fleet.engine import Database, FleetDatabaseError
from luma_poll._fleet.ledger import Alive, Later, Ledger, Limits, Turn
from luma_poll._fleet.tables import SCHEMA
from luma_poll.models import Generation

CANCELLED = '{"type": "E", "message": "m"}'
FULL = RateLimitError(
    "HTTP 429", status_code=429, detail="Concurrent limit reached (2)", retry_after=60.0
)


@pytest.fixture
def ledger(database: str) -> Iterator[Ledger]:
    opened = Database(database, "luma", "dbos")
    ledger = Ledger(opened, "luma")
    ledger.prepare()
    ledger.beat("one", {})
    yield ledger
    opened.close()


def add(ledger: Ledger, key: str, **others: Any) -> bool:
    values = {
        "key": key,
        "digest": key,
        "request": json.dumps({"prompt": "a fox"}),
        "kind": '["None", "None"]',
        "max_attempts": 1,
        "timeout": 60.0,
        "callback": None,
    }
    return ledger.add(values | others)


def turn(ledger: Ledger, permit: str, worker: str = "one") -> Turn:
    found = ledger.take_turn(worker, permit)
    assert isinstance(found, Turn), found
    return found


def later(ledger: Ledger, permit: str = "p") -> Later:
    found = ledger.take_turn("one", permit)
    assert isinstance(found, Later), found
    return found


def states(ledger: Ledger) -> dict[str, str]:
    return {row["key"]: row["state"] for row in ledger.entries(None)}


def test_a_turn_is_given_once(ledger: Ledger) -> None:
    """The oldest first; the call whose answer was lost has the same one again."""
    add(ledger, "a")
    assert turn(ledger, "p-1") == turn(ledger, "p-1")
    assert later(ledger, "p-2").why == ""
    assert states(ledger) == {"a": "submitting"}


def test_a_key_is_taken_for_good(ledger: Ledger) -> None:
    """Once more with the same digest is no error, and no second submission."""
    assert add(ledger, "a")
    assert add(ledger, "a")
    assert not add(ledger, "a", digest="another")
    assert len(ledger.entries(None)) == 1


def test_the_dead_leave_waits_and_unknowns(ledger: Ledger) -> None:
    """A generation that runs goes on elsewhere; a submission under way is unknown, once told."""
    ledger.beat("two", {})
    for key in "ab":
        add(ledger, key, callback="https://example.com/hook")
    ledger.accept(turn(ledger, "p-1"), "one", "id-a")
    turn(ledger, "p-2")
    assert ledger.bury("one", 1) == (1, 1)
    assert ledger.bury("one", 1) is None
    assert states(ledger) == {"a": "running", "b": "unknown"}
    assert [wait.generation_id for wait in ledger.claim_waits("two", 10)] == ["id-a"]
    assert ledger.claim_waits("two", 10) == []
    assert ledger.waiting_callbacks() == 1


def test_an_id_that_arrives_late_heals(ledger: Ledger) -> None:
    """Whoever has the permit records it, also after the others called it unknown."""
    add(ledger, "a")
    mine = turn(ledger, "p-1")
    ledger.bury("one", 1)
    wait = ledger.accept(mine, "one", "id-a")
    assert wait is not None
    assert wait.generation_id == "id-a"
    assert ledger.accept(mine, "one", "id-a") is not None
    assert states(ledger) == {"a": "running"}


def test_an_id_is_never_forgotten(ledger: Ledger) -> None:
    """Although somebody had it submitted again meanwhile: both ids are on record."""
    add(ledger, "a")
    first = turn(ledger, "p-1")
    ledger.bury("one", 1)
    ledger.beat("two", {})
    ledger.resolve(["a"], None)
    second = turn(ledger, "p-2", "two")
    assert ledger.accept(first, "one", "id-1") is None
    assert ledger.accept(second, "one", "id-2") is not None
    (row,) = ledger.entries(None)
    assert (row["generation_id"], row["submitted"]) == ("id-2", ["id-1", "id-2"])


def test_a_refused_one_waits_again(ledger: Ledger) -> None:
    """Its attempt does not count, and everybody knows that the account is full."""
    for key in "abc":
        add(ledger, key)
    first = turn(ledger, "p-1")
    ledger.accept(first, "one", "id-a")
    ledger.learn(first, Accepted(Generation(id="id-a", state="queued")))
    refused = turn(ledger, "p-2")
    assert ledger.refuse(refused, NotAccepted(FULL))
    assert states(ledger) == {"a": "running", "b": "queued", "c": "queued"}
    assert "full" in later(ledger).why
    assert ledger.status()["refusals"] == 1


def test_limits_are_the_fleets(ledger: Ledger) -> None:
    """None leaves one as it is; another value sets it for all; one can be lifted."""
    ledger.set_limits(Limits(max_running=1))
    before, after = ledger.set_limits(Limits())
    assert before == after == Limits(1, None, 30.0)
    for key in "ab":
        add(ledger, key)
    turn(ledger, "p-1")
    assert later(ledger).why == "max_running are under way"
    ledger.set_limits(Limits(), lift=["max_running"])
    with ledger.database.transaction() as (connection, _):
        connection.execute(sa.update(ledger.database.tables.fleet).values(account="{}"))


def test_a_minute_has_no_more_than_its_limit(ledger: Ledger) -> None:
    """Whoever died or was refused meanwhile; it counts from the answers on."""
    ledger.set_limits(Limits(submissions_per_minute=2))
    for key in "abc":
        add(ledger, key)
    ledger.hand_back(turn(ledger, "p-1"))
    ledger.hand_back(turn(ledger, "p-2"))
    ledger.bury("one", 1)
    ledger.beat("one", {})
    assert later(ledger).why == "submissions_per_minute"
    assert 0 < later(ledger).seconds <= 60
    with ledger.database.transaction() as (connection, _):
        posts = ledger.database.tables.posts
        connection.execute(sa.update(posts).values(ended_at=posts.c.ended_at - 61))
    turn(ledger, "p-3")


def test_an_outage_costs_one_after_the_other(ledger: Ledger) -> None:
    """After one whose end is unknown the whole fleet pauses, for longer each time."""
    for key in "abc":
        add(ledger, key)
    ledger.lose(turn(ledger, "p-1"))
    assert 0 < later(ledger).seconds <= 1
    posts = ledger.database.tables.posts
    with ledger.database.transaction() as (connection, _):
        connection.execute(sa.update(posts).values(ended_at=posts.c.ended_at - 1))
    ledger.lose(turn(ledger, "p-2"))
    assert 1 < later(ledger).seconds <= 2
    with ledger.database.transaction() as (connection, _):
        connection.execute(sa.update(posts).values(ended_at=posts.c.ended_at - 2))
    assert ledger.accept(turn(ledger, "p-3"), "one", "id-c") is not None
    add(ledger, "d")
    ledger.learn(
        Turn("c", 1, "p-3", {}, ("None", "None"), 0), Accepted(Generation(id="c", state="queued"))
    )
    turn(ledger, "p-4")


def test_a_paused_fleet_submits_nothing(ledger: Ledger) -> None:
    """Until it is resumed."""
    add(ledger, "a")
    ledger.set_mode("paused", "the account is being changed")
    assert later(ledger).why == "the fleet is paused"
    alive = ledger.beat("one", {})
    assert isinstance(alive, Alive)
    assert (alive.mode, alive.why) == ("paused", "the account is being changed")
    ledger.set_mode("running", None)
    turn(ledger, "p")


def test_a_worker_that_was_taken_for_dead_submits_nothing(ledger: Ledger) -> None:
    """Until it has joined again."""
    add(ledger, "a")
    ledger.bury("one", 1)
    assert "dead" in later(ledger).why
    assert ledger.beat("one", {}).was_buried
    turn(ledger, "p")


def test_an_end_is_seen_once(ledger: Ledger) -> None:
    """A worker that was stopped and comes back changes nothing, nor submits again."""
    add(ledger, "a", max_attempts=3)
    wait = ledger.accept(turn(ledger, "p-1"), "one", "id-1")
    assert wait is not None
    ledger.try_again(wait, 0.0)
    again = ledger.accept(turn(ledger, "p-2"), "one", "id-2")
    assert again is not None
    ledger.try_again(wait, 0.0)
    ledger.end_wait(wait, *end_of(Generation(id="id-1", state="failed")))
    assert states(ledger) == {"a": "running"}
    ledger.end_wait(again, *end_of(Generation(id="id-2", state="completed")))
    (row,) = ledger.entries("completed")
    assert (row["attempt"], row["submitted"]) == (2, ["id-1", "id-2"])


def test_all_or_none_is_resolved(ledger: Ledger) -> None:
    """And only what ended with an error."""
    for key in "ab":
        add(ledger, key)
    ledger.lose(turn(ledger, "p-1"))
    for keys in (["a", "b"], ["a", "never given"]):
        with pytest.raises(ConfigurationError):
            ledger.resolve(keys, None)
    assert states(ledger) == {"a": "unknown", "b": "queued"}


def test_a_generation_settles_one_submission_only(ledger: Ledger) -> None:
    """A wrong id would give the picture of one submission to another, however it is spelled."""
    generation_id = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"
    for key in "ab":
        add(ledger, key)
    wait = ledger.accept(turn(ledger, "p-1"), "one", generation_id)
    assert wait is not None
    ledger.lose(turn(ledger, "p-2"))
    for spelling in (generation_id, generation_id.upper(), f"urn:uuid:{generation_id}"):
        with pytest.raises(ConfigurationError, match="belongs to the submission 'a'"):
            ledger.resolve(["b"], spelling)
    assert states(ledger) == {"a": "running", "b": "unknown"}
    ledger.end_wait(wait, "overdue", end_of(Generation(id=generation_id, state="completed"))[1])
    ledger.resolve(["a"], generation_id.upper())
    assert states(ledger) == {"a": "running", "b": "unknown"}


def test_a_wrong_id_can_be_corrected(ledger: Ledger) -> None:
    """Then it is free for the submission to which it belongs."""
    _, nothing_yet = end_of(Generation(id="id", state="completed"))
    for key in "ba":
        add(ledger, key)
    first = ledger.accept(turn(ledger, "p-1"), "one", "id-1")
    assert first is not None
    ledger.end_wait(first, "overdue", nothing_yet)
    ledger.lose(turn(ledger, "p-2"))
    ledger.resolve(["a"], "id-2")
    (wait,) = ledger.claim_waits("one", 10)
    ledger.end_wait(wait, "overdue", nothing_yet)
    ledger.resolve(["a"], "id-3")
    ledger.resolve(["b"], "id-2")
    submitted = {row["key"]: row["submitted"] for row in ledger.entries(None)}
    assert submitted == {"a": ["id-3"], "b": ["id-1", "id-2"]}


def test_what_was_sent_is_not_cancelled(ledger: Ledger) -> None:
    """Nothing cancels a generation."""
    for key in "ab":
        add(ledger, key)
    turn(ledger, "p-1")
    assert ledger.cancel(["a", "b", "c"], CANCELLED) == ["b"]
    assert states(ledger) == {"a": "submitting", "b": "cancelled"}


def test_a_forgotten_key_is_taken(ledger: Ledger) -> None:
    """Its parameters are gone, not its digest."""
    add(ledger, "a")
    wait = ledger.accept(turn(ledger, "p-1"), "one", "id-1")
    assert wait is not None
    ledger.end_wait(wait, *end_of(Generation(id="id-1", state="completed")))
    assert ledger.forget(0.0) == 0
    assert ledger.forget(4e9) == 1
    assert ledger.entries(None)[0]["request"] is None
    assert not add(ledger, "a", digest="another")
    assert ledger.look(["a"])["a"]["submitted"] == ["id-1"]


def test_each_host_has_its_share_of_calls(ledger: Ledger) -> None:
    """And what was taken is due again, if nothing is said of it."""
    for number in range(6):
        add(ledger, f"slow-{number}", callback="https://slow.example/hook")
        add(ledger, f"fast-{number}", callback="https://fast.example/hook")
    ledger.cancel([row["key"] for row in ledger.entries(None)], CANCELLED)
    due = ledger.due_callbacks(100, 4, {"slow.example": 3}, 0.0)
    hosts = [each["host"] for each in due]
    assert (hosts.count("slow.example"), hosts.count("fast.example")) == (1, 4)
    ledger.called(due[0]["id"], "delivered", "delivered")
    assert ledger.waiting_callbacks() == 11


def test_tables_of_a_newer_release_are_refused(ledger: Ledger) -> None:
    """Nothing is done with them."""
    with ledger.database.transaction() as (connection, _):
        connection.execute(sa.update(ledger.database.tables.fleet).values(version=SCHEMA + 1))
    with pytest.raises(ConfigurationError, match="upgrade"):
        ledger.prepare()


def test_two_fleets_share_a_database(ledger: Ledger, database: str) -> None:
    """Each has its own tables."""
    other = Ledger(Database(database, "shop-2", "dbos"), "shop-2")
    other.prepare()
    other.beat("one", {})
    add(ledger, "a")
    assert isinstance(other.take_turn("one", "p"), Later)
    assert other.entries(None) == []
    other.database.close()


def test_tables_are_made_by_whoever_may(database: str) -> None:
    """A process that may not says how."""
    ledger = Ledger(Database(database, "luma", "dbos"), "luma")
    with pytest.raises(ConfigurationError, match="luma-poll fleet migrate"):
        ledger.prepare(make=False)
    ledger.prepare()
    ledger.prepare(make=False)
    ledger.database.close()


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_worker_needs_no_rights_on_the_schema(database: str) -> None:
    """Whoever owns the tables makes them; a worker only reads and writes."""
    owner = Database(database, "luma", "dbos")
    Ledger(owner, "luma").prepare()
    with owner.transaction() as (connection, _):
        for statement in (
            "DROP ROLE IF EXISTS worker",
            "CREATE ROLE worker LOGIN",
            "GRANT USAGE ON SCHEMA dbos TO worker",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dbos TO worker",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA dbos TO worker",
        ):
            connection.execute(sa.text(statement))
    opened = Database(database.replace("postgres@", "worker@"), "luma", "dbos")
    ledger = Ledger(opened, "luma")
    ledger.prepare()
    ledger.beat("one", {})
    add(ledger, "a", callback="https://example.com/hook")
    wait = ledger.accept(turn(ledger, "p-1"), "one", "id-1")
    assert wait is not None
    ledger.end_wait(wait, *end_of(Generation(id="id-1", state="completed")))
    assert ledger.waiting_callbacks() == 1
    other = Ledger(Database(opened.engine.url, "shop", "dbos"), "shop")
    with pytest.raises(FleetDatabaseError) as caught:
        other.prepare()
    assert not caught.value.retryable
    for each in (owner, opened, other.database):
        each.close()
