"""The changes of an entry's state, as SQL statements: each applies as a whole, or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime

from luma_poll._arguments import same_id
from luma_poll._journal.entry import EntryState
from luma_poll._redaction import redact

RULES = 2
"""The rules by which fingerprints are made now."""
MAX_REASON = 2000
"""Characters of the reason of a failure that are kept."""


def forget_process(cursor: sqlite3.Cursor) -> None:
    """Mark as unknown what an earlier process was submitting when it ended."""
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
    """Note the intent to submit a new key, or the next attempt of a failed one.

    Returns:
        False if the entry is in any other state, such as that of another Runner's submission.
    """
    # The WHERE decides between two Runners with the same key: only one of them gets the row.
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
    """Take back an intent, because the API has certainly not accepted it."""
    _take_back(cursor, key, attempt, "state = 'submitting'")


def accept(cursor: sqlite3.Cursor, key: str, attempt: int, generation_id: str) -> None:
    """Note the id of a submission that is under way, or that was thought lost."""
    # `unknown` too: an answer that comes after all settles the entry.
    cursor.execute(
        "UPDATE entries SET state = 'running', generation_id = ?, updated_at = ?, "
        "submitted = json_insert(submitted, '$[#]', ?) "
        "WHERE key = ? AND attempt = ? AND state IN ('submitting', 'unknown')",
        (generation_id, _now(), generation_id, key, attempt),
    )


def lose(cursor: sqlite3.Cursor, key: str, attempt: int) -> None:
    """Note that nothing tells whether the API accepted it."""
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
    # Only of the latest attempt: a late end of an earlier one must not end the attempt after it.
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
    """Note that the API does not know the id, so that the entry may be settled again."""
    cursor.execute(
        "UPDATE entries SET doubtful = 1 "
        "WHERE key = ? AND generation_id = ? AND state IN ('running', 'completed')",
        (key, generation_id),
    )


def resolve(cursor: sqlite3.Cursor, key: str, generation_id: str | None) -> str | None:
    """Settle an entry by its id, or take it back if that is None; return why it cannot be."""
    row = cursor.execute(
        "SELECT state, doubtful, generation_id FROM entries WHERE key = ?", (key,)
    ).fetchone()
    if row is None:
        return "not in the journal"
    if row["state"] != "unknown" and not row["doubtful"]:
        return str(row["state"])
    if row["generation_id"] is not None:  # it was wrong, so it is no attempt that was made
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
    # Compared here and not in SQL, which does not know that a UUID has several spellings.
    for row in cursor.execute("SELECT key, submitted FROM entries WHERE submitted <> '[]'"):
        if any(same_id(known, generation_id) for known in json.loads(row["submitted"])):
            return str(row["key"])
    return None


def note_fact(cursor: sqlite3.Cursor, name: str, value: str) -> None:
    """Note a fact about the whole journal."""
    cursor.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))


def _take_back(cursor: sqlite3.Cursor, key: str, attempt: int | None, condition: str) -> None:
    """Undo an attempt: the one before becomes the latest, or the entry goes if there is none."""
    where = f"WHERE key = ? AND attempt = ifnull(?, attempt) AND {condition}"
    cursor.execute(f"DELETE FROM entries {where} AND attempt = 1", (key, attempt))
    if cursor.rowcount == 0:
        cursor.execute(
            "UPDATE entries SET state = 'failed', attempt = attempt - 1, updated_at = ?, "
            f"doubtful = 0, generation_id = json_extract(submitted, '$[#-1]') {where}",
            (_now(), key, attempt),
        )


def _text(text: str | None) -> str | None:
    """Return a text of the API in a form that can be stored: UTF-8, no secrets, of limited size."""
    if text is None:
        return None
    return redact(text.encode(errors="backslashreplace").decode())[:MAX_REASON]


def _now() -> str:
    return datetime.now(UTC).isoformat()
