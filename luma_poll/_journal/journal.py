"""The public Journal: submissions that outlive their process."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from luma_poll._arguments import check_generation_id, shown
from luma_poll._journal.store import JournalEntry, Store, check_state
from luma_poll.errors import ConfigurationError


class Journal:
    """A file that keeps track of submissions, so that none is made twice and none is forgotten.

    Give it to a `Runner`: what it has begun is continued by the next process with the same
    file:

        with Journal("runs.db") as journal:
            runner = Runner(client, journal=journal)
            generation = await runner.run("a red fox", key="order-17")

    It is an SQLite database. The intent is on disk just before each submission, the id as soon as
    it is known, and the end. The API key and the signatures of URLs are never stored. One process
    at a time holds a journal.

    Args:
        path: Of the file; it is made if it does not exist. Not on a network file system, whose
            locks SQLite cannot trust.

    Raises:
        ConfigurationError: The file is in use, is not a journal, or is of a newer version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self._path = Path(path)
        except TypeError:
            raise ConfigurationError(f"a journal is given by a path, not {shown(path)}") from None
        self.store: Store = Store(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the file. To close it a second time does nothing."""
        self.store.close()

    def entries(self, state: str | None = None) -> list[JournalEntry]:
        """The entries, the one that has not changed for longest first.

        Args:
            state: `submitting`, `running`, `completed`, `failed` or `unknown`; None for all.

        Returns:
            The entries, as they are now.

        Raises:
            ConfigurationError: There is no such state, or the journal is closed.
            JournalError: The file cannot be read.
        """
        return self.store.entries(check_state(state))

    def entry(self, key: str) -> JournalEntry | None:
        """The entry of this key, or None: it has not been submitted.

        Args:
            key: A request's.

        Returns:
            The entry; None if there is none.

        Raises:
            ConfigurationError: The journal is closed.
            JournalError: The file cannot be read.
        """
        found = self.store.entry(key)
        return None if found is None else found[0]

    def resolve(
        self, key: str, *, generation_id: str | None = None, resubmit: bool = False
    ) -> None:
        """Settle an `unknown` entry, after a look at the usage of the account.

            journal.resolve("order-17", generation_id="182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e")
            journal.resolve("order-18", resubmit=True)

        Args:
            key: Of the entry.
            generation_id: It was accepted, with this id: the next run waits for it.
            resubmit: It was not accepted, or may be billed twice: the next run submits it. Where
                it was a second attempt, that takes a Runner whose `max_attempts` allows one.

        Raises:
            ConfigurationError: The entry is not `unknown`, not exactly one of the two is given, or
                the journal is closed.
            JournalError: The file cannot be written.
        """
        if (generation_id is None) is not resubmit:
            raise ConfigurationError("resolve takes either generation_id or resubmit=True")
        found = None if generation_id is None else check_generation_id(generation_id)
        if not self.store.resolve(key, found):
            entry = self.entry(key)
            state = "not in the journal" if entry is None else entry.state
            raise ConfigurationError(f"request {shown(key)} is not unknown, but {state}")

    def __repr__(self) -> str:
        return f"Journal({str(self._path)!r})"
