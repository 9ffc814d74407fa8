"""The public Journal: submissions that outlive their process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import httpx

from luma_poll._arguments import check_base_url, check_generation_id, check_positive, shown
from luma_poll._journal.entry import EntryState, JournalEntry, check_state
from luma_poll._journal.store import Store
from luma_poll.errors import ConfigurationError


class Journal:
    """A file that keeps track of submissions, so that none is made twice and none is forgotten.

    Give it to a `Runner`: the next process with the same file continues what this one has begun:

        with Journal("runs.db") as journal:
            runner = Runner(client, journal=journal)
            generation = await runner.run("a red fox", key="order-17")

    It is an SQLite database in one file, which is complete after each change. The intent is on disk
    just before each submission, the id as soon as it is known, and the end. The API key and the
    signatures of URLs are never stored. One process at a time holds a journal, and a journal is of
    one address of the API, that of the client that first submits with it.

    Args:
        path: The file; it is made if it does not exist. Keep it on a local disk: the locks of
            network file systems cannot be trusted.
        wait: Seconds to wait for another process that holds the journal, as the one before in a
            deploy may. The whole thread waits: open the journal before the event loop runs.

    Raises:
        ConfigurationError: The file is in use, is another program's, or is of a newer version.
        JournalError: The file is damaged, or cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], wait: float = 0.0) -> None:
        try:
            self._path = Path(path)
        except TypeError:
            raise ConfigurationError(f"a journal is given by a path, not {shown(path)}") from None
        self._store: Store = Store(self._path, _check_wait(wait))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the file. To close it a second time does nothing."""
        self._store.close()

    @property
    def base_url(self) -> str | None:
        """The address of the API that the journal is of; None before the first submission."""
        return self._store.base_url

    def move_to(self, base_url: str | httpx.URL) -> None:
        """Say that the same API, which knows the ids of this journal, has another address.

            journal.move_to("https://luma.gateway.example.com/v1")

        Args:
            base_url: The new address, as that of a client.

        Raises:
            ConfigurationError: It is no address, or the journal is closed.
            JournalError: The file cannot be written.
        """
        if not base_url:
            raise ConfigurationError("base_url is missing")
        self._store.move_to(check_base_url(base_url))

    def entries(self, state: EntryState | None = None) -> list[JournalEntry]:
        """Return the entries, the one that has not changed for longest first.

        Args:
            state: `submitting`, `running`, `completed`, `failed` or `unknown`; None for all.

        Returns:
            The entries, as they are now.

        Raises:
            ConfigurationError: There is no such state, or the journal is closed.
            JournalError: The file cannot be read.
        """
        return self._store.entries(check_state(state))

    def entry(self, key: str) -> JournalEntry | None:
        """Return the entry of this key, or None: it has not been submitted.

        Args:
            key: The key of a request.

        Returns:
            The entry; None if there is none.

        Raises:
            ConfigurationError: The journal is closed.
            JournalError: The file cannot be read.
        """
        found = self._store.find(key)
        return None if found is None else found.entry

    def resolve(
        self,
        *keys: str,
        generation_id: str | None = None,
        resubmit: bool = False,
        all_unknown: bool = False,
    ) -> list[str]:
        """Settle entries that are `unknown`, after a look at the usage of the account.

            journal.resolve("order-17", generation_id="182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e")
            journal.resolve("order-18", "order-19", resubmit=True)

        So can an entry whose id the API does not know any longer, and one whose id was given
        here: a mistake can be corrected. All are settled, or none.

        Args:
            keys: The keys of the entries.
            generation_id: The id with which the one entry was accepted: the next run waits for it.
            resubmit: Submit them again in the next run, because they were not accepted, or because
                you accept a second bill. For a second attempt the Runner needs `max_attempts=2`.
            all_unknown: True for all that are `unknown` now, in place of keys.

        Returns:
            The keys that were settled.

        Raises:
            ConfigurationError: An entry cannot be settled, the id is another request's, not exactly
                one of the two is given, or the journal is closed.
            JournalError: The file cannot be written.
        """
        if (generation_id is None) is not bool(resubmit):
            raise ConfigurationError("resolve takes either generation_id or resubmit=True")
        if bool(keys) is bool(all_unknown):
            raise ConfigurationError("resolve takes keys, or all_unknown=True")
        settled = [entry.key for entry in self.entries("unknown")] if all_unknown else list(keys)
        if generation_id is not None and len(settled) != 1:
            raise ConfigurationError(f"a generation_id settles one request, not {len(settled)}")
        found = None if generation_id is None else check_generation_id(generation_id)
        self._store.resolve(settled, found)
        return settled

    def __repr__(self) -> str:
        return f"Journal({str(self._path)!r})"


def _check_wait(wait: object) -> float:
    """Return the seconds to wait; 0 is not to wait.

    Raises:
        ConfigurationError: It is no number from 0.
    """
    if wait == 0 and not isinstance(wait, bool):
        return 0.0
    seconds = check_positive("wait", wait)
    if seconds is None:
        raise ConfigurationError("wait must be a number of seconds, not None")
    return seconds
