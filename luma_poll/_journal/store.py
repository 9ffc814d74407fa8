"""The journal's file: an SQLite database, whose every change is on disk before the next step."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from luma_poll._arguments import shown
from luma_poll.errors import ConfigurationError, JournalError

State: TypeAlias = Literal["submitting", "running", "completed", "failed", "unknown"]
STATES: tuple[State, ...] = get_args(State)

SCHEMA = 1
"""The version of the tables, in `user_version`. An older file is migrated, a newer one refused."""
APPLICATION = 0x4C504A31
"""Says that a file is one of these, in `application_id`."""

_MIGRATIONS = (
    """
    CREATE TABLE entries (
        key TEXT PRIMARY KEY,
        fingerprint TEXT NOT NULL,
        request TEXT NOT NULL,
        state TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        generation_id TEXT,
        submitted TEXT NOT NULL DEFAULT '[]',
        failure_code TEXT,
        failure_reason TEXT,
        updated_at TEXT NOT NULL
    ) WITHOUT ROWID
    """,
)
"""The statement that leads from each version to the next one."""


@dataclass(frozen=True)
class JournalEntry:
    """A request in a journal.

    Attributes:
        key: The request's key.
        request: Its parameters, for people: without secrets, long strings cut.
        state: `submitting`, `running`, `completed`, `failed`, or `unknown`: its submission was
            begun by a process that died before it knew the id.
        attempt: Which submission it is, from 1.
        generation_id: The id of this attempt, if it is known.
        failure_code: Why it failed, or None.
        updated_at: When the state changed (aware, UTC).
        submitted: The ids of all attempts that are known.
        failure_reason: Why it failed, for people, or None.
    """

    key: str
    request: Mapping[str, Any]
    state: State
    attempt: int
    generation_id: str | None
    failure_code: str | None
    updated_at: datetime
    submitted: tuple[str, ...] = ()
    failure_reason: str | None = None


class Store:
    """The file of a journal. One process at a time has it; its methods may be called in any thread.

    Args:
        path: Of the file; it is made if it does not exist.

    Raises:
        ConfigurationError: It is in use, is no journal, or is of a newer version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.is_closed: bool = False
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            # Prompts are nobody else's business. Only a new file is opened here: to close one that
            # this process has open would end its locks (POSIX).
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(
                self._path.absolute(),  # ":memory:" is a file here, too
                timeout=0,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, ValueError, sqlite3.Error) as error:
            raise ConfigurationError(f"journal {self._path}: {error}") from None
        try:
            # The lock is the operating system's: it ends with the process, however that ends.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN EXCLUSIVE")
            self._migrate(connection)
            connection.execute(
                "UPDATE entries SET state = 'unknown', updated_at = ? WHERE state = 'submitting'",
                (_now(),),
            )
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            connection.close()
            raise ConfigurationError(f"journal {self._path} {_why(error)}") from None
        except ConfigurationError:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION and tables:
            raise ConfigurationError(f"{self._path} is the database of another program")
        if version > SCHEMA:
            raise ConfigurationError(
                f"journal {self._path} was written by a newer version of luma-poll: upgrade"
            )
        for statement in _MIGRATIONS[version:]:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")

    def close(self) -> None:
        """Let another process have it. To close it a second time does nothing."""
        with self._lock:
            self.is_closed = True
            self._connection.close()

    def entry(self, key: str) -> tuple[JournalEntry, str] | None:
        """An entry with its fingerprint, or None."""
        with self._cursor() as cursor:
            row = cursor.execute(f"SELECT {_COLUMNS} FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else (_entry(row), row["fingerprint"])

    def entries(self, state: State | None) -> list[JournalEntry]:
        """The entries in this state, or all; the oldest change first."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE ? IS NULL OR state = ? ORDER BY updated_at"
        with self._cursor() as cursor:
            return [_entry(row) for row in cursor.execute(query, (state, state))]

    def begin(self, key: str, fingerprint: str, request: Mapping[str, Any], attempt: int) -> None:
        """Note the intent to submit: a new key, or the next attempt of one that failed."""
        with self._cursor() as cursor:
            cursor.execute(
                "INSERT INTO entries (key, fingerprint, request, state, attempt, updated_at) "
                "VALUES (?, ?, ?, 'submitting', ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "state = 'submitting', attempt = excluded.attempt, generation_id = NULL, "
                "updated_at = excluded.updated_at "
                "WHERE state = 'failed' AND attempt = excluded.attempt - 1",
                (key, fingerprint, json.dumps(request), attempt, _now()),
            )
            if cursor.rowcount != 1:
                raise JournalError(
                    f"request {key!r} is in use by another Runner of this process: nothing was sent"
                )

    def retract(self, key: str, attempt: int) -> None:
        """Take back an intent: the API has certainly not accepted it."""
        self._take_back(key, attempt, "submitting")

    def accept(self, key: str, attempt: int, generation_id: str) -> None:
        """Note the id: of a submission that is under way, or of one that was thought lost."""
        self._settle(key, attempt, "running", generation_id, ("submitting", "unknown"))

    def lose(self, key: str, attempt: int) -> None:
        """Note that it is not known whether the API accepted it."""
        self._settle(key, attempt, "unknown", None, ("submitting",))

    def end(
        self,
        key: str,
        generation_id: str,
        state: State,
        failure_code: str | None,
        failure_reason: str | None,
    ) -> None:
        """Note the end of a generation."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE entries SET state = ?, failure_code = ?, failure_reason = ?, "
                "updated_at = ? WHERE key = ? AND generation_id = ? AND state = 'running'",
                (state, failure_code, failure_reason, _now(), key, generation_id),
            )

    def resolve(self, key: str, generation_id: str | None) -> bool:
        """Settle an unknown entry: by its id, or (None) by taking it back. False: there is none."""
        if generation_id is None:
            return self._take_back(key, None, "unknown")
        return self._settle(key, None, "running", generation_id, ("unknown",))

    def _settle(
        self,
        key: str,
        attempt: int | None,
        state: State,
        generation_id: str | None,
        before: tuple[State, ...],
    ) -> bool:
        marks = ", ".join("?" * len(before))
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE entries SET state = ?, generation_id = ?, updated_at = ?, "
                "submitted = CASE WHEN ? IS NULL "
                "THEN submitted ELSE json_insert(submitted, '$[#]', ?) END "
                f"WHERE key = ? AND attempt = ifnull(?, attempt) AND state IN ({marks})",
                (state, generation_id, _now(), generation_id, generation_id, key, attempt, *before),
            )
            return cursor.rowcount == 1

    def _take_back(self, key: str, attempt: int | None, state: State) -> bool:
        """Let the attempt before be the last one, or the entry be gone, if this is the first."""
        where = "WHERE key = ? AND state = ? AND attempt = ifnull(?, attempt)"
        with self._cursor() as cursor:
            cursor.execute(f"DELETE FROM entries {where} AND attempt = 1", (key, state, attempt))
            if cursor.rowcount == 0:
                cursor.execute(
                    "UPDATE entries SET state = 'failed', attempt = attempt - 1, updated_at = ?, "
                    f"generation_id = json_extract(submitted, '$[#-1]') {where}",
                    (_now(), key, state, attempt),
                )
            return cursor.rowcount == 1

    @contextmanager
    def _cursor(self) -> Iterator[sqlite3.Cursor]:
        """A transaction of its own, on disk when the block ends."""
        if self._pid != os.getpid():  # locks and connections do not survive a fork
            raise ConfigurationError(
                f"journal {self._path} was opened by the parent process: open it in its own process"
            )
        with self._lock:
            try:
                with closing(self._connection.cursor()) as cursor:
                    cursor.row_factory = sqlite3.Row
                    yield cursor
            except sqlite3.ProgrammingError:
                raise ConfigurationError(f"journal {self._path} is closed") from None
            except sqlite3.Error as error:
                raise JournalError(f"journal {self._path} {_why(error)}") from error


_COLUMNS = (
    "key, fingerprint, request, state, attempt, generation_id, submitted, failure_code, "
    "failure_reason, updated_at"
)


def _entry(row: sqlite3.Row) -> JournalEntry:
    failed = row["state"] == "failed"  # otherwise why the attempt before failed
    return JournalEntry(
        key=row["key"],
        request=json.loads(row["request"]),
        state=row["state"],
        attempt=row["attempt"],
        generation_id=row["generation_id"],
        failure_code=row["failure_code"] if failed else None,
        updated_at=datetime.fromisoformat(row["updated_at"]),
        submitted=tuple(json.loads(row["submitted"])),
        failure_reason=row["failure_reason"] if failed else None,
    )


def check_state(state: object) -> State | None:
    """The state, or None for all.

    Raises:
        ConfigurationError: It is none.
    """
    for known in STATES:
        if state == known:
            return known
    if state is None:
        return None
    raise ConfigurationError(f"a state is one of {', '.join(STATES)}, not {shown(state)}")


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _why(error: sqlite3.Error) -> str:
    said = str(error)
    if "locked" in said:
        return "is in use by another process, or twice in this one"
    if "not a database" in said or "malformed" in said:
        return "is not a journal, or is damaged"
    return f"cannot be written: {said}"
