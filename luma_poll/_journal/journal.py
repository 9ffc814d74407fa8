"""The Journal: submissions that outlive their process."""

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
    """A file that records submissions, so that none is made twice and none is forgotten.

    Give it to a `Runner`. The next process with the same file continues where this one stopped:

        with Journal("runs.db") as journal:
            runner = Runner(client, journal=journal)
            generation = await runner.run("a red fox", key="order-17")

    It is an SQLite database in one file, complete after each change. It holds the intent before
    each submission, the id as soon as it is known, and the end. It never holds the API key or the
    signature of a URL. Only one process at a time can open a journal. A journal belongs to one
    base URL: that of the client that first submits with it.

    Args:
        path: The file; created if missing. Keep it on a local disk: the locks of network file
            systems cannot be trusted.
        wait: Seconds to wait for another process that has the journal open, such as the previous
            release during a deploy. This blocks the thread: open the journal before the event
            loop runs.

    Raises:
        ConfigurationError: The file is in use, belongs to another program, or was written by a
            newer version.
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
        """Close the file, so that another process can open it. A second call does nothing."""
        self._store.close()

    @property
    def base_url(self) -> str | None:
        """The base URL of the API that gave the ids; None before the first submission."""
        return self._store.base_url

    def move_to(self, base_url: str | httpx.URL) -> None:
        """Record that the same API, which knows the ids of this journal, has a new base URL.

            journal.move_to("https://luma.gateway.example.com/v1")

        Args:
            base_url: The new base URL, as for `LumaClient`.

        Raises:
            ConfigurationError: `base_url` is not a base URL, or the journal is closed.
            JournalError: The file cannot be written.
        """
        if not base_url:
            raise ConfigurationError("base_url is missing")
        self._store.move_to(check_base_url(base_url))

    def entries(self, state: EntryState | None = None) -> list[JournalEntry]:
        """Return the entries, the least recently changed first.

            for entry in journal.entries("unknown"):
                print(entry.key, entry.request_id)

        Args:
            state: `submitting`, `running`, `completed`, `failed` or `unknown`; None for all.

        Returns:
            The entries, as they are now.

        Raises:
            ConfigurationError: `state` is not one of these, or the journal is closed.
            JournalError: The file cannot be read.
        """
        return self._store.entries(check_state(state))

    def entry(self, key: str) -> JournalEntry | None:
        """Return the entry of a request, or None if it has not been submitted.

        Args:
            key: The key of the request.

        Returns:
            The entry, or None.

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
        """Settle `unknown` entries, after you have looked at the usage of the account.

            journal.resolve("order-17", generation_id="182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e")
            journal.resolve("order-18", "order-19", resubmit=True)

        You can also settle an entry whose id the API no longer knows, and correct an id that was
        given here. Either all entries are settled, or none.

        Args:
            keys: The keys of the entries.
            generation_id: The id that the API gave, for a single entry: the next run waits for it.
            resubmit: True to submit them again in the next run, because they were not accepted, or
                because you accept a second bill. For a second attempt the Runner needs
                `max_attempts=2`.
            all_unknown: True to settle every `unknown` entry, instead of naming keys.

        Returns:
            The keys that were settled.

        Raises:
            ConfigurationError: An entry cannot be settled, the id belongs to another request, the
                arguments contradict each other, or the journal is closed.
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
    """Return the seconds to wait; 0 to fail at once.

    Raises:
        ConfigurationError: It is not a number of at least 0.
    """
    if wait == 0 and not isinstance(wait, bool):
        return 0.0
    seconds = check_positive("wait", wait)
    if seconds is None:
        raise ConfigurationError("wait must be a number of seconds, not None")
    return seconds
