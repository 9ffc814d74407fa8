"""One PUT to the storage: a file, sent in pieces to a presigned URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

from luma_poll._api.headers import retry_after
from luma_poll._api.media_reference import PIECE, in_thread
from luma_poll._arguments import may_be_plain
from luma_poll._downloads.storage import (
    LONGEST_RETRY_AFTER,
    InterruptedTry,
    _network,
    _untraced,
    close,
    request_of,
)

CHUNK = 64 * 1024
"""Bytes that are sent at a time: each piece must go within `STALL`, even on a slow line."""


class Pieces:
    """The bytes of a file, read in a thread as they are sent.

    It is not an async generator: httpx would leave an unfinished one to the garbage collector.

    Args:
        file: The file, open at its first byte.
        size: The number of bytes to send.
        tell: A function that is called with the bytes sent so far.
    """

    def __init__(self, file: BinaryIO, size: int, tell: Callable[[int], None]) -> None:
        self._file = file
        self._left = self._size = size
        self._tell = tell
        self._piece = memoryview(b"")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._tell(self._size - self._left - len(self._piece))
        if not self._piece:
            if not self._left:
                raise StopAsyncIteration
            wanted = min(PIECE, self._left)
            read = await in_thread(self._size > PIECE, self._file.read, wanted)
            if not read:
                raise OSError("the file has become shorter")
            self._left -= len(read)
            self._piece = memoryview(read)
        chunk, self._piece = self._piece[:CHUNK], self._piece[CHUNK:]
        return bytes(chunk)

    async def aclose(self) -> None:
        """Do nothing: the caller that opened the file closes it."""


async def put(http: Any, base_url: str, url: str, headers: dict[str, str], pieces: Pieces) -> int:
    """Send a file to a presigned URL, through the client's transport for that URL.

    Returns:
        The status of the answer.

    Raises:
        InterruptedTry: It failed, but may succeed later or with a fresh URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not may_be_plain(parts.hostname or "", base_url):
        raise InterruptedTry("the URL to upload to is not https")
    request: Any = request_of(http, "PUT", url, headers)
    kind = next(each for each in type(request.stream).__mro__ if each.__name__ == "AsyncByteStream")
    stream: Any = type("_Stream", (_Delegate, kind), {"pieces": pieces})()
    request.stream = stream
    with _network(), _untraced():
        response = await http._transport_for_url(request.url).handle_async_request(request)
    status: int = response.status_code
    await close(response)
    if status == 403:
        raise InterruptedTry("the storage refused the URL (HTTP 403)", expired=True)
    if status in (408, 425, 429) or status >= 500:
        wait = min(retry_after(response.headers) or 0.0, LONGEST_RETRY_AFTER)
        raise InterruptedTry(f"the storage answered HTTP {status}", retry_after=wait)
    return status


class _Delegate:
    pieces: Pieces

    def __aiter__(self) -> Pieces:
        return self.pieces

    async def aclose(self) -> None:
        """Do nothing: nothing is open."""
