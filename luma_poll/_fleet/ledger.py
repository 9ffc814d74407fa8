"""The two tables of a fleet: who may submit what, and who is alive.

They stand beside DBOS's own tables. All functions block: they are called in a thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

NOTHING_ACCEPTED = ""
"""In place of an id: it is certain that the API accepted nothing, so it may be submitted."""
OUT_OF_REACH = (OperationalError, InterfaceError, PoolTimeoutError)
"""What a call raises when the database is out of reach. It may be called again."""

_metadata = sa.MetaData()

_submissions = sa.Table(
    "luma_submissions",
    _metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("permit", sa.Text, nullable=False),  # of the one call that may send it
    sa.Column("generation_id", sa.Text),
    sa.Column("accepted_at", sa.Float),  # seconds since 1970
    sa.Column("unknown", sa.Boolean, nullable=False),  # somebody has been told that it is
)
sa.Index(
    "luma_submissions_unknown",
    _submissions.c.queue,
    postgresql_where=_submissions.c.unknown,
    sqlite_where=_submissions.c.unknown,
)
_workers = sa.Table(
    "luma_workers",
    _metadata,
    sa.Column("executor_id", sa.Text, primary_key=True),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("beat", sa.Integer, nullable=False),  # it counts up; 0: it has left
)


@dataclass(frozen=True, slots=True)
class Permit:
    """It may be sent, by this call alone, once."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The API has accepted it.

    Attributes:
        generation_id: The id.
        at: When, in seconds since 1970.
    """

    generation_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Unknown:
    """Another call had the permit, and has not said what became of it."""


@dataclass(frozen=True, slots=True)
class Late:
    """News of a submission that had been called unknown.

    Attributes:
        key: Its key.
        attempt: Which attempt, from 1.
        generation_id: The id, or `NOTHING_ACCEPTED`.
    """

    key: str
    attempt: int
    generation_id: str


class Ledger:
    """The tables in one database.

    Args:
        engine: Of the database, PostgreSQL or SQLite.
        schema: The schema of the tables; None for SQLite, which has none.
        queue: Of the fleet.
    """

    def __init__(self, engine: sa.Engine, schema: str | None, queue: str) -> None:
        self._engine = engine.execution_options(schema_translate_map={None: schema})
        self._queue = queue
        dialect: Any = postgresql if engine.dialect.name == "postgresql" else sqlite
        self._insert = dialect.insert

    def create_tables(self) -> None:
        """Make the tables, unless they exist."""
        try:
            _metadata.create_all(self._engine)
        except DBAPIError:  # another process makes them at the same moment
            time.sleep(0.1)
            _metadata.create_all(self._engine)

    def claim(self, key: str, attempt: int, permit: str) -> Permit | Accepted | Unknown:
        """Ask for the permit to submit. It is given once; the row is there before any POST.

        Args:
            key: The key of the submission.
            attempt: Which attempt, from 1.
            permit: A random text that this call alone has.
        """
        mine = {
            "key": key,
            "attempt": attempt,
            "queue": self._queue,
            "permit": permit,
            "unknown": False,
        }
        at = _row(key, attempt)
        with self._engine.begin() as connection:
            insert = self._insert(_submissions).values(mine).on_conflict_do_nothing()
            # Not its rowcount, which is -1 after an INSERT.
            if connection.execute(insert.returning(_submissions.c.key)).first() is not None:
                return Permit()
            again = (
                sa.update(_submissions)
                .where(at, _submissions.c.generation_id == NOTHING_ACCEPTED)
                .values(permit=permit, generation_id=None, unknown=False)
            )
            if connection.execute(again).rowcount:
                return Permit()
            # Not read and then written: an id may be recorded in between.
            unknown = (
                sa.update(_submissions)
                .where(at, _submissions.c.generation_id.is_(None), _submissions.c.permit != permit)
                .values(unknown=True)
            )
            if connection.execute(unknown).rowcount:
                return Unknown()
            row = connection.execute(sa.select(_submissions).where(at)).one()
        if row.generation_id:
            return Accepted(row.generation_id, row.accepted_at)
        return Permit()  # the answer to the INSERT was lost on its way, and this call tried again

    def accept(self, key: str, attempt: int, permit: str, accepted: Accepted) -> bool:
        """Record what the API gave for a permit, even if it has been called unknown by now."""
        return self._settle(key, attempt, permit, accepted.generation_id, accepted.at)

    def release(self, key: str, attempt: int, permit: str) -> bool:
        """Give a permit back: it is certain that the API accepted nothing."""
        return self._settle(key, attempt, permit, NOTHING_ACCEPTED, None)

    def _settle(
        self, key: str, attempt: int, permit: str, generation_id: str, at: float | None
    ) -> bool:
        held = _row(key, attempt), _submissions.c.permit == permit
        return self._updates(*held, generation_id=generation_id, accepted_at=at)

    def give_up(self, key: str, attempt: int, permit: str) -> bool:
        """Record that the call that had the permit does not know what became of it."""
        held = _row(key, attempt), _submissions.c.permit == permit
        return self._updates(*held, unknown=True)

    def resolve(self, key: str, generation_id: str, *, known: bool) -> bool:
        """Record what somebody says of the last attempt of a key; False if there is none.

        Args:
            key: The key.
            generation_id: The id, or `NOTHING_ACCEPTED`.
            known: Also where an id is known already.
        """
        last = sa.select(sa.func.max(_submissions.c.attempt)).where(_submissions.c.key == key)
        where = [_submissions.c.key == key, _submissions.c.attempt == last.scalar_subquery()]
        if not known:
            no_id = sa.func.coalesce(_submissions.c.generation_id, NOTHING_ACCEPTED)
            where.append(no_id == NOTHING_ACCEPTED)
        return self._updates(
            *where, generation_id=generation_id, accepted_at=time.time(), unknown=True
        )

    def late(self) -> list[Late]:
        """The news of submissions that had been called unknown."""
        columns = _submissions.c.key, _submissions.c.attempt, _submissions.c.generation_id
        where = self._called_unknown(), _submissions.c.generation_id.is_not(None)
        with self._engine.begin() as connection:
            return [Late(*row) for row in connection.execute(sa.select(*columns).where(*where))]

    def healed(self, late: Late) -> bool:
        """Whoever was told that it is unknown has been told more."""
        where = _row(late.key, late.attempt), _submissions.c.generation_id == late.generation_id
        return self._updates(*where, unknown=False)

    def unknown(self) -> list[str]:
        """The keys whose submission is unknown, in their order."""
        key = _submissions.c.key
        where = self._called_unknown(), _submissions.c.generation_id.is_(None)
        with self._engine.begin() as connection:
            return list(connection.execute(sa.select(key).where(*where).order_by(key)).scalars())

    def _called_unknown(self) -> sa.ColumnElement[bool]:
        return sa.and_(_submissions.c.unknown, _submissions.c.queue == self._queue)

    def beat(self, executor_id: str) -> dict[str, int]:
        """Say that this worker is alive; returns the beats of all workers of the queue."""
        mine = {"executor_id": executor_id, "queue": self._queue, "beat": 1}
        beat = self._insert(_workers).values(mine)
        beat = beat.on_conflict_do_update(
            index_elements=["executor_id"],
            set_={"beat": _workers.c.beat + 1, "queue": self._queue},
        )
        everybody = sa.select(_workers.c.executor_id, _workers.c.beat)
        with self._engine.begin() as connection:
            connection.execute(beat)
            rows = connection.execute(everybody.where(_workers.c.queue == self._queue))
            return {row.executor_id: row.beat for row in rows}

    def leave(self, executor_id: str) -> None:
        """Say that this worker has stopped, so that another one takes over at once."""
        left = sa.update(_workers).where(_workers.c.executor_id == executor_id).values(beat=0)
        with self._engine.begin() as connection:
            connection.execute(left)

    def bury(self, executor_id: str, beat: int) -> bool:
        """Remove a worker that has not beaten since; True for the one caller who takes over."""
        dead = _workers.c.executor_id == executor_id, _workers.c.beat == beat
        with self._engine.begin() as connection:
            return bool(connection.execute(sa.delete(_workers).where(*dead)).rowcount)

    def _updates(self, *where: sa.ColumnElement[bool], **values: Any) -> bool:
        with self._engine.begin() as connection:
            update = sa.update(_submissions).where(*where).values(**values)
            return bool(connection.execute(update).rowcount)


def _row(key: str, attempt: int) -> sa.ColumnElement[bool]:
    return sa.and_(_submissions.c.key == key, _submissions.c.attempt == attempt)
