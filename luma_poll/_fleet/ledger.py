"""The statements of a fleet: its submissions, their outcomes, and the workers that are alive.

All of them block, are called in threads, and may be called again after their answer was lost.
Three rules keep the money safe:

- A row of `posts` is committed before a request is sent, and only the call that got its permit
  sends the request, once.
- The holder of a permit records the id on that row, however late, and whatever has happened to the
  submission meanwhile.
- Only an outcome moves a submission out of `submitting` or `running`. When a worker dies, its
  `submitting` ones become `unknown`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from luma_poll._api.outcomes import Accepted, NotAccepted, Outcome
from luma_poll._arguments import canonical_id
from luma_poll._fleet.capacity import account_of, facts_of
from luma_poll._fleet.ends import event_of, message_id, to_json, unknown
from luma_poll._fleet.engine import Database, FleetDatabaseError
from luma_poll._fleet.tables import SCHEMA
from luma_poll._running.account import Kind
from luma_poll._tasks.backoff import doubled
from luma_poll.errors import ConfigurationError

FleetState: TypeAlias = Literal[
    "queued",
    "submitting",
    "running",
    "completed",
    "failed",
    "refused",
    "overdue",
    "unknown",
    "cancelled",
]
Conditions: TypeAlias = tuple[sa.ColumnElement[bool], ...]
STATES: tuple[FleetState, ...] = get_args(FleetState)
UNDER_WAY = ("queued", "submitting", "running")
ENDED_FOR_GOOD = ("completed", "failed", "refused", "cancelled")

KEPT = 120.0
"""Seconds for which a refused request is kept, because it counts in its minute."""
MINUTE = 60.0
LONGEST_PAUSE = 30.0
"""The most seconds between two submissions while their outcomes are unknown."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a fleet. None means "no limit", or "unchanged" in a call that sets them.

    Attributes:
        max_running: The most generations under way at once.
        submissions_per_minute: The most submissions in any 60 seconds.
        max_rate: The most polls per second; inf for no limit.
    """

    max_running: int | None = None
    submissions_per_minute: int | None = None
    max_rate: float | None = None

    def __str__(self) -> str:
        def shown(value: float | None) -> str:
            return "no limit" if value is None or math.isinf(value) else f"{value:g}"

        return (
            f"max_running {shown(self.max_running)}, "
            f"submissions_per_minute {shown(self.submissions_per_minute)}, "
            f"max_rate {shown(self.max_rate)}"
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn of one submission: the caller may send it, once; nobody else may.

    Attributes:
        key: The key of the submission.
        attempt: The number of the attempt, from 1.
        permit: The permit.
        request: The parameters of `create`.
        kind: The kind of request, for the account.
        refused: How often in a row something that is not the API refused it.
    """

    key: str
    attempt: int
    permit: str
    request: Mapping[str, Any]
    kind: Kind
    refused: int


