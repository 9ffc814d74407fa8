"""One entry of a journal, and the states that it can have."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from luma_poll._arguments import shown
from luma_poll.errors import ConfigurationError

EntryState: TypeAlias = Literal["submitting", "running", "completed", "failed", "unknown"]
"""The state of an entry: `unknown` is a submission whose answer no process saw."""

STATES: tuple[EntryState, ...] = get_args(EntryState)


@dataclass(frozen=True)
class JournalEntry:
    """A request in a journal.

    Attributes:
        key: The request's key.
        request: Its parameters, to be read by people: without secrets, and long strings cut.
        state: `submitting`, `running`, `completed`, `failed`, or `unknown`: it may have been
            submitted, but the process died first, or the answer was unusable.
        attempt: The number of the submission, from 1.
        generation_id: The id of this attempt, if it is known.
        failure_code: The API's code for the failure, or None.
        updated_at: When the state changed (aware, UTC).
        submitted: The known ids of all attempts.
        failure_reason: The API's description of the failure, or None.
        request_id: The `X-Request-Id` of the latest submission; Luma's support can look up an
            `unknown` one by it. None for an entry of an earlier version.
    """

    key: str
    request: Mapping[str, Any]
    state: EntryState
    attempt: int
    generation_id: str | None
    failure_code: str | None
    updated_at: datetime
    submitted: tuple[str, ...] = ()
    failure_reason: str | None = None
    request_id: str | None = None


def read_entry(row: sqlite3.Row) -> JournalEntry:
    """Return the entry in a row.

    Raises:
        ValueError: The row is damaged.
    """
    failed = row["state"] == "failed"  # else the columns tell why the previous attempt failed
    state: EntryState = row["state"]
    request, submitted = json.loads(row["request"]), json.loads(row["submitted"])
    if state not in STATES or not isinstance(request, dict) or not isinstance(submitted, list):
        raise ValueError("an entry is damaged")
    return JournalEntry(
        key=row["key"],
        request=request,
        state=state,
        attempt=row["attempt"],
        generation_id=row["generation_id"],
        failure_code=row["failure_code"] if failed else None,
        updated_at=datetime.fromisoformat(row["updated_at"]),
        submitted=tuple(submitted),
        failure_reason=row["failure_reason"] if failed else None,
        request_id=row["request_id"],
    )


def check_state(state: object) -> EntryState | None:
    """Return the state, or None for all.

    Raises:
        ConfigurationError: `state` is not one of `STATES`.
    """
    for known in STATES:
        if state == known:
            return known
    if state is None:
        return None
    raise ConfigurationError(f"a state is one of {', '.join(STATES)}, not {shown(state)}")
