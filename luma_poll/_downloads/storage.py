"""Requests to the storage: presigned URLs, redirects, ranges, and their failures.

Only our own headers are sent: no API key, no cookie, nothing that the client adds.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast
from urllib.parse import urljoin

import anyio
import httpx

from luma_poll._api.evidence import chain
from luma_poll._api.headers import retry_after
from luma_poll._api.translation import BROKEN_STREAM, classes
from luma_poll._arguments import may_be_plain
from luma_poll._downloads.encodings import Decoder, UndecodableError, codings_of
from luma_poll._redaction import redact
from luma_poll._version import __version__

MAX_REDIRECTS = 3
STALL = 30.0
"""Seconds without a byte after which a connection counts as dead."""
LONGEST_RETRY_AFTER = 60.0
"""Seconds; a longer `Retry-After` of the storage counts as this."""
REDIRECTS = (301, 302, 303, 307, 308)
INVALID = "the URL of the output is not valid"
HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"luma-poll/{__version__}",
}


class InterruptedTry(Exception):  # noqa: N818 (it is no error yet)
    """The error for a request that failed, although another may succeed.

    Attributes:
        expired: True if a fresh URL may help.
        changed: True if the bytes on disk may belong to another version of the file.
        retry_after: Seconds that the storage asked us to wait.
    """

    def __init__(
        self, why: str, *, expired: bool = False, changed: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(why)
        self.expired = expired
        self.changed = changed
        self.retry_after = retry_after


class RefusedError(Exception):
    """The error for a request that breaks one of our rules or needs a setting: do not try again."""


@dataclass(frozen=True)
class Version:
    """A file as the storage describes it; equal versions have the same bytes."""

    etag: str | None
    total: int | None
    content_type: str = field(default="", compare=False)
    decoder: Decoder | None = field(default=None, compare=False, repr=False)

    @property
    def resumable(self) -> bool:
        """True if a part of it cannot be confused with that of another version."""
        return self.etag is not None and self.total is not None

    @property
    def key(self) -> str:
        """A short name for it."""
        return sha256(f"{self.etag} {self.total}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Storage:
    """The way to the storage.

    Attributes:
        http: The client whose transport is used.
        base_url: The base URL of the API, which decides on which hosts plain http is allowed.
    """

    http: httpx.AsyncClient  # or httpx2's, whose names are the same
    base_url: str


async def request(
    storage: Storage, url: str, version: Version | None, start: int
) -> httpx.Response:
    """Send a request, and return the response, with status 200 or 206; `close` it at the end.

    Args:
        storage: The way to the storage.
        url: The presigned URL.
        version: The version of the bytes before `start`; None if there are none.
        start: The first byte to ask for. The storage may send the whole file regardless.

    Raises:
        InterruptedTry: It failed, but another request may succeed.
        RefusedError: It failed for good.
    """
    headers = dict(HEADERS)
    if start and version is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.etag or ""}
    response = await _follow(storage, url, headers)
    try:
        _check_status(response)
    except InterruptedTry:
        await close(response)
        raise
    return response


def read_version(response: httpx.Response) -> Version:
    """Return the version of the file that a response begins to send.

    Raises:
        InterruptedTry: It is a part that was not asked for, or its end cannot be recognised.
    """
    headers = response.headers
    if response.status_code != 200:
        raise InterruptedTry("the storage sent a part that was not asked for")
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    length = re.fullmatch(r"[0-9]{1,18}", headers.get("Content-Length", ""))
    if length is None and not _is_framed(response):
        raise InterruptedTry("the storage did not say how long the file is", expired=True)
    total = int(length[0]) if length else None
    if codings := codings_of(headers):
        return Version(None, None, content_type, Decoder(codings, total))
    etag = re.fullmatch(r'"[!-~]+"', headers.get("ETag", ""))
    return Version(etag and etag[0], total, content_type)


def check_continues(response: httpx.Response, version: Version, start: int) -> int:
    """Check that a part continues the bytes on disk.

    Both are spliced together, so the response must repeat everything that identifies the version.

    Returns:
        The offset of its end.

    Raises:
        InterruptedTry: It belongs to another version, or may belong to one.
    """
    said = re.fullmatch(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})",
        response.headers.get("Content-Range", ""),
    )
    first, last, total = map(int, said.groups()) if said else (0, 0, 0)
    same = response.headers.get("ETag") == version.etag and not codings_of(response.headers)
    if not same or (first, total) != (start, version.total) or not first <= last < total:
        raise InterruptedTry("the file has changed on the storage", changed=True)
    return last + 1


@asynccontextmanager
async def body(
    response: httpx.Response, decoder: Decoder | None = None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over the bytes of a response as they arrive, decoded if they are encoded.

    This does not use `aiter_raw`: a response of a mock transport may have been read before.
    """
    chunks = aiter(cast(httpx.AsyncByteStream, response.stream))
    decoded = None if decoder is None else _decoded(chunks, decoder)
    try:
        yield chunks if decoded is None else decoded
    finally:
        if decoded is not None:
            await close(decoded)
        await close(chunks)


