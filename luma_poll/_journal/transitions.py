"""The changes of an entry's state, as statements: each is one transaction, or nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime

from luma_poll._journal.entry import EntryState, same_id
from luma_poll._redaction import redact

RULES = 2
"""The rules by which fingerprints are made now."""
MAX_REASON = 2000
"""Characters that are kept of the reason of a failure."""


def forget_process(cursor: sqlite3.Cursor) -> None:
    """Call unknown what was being submitted by a process that is gone."""
    cursor.execute(
        "UPDATE entries SET state = 'unknown', updated_at = ? WHERE state = 'submitting'", (_now(),)
    )


def begin(
    cursor: sqlite3.Cursor,
    key: str,
    fingerprint: str,
    request: Mapping[str, object],
    attempt: int,
    request_id: str | None,
) -> bool:
    """Note the intent to submit: a new key, or the next attempt of one that failed."""
    cursor.execute(
        "INSERT INTO entries "
        "(key, fingerprint, request, state, attempt, updated_at, request_id, rules) "
        f"VALUES (?, ?, ?, 'submitting', ?, ?, ?, {RULES}) ON CONFLICT (key) DO UPDATE SET "
        "state = 'submitting', attempt = excluded.attempt, generation_id = NULL, doubtful = 0, "
        "updated_at = excluded.updated_at, request_id = excluded.request_id "
        "WHERE state = 'failed' AND attempt = excluded.attempt - 1",
        (key, fingerprint, json.dumps(request), attempt, _now(), request_id),
    )
    return cursor.rowcount == 1


def retract(cursor: sqlite3.Cursor, key: str, attempt: int) -> None:
    """Take back an intent: the API has certainly not accepted it."""
    _take_back(cursor, key, attempt, "state = 'submitting'")


def accept(cursor: sqlite3.Cursor, key: str, attempt: int, generation_id: str) -> None:
    """Note the id: of a submission that is under way, or of one that was thought lost."""
    cursor.execute(
        "UPDATE entries SET state = 'running', generation_id = ?, updated_at = ?, "
        "submitted = json_insert(submitted, '$[#]', ?) "
        "WHERE key = ? AND attempt = ? AND state IN ('submitting', 'unknown')",
        (generation_id, _now(), generation_id, key, attempt),
    )


def lose(cursor: sqlite3.Cursor, key: str, attempt: int) -> None:
    """Note that it is not known whether the API accepted it."""
    cursor.execute(
        "UPDATE entries SET state = 'unknown', generation_id = NULL, updated_at = ? "
        "WHERE key = ? AND attempt = ? AND state = 'submitting'",
        (_now(), key, attempt),
    )


def end(
    cursor: sqlite3.Cursor,
    key: str,
    generation_id: str,
    state: EntryState,
    failure_code: str | None,
    failure_reason: str | None,
) -> None:
    """Note the end of a generation."""
    row = cursor.execute(
        "SELECT generation_id FROM entries WHERE key = ? AND state = 'running'", (key,)
    ).fetchone()
    if row is not None and same_id(row["generation_id"], generation_id):
        cursor.execute(
            "UPDATE entries SET state = ?, failure_code = ?, failure_reason = ?, updated_at = ? "
            "WHERE key = ?",
            (state, _text(failure_code), _text(failure_reason), _now(), key),
        )


def miss(cursor: sqlite3.Cursor, key: str, generation_id: str) -> None:
    """Note that the API does not know the id: it may be settled again."""
    cursor.execute(
        "UPDATE entries SET doubtful = 1 "
        "WHERE key = ? AND generation_id = ? AND state IN ('running', 'completed')",
        (key, generation_id),
    )


def resolve(cursor: sqlite3.Cursor, key: str, generation_id: str | None) -> str | None:
    """Settle an entry: by its id, or (None) by taking it back; returns why it cannot be."""
    row = cursor.execute(
        "SELECT state, doubtful, generation_id FROM entries WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        return "not in the journal"
    if row["state"] != "unknown" and not row["doubtful"]:
        return str(row["state"])
    if row["generation_id"] is not None:  # an id that was wrong: before it there was none
        cursor.execute(
            "UPDATE entries SET submitted = json_remove(submitted, '$[#-1]'), "
            "generation_id = NULL WHERE key = ?",
            (key,),
        )
    if generation_id is None:
        _take_back(cursor, key, None, "1")
        return None
    cursor.execute(
        "UPDATE entries SET state = 'running', generation_id = ?, updated_at = ?, doubtful = 1, "
        "submitted = json_insert(submitted, '$[#]', ?) WHERE key = ?",
        (generation_id, _now(), generation_id, key),
    )
    return None


def key_of(cursor: sqlite3.Cursor, generation_id: str) -> str | None:
    """Return the key of the entry that has this id, or None."""
    for row in cursor.execute("SELECT key, submitted FROM entries WHERE submitted <> '[]'"):
        if any(same_id(known, generation_id) for known in json.loads(row["submitted"])):
            return str(row["key"])
    return None


def note_fact(cursor: sqlite3.Cursor, name: str, value: str) -> None:
    """Note a fact of the whole journal."""
    cursor.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))


def _take_back(cursor: sqlite3.Cursor, key: str, attempt: int | None, condition: str) -> None:
    """Let the attempt before be the last one, or the entry be gone, if this is the first."""
    where = f"WHERE key = ? AND attempt = ifnull(?, attempt) AND {condition}"
    cursor.execute(f"DELETE FROM entries {where} AND attempt = 1", (key, attempt))
    if cursor.rowcount == 0:
        cursor.execute(
            "UPDATE entries SET state = 'failed', attempt = attempt - 1, updated_at = ?, "
            f"doubtful = 0, generation_id = json_extract(submitted, '$[#-1]') {where}",
            (_now(), key, attempt),
        )


def _text(text: str | None) -> str | None:
    """Return what the API said as it can be stored: UTF-8, without secrets, not endless."""
    if text is None:
        return None
    return redact(text.encode(errors="backslashreplace").decode())[:MAX_REASON]


def _now() -> str:
    return datetime.now(UTC).isoformat()
