"""Nothing that the database raises ends a submission, is taken for its end, or is called twice."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tenacity import wait_fixed

from luma_poll import LumaClient
from luma_poll._fleet import engine
from luma_poll._fleet.engine import Database
from luma_poll._fleet.ledger import Ledger
from luma_poll.dbos import Fleet, FleetDatabaseError
from luma_poll.sandbox import Sandbox

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

CLASSES = [
    sa.exc.InterfaceError,
    sa.exc.DatabaseError,
    sa.exc.DataError,
    sa.exc.OperationalError,
    sa.exc.IntegrityError,
    sa.exc.InternalError,
    sa.exc.ProgrammingError,
    sa.exc.NotSupportedError,
]
CALLS = [
    "is_waiting",
    "take_turn",
    "accept",
    "learn",
    "end_wait",
    "claim_waits",
    "owned",
    "beat",
    "sweep",
    "look",
    "due_callbacks",
    "leave",
]


@asynccontextmanager
async def working(tmp_path: Path) -> AsyncIterator[tuple[Fleet, Sandbox]]:
    sandbox = Sandbox(speed=100, seed=1)
    async with sandbox.serve() as base_url:
        fleet = Fleet(
            lambda: LumaClient("key", base_url=base_url),
            database=f"sqlite:///{tmp_path}/fleet.db",
            wait=wait_fixed(0.05),
            heartbeat=0.05,
            patience=5.0,
        )
        await fleet.migrate()
        async with fleet:
            yield fleet, sandbox


def failing(call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
    """The call, which fails once with each class; before or after the database has done it."""
    left = list(CLASSES)

    def fail(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        if not left:
            return call(self, *args, **kwargs)
        if after:
            call(self, *args, **kwargs)
        with self.database.transaction():
            raise left.pop()("", {}, Exception("of a test"))

    return fail


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", CALLS)
async def test_no_error_of_the_database_ends_anything(
    name: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its class is, at whichever call; also if only the answer was lost."""
    monkeypatch.setattr(engine, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr("luma_poll._fleet.sender.AFTER_TROUBLE", 0.01)
    monkeypatch.setattr("luma_poll.dbos.RESULT_INTERVAL", 0.02)
    async with working(tmp_path) as (fleet, sandbox):
        monkeypatch.setattr(Ledger, name, failing(getattr(Ledger, name), after=after))
        handles = [await fleet.submit("a fox", key=f"k-{n}", timeout=30) for n in range(3)]
        ends = await asyncio.gather(*(each.result(timeout=30) for each in handles))
        assert {end.state for end in ends} == {"completed"}
        assert sandbox.calls["POST /generations"] == 3
        assert await fleet.entries("unknown") == []


class PostgresError(Exception):
    """An error with a code, as psycopg raises it."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("of a test")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "retryable"),
    [
        *[(code, True) for code in ("25006", "57P01", "08006", "40001", "53300", "55P03", "XX000")],
        *[(code, False) for code in ("42501", "3D000", "28P01", "22021", "23505")],
    ],
)
async def test_errors_are_judged_by_their_codes(
    sqlstate: str, retryable: bool, tmp_path: Path
) -> None:
    """Those of a failover pass; those of rights, names and passwords do not."""
    database = Database(f"sqlite:///{tmp_path}/fleet.db", "luma", None)
    with pytest.raises(FleetDatabaseError) as caught, database.transaction():
        raise sa.exc.DBAPIError("SELECT secret", {"key": "secret"}, PostgresError(sqlstate))
    assert (caught.value.retryable, caught.value.sqlstate) == (retryable, sqlstate)
    assert "secret" not in str(caught.value)
    database.close()
