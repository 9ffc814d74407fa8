"""`luma-poll fleet` in this process: what an operator asks and says, on SQLite."""

import json
from functools import partial
from pathlib import Path

import anyio
import pytest

from tests.cli.support import Cli

pytest.importorskip("dbos", reason="DBOS is not installed: pip install luma-poll[dbos]")

from luma_poll.dbos import Fleet


@pytest.fixture
def database(tmp_path: Path, cli: Cli) -> str:
    """The URL of the database of a fleet, with two submissions that no worker has taken."""
    url = f"sqlite:///{tmp_path}/fleet.db"
    assert cli("fleet", "migrate", url).code == 0

    async def submit() -> None:
        fleet = Fleet(database=url)
        await fleet.submit("a red fox", key="fox")
        await fleet.submit("a grey owl", key="owl")

    anyio.run(submit)
    return url


def test_a_status_for_people_and_for_programs(cli: Cli, database: str) -> None:
    """The mode, the limits, and how many are in which state."""
    out = cli("fleet", "status", database).out.splitlines()
    assert "fleet\tluma" in out
    assert "queued\t2" in out
    assert "max_running\tno limit" in out
    assert json.loads(cli("fleet", "status", database, "--json").out)["counts"]["queued"] == 2


def test_the_submissions_are_listed(cli: Cli, database: str) -> None:
    """All of them or those of one state, as lines or as JSON."""
    lines = cli("fleet", "list", database).out.splitlines()
    assert sorted(line.split("\t")[:2] for line in lines) == [["queued", "fox"], ["queued", "owl"]]
    assert cli("fleet", "list", database, "--state", "unknown").out == ""
    first = json.loads(cli("fleet", "list", database, "--json").out.splitlines()[0])
    assert first["state"] == "queued"
    assert first["updated_at"]


def test_a_fleet_is_paused_drained_and_resumed(cli: Cli, database: str) -> None:
    """Each is a state that the status shows, with its reason."""
    told = partial(cli, "fleet", "status", database)
    assert cli("fleet", "pause", database, "--why", "a change of keys").code == 0
    assert "mode\tpaused\ta change of keys" in told().out
    assert cli("fleet", "drain", database).code == 0
    assert "mode\tdrain" in told().out
    assert cli("fleet", "resume", database).code == 0
    assert "paused" not in told().out


def test_limits_are_changed_and_lifted(cli: Cli, database: str) -> None:
    """A number or none; anything else is refused."""
    limits = partial(cli, "fleet", "limits", database)
    assert limits("--max-running", "7", "--max-rate", "2.5").code == 0
    out = cli("fleet", "status", database).out
    assert "max_running\t7\n" in out
    assert "max_rate\t2.5\n" in out
    assert limits("--max-running", "none").code == 0
    assert "max_running\tno limit\n" in cli("fleet", "status", database).out
    code, _, err = limits("--max-running", "many")
    assert code == 2
    assert "max_running must be a number or none" in err


def test_what_was_not_sent_is_cancelled_and_forgotten(cli: Cli, database: str) -> None:
    """Exit code 1 says that one was not queued; a forgotten key stays taken."""
    code, _, err = cli("fleet", "cancel", "fox", "never", "--database", database)
    assert code == 1
    assert "fox: cancelled." in err
    assert "never: not queued" in err
    assert cli("fleet", "cancel", "owl", "--database", database).code == 0
    told = cli("fleet", "forget", database, "--before", "0d").err
    assert told.startswith("Forgot 2 submissions that ended before")
    assert cli("fleet", "forget", database, "--before", "yesterday").code == 2
    assert cli("fleet", "forget", database, "--before", "2020-01-01").err.startswith("Forgot 0 ")


def test_what_has_not_ended_is_not_resolved(cli: Cli, database: str) -> None:
    """And the two ways to settle it exclude each other."""
    resolve = partial(cli, "fleet", "resolve", "fox", "--database", database)
    assert resolve().code == 2
    assert resolve("--resubmit").code == 2


def test_a_worker_without_a_database_says_so(cli: Cli, tmp_path: Path) -> None:
    """A misspelt path never makes a new database."""
    code, _, err = cli("worker", "--database", f"sqlite:///{tmp_path}/typo.db")
    assert code == 2
    assert "there is no database at" in err
    assert cli("worker", "--database", "").code == 2