@dataclass(frozen=True, slots=True)
class Later:
    """The answer that nothing may be submitted now.

    Attributes:
        seconds: The seconds until that may change; inf if something has to happen first.
        why: The reason, for people; empty if nothing waits to be submitted.
    """

    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A generation to wait for.

    Attributes:
        key: The key of its submission.
        generation_id: The id.
        age: Seconds since the API accepted it, by the database's clock.
        timeout: Seconds that it may take since then; None for no limit.
        attempt: The number of the attempt, from 1.
        max_attempts: How many attempts there may be.
    """

    key: str
    generation_id: str
    age: float
    timeout: float | None
    attempt: int
    max_attempts: int


@dataclass(frozen=True, slots=True)
class Alive:
    """The answer to a beat.

    Attributes:
        beats: The beats of all workers.
        limits: The present limits.
        mode: `running`, `paused` or `draining`.
        why: The reason that an operator gave for the mode, or None.
        was_buried: True if this worker was not on the list: the others had taken it for dead.
        notes: The notes of each worker about itself.
    """

    beats: dict[str, int]
    limits: Limits
    mode: str
    why: str | None
    was_buried: bool
    notes: dict[str, dict[str, Any]]


class Ledger:
    """The statements on the tables of one fleet.

    Args:
        database: The database with the tables.
        name: The name of the fleet.
    """

    def __init__(self, database: Database, name: str) -> None:
        self.database = database
        self.name = name
        self._tables = database.tables
        self._rows = database.tables.submissions
        self._posts = database.tables.posts
        self._workers = database.tables.workers
        self._fleet = database.tables.fleet
        self._callbacks = database.tables.callbacks
        dialect: Any = postgresql if database.is_postgresql else sqlite
        self._insert = dialect.insert

    # The tables

    def prepare(self, *, make: bool = True) -> None:
        """Create the tables that are missing.

        Raises:
            ConfigurationError: They belong to a newer release, or are missing and `make` is False.
        """
        try:
            self._prepare(make)
        except FleetDatabaseError as error:
            # Several processes may create them at the same moment: all but one fail.
            if error.sqlstate not in ("23505", "42P07", "42710", "42P06", "40001") and (
                self.database.is_postgresql or "already exists" not in str(error)
            ):
                raise
            self._prepare(make)

    def _prepare(self, make: bool) -> None:
        metadata = self._tables.metadata
        with self.database.transaction() as (connection, _):
            inspector = sa.inspect(connection)
            schema = metadata.schema
            have = set(inspector.get_table_names(schema=schema))
            missing = [table for table in metadata.sorted_tables if table.name not in have]
            if missing and not make:
                raise ConfigurationError(
                    f"this database has no tables of the fleet {self.name!r}: "
                    "make them with luma-poll fleet migrate"
                )
            if missing:
                if schema is not None and schema not in inspector.get_schema_names():
                    connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
                metadata.create_all(connection, checkfirst=True)
                first = {
                    "id": 1,
                    "version": SCHEMA,
                    "max_rate": 30.0,
                    "mode": "running",
                    "account": "{}",
                    "refusals": 0,
                }
                connection.execute(self._insert(self._fleet).values(first).on_conflict_do_nothing())
            version = connection.execute(sa.select(self._fleet.c.version)).scalar_one()
        if version > SCHEMA:
            raise ConfigurationError(
                f"the tables of the fleet {self.name!r} are of a newer release: upgrade luma-poll"
            )

    # Those who submit

    def add(self, values: Mapping[str, Any]) -> bool:
        """Queue a submission; return False if one with other parameters has its key."""
        rows = self._rows
        with self.database.transaction() as (connection, now):
            given = {
                **values,
                "state": "queued",
                "attempt": 0,
                "refused": 0,
                "ends": 0,
                "due_at": now,
                "created_at": now,
                "updated_at": now,
            }
            connection.execute(
                self._insert(rows).values(given).on_conflict_do_nothing(index_elements=["key"])
            )
            found = connection.execute(
                sa.select(rows.c.digest).where(rows.c.key == values["key"])
            ).scalar_one()
            return bool(found == values["digest"])

    def look(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the rows of these keys, with the ids of their attempts if they have ended."""
        wanted = list(keys)
        found: dict[str, dict[str, Any]] = {}
        rows = self._rows
        columns = rows.c.key, rows.c.state, rows.c.end, rows.c.request
        with self.database.transaction() as (connection, _):
            for first in range(0, len(wanted), 500):
                some = wanted[first : first + 500]
                for row in connection.execute(sa.select(*columns).where(rows.c.key.in_(some))):
                    found[row.key] = {
                        "state": row.state,
                        "end": row.end and json.loads(row.end),
                        "request": row.request and json.loads(row.request),
                    }
                ended = [key for key in some if self._has_ended(found.get(key))]
                for key, ids in self._submitted(connection, ended).items():
                    found[key]["submitted"] = ids
        return found

    @staticmethod
    def _has_ended(row: Mapping[str, Any] | None) -> bool:
        return row is not None and row["state"] not in UNDER_WAY

    def _submitted(self, connection: sa.Connection, keys: Sequence[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {key: [] for key in keys}
        if keys:
            posts = self._posts.c
            chosen = sa.select(posts.key, posts.generation_id).where(
                posts.key.in_(keys), posts.generation_id.is_not(None)
            )
            for key, generation_id in connection.execute(
                chosen.order_by(posts.attempt, posts.begun_at)
            ):
                if generation_id not in found[key]:
                    found[key].append(generation_id)
        return found

    # Those who send

    def is_waiting(self) -> bool:
        """Return True if anything waits to be submitted, without taking a lock."""
        with self.database.transaction() as (connection, now):
            return self._next(connection, now) is not None

    def _next(self, connection: sa.Connection, now: float, *, lock: bool = False) -> Any:
        rows = self._rows
        chosen = (
            sa.select(rows)
            .where(rows.c.state == "queued", rows.c.due_at <= now)
            .order_by(rows.c.number)
            .limit(1)
        )
        if lock:
            chosen = chosen.with_for_update(skip_locked=True)
        return connection.execute(chosen).first()

    def take_turn(self, worker: str, permit: str) -> Turn | Later:
        """Give the permit for the next submission, if the limits and the account have room.

        Args:
            worker: The id of the worker.
            permit: A random text that no other call has.
        """
        rows, posts = self._rows, self._posts
        with self.database.transaction() as (connection, _):
            fleet = self._lock(connection)
            now = self.database.now(connection)
            # An earlier call with this permit may have succeeded, and its answer been lost.
            mine = connection.execute(
                sa.select(rows).where(rows.c.permit == permit, rows.c.state == "submitting")
            ).first()
            if mine is not None:
                return _turn(mine)
            if fleet.mode != "running":
                return Later(math.inf, f"the fleet is {fleet.mode}")
            if not self._lives(connection, worker):
                return Later(0.0, "this worker was taken for dead")
            row = self._next(connection, now, lock=True)
            if row is None:
                return Later(math.inf, "")
            running, in_flight = self._counts(connection)
            under_way = sum(running.values()) + sum(in_flight.values())
            if fleet.max_running is not None and under_way >= fleet.max_running:
                return Later(math.inf, "max_running are under way")
            if fleet.submissions_per_minute is not None:
                room = self._minute(connection, now, fleet.submissions_per_minute)
                if room > 0:
                    return Later(room, "submissions_per_minute")
            if (pause := self._after_unknowns(connection, now, in_flight)) > 0:
                return Later(pause, "it is not known what became of the last submissions")
            account = account_of(fleet.account, running, in_flight)
            kind = _kind(row.kind)
            at = account.may_submit_at(kind)
            if at > now:
                return Later(at - now, "the account is full, or its rate limit reached")
            attempt = row.attempt + 1
            connection.execute(
                sa.insert(posts).values(
                    permit=permit,
                    key=row.key,
                    attempt=attempt,
                    worker=worker,
                    begun_at=now,
                    refused=False,
                )
            )
            connection.execute(
                sa.update(rows)
                .where(rows.c.number == row.number)
                .values(
                    state="submitting",
                    attempt=attempt,
                    owner=worker,
                    permit=permit,
                    generation_id=None,
                    accepted_at=None,
                    updated_at=now,
                )
            )
            return _turn(row, attempt=attempt, permit=permit)

    def holds(self, turn: Turn) -> bool:
        """Return True if a permit is still valid: its worker was not taken for dead."""
        mine = sa.select(self._rows.c.key).where(*self._of(turn, "submitting"))
        with self.database.transaction() as (connection, _):
            return connection.execute(mine).first() is not None

    def accept(self, turn: Turn, worker: str, generation_id: str) -> Wait | None:
        """Record the id that the API gave for a permit.

        Returns:
            The wait for it, or None if the entry was settled otherwise meanwhile.
        """
        rows = self._rows
        with self.database.transaction() as (connection, now):
            self._end_post(connection, turn, ended_at=now, generation_id=generation_id)
            connection.execute(
                sa.update(rows)
                .where(*self._of(turn, "submitting", "unknown"))
                .values(
                    state="running",
                    owner=worker,
                    generation_id=generation_id,
                    accepted_at=now,
                    refused=0,
                    end=None,
                    updated_at=now,
                )
            )
            # Not from the update: an earlier call, whose answer was lost, may have made it.
            mine = rows.c.key == turn.key, rows.c.permit == turn.permit
            done = sa.select(*self._of_waits).where(*mine, rows.c.generation_id == generation_id)
            row = connection.execute(done).first()
            return None if row is None else _wait(row, now)

    def hand_back(self, turn: Turn, *, pause: float = 0.0, refused: bool = False) -> None:
        """Record that it was certainly not accepted, so that it waits for another turn.

        Args:
            turn: The turn.
            pause: Seconds until it may have the next one.
            refused: True to count a refusal by something that is not the API.
        """
        with self.database.transaction() as (connection, now):
            self._hand_back(connection, now, turn, pause, refused)

    def _hand_back(
        self, connection: sa.Connection, now: float, turn: Turn, pause: float, refused: bool
    ) -> None:
        self._end_post(connection, turn, ended_at=now, refused=True)
        connection.execute(
            sa.update(self._rows)
            .where(*self._of(turn, "submitting", "unknown"))
            .values(
                state="queued",
                attempt=turn.attempt - 1,
                owner=None,
                permit=None,
                due_at=now + pause,
                refused=turn.refused + 1 if refused else 0,
                end=None,
                updated_at=now,
            )
        )

    def refuse(self, turn: Turn, outcome: NotAccepted) -> bool:
        """Record a 429, and let the account learn from it before anyone gets the next turn.

        Returns:
            False if the account never takes such a request: then it does not wait for a turn.
        """
        with self.database.transaction() as (connection, _):
            fleet = self._lock(connection)
            now = self.database.now(connection)
            account = account_of(fleet.account, *self._counts(connection))
            if account._in_flight[turn.kind]:
                account.end(turn.kind, outcome, now)
            connection.execute(
                sa.update(self._fleet).values(
                    account=facts_of(account), refusals=fleet.refusals + 1
                )
            )
            if account.cannot_fit(turn.kind):
                return False
            self._hand_back(connection, now, turn, 0.0, False)
            return True

    def end_unsent(self, turn: Turn, state: str, end: str) -> None:
        """Record that a submission was certainly not accepted, and never will be."""
        with self.database.transaction() as (connection, now):
            self._end_post(connection, turn, ended_at=now, refused=True)
            self._end(connection, now, self._of(turn, "submitting", "unknown"), state, end)

    def lose(self, turn: Turn) -> None:
        """Record that a submission may have been accepted."""
        with self.database.transaction() as (connection, now):
            self._end_post(connection, turn, ended_at=now, refused=False)
            self._end(connection, now, self._of(turn, "submitting"), "unknown")

    def _of(self, turn: Turn, *states: FleetState) -> Conditions:
        """Return the conditions for the row of a turn, in one of these states."""
        rows = self._rows.c
        return rows.key == turn.key, rows.permit == turn.permit, rows.state.in_(states)

    def _end_post(self, connection: sa.Connection, turn: Turn, **values: Any) -> None:
        posts = self._posts
        connection.execute(sa.update(posts).where(posts.c.permit == turn.permit).values(**values))

    def learn(self, turn: Turn, outcome: Outcome) -> None:
        """Let the account learn from an outcome that is already on record."""
        with self.database.transaction() as (connection, _):
            fleet = self._lock(connection)
            now = self.database.now(connection)
            running, in_flight = self._counts(connection)
            # The counts from before the outcome, because `Account.end` applies it to them.
            in_flight[turn.kind] = in_flight.get(turn.kind, 0) + 1
            if isinstance(outcome, Accepted):
                running[turn.kind] = max(running.get(turn.kind, 0) - 1, 0)
            account = account_of(fleet.account, running, in_flight)
            account.end(turn.kind, outcome, now)
            connection.execute(sa.update(self._fleet).values(account=facts_of(account)))

    def _lock(self, connection: sa.Connection) -> Any:
        """Lock and return the fleet's row, so that one worker at a time decides on turns."""
        return connection.execute(sa.select(self._fleet).with_for_update()).one()

    def _lives(self, connection: sa.Connection, worker: str) -> bool:
        there = sa.select(self._workers.c.id).where(self._workers.c.id == worker)
        return connection.execute(there).first() is not None

    def _counts(self, connection: sa.Connection) -> tuple[dict[Kind, int], dict[Kind, int]]:
        rows = self._rows.c
        counted = (
            sa.select(rows.state, rows.kind, sa.func.count())
            .where(rows.state.in_(("submitting", "running")))
            .group_by(rows.state, rows.kind)
        )
        found: dict[str, dict[Kind, int]] = {"submitting": {}, "running": {}}
        for state, kind, number in connection.execute(counted):
            found[state][_kind(kind)] = number
        return found["running"], found["submitting"]

    def _minute(self, connection: sa.Connection, now: float, limit: int) -> float:
        """Return the seconds until another request may be sent; 0 for now.

        A request counts until a minute after its answer. It reached the API before the answer, so
        no minute by the API's clock has more requests, however slow the network is.
        """
        posts = self._posts.c
        counting = sa.or_(posts.ended_at.is_(None), posts.ended_at > now - MINUTE)
        recent = sa.select(posts.ended_at).where(counting).order_by(posts.ended_at)
        ended = list(connection.execute(recent).scalars())
        if len(ended) < limit:
            return 0.0
        leaves = sorted(now if at is None else at for at in ended)[len(ended) - limit]
        return max(leaves + MINUTE - now, 0.01)

    def _after_unknowns(
        self, connection: sa.Connection, now: float, in_flight: Mapping[Kind, int]
    ) -> float:
        """Return the seconds until one submission may test whether the API answers; 0 for now.

        Each one without an answer may be billed. So all workers that are alive send one at a time
        between them, at growing intervals.
        """
        posts = self._posts.c
        accepted = sa.select(sa.func.max(posts.ended_at)).where(posts.generation_id.is_not(None))
        answered = connection.execute(accepted).scalar() or 0.0
        unknown = sa.select(sa.func.count(), sa.func.max(posts.ended_at)).where(
            posts.ended_at > answered,
            posts.generation_id.is_(None),
            sa.not_(posts.refused),
            posts.worker.in_(sa.select(self._workers.c.id)),
        )
        number, last = connection.execute(unknown).one()
        if not number:
            return 0.0
        if sum(in_flight.values()):
            return math.inf
        opens = float(last) + doubled(int(number), 1.0, LONGEST_PAUSE)
        return max(0.0, opens - now)

    # Those who wait

    def claim_waits(self, worker: str, most: int) -> list[Wait]:
        """Take over running generations for which no worker waits."""
        rows = self._rows
        with self.database.transaction() as (connection, now):
            free = (
                sa.select(rows.c.number)
                .where(rows.c.state == "running", rows.c.owner.is_(None))
                .order_by(rows.c.number)
                .limit(most)
                .with_for_update(skip_locked=True)
            )
            taken = (
                sa.update(rows)
                .where(rows.c.number.in_(free))
                .values(owner=worker)
                .returning(*self._of_waits)
            )
            return [_wait(row, now) for row in connection.execute(taken)]

    def owned(self, worker: str) -> tuple[list[Wait], dict[str, str]]:
        """Return the waits of a worker, and the permits of its submissions with their keys."""
        rows = self._rows
        with self.database.transaction() as (connection, now):
            mine = sa.select(*self._of_waits, rows.c.permit, rows.c.state).where(
                rows.c.owner == worker
            )
            found = connection.execute(mine).all()
        waits = [_wait(row, now) for row in found if row.state == "running"]
        return waits, {row.permit: row.key for row in found if row.state == "submitting"}

    @property
    def _of_waits(self) -> tuple[sa.ColumnElement[Any], ...]:
        rows = self._rows.c
        return (
            rows.key,
            rows.generation_id,
            rows.accepted_at,
            rows.timeout,
            rows.attempt,
            rows.max_attempts,
        )

    def end_wait(self, wait: Wait, state: str, end: str) -> None:
        """Record the end of a generation, or the reason to stop waiting for it."""
        with self.database.transaction() as (connection, now):
            self._end(connection, now, self._runs(wait), state, end)

    def try_again(self, wait: Wait, pause: float) -> None:
        """Queue the next attempt of a generation that failed."""
        with self.database.transaction() as (connection, now):
            connection.execute(
                sa.update(self._rows)
                .where(*self._runs(wait))
                .values(state="queued", owner=None, permit=None, due_at=now + pause, updated_at=now)
            )

    def _runs(self, wait: Wait) -> Conditions:
        # The first worker to see the end counts; one that was stopped for a while changes nothing.
        rows = self._rows.c
        return (
            rows.key == wait.key,
            rows.state == "running",
            rows.generation_id == wait.generation_id,
        )

    def _end(
        self,
        connection: sa.Connection,
        now: float,
        where: Conditions,
        state: str,
        end: str | None = None,
    ) -> int:
        """End submissions and announce it to their callbacks; an unknown one may still get an end.

        Returns:
            The number of submissions that it ended.
        """
        rows = self._rows
        values = {"state": state, "owner": None, "ends": rows.c.ends + 1, "updated_at": now}
        ended = connection.execute(
            sa.update(rows)
            .where(*where)
            .values(values if end is None else {**values, "end": end})
            .returning(rows.c.key, rows.c.callback, rows.c.ends)
        ).all()
        for row in ended:
            what = to_json(unknown(row.key, {})) if end is None else json.loads(end)
            self._announce(connection, now, row, state, what)
        return len(ended)

    def _announce(
        self,
        connection: sa.Connection,
        now: float,
        row: Any,
        state: str,
        end: Mapping[str, Any],
    ) -> None:
        if row.callback is None:
            return
        submitted = self._submitted(connection, [row.key])[row.key]
        message = {
            "id": message_id(self.name, row.key, row.ends),
            "key": row.key,
            "url": row.callback,
            "host": urlsplit(row.callback).netloc.lower(),
            "event": json.dumps(event_of(row.key, state, end, submitted, now)),
            "state": "due",
            "tries": 0,
            "due_at": now,
        }
        connection.execute(self._insert(self._callbacks).values(message).on_conflict_do_nothing())

    # Those who call

    def due_callbacks(
        self, most: int, each_host: int, busy: Mapping[str, int], lease: float
    ) -> list[dict[str, Any]]:
        """Take callbacks that are due. Without a result they are due again after the lease.

        Args:
            most: The most callbacks to take.
            each_host: The most for one host, including calls under way.
            busy: The number of calls under way to each host.
            lease: The lease in seconds.
        """
        calls = self._callbacks
        full = [host for host, number in busy.items() if number >= each_host]
        with self.database.transaction() as (connection, now):
            place = sa.func.row_number().over(
                partition_by=calls.c.host, order_by=(calls.c.due_at, calls.c.id)
            )
            due = sa.select(calls.c.id, calls.c.host, place.label("place")).where(
                calls.c.state == "due", calls.c.due_at <= now, calls.c.host.not_in(full)
            )
            ranked = due.subquery()
            chosen = (
                sa.select(ranked.c.id, ranked.c.host)
                .where(ranked.c.place <= each_host)
                .order_by(ranked.c.place)
                .limit(most)
            )
            left = dict(busy)
            ids = []
            for row in connection.execute(chosen):
                left[row.host] = left.get(row.host, 0) + 1
                if left[row.host] <= each_host:
                    ids.append(row.id)
            if not ids:
                return []
            free = (
                sa.select(calls.c.id)
                .where(calls.c.id.in_(ids), calls.c.due_at <= now, calls.c.state == "due")
                .with_for_update(skip_locked=True)
            )
            taken = (
                sa.update(calls)
                .where(calls.c.id.in_(free))
                .values(due_at=now + lease, tries=calls.c.tries + 1)
                .returning(*calls.c)
            )
            return [dict(row._mapping) for row in connection.execute(taken)]

    def waiting_callbacks(self) -> int:
        """Count the callbacks that are due now."""
        calls = self._callbacks.c
        with self.database.transaction() as (connection, now):
            due = sa.select(sa.func.count()).where(calls.state == "due", calls.due_at <= now)
            return int(connection.execute(due).scalar_one())

    def called(self, message: str, state: str, last: str, pause: float = 0.0) -> None:
        """Record the result of a call: its final state, or that it is due again after a pause."""
        calls = self._callbacks
        with self.database.transaction() as (connection, now):
            connection.execute(
                sa.update(calls)
                .where(calls.c.id == message, calls.c.state == "due")
                .values(state=state, last=last, due_at=now + pause)
            )

    # Those who are alive

    def beat(self, worker: str, notes: Mapping[str, Any]) -> Alive:
        """Record that this worker is alive; return what it has to know about the others."""
        workers = self._workers
        with self.database.transaction() as (connection, now):
            was_there = self._lives(connection, worker)
            mine = {
                "id": worker,
                "beat": 1,
                "beat_at": now,
                "started_at": now,
                "notes": json.dumps(notes),
            }
            connection.execute(
                self._insert(workers)
                .values(mine)
                .on_conflict_do_update(
                    index_elements=["id"],
                    set_={"beat": workers.c.beat + 1, "beat_at": now, "notes": mine["notes"]},
                )
            )
            found = connection.execute(sa.select(workers.c.id, workers.c.beat, workers.c.notes))
            beats, told = {}, {}
            for row in found:
                beats[row.id] = row.beat
                told[row.id] = json.loads(row.notes)
            fleet = connection.execute(sa.select(self._fleet)).one()
        return Alive(beats, _limits(fleet), fleet.mode, fleet.why, not was_there, told)

    def bury(self, worker: str, beat: int) -> tuple[int, int] | None:
        """Remove a worker whose beat is still this one, and free what it had.

        Returns:
            The number of running generations that it left, and of its submissions that are now
            unknown; None if another caller was faster, or the worker beat again.
        """
        workers = self._workers.c
        with self.database.transaction() as (connection, now):
            dead = sa.delete(self._workers).where(workers.id == worker, workers.beat == beat)
            if not connection.execute(dead).rowcount:
                return None
            return self._orphan(connection, now, self._rows.c.owner == worker)

    def sweep(self) -> tuple[int, int]:
        """Free what belongs to workers that are not on the list, and delete old refused rows."""
        rows, posts = self._rows, self._posts
        with self.database.transaction() as (connection, now):
            everybody = sa.select(self._workers.c.id)
            homeless = sa.and_(rows.c.owner.is_not(None), rows.c.owner.not_in(everybody))
            old = posts.c.ended_at < now - KEPT, posts.c.refused
            connection.execute(sa.delete(posts).where(*old))
            return self._orphan(connection, now, homeless)

    def _orphan(
        self, connection: sa.Connection, now: float, whose: sa.ColumnElement[bool]
    ) -> tuple[int, int]:
        rows, posts = self._rows, self._posts
        permits = sa.select(rows.c.permit).where(whose, rows.c.state == "submitting")
        connection.execute(
            sa.update(posts)
            .where(posts.c.permit.in_(permits), posts.c.ended_at.is_(None))
            .values(ended_at=now)
        )
        unknown = self._end(connection, now, (whose, rows.c.state == "submitting"), "unknown")
        left = connection.execute(
            sa.update(rows).where(whose, rows.c.state == "running").values(owner=None)
        )
        return left.rowcount, unknown

    def withdraw(self, permits: Sequence[str]) -> None:
        """Take back submissions begun with permits that were never used and never will be."""
        rows, posts = self._rows, self._posts
        with self.database.transaction() as (connection, now):
            connection.execute(sa.delete(posts).where(posts.c.permit.in_(permits)))
            connection.execute(
                sa.update(rows)
                .where(rows.c.permit.in_(permits), rows.c.state == "submitting")
                .values(
                    state="queued",
                    attempt=rows.c.attempt - 1,
                    owner=None,
                    permit=None,
                    updated_at=now,
                )
            )

    def last_id(self) -> str | None:
        """Return the id of a running generation, or None."""
        rows = self._rows.c
        ids = sa.select(rows.generation_id).where(rows.state == "running").limit(1)
        with self.database.transaction() as (connection, _):
            found: str | None = connection.execute(ids).scalar()
        return found

    def leave(self, worker: str) -> None:
        """Record that this worker has stopped, so that the others take over at once."""
        with self.database.transaction() as (connection, now):
            self._orphan(connection, now, self._rows.c.owner == worker)
            connection.execute(sa.delete(self._workers).where(self._workers.c.id == worker))

    # Those who look after it

    def set_limits(self, limits: Limits, *, lift: Iterable[str] = ()) -> tuple[Limits, Limits]:
        """Set the limits that are given; return the limits before and after.

        Args:
            limits: The new limits; None leaves one unchanged.
            lift: The names of the limits to remove.
        """
        names = ("max_running", "submissions_per_minute", "max_rate")
        given = {name: getattr(limits, name) for name in names}
        values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        values |= {name: math.inf if name == "max_rate" else None for name in lift}
        with self.database.transaction() as (connection, _):
            before = _limits(self._lock(connection))
            if values:
                connection.execute(sa.update(self._fleet).values(values))
            return before, _limits(connection.execute(sa.select(self._fleet)).one())

    def set_mode(self, mode: str, why: str | None) -> None:
        """Pause, drain or resume the fleet."""
        with self.database.transaction() as (connection, _):
            connection.execute(sa.update(self._fleet).values(mode=mode, why=why))

    def entries(self, state: str | None, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return the submissions in a state, in the order they were made."""
        rows = self._rows
        chosen = sa.select(rows).order_by(rows.c.number)
        if state is not None:
            chosen = chosen.where(rows.c.state == state)
        if keys is not None:
            chosen = chosen.where(rows.c.key.in_(keys))
        with self.database.transaction() as (connection, _):
            found = [dict(row._mapping) for row in connection.execute(chosen)]
            for first in range(0, len(found), 500):
                some = found[first : first + 500]
                ids = self._submitted(connection, [each["key"] for each in some])
                for each in some:
                    each["submitted"] = ids[each["key"]]
        return found

    def resolve(self, keys: Sequence[str], generation_id: str | None) -> None:
        """Settle submissions that ended without a generation's end, as an operator decided.

        Args:
            keys: Their keys.
            generation_id: The id to wait for, or None to submit them again.

        Raises:
            ConfigurationError: One of them cannot be settled. Then none is changed.
        """
        rows, posts = self._rows, self._posts
        with self.database.transaction() as (connection, now):
            if generation_id is not None:
                known = posts.c.generation_id.in_({generation_id, canonical_id(generation_id)})
                others = sa.select(posts.c.key).where(known, posts.c.key.not_in(keys))
                if (owner := connection.execute(others.limit(1)).scalar()) is not None:
                    raise ConfigurationError(
                        f"generation {generation_id} belongs to the submission {owner!r}"
                    )
            for key in keys:
                row = connection.execute(
                    sa.select(rows).where(rows.c.key == key).with_for_update()
                ).first()
                if row is None:
                    raise ConfigurationError(f"no submission has the key {key!r}")
                if row.state not in ("unknown", "refused", "overdue"):
                    raise ConfigurationError(
                        f"the submission {key!r} cannot be resolved: it is {row.state}, and only "
                        "an unknown, refused or overdue one can be"
                    )
                if row.generation_id is not None and generation_id is None:
                    raise ConfigurationError(
                        f"the id of the submission {key!r} is known: give it as generation_id, to "
                        "wait for it again"
                    )
                if row.request is None:
                    raise ConfigurationError(f"the submission {key!r} is forgotten")
                values: dict[str, Any] = {"owner": None, "end": None, "updated_at": now}
                if generation_id is None:
                    values |= {"state": "queued", "permit": None, "due_at": now, "refused": 0}
                    values["attempt"] = max(row.attempt - 1, 0)
                else:
                    values |= {"state": "running", "generation_id": generation_id}
                    values |= {"accepted_at": now, "attempt": max(row.attempt, 1)}
                    by_hand = posts.c.key == key, posts.c.permit.startswith("resolved ")
                    connection.execute(  # the id given before was wrong, and may be another's
                        sa.delete(posts).where(*by_hand, posts.c.attempt == max(row.attempt, 1))
                    )
                    connection.execute(
                        self._insert(posts)
                        .values(
                            permit=f"resolved {key} {generation_id}"[:500],
                            key=key,
                            attempt=max(row.attempt, 1),
                            worker="",
                            begun_at=now,
                            ended_at=0.0,
                            refused=False,
                            generation_id=generation_id,
                        )
                        .on_conflict_do_nothing()
                    )
                connection.execute(sa.update(rows).where(rows.c.key == key).values(values))

    def cancel(self, keys: Sequence[str], end: str) -> list[str]:
        """End submissions that were not sent yet; return the keys of those that it ended."""
        rows = self._rows
        cancelled = []
        with self.database.transaction() as (connection, now):
            for key in keys:
                queued = rows.c.key == key, rows.c.state == "queued"
                if connection.execute(sa.select(rows.c.key).where(*queued)).first() is not None:
                    self._end(connection, now, queued, "cancelled", end)
                    cancelled.append(key)
        return cancelled

    def forget(self, before: float) -> int:
        """Delete the data of submissions that ended before a time, but keep their keys."""
        rows, posts, calls = self._rows, self._posts, self._callbacks
        with self.database.transaction() as (connection, _):
            old = (
                rows.c.state.in_(ENDED_FOR_GOOD),
                rows.c.updated_at < before,
                rows.c.request.is_not(None),
            )
            keys = sa.select(rows.c.key).where(*old)
            connection.execute(
                sa.delete(calls).where(calls.c.key.in_(keys), calls.c.state != "due")
            )
            connection.execute(
                sa.delete(posts).where(posts.c.key.in_(keys), posts.c.generation_id.is_(None))
            )
            forgotten = sa.update(rows).where(*old).values(request=None, callback=None)
            return int(connection.execute(forgotten).rowcount)

    def redeliver(self, keys: Sequence[str]) -> int:
        """Make the callbacks of submissions due again, with the same message ids."""
        calls = self._callbacks
        with self.database.transaction() as (connection, now):
            again = (
                sa.update(calls)
                .where(calls.c.key.in_(keys))
                .values(state="due", tries=0, due_at=now, last=None)
            )
            return int(connection.execute(again).rowcount)

    def status(self) -> dict[str, Any]:
        """Return the state of the fleet, for an operator."""
        rows, workers, calls = self._rows.c, self._workers.c, self._callbacks.c
        with self.database.transaction() as (connection, now):
            fleet = connection.execute(sa.select(self._fleet)).one()
            counted = sa.select(rows.state, sa.func.count()).group_by(rows.state)
            counts = {row[0]: int(row[1]) for row in connection.execute(counted)}
            oldest = sa.select(sa.func.min(rows.created_at)).where(rows.state == "queued")
            first = connection.execute(oldest).scalar()
            alive = connection.execute(sa.select(self._workers).order_by(workers.started_at)).all()
            called = sa.select(calls.state, sa.func.count()).group_by(calls.state)
            callbacks = {row[0]: int(row[1]) for row in connection.execute(called)}
        return {
            "fleet": self.name,
            "mode": fleet.mode,
            "why": fleet.why,
            "limits": _limits(fleet),
            "refusals": fleet.refusals,
            "counts": {state: counts.get(state, 0) for state in STATES},
            "oldest_queued": None if first is None else now - first,
            "callbacks": callbacks,
            "workers": [
                {
                    "id": row.id,
                    "beat": now - row.beat_at,
                    "since": now - row.started_at,
                    **json.loads(row.notes),
                }
                for row in alive
            ],
        }


def _turn(row: Any, *, attempt: int | None = None, permit: str | None = None) -> Turn:
    return Turn(
        key=row.key,
        attempt=attempt or row.attempt,
        permit=permit or row.permit,
        request=json.loads(row.request),
        kind=_kind(row.kind),
        refused=row.refused,
    )


def _wait(row: Any, now: float) -> Wait:
    age = max(0.0, now - row.accepted_at)
    return Wait(row.key, row.generation_id, age, row.timeout, row.attempt, row.max_attempts)


def _kind(text: str) -> Kind:
    return tuple(json.loads(text))


def _limits(fleet: Any) -> Limits:
    return Limits(fleet.max_running, fleet.submissions_per_minute, fleet.max_rate)
