"""The storage's side of a download: presigned URLs, redirects, ranges, and what may go wrong there.

Nothing but our own headers is sent: no key, no cookie, nothing of the client's.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urljoin

import anyio

from luma_poll._arguments import is_loopback
from luma_poll._downloads.media import is_media
from luma_poll._translation import BROKEN_STREAM, classes, retry_after
from luma_poll._version import __version__

MAX_REDIRECTS = 3
STALL = 30.0
"""Seconds without a byte after which the connection is taken for dead."""
LONGEST_RETRY_AFTER = 60.0
REDIRECTS = (301, 302, 303, 307, 308)
INVALID = "the URL of the output is not valid"
HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"luma-poll/{__version__}",
}


class InterruptedTry(Exception):  # noqa: N818 (it is no error yet)
    """A request has failed, and another may not.

    Attributes:
        expired: Whether a fresh URL is needed.
        changed: Whether the bytes that are there may be of another version.
        retry_after: Seconds that the storage wants to be left alone.
    """

    def __init__(
        self, why: str, *, expired: bool = False, changed: bool = False, retry_after: float = 0.0
    ) -> None:
        super().__init__(why)
        self.expired = expired
        self.changed = changed
        self.retry_after = retry_after


class RefusedError(Exception):
    """Another request would bring nothing else."""


@dataclass(frozen=True)
class Version:
    """What the storage says of a file: the same version has the same bytes."""

    etag: str | None
    total: int | None
    content_type: str = field(default="", compare=False)

    @property
    def resumable(self) -> bool:
        """Whether a part of it can be told from a part of another version."""
        return self.etag is not None and self.total is not None

    @property
    def key(self) -> str:
        """A name for it."""
        return sha256(f"{self.etag} {self.total}".encode()).hexdigest()[:16]


@asynccontextmanager
async def requested(http: Any, url: str, version: Version | None, start: int) -> AsyncIterator[Any]:
    """The storage's answer, with status 200 or 206: the file, from `start` on if it likes.

    Raises:
        InterruptedTry: There is none, but another request may bring it.
        RefusedError: There will be none.
    """
    headers = dict(HEADERS)
    if start and version is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.etag or ""}
    response = await _follow(http, url, headers)
    try:
        _check_status(response)
        yield response
    finally:
        await _close(response)


def read_version(response: Any) -> Version:
    """Which version a whole file is.

    Raises:
        InterruptedTry: It is a part that was not asked for.
        RefusedError: It is no file that could be kept.
    """
    headers = response.headers
    if response.status_code != 200:
        raise InterruptedTry("the storage sends a part that was not asked for")
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not is_media(content_type):
        raise RefusedError(f"the storage sends {content_type}, not an image or video")
    if encoding := _encoding(response):
        raise RefusedError(f"the storage sends the file encoded ({encoding[:20]})")
    length = re.fullmatch(r"[0-9]{1,18}", headers.get("Content-Length", ""))
    if length is None and not _is_framed(response):
        raise RefusedError("the storage does not say how long the file is")
    etag = re.fullmatch(r'"[!-~]+"', headers.get("ETag", ""))
    return Version(etag and etag[0], length and int(length[0]), content_type)


def check_continues(response: Any, version: Version, start: int) -> int:
    """Check that a part is the rest of what is there, and say where it ends.

    The bytes are spliced, so all that was promised has to be said again.

    Raises:
        InterruptedTry: It is of another version, or may be.
    """
    said = re.fullmatch(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})",
        response.headers.get("Content-Range", ""),
    )
    first, last, total = map(int, said.groups()) if said else (0, 0, 0)
    same = response.headers.get("ETag") == version.etag and not _encoding(response)
    if not same or (first, total) != (start, version.total) or not first <= last < total:
        raise InterruptedTry("the file has changed on the storage", changed=True)
    return last + 1


@asynccontextmanager
async def body(response: Any) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over the bytes of a response as they come.

    Not by `aiter_raw`: what a mock transport gives may have been read before.
    """
    chunks = aiter(response.stream)
    try:
        yield chunks
    finally:
        await _close(chunks)