async def _decoded(chunks: AsyncIterator[bytes], decoder: Decoder) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        for piece in decoder.feed(chunk):
            yield piece
    for piece in decoder.end():
        yield piece


async def read(chunks: AsyncIterator[bytes], take: Callable[[bytes], bool]) -> bool:
    """Pass chunks of a body to `take` until it returns True.

    Returns:
        False at the end of the body.

    Raises:
        InterruptedTry: The connection is broken or dead, or the body cannot be decoded.
    """
    with _network(), anyio.fail_after(STALL + 1) as stall:
        async for chunk in chunks:
            now = anyio.current_time()
            if stall.deadline < now + STALL:
                stall.deadline = now + STALL + 1  # not for each chunk: that costs too much
            if take(chunk):
                return True
    return False


async def _follow(storage: Storage, url: str, headers: dict[str, str]) -> httpx.Response:
    plain = True
    for _ in range(MAX_REDIRECTS + 1):
        with _valid():
            request = request_of(storage.http, "GET", url, headers)
            _check_url(request.url)
        if request.url.scheme != "https" and not (
            plain
            and request.url.scheme == "http"
            and may_be_plain(request.url.host, storage.base_url)
        ):
            raise RefusedError(f"the URL on {request.url.host} is not https")
        plain = request.url.scheme == "http"
        with _network(request.url.host):
            response = await _send(storage.http, request)
        if response.status_code not in REDIRECTS:
            return response
        location = response.headers.get("Location", "")
        await close(response)
        with _valid():
            url = urljoin(url, location)
    raise InterruptedTry(f"more than {MAX_REDIRECTS} redirects", expired=True)


@contextlib.contextmanager
def _valid() -> Iterator[None]:
    """Refuse a URL that cannot be parsed."""
    invalid: tuple[type[BaseException], ...] = (ValueError, *classes("InvalidURL"))
    try:
        yield
    except invalid:  # a UnicodeError is a ValueError, and idna's errors are too
        raise InterruptedTry(INVALID, expired=True) from None


def _check_url(url: httpx.URL) -> None:
    """Check the target of a request.

    Raises:
        ValueError: It has no usable host.
        RefusedError: It has a user name or password.
    """
    if not url.host or "%" in url.host or not 0 <= (url.port or 0) <= 65535:
        raise ValueError
    if url.userinfo:
        raise RefusedError(f"the URL on {url.host} has a user name or password")


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    if status == 416:
        raise InterruptedTry("the storage has no such range (HTTP 416)", changed=True)
    if status == 403:
        raise InterruptedTry("the storage refused the URL (HTTP 403)", expired=True)
    wait = min(retry_after(response.headers) or 0.0, LONGEST_RETRY_AFTER)
    busy = status in (408, 425, 429) or status >= 500
    raise InterruptedTry(f"the storage answered HTTP {status}", expired=not busy, retry_after=wait)


