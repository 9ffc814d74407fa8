"""The headers of answers: what they say of time, of the account, and of the body."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

submission_id: ContextVar[str | None] = ContextVar("submission_id", default=None)
"""The `X-Request-Id` of the submission that is being made: a handle of one that is lost."""

MAX_RETRY_AFTER = 120.0
"""Seconds; a longer `Retry-After` counts as this. The API itself sends 60 s at most."""
MAX_REQUEST_ID = 200
"""Characters that are kept of `X-Request-Id`."""
MAX_VALUES = 10
"""Values of one header that are looked at."""
_CODINGS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "dcb", "dcz")
MAX_DIGITS = 9
"""Digits that are read of a number of units."""


class RateLimit(NamedTuple):
    """The units that an account may submit a minute, and what is left of them."""

    limit: int
    remaining: int


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of a `Retry-After`, at most `MAX_RETRY_AFTER`; None if absent or invalid.

    Of several the longest counts: a proxy may have added its own. As in the official SDK, a
    `retry-after-ms` goes before them.
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
    """The `X-Request-Id`, which Luma's support asks for; None if there is none."""
    return headers.get("X-Request-Id", "")[:MAX_REQUEST_ID] or None


def content_encoding(headers: Mapping[str, str]) -> str:
    """How a body is encoded, in lower case; empty if it is not.

    Several codings are separated by commas. Names that are none (`identity`, or a charset that
    has strayed into the header) change nothing about the bytes.
    """
    names = headers.get("Content-Encoding", "").lower().split(",")
    return ", ".join(name for each in names if (name := each.strip()) in _CODINGS)


def rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    """`X-RateLimit-Limit` and `-Remaining`; None where they are absent or make no sense."""
    limit, remaining = headers.get("X-RateLimit-Limit"), headers.get("X-RateLimit-Remaining")
    if limit is None or remaining is None:
        return None
    try:
        found = RateLimit(int(limit[:MAX_DIGITS]), int(remaining[:MAX_DIGITS]))
    except ValueError:
        return None
    return found if 0 <= found.remaining <= found.limit else None


def _values(headers: Mapping[str, str], name: str) -> list[str]:
    """All values of a header: httpx joins them with commas, and so may a proxy."""
    value = headers.get(name, "")
    return [value, *value.split(",")[:MAX_VALUES]]  # the whole one first: a date has a comma


def _seconds(value: str, now: str | None) -> float:
    """Seconds from a number or a date; NaN if it is neither."""
    try:
        return float(value)
    except ValueError:
        return _seconds_until(value, now)


def _seconds_until(date: str, now: str | None) -> float:
    """Seconds from the server's own `Date`, as clocks differ; NaN if `date` is not a date."""
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