async def read(chunks: AsyncIterator[bytes], take: Callable[[bytes], bool]) -> bool:
    """Hand the next bytes of a body to `take` until it has enough; False at the body's end.

    Raises:
        InterruptedTry: The connection is broken, or dead.
    """
    with _network(), anyio.fail_after(STALL + 1) as stall:
        async for chunk in chunks:
            now = anyio.current_time()
            if stall.deadline < now + STALL:
                stall.deadline = now + STALL + 1  # to move it for each chunk costs too much
            if take(chunk):
                return True
    return False


async def _follow(http: Any, url: str, headers: dict[str, str]) -> Any:
    plain = True
    for _ in range(MAX_REDIRECTS + 1):
        with _valid():
            request = _request(http, url, headers)
            _check_url(request.url, plain)
            plain = request.url.scheme == "http"
        with _network():
            response = await _send(http, request)
        if response.status_code not in REDIRECTS:
            return response
        location = response.headers.get("Location", "")
        await _close(response)
        with _valid():
            url = urljoin(url, location)
    raise RefusedError(f"more than {MAX_REDIRECTS} redirects")


@contextlib.contextmanager
def _valid() -> Iterator[None]:
    """Refuse what turns out to be no URL."""
    invalid: tuple[type[BaseException], ...] = (ValueError, *classes("InvalidURL"))
    try:
        yield
    except invalid:  # a UnicodeError is a ValueError, and idna's errors are too
        raise RefusedError(INVALID) from None


def _check_url(url: Any, plain: bool) -> None:
    """Check what the request will be sent to; `plain` says if unencrypted is good enough."""
    host = url.host
    if not host or not 0 <= (url.port or 0) <= 65535:
        raise RefusedError(INVALID)
    if url.scheme != "https" and not (plain and url.scheme == "http" and is_loopback(host)):
        raise RefusedError(f"the URL on {host} is not https")
    if url.userinfo:
        raise RefusedError(f"the URL on {host} has a user name or password")


def _check_status(response: Any) -> None:
    status = response.status_code
    if status == 416:
        raise InterruptedTry("the storage has no such range (HTTP 416)", changed=True)
    if status == 403:
        raise InterruptedTry("the storage refuses the URL (HTTP 403)", expired=True)
    if status in (408, 425, 429) or status >= 500:
        wait = min(retry_after(response.headers) or 0.0, LONGEST_RETRY_AFTER)
        raise InterruptedTry(f"the storage answers HTTP {status}", retry_after=wait)
    if status not in (200, 206):
        raise RefusedError(f"the storage answers HTTP {status}")


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Turn what goes wrong on the wire into a reason for another try."""
    broken: tuple[type[BaseException], ...] = (
        OSError,
        *BROKEN_STREAM,
        *classes("RequestError", "ClientError"),
    )
    try:
        yield
    except UnicodeError:  # trio encodes the host's name only now
        raise RefusedError(INVALID) from None
    except broken as error:
        why = type(error).__name__
        raise InterruptedTry(f"the connection to the storage failed ({why})") from None


def _request(http: Any, url: str, headers: dict[str, str]) -> Any:
    """One of the library that the client is of."""
    if any(character.isspace() for character in url):
        raise ValueError("white space inside")
    request_class = type(http.build_request("GET", "https://localhost"))
    seconds = dict.fromkeys(("connect", "read", "write", "pool"), STALL)
    return request_class("GET", url, headers=headers, extensions={"timeout": seconds})


async def _send(http: Any, request: Any) -> Any:
    """Send through the transport of the client alone.

    The client itself would add its own headers, cookies, parameters and authentication, which
    are for the API, and would log the whole URL.
    """
    with anyio.fail_after(STALL), _untraced():
        return await http._transport_for_url(request.url).handle_async_request(request)


@contextlib.contextmanager
def _untraced() -> Iterator[None]:
    """Keep a signed URL out of the spans of OpenTelemetry's instrumentors, where they are in use.

    They record the whole URL of a request. The key is theirs, and means what it says.
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


async def _close(opened: Any) -> None:
    with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
        await opened.aclose()


def _encoding(response: Any) -> str:
    """How the file is encoded; empty where it comes as it is."""
    encoding: str = response.headers.get("Content-Encoding", "").strip().lower()
    return "" if encoding == "identity" else encoding


def _is_framed(response: Any) -> bool:
    """Whether the end of a body without a length can be told from a broken connection."""
    version = response.extensions.get("http_version", b"")
    return version not in (b"HTTP/1.0", b"HTTP/1.1") or "Transfer-Encoding" in response.headers
