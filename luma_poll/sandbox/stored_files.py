"""Simulated files: created, uploaded to a presigned URL, processed, and used by generations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from luma_poll._api.media_types import HEAD_SIZE, media_type_of
from luma_poll.sandbox.clock import is_reached
from luma_poll.sandbox.refusals import RefusedError

MAX_SIZE = 5 * 1024**3  # bytes: what S3 takes in one PUT
INGEST = 2.0  # seconds until a complete upload is ready: a guess, as no figure is published
FAIL_TOKEN = "sandbox:fail"
PURPOSES = ("input", "reference")
STATES = ("pending", "ready", "failed", "deleted")
FIELDS = ("mime_type", "size_bytes", "filename", "purpose", "expires_at", "user_id")
MAX_PAGE, PAGE = 100, 25
MODERATED = "The upload was flagged by our content moderation system."


@dataclass(slots=True)
class StoredFile:
    """A simulated file; its state is a function of time.

    Attributes:
        id: The id, a UUID.
        client: The API key that created it.
        created: When it was created, in seconds on the sandbox's clock.
        fields: The parameters of its creation.
        expires: The Unix time when it is deleted automatically, or None.
        ready_after: Seconds from its completion until it is ready.
        head: Its first bytes; None until all bytes were received.
        completed: When the client reported the upload as complete, or None.
        deleted: When it was deleted, or None.
    """

    id: str
    client: str
    created: float
    fields: Mapping[str, Any]
    expires: float | None
    ready_after: float
    head: bytes | None = None
    completed: float | None = None
    deleted: float | None = None

    @property
    def size(self) -> int:
        """The bytes that it must have."""
        size: int = self.fields["size_bytes"]
        return size

    @property
    def media_type(self) -> str:
        """The media type that it must have."""
        media_type: str = self.fields["mime_type"]
        return media_type

    def state_at(self, now: float, timestamp: float) -> str:
        """Return the state at `now`, whose Unix time is `timestamp`."""
        if self.deleted is not None or self._has_expired(timestamp):
            return "deleted"
        if self.completed is None or not is_reached(self.completed + self.ready_after, now):
            return "pending"
        return "failed" if self.failure else "ready"

    @property
    def failure(self) -> str | None:
        """The reason why it fails when it is processed, or None."""
        if FAIL_TOKEN in (self.fields.get("filename") or ""):
            return MODERATED
        found = media_type_of(self.head or b"", self.media_type) or "unknown"
        if not self.media_type.startswith(("image/", "video/")):
            return f"Unsupported media type: {self.media_type}"
        if found.partition("/")[0] != self.media_type.partition("/")[0]:
            return f"The file could not be decoded as {self.media_type}"
        return None

    def _has_expired(self, timestamp: float) -> bool:
        return self.expires is not None and timestamp >= self.expires


def parse_file(body: bytes) -> tuple[dict[str, Any], float | None]:
    """Read the body of `POST /files`; return the fields, and the Unix time when it expires.

    Raises:
        RefusedError: The body is not valid.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise RefusedError("Request body must be a JSON object")
    for name in given:
        if name not in FIELDS:
            raise RefusedError(f"Unknown parameter: {name}. Valid: {', '.join(sorted(FIELDS))}")
    for name in ("mime_type", "filename", "user_id"):
        value = given.get(name)
        if not isinstance(value, str) and (value is not None or name == "mime_type"):
            raise RefusedError(f"{name} must be a string")
    size = given.get("size_bytes")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise RefusedError("size_bytes must be a whole number, 1 or more")
    if size > MAX_SIZE:
        raise RefusedError("File exceeds 5 GiB size limit", 413)
    check_choice("purpose", given.get("purpose", "input"), PURPOSES)
    return given, _expiry(given.get("expires_at"))


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of these."""
    if value not in tuple(choices):
        raise RefusedError(f"Invalid {name} '{value}'. Valid: {', '.join(choices)}")


def _expiry(value: object) -> float | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        moment = None
    if moment is None:
        raise RefusedError("expires_at must be a date and time, as in 2026-04-08T12:00:00Z")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def page_size(text: str | None) -> int:
    """Return the number of files on a page.

    Raises:
        RefusedError: `text` is not a number from 1 to 100.
    """
    if text is None:
        return PAGE
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PAGE):
        raise RefusedError(f"limit must be between 1 and {MAX_PAGE}")
    return int(text)


def references(value: object, place: str = "") -> Iterable[tuple[str, str, str]]:
    """Yield each id that parameters refer to, as its place, its kind and the id."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from references(item, f"{place}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in ("generation_id", "file_id") and isinstance(item, str):
                yield place, name, item
            else:
                yield from references(item, f"{place}.{name}".lstrip("."))


def head_of(head: bytes, chunk: bytes) -> bytes:
    """Return the first bytes of a file, after another chunk of it has come."""
    return head if len(head) >= HEAD_SIZE else (head + chunk)[:HEAD_SIZE]
