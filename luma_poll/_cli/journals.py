"""`luma-poll journal`: what is in a journal, and settling what is unknown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from luma_poll._cli.terminal import put_line
from luma_poll._journal.entry import JournalEntry
from luma_poll._journal.journal import Journal
from luma_poll.errors import ConfigurationError


def open_journal(path: str) -> Journal:
    """An existing journal.

    Raises:
        ConfigurationError: There is none, or it is unusable.
    """
    if not os.path.isfile(path):
        raise ConfigurationError(f"there is no journal at {path}")
    return Journal(path)


def put_entries(entries: Iterable[JournalEntry], *, as_json: bool) -> None:
    """Print entries: state, key, id, failure and prompt, or as JSON."""
    for entry in entries:
        if as_json:
            put_line(json.dumps(asdict(entry) | {"updated_at": entry.updated_at.isoformat()}))
        else:
            prompt = str(entry.request.get("prompt", ""))
            code = entry.failure_code or ""
            put_line(entry.state, entry.key, entry.generation_id or "", code, prompt)


def after_resolve(key: str, generation_id: str | None) -> Iterator[str]:
    """The line to print after an entry was settled."""
    if generation_id is None:
        yield f"{key}: the next run submits it."
    else:
        yield f"{key}: the next run waits for {generation_id}."
