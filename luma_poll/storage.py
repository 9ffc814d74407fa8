"""The storage's side of a download: presigned URLs, redirects, ranges, and what may go wrong there.

Nothing but our own headers is sent: no key, no cookie, nothing of the client's.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import urljoin, urlsplit

import anyio

from luma_poll._version import __version__
from luma_poll.arguments import is_loopback
from luma_poll.media import is_media
from luma_poll.translation import classes, retry_after

MAX_REDIRECTS = 3
STALL = 30.0
"""Seconds without a byte after which the connection is taken for dead."""
LONGEST_RETRY_AFTER = 60.0
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "User-Agent": f"luma-poll/{__version__}",
}


class InterruptedTry(Exception):  # noqa: N818 (it is no error yet)
    """A request has failed, and another may not.

    Attributes:
        expired: Whether a fresh URL is needed.
        changed: Whether the bytes that are there are of another version.
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
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RefusedError(f"the storage sends the file encoded ({encoding[:20]})")
    length = re.fullmatch(r"[0-9]{1,18}", headers.get("Content-Length", ""))
    if length is None and not _is_framed(response):
        raise RefusedError("the storage does not say how long the file is")
    etag = re.fullmatch(r'"[!-~]+"', headers.get("ETag", ""))
    return Version(etag and etag[0], length and int(length[0]), content_type)


def check_continues(response: Any, version: Version, start: int) -> None:
    """Check that a part is the rest of what is there.

    Raises:
        InterruptedTry: It is of another version.
    """
    said = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", response.headers.get("Content-Range", "")
    )
    etag = response.headers.get("ETag", version.etag)
    if not said or (int(said[1]), int(said[2]), etag) != (start, version.total, version.etag):
        raise InterruptedTry("the file has changed on the storage", changed=True)


async def next_chunk(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next bytes of a body; None at its end.

    Raises:
        InterruptedTry: The connection is broken, or dead.
    """
    with _network():
        with anyio.fail_after(STALL):
            return await anext(chunks, None)
    return None


async def _follow(http: Any, url: str, headers: dict[str, str]) -> Any:
    for _ in range(MAX_REDIRECTS + 1):
        _check_url(url)
        with _network():
            response = await _send(http, url, headers)
        if response.status_code not in REDIRECTS:
            return response
        location = response.headers.get("Location", "")
        await _close(response)
        try:
            url = urljoin(url, location)
        except ValueError:
            raise RefusedError("the storage redirects to something that is no URL") from None
    raise RefusedError(f"more than {MAX_REDIRECTS} redirects")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    if not host or any(character.isspace() for character in url):
        raise RefusedError("the URL of the output is not valid")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise RefusedError(f"the URL on {host} is not https")
    if parts.username is not None or parts.password is not None:
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
    """What goes wrong on the wire is worth another try."""
    try:
        yield
        return
    except (OSError, anyio.BrokenResourceError) as error:
        why = type(error).__name__
    except classes("RequestError") as error:
        why = type(error).__name__
    # Outside the `except`: their errors keep the request, and with it the signed URL.
    raise InterruptedTry(f"the connection to the storage failed ({why})")


async def _send(http: Any, url: str, headers: dict[str, str]) -> Any:
    """Send through the transport of the client alone.

    The client itself would add its own headers, cookies, parameters and authentication, which
    are for the API, and would log the whole URL.
    """
    request_class = type(http.build_request("GET", "https://localhost"))
    seconds = dict.fromkeys(("connect", "read", "write", "pool"), STALL)
    request = request_class("GET", url, headers=headers, extensions={"timeout": seconds})
    with anyio.fail_after(STALL):
        return await http._transport_for_url(request.url).handle_async_request(request)


async def _close(response: Any) -> None:
    with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
        await response.aclose()


def _is_framed(response: Any) -> bool:
    """Whether the end of a body without a length can be told from a broken connection."""
    version = response.extensions.get("http_version", b"")
    return version not in (b"HTTP/1.0", b"HTTP/1.1") or "Transfer-Encoding" in response.headers
