"""The headers of answers: what they say about time, the account, and the body."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

submission_id: ContextVar[str | None] = ContextVar("submission_id", default=None)
"""The `X-Request-Id` of the submission that is being made, by which Luma can find a lost one."""

MAX_RETRY_AFTER = 120.0
"""Seconds; a longer `Retry-After` counts as this. The API itself sends 60 s at most."""
MAX_REQUEST_ID = 200
"""Characters that are kept of `X-Request-Id`."""
MAX_VALUES = 10
"""Values of one header that are looked at."""
_CODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "dcb", "dcz")
MAX_DIGITS = 9
"""Digits of a number of units that are read."""


class RateLimit(NamedTuple):
    """The units that an account may submit per minute, and how many are left."""

    limit: int
    remaining: int


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `Retry-After`, at most `MAX_RETRY_AFTER`; None if absent or invalid.

    If there are several, the longest counts: a proxy may have added its own. As in the official
    SDK, `retry-after-ms` takes precedence.
    """
    said = _seconds(headers.get("retry-after-ms", ""), None) / 1000
    if not 0 <= said < math.inf:
        said = max(
            (
                seconds
                for value in _values(headers, "Retry-After")
                if 0 <= (seconds := _seconds(value, headers.get("Date"))) < math.inf
            ),
            default=math.nan,
        )
    return None if math.isnan(said) else min(said, MAX_RETRY_AFTER)


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the `X-Request-Id`, which Luma's support asks for, or None."""
    return headers.get("X-Request-Id", "")[:MAX_REQUEST_ID] or None


def content_encoding(headers: Mapping[str, str]) -> str:
    """Return how a body is encoded, in lower case; empty if it is not.

    Several codings are separated by commas. Other names (`identity`, or a charset that strayed
    into the header) are left out: they do not change the bytes.
    """
    names = headers.get("Content-Encoding", "").lower().split(",")
    return ", ".join(name for each in names if (name := each.strip()) in _CODINGS)


def rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """Return `X-RateLimit-Limit` and `-Remaining`; None if they are absent or make no sense."""
    limit, remaining = headers.get("X-RateLimit-Limit"), headers.get("X-RateLimit-Remaining")
    if limit is None or remaining is None:
        return None
    try:
        found = RateLimit(int(limit[:MAX_DIGITS]), int(remaining[:MAX_DIGITS]))
    except ValueError:
        return None
    return found if 0 <= found.remaining <= found.limit else None


def _values(headers: Mapping[str, str], name: str) -> list[str]:
    """Return all values of a header: httpx joins them with commas, and so may a proxy."""
    value = headers.get(name, "")
    return [value, *value.split(",")[:MAX_VALUES]]  # the whole one first: a date has a comma


def _seconds(value: str, now: str | None) -> float:
    """Return the seconds that a number or a date stands for; NaN if it is neither."""
    try:
        return float(value)
    except ValueError:
        return _seconds_until(value, now)


def _seconds_until(date: str, now: str | None) -> float:
    """Return the seconds from the server's `Date` (clocks differ); NaN if `date` is no date."""
    try:
        until = parsedate_to_datetime(date)
    except (ValueError, OverflowError):
        return math.nan
    start = datetime.now(UTC)
    with contextlib.suppress(ValueError, OverflowError):
        start = parsedate_to_datetime(now or "")
    return (_aware(until) - _aware(start)).total_seconds()


def _aware(date: datetime) -> datetime:
    return date if date.tzinfo else date.replace(tzinfo=UTC)
