"""The translation of other libraries' exceptions, and of the API's error responses, into ours."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import MutableMapping, Sequence
from html import unescape
from http import HTTPStatus
from typing import Any

import anyio
from pydantic import ValidationError

from luma_poll._api.evidence import (
    at_the_proxy,
    chain,
    classes_in,
    is_closed_client,
    nothing_was_sent,
    proxy_classes,
)
from luma_poll._api.headers import MAX_REQUEST_ID, retry_after
from luma_poll._redaction import excerpt, redact, redact_value
from luma_poll._texts import encodable
from luma_poll.errors import (
    STATUS_ERRORS,
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    InvalidResponseError,
    ServerError,
)

MAX_DETAIL = 1000
"""Characters of the API's description that are kept."""
MAX_FOREIGN_TEXT = 200
"""Characters that are quoted from an answer that is not in the API's words."""
_MAX_PAGE = 4000
_GATEWAY_HINT = "Check the base URL (LUMA_BASE_URL), and the proxy or gateway if there is one."
_TITLE = re.compile(r"<title[^<>]*>([^<]*)", re.IGNORECASE)
_NOT_TEXT = re.compile(r"<(script|style|title)\b.*?</\1\s*>|<[^<>]*>", re.IGNORECASE | re.DOTALL)
_LIBRARIES = ("httpx", "httpcore", "httpx2", "httpcore2", "aiohttp", "luma_agents", "json")
_REDIRECTS = (300, 301, 302, 303, 307, 308)
BROKEN_STREAM = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
"""Exceptions of anyio about a connection that httpx and httpcore may let through."""


def translate_error(
    error: BaseException, generation_id: str | None = None, *, secret: str = ""
) -> APIError | None:
    """Translate an exception of httpx, httpx2, the official SDK or the operating system.

    httpx2 and the SDK are never imported here, only looked up if the user has imported them.
    The secrets are removed from the messages and attributes of `error` and of its causes.

    Args:
        error: The exception.
        generation_id: The generation that was asked for.
        secret: The API key; the keys in requests that `error` holds are found without it.

    Returns:
        Our error, or None for any other exception.
    """
    if isinstance(error, APIError):
        return error
    secrets = _forget_secrets(error, secret)
    response = getattr(error, "response", None)
    if isinstance(error, classes("APIStatusError", "HTTPStatusError")) and response is not None:
        return status_error(response, generation_id, secrets=secrets)
    unreadable = classes("DecodingError", "APIResponseValidationError")
    if isinstance(error, (*unreadable, json.JSONDecodeError, UnicodeDecodeError, ValidationError)):
        # Their messages and attributes may contain the body: only the kind of error is reported.
        return InvalidResponseError(
            f"the answer is unreadable ({type(error).__name__})", generation_id=generation_id
        )
    broken = classes("RequestError", "InvalidURL", "APIConnectionError", "ClientError")
    if isinstance(error, (OSError, *BROKEN_STREAM, *broken)):
        return _connection_error(error, generation_id, secrets)
    failed_to_connect = any(isinstance(cause, (OSError, *broken)) for cause in chain(error))
    if failed_to_connect and nothing_was_sent(error):  # a wrapper of the user's own client
        return _connection_error(error, generation_id, secrets)
    return None


def translate_to_keep(error: Exception, generation_id: str | None = None) -> APIError | None:
    """Return the error from `translate_error` with its cause, both without their tracebacks.

    An error may be kept for an hour, and a traceback would keep its frames alive all that time.
    """
    found = translate_error(error, generation_id)
    if found is None:
        return None
    if found is not error:
        found.__cause__ = error.with_traceback(None)
    return found.with_traceback(None)


