"""Bodies that a storage has encoded, or says that it has."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from luma_poll._api.media_types import HEAD_SIZE, media_type_of

NO_CODINGS: Final = frozenset(
    {"", "identity", "none", "null", "binary", "7bit", "8bit", "aws-chunked"}
    | {"utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1"}
)
"""Values of `Content-Encoding` that name no coding: storages keep whatever an upload said."""
PIECE: Final = 256 * 1024
"""Bytes that are decoded at once."""


class UndecodableError(Exception):
    """A body cannot be decoded."""


def codings_of(headers: Mapping[str, str]) -> list[str]:
    """The codings of a body in the order in which they were applied."""
    said = headers.get("Content-Encoding", "").lower().split(",")
    return [coding for each in said if (coding := each.strip().strip("\"'")) not in NO_CODINGS]


class _Stage(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...
    def end(self) -> None: ...


class Decoder:
    """Decodes a body piece by piece; a body that is media as it comes was never encoded.

    Args:
        codings: The codings, in the order in which they were applied.
        length: Bytes of the encoded body, if they were announced.
    """

    def __init__(self, codings: list[str], length: int | None) -> None:
        self._codings = codings
        self._missing = length
        self._head = b""
        self._stages: list[_Stage] | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The decoded bytes of the next chunk.

        Raises:
            UndecodableError: The coding is unknown, or the bytes are not what it makes.
        """
        if self._missing is not None:
            self._missing -= len(chunk)
        if self._stages is None:
            self._head += chunk
            if len(self._head) < HEAD_SIZE:
                return
            chunk = self._begin()
        yield from _through(self._stages or [], chunk)

    def end(self) -> Iterator[bytes]:
        """The decoded bytes that are left at the end of the body.

        Raises:
            UndecodableError: It ends too early.
        """
        if self._stages is None:
            yield from _through(self._begin_stages(), self._head)
        if self._missing is not None and self._missing > 0:
            raise UndecodableError("the file is shorter than announced")
        for stage in self._stages or []:
            stage.end()

    def _begin(self) -> bytes:
        self._begin_stages()
        return self._head

    def _begin_stages(self) -> list[_Stage]:
        plain = media_type_of(self._head[:HEAD_SIZE]) is not None
        self._stages = [] if plain else [_stage(coding) for coding in reversed(self._codings)]
        return self._stages


def _through(stages: list[_Stage], data: bytes) -> Iterator[bytes]:
    if not stages:
        yield data
        return
    for piece in stages[0].feed(data):
        yield from _through(stages[1:], piece)


def _stage(coding: str) -> _Stage:
    if coding in ("gzip", "x-gzip"):
        return _Inflate(zlib.MAX_WBITS | 16)
    if coding == "deflate":
        return _Deflate()
    raise UndecodableError(f"the storage sent the file encoded ({coding[:20]})")


class _Inflate:
    def __init__(self, wbits: int) -> None:
        self._object = zlib.decompressobj(wbits)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decoded bytes, never more at once than `PIECE`."""
        while data and not self._object.eof:
            try:
                yield self._object.decompress(data, PIECE)
            except zlib.error as error:
                raise UndecodableError(f"the storage sent broken gzip ({error})") from None
            data = self._object.unconsumed_tail

    def end(self) -> None:
        if not self._object.eof:
            raise UndecodableError("the encoded file ends too early")


class _Deflate:
    """With zlib's frame as the standard asks, or without it as some servers send it."""

    def __init__(self) -> None:
        self._inflate: _Inflate | None = None
        self._first = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The decoded bytes, never more at once than `PIECE`."""
        if self._inflate is None:
            self._first += data
            if len(self._first) < 2:
                return
            data = self._first
            framed = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._inflate = _Inflate(zlib.MAX_WBITS if framed else -zlib.MAX_WBITS)
        yield from self._inflate.feed(data)

    def end(self) -> None:
        if self._inflate is None:
            raise UndecodableError("the encoded file ends too early")
        self._inflate.end()
