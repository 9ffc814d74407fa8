"""What the simulated storage sends: files of any size in pieces, ranges of them, and faults."""

import re
from collections.abc import AsyncIterator, Mapping
from hashlib import sha256
from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from luma_poll.sandbox.media import make_png

PIECE = 64 * 1024
SLOW = 0.1  # seconds from piece to piece
STORAGE_FAULTS: Final = (
    "403",
    "500",
    "503",
    "html",
    "no-range",
    "slow",
    "cut-reset",
    "cut-truncated",
)
"""`cut-reset` and `cut-truncated` end a body in its middle, on a real socket only."""


class Blob:
    """A file whose bytes follow from its name: a PNG, and noise behind it up to its size."""

    def __init__(self, name: str, size: int | None) -> None:
        self._image = make_png(name)
        self.size = len(self._image) if size is None else size
        self._noise = sha256(name.encode()).digest() * (PIECE // 32)
        self.etag = f'"{sha256(f"{name} {self.size}".encode()).hexdigest()[:32]}"'

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to before `stop`."""
        stop = min(stop, self.size)
        image = self._image[start:stop]
        start += len(image)
        phase = start % 32
        noise = self._noise * ((stop - start + phase) // PIECE + 1) if stop > start else b""
        return image + noise[phase : phase + max(stop - start, 0)]


def answer(blob: Blob, request: Request, fault: str | None) -> Response:
    """The whole file, or the range that is asked for."""
    start, stop = 0, blob.size
    status = 200
    headers = {"Accept-Ranges": "bytes", "ETag": blob.etag}
    wanted = None if fault == "no-range" else _wanted_range(blob, request.headers)
    if wanted is not None:
        start, stop = wanted
        if start >= stop:
            headers["Content-Range"] = f"bytes */{blob.size}"
            return Response(_xml("InvalidRange"), 416, headers, "application/xml")
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    headers["Content-Length"] = str(stop - start)
    pieces = _pieces(blob, start, stop, SLOW if fault == "slow" else 0.0)
    return StreamingResponse(pieces, status, headers, "image/png")


def refusal(fault: str) -> Response | None:
    """The answer in place of the file, for a fault that is one."""
    match fault:
        case "403":
            return Response(_xml("AccessDenied"), 403, None, "application/xml")
        case "500":
            return Response(_xml("InternalError"), 500, None, "application/xml")
        case "503":
            return Response(_xml("SlowDown"), 503, None, "application/xml")
        case "html":
            return Response("<html><body>Sign in</body></html>", 200, None, "text/html")
    return None


def _xml(code: str) -> str:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code></Error>'


def _wanted_range(blob: Blob, headers: Mapping[str, str]) -> tuple[int, int] | None:
    """First byte and end of a single range; None for the whole file."""
    found = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", headers.get("Range", ""))
    if found is None or headers.get("If-Range", blob.etag) != blob.etag:
        return None
    first, last = (_position(digits) for digits in found.groups())
    if first is None:
        return None if last is None else (max(blob.size - last, 0), blob.size)
    if last is None:
        return first, blob.size
    return None if last < first else (first, min(last + 1, blob.size))


def _position(digits: str) -> int | None:
    # Python refuses to read thousands of digits, and twenty lead beyond any file.
    return int(digits.lstrip("0")[:20] or 0) if digits else None


async def _pieces(blob: Blob, start: int, stop: int, pause: float) -> AsyncIterator[bytes]:
    for position in range(start, stop, PIECE):
        yield blob.read(position, min(position + PIECE, stop))
        if pause:
            await anyio.sleep(pause)