def _connection_error(
    error: BaseException, generation_id: str | None, secrets: Sequence[str]
) -> APIConnectionError:
    sent = not nothing_was_sent(error)
    where: Any = {"generation_id": generation_id, "request_sent": sent}
    said = redact(_said(error), secrets)
    # If the request was sent, an error of this kind in the chain belongs to an earlier request.
    for cause in () if sent else chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_error(cause, generation_id)
        if isinstance(cause, proxy_classes()):
            return _proxy_error(cause, said, generation_id)
        if is_closed_client(cause):
            return APIConnectionError("the client has been closed", retryable=False, **where)
        if isinstance(cause, classes("UnsupportedProtocol", "InvalidURL")):
            return APIConnectionError(f"the URL is unusable ({said})", retryable=False, **where)
    if not sent and at_the_proxy(error):
        return APIConnectionError(f"the proxy did not connect to the API ({said})", **where)
    timed_out = isinstance(error, (TimeoutError, *classes("TimeoutException", "APITimeoutError")))
    if timed_out and not _is_broken_connection(error.__cause__):
        return APITimeoutError(f"no answer in time ({said})", **where)
    advice = "" if sent else ": check the network and the base URL"
    return APIConnectionError(f"the connection to the API failed ({said}){advice}", **where)


def _said(error: BaseException) -> str:
    """Return the text of an error, or of its cause: the official SDK's own text never varies."""
    is_of_sdk = type(error).__module__.partition(".")[0] == "luma_agents"
    if is_of_sdk and isinstance(error.__cause__, Exception):
        return _said(error.__cause__)
    return str(error) or type(error).__name__


def _proxy_error(error: BaseException, said: str, generation_id: str | None) -> APIConnectionError:
    """Make the error for a proxy that refuses: retryable (its 503) or to be configured (407)."""
    found = re.match(r"\s*(\d{3})\b", str(error))
    status = getattr(error, "status", None) or (int(found[1]) if found else 0)
    passes = not 400 <= status < 500 or status in (408, 425, 429)
    passes = passes and "password" not in said and "Requested" not in said  # of a SOCKS proxy
    advice = "" if passes else ": check the proxy's settings (HTTPS_PROXY, ALL_PROXY, NO_PROXY)"
    return APIConnectionError(
        f"the proxy refused to connect to the API ({said}){advice}",
        generation_id=generation_id,
        request_sent=False,
        retryable=passes,
    )


def _certificate_error(
    error: ssl.SSLCertVerificationError, generation_id: str | None
) -> APIConnectionError:
    why = getattr(error, "verify_message", "") or str(error)
    return APIConnectionError(
        f"the server's certificate is not valid ({why.rstrip('.')}): check the base URL, the "
        "clock of this machine and, behind a proxy with certificates of its own, SSL_CERT_FILE",
        generation_id=generation_id,
        request_sent=False,
        retryable=False,
    )


def _is_broken_connection(cause: BaseException | None) -> bool:
    """Return True for the aiohttp errors that httpx-aiohttp calls ConnectTimeout at any stage."""
    broken = isinstance(cause, classes("ClientConnectionError"))
    return broken and not isinstance(cause, (TimeoutError, *classes("ClientConnectorError")))


def status_error(
    response: Any,
    generation_id: str | None = None,
    *,
    secrets: Sequence[str] = (),
    base_url: str = "/v1",
) -> APIError:
    """Make the typed error for a response with a status other than 2xx.

    It is in the API's own words if it has the API's `detail`. Otherwise its message names what
    seems to have answered.

    Args:
        response: A response of httpx, or an object that looks like one.
        generation_id: The generation that was asked for.
        secrets: Texts to remove from the API's description.
        base_url: The base URL of the request, for advice on it.
    """
    status = int(response.status_code)
    if status == HTTPStatus.NOT_MODIFIED:
        return InvalidResponseError(
            "the answer is unreadable (HTTP 304 Not Modified: a cache in between has answered a "
            "request that asked for no comparison)",
            generation_id=generation_id,
        )
    fallback = ServerError if status >= 500 else APIStatusError
    error_class = STATUS_ERRORS.get(status, fallback)
    detail = _detail(response, secrets)
    in_api_words = detail is not None
    request_id = excerpt(response.headers.get("X-Request-Id") or "", MAX_REQUEST_ID, secrets)
    said = [f"HTTP {status} {_phrase(status)}".rstrip(), detail]
    if not in_api_words:
        said[0] = f"{said[0]}, {_answered_by(response, secrets)}"
    if status in _REDIRECTS:
        said.append("the API never redirects, so check the base URL")
    message = ": ".join(part.rstrip(".") for part in said if part) + "."
    hint = _hint(status, generation_id, base_url, in_api_words=in_api_words)
    if hint:
        message += f" {hint}"
    if request_id:
        message += f" (request id {request_id})"
    return error_class(
        message,
        status_code=status,
        detail=detail,
        request_id=request_id or None,
        retry_after=retry_after(response.headers),
        generation_id=generation_id,
        in_api_words=in_api_words,
    )


