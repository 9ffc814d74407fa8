"""Our errors for those of other libraries, and for the answers of the API that are errors."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from pydantic import ValidationError

from luma_poll.errors import (
    STATUS_ERRORS,
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    InvalidResponseError,
    ServerError,
)
from luma_poll.redaction import redact, redact_value

MAX_RETRY_AFTER = 3600.0
"""A `Retry-After` above this many seconds is taken for a mistake."""
MIN_SECRET_LENGTH = 8
"""Characters; what is shorter may be part of any word."""


def translate_error(error: BaseException, generation_id: str | None = None) -> APIError | None:
    """Our error for one of httpx, httpx2, the official SDK or the operating system; else None.

    httpx2 and the SDK are never imported here, only looked up where the user has imported them.
    The secrets are taken out of what `error` and its causes say and keep.
    """
    if isinstance(error, APIError):
        return error
    _forget_secrets(error)
    response = getattr(error, "response", None)
    if isinstance(error, classes("APIStatusError", "HTTPStatusError")) and response is not None:
        return status_error(response, generation_id)
    said = str(error) or type(error).__name__
    unreadable = classes("DecodingError", "APIResponseValidationError")
    if isinstance(error, (*unreadable, json.JSONDecodeError, UnicodeDecodeError, ValidationError)):
        # Their texts and attributes may hold the body, so only the kind of trouble is told.
        return InvalidResponseError(
            f"the answer is not readable ({type(error).__name__})", generation_id=generation_id
        )
    where: Any = {"generation_id": generation_id, "request_sent": _may_have_been_sent(error)}
    timed_out = isinstance(error, (TimeoutError, *classes("TimeoutException", "APITimeoutError")))
    if timed_out and not _is_broken_connection(error.__cause__):
        return APITimeoutError(f"no answer in time ({said})", **where)
    if isinstance(error, (OSError, *classes("RequestError", "APIConnectionError", "ClientError"))):
        return APIConnectionError(f"the connection to the API failed ({said})", **where)
    return None


def _is_broken_connection(cause: BaseException | None) -> bool:
    """Whether it is one of aiohttp's, which httpx-aiohttp calls a ConnectTimeout at any moment."""
    broken = isinstance(cause, classes("ClientConnectionError"))
    return broken and not isinstance(cause, (TimeoutError, *classes("ClientConnectorError")))


def _may_have_been_sent(error: BaseException) -> bool:
    not_sent = classes("ConnectError", "ConnectTimeout", "PoolTimeout")
    return not isinstance(error, not_sent) or _is_broken_connection(error.__cause__)


def status_error(
    response: Any,
    generation_id: str | None = None,
    *,
    secret: str | None = None,
    base_url: str = "/v1",
) -> APIStatusError:
    """The typed error for a response (httpx's, or one that is alike) with an error status.

    `secret` is left out of the API's words. `base_url` is where the request went.
    """
    status = int(response.status_code)
    fallback = ServerError if status >= 500 else APIStatusError
    error_class = STATUS_ERRORS.get(status, fallback)
    detail = _detail(response)
    if detail is not None and secret is not None and len(secret) >= MIN_SECRET_LENGTH:
        detail = detail.replace(secret, "...")
    request_id = response.headers.get("X-Request-Id")
    said = [f"HTTP {status} {_phrase(status)}".rstrip(), detail]
    if 300 <= status < 400:
        said.append("the API does not redirect, so check the base URL")
    message = ": ".join(part.rstrip(".") for part in said if part) + "."
    hint = _hint(status, generation_id, base_url)
    if hint:
        message += f" {hint}"
    if request_id:
        message += f" (request id {request_id})"
    return error_class(
        message,
        status_code=status,
        detail=detail,
        request_id=request_id,
        retry_after=retry_after(response.headers),
        generation_id=generation_id,
    )


def _hint(status: int, generation_id: str | None, base_url: str) -> str:
    if status in (404, 405) and not base_url.endswith("/v1"):
        return "Check the base URL (LUMA_BASE_URL), which does not end in /v1 as the API's does."
    if status == 404 and generation_id is None:
        return "Check the base URL (LUMA_BASE_URL)."
    return STATUS_ERRORS[status].hint if status in STATUS_ERRORS else ""


def classes(*names: str) -> tuple[type[BaseException], ...]:
    """Those of httpx, httpx2, the official SDK and aiohttp of these names, as far as imported."""
    modules = [sys.modules.get(name) for name in ("httpx", "httpx2", "luma_agents", "aiohttp")]
    return tuple(
        vars(module)[name] for module in modules if module for name in names if name in vars(module)
    )


def _forget_secrets(error: BaseException | None) -> None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # a chain may be a ring
        seen.add(id(error))
        error.args = redact_value(error.args)
        if isinstance(error, OSError) and isinstance(error.strerror, str):
            error.strerror = redact(error.strerror)
        for name in ("_request", "request"):
            headers = getattr(vars(error).get(name), "headers", None)
            if isinstance(headers, MutableMapping):
                headers.pop("Authorization", None)
        error = error.__cause__ or error.__context__


def _detail(response: Any) -> str | None:
    """The text of `{"detail": text}`; None for any other body, such as a proxy's page."""
    try:
        detail = json.loads(response.content)["detail"]
    except (ValueError, LookupError, TypeError, RuntimeError):  # the last: too deep, or not read
        return None
    text = detail if isinstance(detail, str) else json.dumps(detail)
    return text[:1000] or None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from now, or None where the header is absent or makes no sense."""
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, headers.get("Date"))
    return seconds if 0 <= seconds <= MAX_RETRY_AFTER else None


def _seconds_until(date: str, now: str | None) -> float:
    """From the server's own `Date` on, as clocks differ; NaN where `date` is not a date."""
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
