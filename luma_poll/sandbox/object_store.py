"""The simulated storage: files of any size, sent in pieces, whole or in ranges."""

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from luma_poll.sandbox import presigning
from luma_poll.sandbox.faults import Fault, by_kind
from luma_poll.sandbox.films import make_mp4
from luma_poll.sandbox.pictures import make_png

PIECE = 64 * 1024
SLOW = 0.1  # seconds from piece to piece
_XML: Final = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code></Error>'
STORAGE_FAULTS: Final = by_kind(
    Fault("403", (403, "application/xml", _XML.format("AccessDenied").encode())),
    Fault("500", (500, "application/xml", _XML.format("InternalError").encode())),
    Fault("503", (503, "application/xml", _XML.format("SlowDown").encode())),
    Fault("html", (200, "text/html", b"<html><body>Sign in</body></html>")),
    Fault("no-range"),
    Fault("slow"),
    Fault("cut-reset", ending="reset", needs_socket=True),
    Fault("cut-truncated", ending="close", needs_socket=True),
)
"""The faults of downloads. The last two end a body in its middle: see `cut_in_the_middle`."""


class Blob:
    """A file made from a name, followed by noise up to its size.

    Args:
        name: The name.
        size: The size in bytes; None for no noise.
        is_video: True for an MP4, False for a PNG.
    """

    def __init__(self, name: str, size: int | None, *, is_video: bool = False) -> None:
        self._image = make_mp4(name) if is_video else make_png(name)
        self.media_type: str = "video/mp4" if is_video else "image/png"
        if is_video and size is not None and 8 <= size - len(self._image) < 2**32:
            # The noise is in a box of its own, which players skip.
            self._image += (size - len(self._image)).to_bytes(4) + b"free"
        self.size: int = len(self._image) if size is None else size
        self._noise = sha256(name.encode()).digest() * (PIECE // 32)
        self.etag: str = f'"{sha256(f"{name} {self.size}".encode()).hexdigest()[:32]}"'

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to, but without, `stop`."""
        stop = min(stop, self.size)
        image = self._image[start:stop]
        start += len(image)
        phase = start % 32
        noise = self._noise * ((stop - start + phase) // PIECE + 1) if stop > start else b""
        return image + noise[phase : phase + max(stop - start, 0)]


def answer(blob: Blob, request: Request, fault: Fault | None) -> Response:
    """Return the whole file, or the range that the request asks for."""
    kind = None if fault is None else fault.kind
    start, stop = 0, blob.size
    status = 200
    headers = {"Accept-Ranges": "bytes", "ETag": blob.etag}
    wanted = None if kind == "no-range" else _wanted_range(blob, request.headers)
    if wanted is not None:
        start, stop = wanted
        if start >= stop:
            headers["Content-Range"] = f"bytes */{blob.size}"
            return Response(_XML.format("InvalidRange"), 416, headers, "application/xml")
        status = 206
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    headers["Content-Length"] = str(stop - start)
    pieces = _pieces(blob, start, stop, SLOW if kind == "slow" else 0.0)
    return StreamingResponse(pieces, status, headers, blob.media_type)


def refused_url(
    request: Request, path: str, signing_key: bytes, timestamp: float
) -> Response | None:
    """Return the storage's refusal of a URL that is not signed or has expired, or None."""
    query = request.query_params.multi_items()
    if query and "Authorization" in request.headers:
        return xml_error(400, "InvalidArgument", "Only one auth mechanism allowed")
    if not presigning.is_genuine(signing_key, request.method, path, query):
        message = "The request signature we calculated does not match the one you provided."
        return xml_error(403, "SignatureDoesNotMatch", message)
    if timestamp >= presigning.expiry_time(query):
        return xml_error(403, "AccessDenied", "Request has expired")
    return None


def xml_error(status: int, code: str, message: str) -> Response:
    """Return an error as S3 writes it."""
    content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(
        f'<?xml version="1.0" encoding="UTF-8"?>\n{content}', status, None, "application/xml"
    )


def cut_in_the_middle(fault: Fault, answer: Response) -> Fault:
    """Return the same fault, halfway through the body of this answer."""
    return replace(fault, after=int(answer.headers.get("Content-Length", 0)) // 2)


def _wanted_range(blob: Blob, headers: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the first byte and the end of a single range; None for the whole file."""
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
    # Python refuses to read thousands of digits; twenty are beyond the end of any file.
    return int(digits.lstrip("0")[:20] or 0) if digits else None


async def _pieces(blob: Blob, start: int, stop: int, pause: float) -> AsyncIterator[bytes]:
    for position in range(start, stop, PIECE):
        yield blob.read(position, min(position + PIECE, stop))
        if pause:
            await anyio.sleep(pause)