def _hint(status: int, generation_id: str | None, base_url: str, *, in_api_words: bool) -> str:
    if status == 407:
        return "It is the proxy's answer: check the proxy's settings (HTTPS_PROXY, HTTP_PROXY)."
    if status in (404, 405) and not base_url.endswith("/v1"):
        return "Check the base URL (LUMA_BASE_URL), which does not end in /v1 as the API's does."
    if status == 404 and generation_id is None:
        return "Check the base URL (LUMA_BASE_URL)."
    if not in_api_words:  # neither the id nor the key is known to be at fault
        return "" if status in _REDIRECTS or status >= 500 else _GATEWAY_HINT
    return STATUS_ERRORS[status].hint if status in STATUS_ERRORS else ""


def classes(*names: str) -> tuple[type[BaseException], ...]:
    """Return the exceptions with these names of httpx, httpx2, the official SDK and aiohttp."""
    return classes_named(*names)


def classes_named(*names: str) -> tuple[type[Any], ...]:
    """Return the classes with these names in httpx, httpx2, the SDK and aiohttp, if imported."""
    return classes_in(("httpx", "httpx2", "luma_agents", "aiohttp"), *names)


def _forget_secrets(error: BaseException, secret: str) -> list[str]:
    """Remove the secrets from an error and its causes, and return all that were found."""
    secrets = [secret] if secret else []
    causes = list(chain(error))
    for cause in causes:
        for headers in _request_headers(cause):
            secrets += headers.pop("Authorization", "").split()[1:]  # of "Bearer KEY"
    for cause in causes:
        cause.args = redact_value(cause.args, secrets)
        if type(cause).__module__.partition(".")[0] in _LIBRARIES:
            vars(cause).update(redact_value(vars(cause), secrets))
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            cause.strerror = redact(cause.strerror, secrets)
    return secrets


def _request_headers(error: BaseException) -> list[MutableMapping[str, str]]:
    """Return the headers of the requests that an error of httpx or of the official SDK holds."""
    kept = vars(error)
    requests = (
        kept.get("_request"),
        kept.get("request"),
        getattr(kept.get("response"), "_request", None),
    )
    found = [getattr(request, "headers", None) for request in requests]
    return [headers for headers in found if isinstance(headers, MutableMapping)]


def _detail(response: Any, secrets: Sequence[str]) -> str | None:
    """Return the text of `{"detail": text}`; None for any other body, such as a proxy's page."""
    try:
        detail = json.loads(response.content)["detail"]
        text = detail if isinstance(detail, str) else json.dumps(detail, ensure_ascii=False)
    # RuntimeError: nested too deep, or unread.
    except (ValueError, LookupError, TypeError, RuntimeError):
        return None
    if detail is None:
        return None
    return excerpt(encodable(text), MAX_DETAIL, secrets) or None


def _answered_by(response: Any, secrets: Sequence[str]) -> str:
    """Name what has answered in words that are not the API's, and quote it."""

    def quoted(text: str) -> str:
        return repr(excerpt(" ".join(unescape(text).split()), MAX_FOREIGN_TEXT, secrets))

    try:
        page = bytes(response.content[:_MAX_PAGE]).decode(errors="replace")
    except (RuntimeError, TypeError):  # unread, or of another library
        page = ""
    server, title = response.headers.get("Server"), _TITLE.search(page)
    text = " ".join(_NOT_TEXT.sub(" ", page).split())
    said = ["not in the API's words"]
    if server:
        said.append(f"from the server {quoted(server)}")
    if title and title[1].strip():
        said.append(f"a page with the title {quoted(title[1])}")
    said.append(f"saying {quoted(text)}" if text else "without any text")
    return ", ".join(said)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