@contextlib.contextmanager
def _network(host: str = "the storage") -> Iterator[None]:
    """Translate failures of the connection into `InterruptedTry`."""
    broken: tuple[type[BaseException], ...] = (
        OSError,
        *BROKEN_STREAM,
        *classes("RequestError", "ClientError"),
    )
    try:
        yield
    except UnicodeError:  # trio encodes the host's name only now
        raise InterruptedTry(INVALID, expired=True) from None
    except UndecodableError as error:
        raise InterruptedTry(str(error), expired=True) from None
    except broken as error:
        raise _trouble(error, host) from None


def _trouble(error: BaseException, host: str) -> InterruptedTry | RefusedError:
    """Return the error that says what keeps us from the storage, and what to do about it."""
    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = (getattr(cause, "verify_message", "") or "verification failed").rstrip(".")
            return RefusedError(
                f"the certificate of {host} is not valid ({why}): check the clock of this machine "
                "and, behind a proxy with certificates of its own, SSL_CERT_FILE"
            )
    if isinstance(error, classes("ProxyError")):
        said = redact(str(error))[:100]
        if said.startswith("407"):
            return RefusedError(
                "the proxy wants a user name and password: write them into HTTPS_PROXY "
                "(http://user:password@host:port)"
            )
        return InterruptedTry(f"the proxy does not connect to {host} ({said})")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return InterruptedTry(f"the name {host} cannot be looked up: check the network and the DNS")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return InterruptedTry(f"{host} refused the connection: check the network and the proxies")
    why = type(error).__name__
    return InterruptedTry(f"the connection to the storage failed ({why})")


def request_of(http: Any, method: str, url: str, headers: dict[str, str]) -> httpx.Request:
    """Make a request of the client's own library, httpx or httpx2, which encodes blanks in URLs."""
    example: httpx.Request = http.build_request("GET", "https://localhost")
    seconds = dict.fromkeys(("connect", "read", "write", "pool"), STALL)
    return type(example)(method, url, headers=headers, extensions={"timeout": seconds})


async def _send(http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send a request through the client's transport for its URL.

    The client itself would run its event hooks, and log the signed URL. Only if a later httpx no
    longer names its transport does the client send it: without logging, and without the client's
    headers, because `request_of` takes nothing from the client.
    """
    response: httpx.Response
    transport_for = getattr(http, "_transport_for_url", None)
    with anyio.fail_after(STALL), _untraced():
        if transport_for is not None:
            response = await transport_for(request.url).handle_async_request(request)
        else:
            with _unlogged(str(request.url)):
                response = await http.send(request, stream=True, auth=None, follow_redirects=False)
    return response


@contextlib.contextmanager
def _unlogged(url: str) -> Iterator[None]:
    """Keep a signed URL out of the clients' own logs."""

    def is_harmless(record: logging.LogRecord) -> bool:
        return url not in record.getMessage()

    loggers = [logging.getLogger(name) for name in ("httpx", "httpx2")]
    for logger in loggers:
        logger.addFilter(is_harmless)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_harmless)


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Keep a signed URL out of the spans of OpenTelemetry's instrumentors, if they are in use.

    They record the whole URL of a request, unless their own context key suppresses it.
    """
    context = sys.modules.get("opentelemetry.context")
    if context is None:
        yield
        return
    token = context.attach(context.set_value("suppress_instrumentation", True))
    try:
        yield
    finally:
        context.detach(token)


async def close(opened: Any) -> None:
    """Close a response or an iterator, whatever its state."""
    with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
        await opened.aclose()


def _is_framed(response: httpx.Response) -> bool:
    """Return True if a body without a length has an end that a broken connection cannot fake."""
    version = response.extensions.get("http_version", b"")
    return version not in (b"HTTP/1.0", b"HTTP/1.1") or "Transfer-Encoding" in response.headers
