"""The entries of a journal: each change is on disk at once, or kept until it can be written."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from luma_poll._journal import transitions
from luma_poll._journal.database import Database, translated
from luma_poll._journal.entry import EntryState, JournalEntry, read_entry
from luma_poll._logging import fields, logger
from luma_poll.errors import ConfigurationError, JournalError

T = TypeVar("T")
Change = Callable[[sqlite3.Cursor], T]

_COLUMNS = (
    "key, fingerprint, request, state, attempt, generation_id, submitted, failure_code, "
    "failure_reason, updated_at, request_id, rules"
)


class Found(NamedTuple):
    """An entry, with what is needed to compare it with a request.

    Attributes:
        entry: The entry.
        fingerprint: The digest of its parameters.
        is_older: True if the digest was made by the rules of the first version.
    """

    entry: JournalEntry
    fingerprint: str
    is_older: bool


class Store:
    """The entries of a journal, open in one process; any thread may call a method.

    The outcome of a submission is never dropped. If it cannot be written now, it is kept, and
    written before anything else as soon as the file can be written again.

    Args:
        path: The file; created if missing.
        wait: Seconds to wait for another process that has it open.

    Attributes:
        is_closed: True after `close`.
        base_url: The base URL of the API that gave its ids; None before the first submission.
        was_empty: True if it had no entry when it was opened.
        are_strangers_said: True once it was logged that it has no entry for a batch.

    Raises:
        ConfigurationError: The file is in use, is not a journal, or was written by a newer version.
        JournalError: The file is damaged, or cannot be read.
    """

    def __init__(self, path: Path, wait: float = 0.0) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._unwritten = deque[tuple[str, Change[None]]]()
        self._is_move_said = False
        self.is_closed: bool = False
        self._database = Database(path, wait)
        try:
            # The file is ours now: the process that left a `submitting` is gone, with its answer.
            self._change(transitions.forget_process)
            self.base_url = self._fact("base_url")
            self._is_base_url_written = self.base_url is not None
            self.was_empty: bool = self._count() == 0
            self.are_strangers_said: bool = False
        except BaseException:
            self._database.close()  # else its lock would keep the next attempt out
            raise

    @property
    def path(self) -> Path:
        """The path that it was opened by."""
        return self._path

    def close(self) -> None:
        """Close the file. A second call does nothing, and neither does one in a fork."""
        if self._database.is_of_a_fork:
            return  # the lock below may be held for ever, by a thread that the fork did not copy
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
            try:
                with closing(self._cursor()) as cursor:
                    self._write_kept(cursor)
            except sqlite3.Error as error:
                for words, _ in self._unwritten:
                    why = translated(self._path, error, JournalError)
                    logger.error("%s: %s", why, words, extra=fields(error=error))
            self._database.close()

    def claim(self, base_url: str) -> None:
        """Take the client's base URL, which is written with the first submission.

        Raises:
            ConfigurationError: The journal belongs to another base URL.
        """
        if self.base_url is None:
            self.base_url = base_url
        elif self.base_url != base_url:
            raise ConfigurationError(
                f"journal {self._path} belongs to {self.base_url}, but the client uses {base_url}, "
                "which does not know its ids. Use another journal, or a client for that base URL; "
                "if the same API has a new address, say so with Journal.move_to"
            )

    def move_to(self, base_url: str) -> None:
        """Note that the API has another base URL from now on."""
        self._change(lambda cursor: transitions.note_fact(cursor, "base_url", base_url))
        self.base_url, self._is_base_url_written = base_url, True

    def find(self, key: str) -> Found | None:
        """Return the entry of a key, or None."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE key = ?"
        with self._transaction() as cursor:
            row = cursor.execute(query, (key,)).fetchone()
            if row is None:
                return None
            return Found(read_entry(row), row["fingerprint"], row["rules"] < transitions.RULES)

    def entries(self, state: EntryState | None) -> list[JournalEntry]:
        """Return the entries in this state, or all; the least recently changed first."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE ? IS NULL OR state = ? ORDER BY updated_at"
        with self._transaction() as cursor:
            return [read_entry(row) for row in cursor.execute(query, (state, state))]

    def known(self, keys: Iterable[str]) -> set[str]:
        """Return those of the keys that have an entry."""
        query = "SELECT 1 FROM entries WHERE key = ?"
        with self._transaction() as cursor:
            return {key for key in keys if cursor.execute(query, (key,)).fetchone()}

    def begin(
        self,
        key: str,
        fingerprint: str,
        request: Mapping[str, object],
        attempt: int,
        request_id: str | None = None,
    ) -> None:
        """Note the intent to submit a new key, or the next attempt of a failed one."""
        self._check_place()

        def change(cursor: sqlite3.Cursor) -> bool:
            # In the same transaction: a journal with an id always says which API gave it.
            if not self._is_base_url_written and self.base_url is not None:
                transitions.note_fact(cursor, "base_url", self.base_url)
            return transitions.begin(cursor, key, fingerprint, request, attempt, request_id)

        if not self._change(change):
            raise JournalError(
                f"request {key!r} is in use by another Runner of this process: nothing was sent"
            )
        self._is_base_url_written = self.base_url is not None

    def retract(self, key: str, attempt: int) -> None:
        """Take back an intent, because the API has certainly not accepted it."""
        words = f"request {key!r} was not accepted, and that is not recorded"
        self._keep(words, lambda cursor: transitions.retract(cursor, key, attempt))

    def accept(self, key: str, attempt: int, generation_id: str) -> None:
        """Note the id of a submission that is under way, or that was thought lost."""
        words = (
            f"generation {generation_id} was submitted, and its id is not in the journal: settle "
            f"request {key!r}"
        )
        self._keep(words, lambda cursor: transitions.accept(cursor, key, attempt, generation_id))

    def lose(self, key: str, attempt: int) -> None:
        """Note that nothing tells whether the API accepted it."""
        words = f"request {key!r} may have been accepted, and that is not recorded"
        self._keep(words, lambda cursor: transitions.lose(cursor, key, attempt))

    def end(
        self,
        key: str,
        generation_id: str,
        state: EntryState,
        failure_code: str | None,
        failure_reason: str | None,
    ) -> None:
        """Note the end of a generation."""
        why = failure_code, failure_reason
        words = f"the end of request {key!r}, generation {generation_id}, is not recorded"
        self._keep(words, lambda cursor: transitions.end(cursor, key, generation_id, state, *why))

    def miss(self, key: str, generation_id: str) -> None:
        """Note that the API does not know the id."""
        words = f"generation {generation_id} does not exist, and that is not recorded"
        self._keep(words, lambda cursor: transitions.miss(cursor, key, generation_id))

    def flush(self) -> None:
        """Write what could not be written before.

        Raises:
            JournalError: It still cannot be written.
        """
        with self._transaction():
            pass

    @property
    def has_unwritten(self) -> bool:
        """True if something could not be written yet."""
        return bool(self._unwritten)

    def resolve(self, keys: Sequence[str], generation_id: str | None) -> None:
        """Settle entries, all or none: by the id, or by taking them back if it is None.

        Raises:
            ConfigurationError: One of them cannot be settled.
        """
        with self._transaction() as cursor:
            if generation_id is not None:
                owner = transitions.key_of(cursor, generation_id)
                if owner is not None and [owner] != list(keys):
                    raise ConfigurationError(
                        f"generation {generation_id} belongs to request {owner!r}"
                    )
            for key in keys:
                why = transitions.resolve(cursor, key, generation_id)
                if why is not None:
                    raise ConfigurationError(f"request {key!r} cannot be resolved: it is {why}")

    def _check_place(self) -> None:
        """Refuse to submit if the file was deleted; warn once if it was moved."""
        if self.is_closed or self._database.is_of_a_fork:
            return
        if self._database.is_deleted:
            raise JournalError(f"journal {self._path} was deleted while in use: nothing was sent")
        if self._database.is_moved and not self._is_move_said:
            self._is_move_said = True
            logger.warning(
                "journal %s was moved while in use, and is still written in its new place: a "
                "process that opens the old path begins a new journal, and submits again",
                self._path,
                extra=fields(),
            )

    def _fact(self, name: str) -> str | None:
        with self._transaction() as cursor:
            row = cursor.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
            return None if row is None else str(row["value"])

    def _count(self) -> int:
        with self._transaction() as cursor:
            return int(cursor.execute("SELECT count(*) FROM entries").fetchone()[0])

    def _change(self, change: Change[T]) -> T:
        """Write a change; it is on disk when this returns."""
        with self._transaction() as cursor:
            return change(cursor)

    def _keep(self, words: str, change: Change[None]) -> None:
        """Write a change now; if that fails, before the next read or write."""
        self._check_usable()
        # Kept first, then written: if the write fails, nothing is left to do for the caller.
        with self._lock:
            self._unwritten.append((words, change))
        self.flush()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        """Open a transaction: on disk when the block ends, undone if it raises."""
        self._check_usable()
        with self._lock, self._errors(), closing(self._cursor()) as cursor:
            # Before the transaction, so that each stays written if the block raises. A read does it
            # as well, and so never misses a change that was made here.
            self._write_kept(cursor)
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self._database.connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    def _cursor(self) -> sqlite3.Cursor:
        cursor = self._database.connection.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor

    def _write_kept(self, cursor: sqlite3.Cursor) -> None:
        while self._unwritten:
            _, change = self._unwritten[0]
            try:
                change(cursor)
            except sqlite3.Error:
                raise  # it stays the first in line: changes are written in order
            except BaseException:
                self._unwritten.popleft()  # it would fail each time, and hold up those behind it
                raise
            self._unwritten.popleft()

    def _check_usable(self) -> None:
        if self._database.is_of_a_fork:  # locks and connections do not survive a fork
            raise ConfigurationError(
                f"journal {self._path} was opened by the parent process: open it in its own process"
            )
        if self.is_closed:
            raise ConfigurationError(f"journal {self._path} is closed")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise ConfigurationError(f"journal {self._path} is closed") from None
        except sqlite3.Error as error:
            raise translated(self._path, error, JournalError) from error
        except ConfigurationError:
            raise
        except (ValueError, TypeError) as error:  # a row that no version of ours could have written
            raise JournalError(f"journal {self._path} is damaged: {error}") from error
