"""Bodies that the storage has encoded, or says it has."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from luma_poll._api.media_types import HEAD_SIZE, media_type_of

NO_CODINGS: Final = frozenset(
    {"", "identity", "none", "null", "binary", "7bit", "8bit", "aws-chunked"}
    | {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1"}
)
"""Values of `Content-Encoding` that name no coding: storages keep whatever an upload said."""
PIECE: Final = 256 * 1024
"""The most bytes that one step of decoding makes."""


class UndecodableError(Exception):
    """The error for a body that cannot be decoded."""


def codings_of(headers: Mapping[str, str]) -> list[str]:
    """Return the codings of a body in the order in which they were applied."""
    said = headers.get("Content-Encoding", "").lower().split(",")
    return [coding for each in said if (coding := each.strip().strip("\"'")) not in NO_CODINGS]


class Decoder:
    """A decoder of one body, piece by piece. A body that is media as it comes stays as it is.

    Args:
        codings: The codings, in the order in which they were applied.
        length: The announced bytes of the encoded body, or None.
    """

    def __init__(self, codings: list[str], length: int | None) -> None:
        self._codings = codings
        self._missing = length
        self._head = b""
        self._stages: list[_Inflate] | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes of the next chunk.

        Raises:
            UndecodableError: The coding is unknown, or the bytes are not encoded by it.
        """
        if self._missing is not None:
            self._missing -= len(chunk)
        if self._stages is None:
            self._head += chunk
            if len(self._head) < HEAD_SIZE:
                return
            chunk = self._head
        yield from _through(self._begun(), chunk)

    def end(self) -> Iterator[bytes]:
        """Yield the decoded bytes that are left at the end of the body.

        Raises:
            UndecodableError: The body ends too early.
        """
        if self._stages is None:
            yield from _through(self._begun(), self._head)
        if self._missing is not None and self._missing > 0:
            raise UndecodableError("the file is shorter than announced")
        for stage in self._begun():
            stage.end()

    def _begun(self) -> list[_Inflate]:
        if self._stages is None:
            plain = media_type_of(self._head[:HEAD_SIZE]) is not None
            self._stages = [] if plain else [_stage(coding) for coding in reversed(self._codings)]
        return self._stages


def _through(stages: list[_Inflate], data: bytes) -> Iterator[bytes]:
    if not stages:
        yield data
        return
    for piece in stages[0].feed(data):
        yield from _through(stages[1:], piece)


def _stage(coding: str) -> _Inflate:
    if coding in ("gzip", "x-gzip"):
        return _Inflate(zlib.MAX_WBITS | 16)
    if coding == "deflate":
        return _Inflate(None)
    raise UndecodableError(f"the storage sent the file encoded ({coding[:20]})")


class _Inflate:
    """A decoder of one coding.

    Args:
        wbits: The window bits for zlib. None for `deflate`, which comes in zlib's frame, as the
            standard asks, or without, as some servers send it: the first two bytes tell.
    """

    def __init__(self, wbits: int | None) -> None:
        self._wbits = wbits
        self._first = b""
        self._object: zlib._Decompress | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes, never more at once than `PIECE`."""
        if self._object is None:
            data = self._first = self._first + data
            if len(data) < 2:
                return
            if self._wbits is None:
                framed = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
                self._wbits = zlib.MAX_WBITS if framed else -zlib.MAX_WBITS
            self._object = zlib.decompressobj(self._wbits)
        while data and not self._object.eof:
            try:
                yield self._object.decompress(data, PIECE)
            except zlib.error as error:
                raise UndecodableError(f"the storage sent broken gzip ({error})") from None
            data = self._object.unconsumed_tail

    def end(self) -> None:
        """Check that the body was complete."""
        if self._object is None or not self._object.eof:
            raise UndecodableError("the encoded file ends too early")
