"""Outputs without a directory: as bytes in memory, or as a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

from anyio.abc import ObjectSendStream

from luma_poll._downloads.output import Sink
from luma_poll._downloads.storage import Version
from luma_poll.errors import DownloadError

PIECE = 64 * 1024
"""The least bytes that a stream passes on at once, except at its end."""


@dataclass
class Memory(Sink[bytes]):
    """One output on its way into bytes."""

    _version: Version | None = None
    _bytes: bytearray = field(default_factory=bytearray, repr=False)

    async def received(self, version: Version) -> int:
        """Return the number of bytes of a version that are here."""
        return len(self._bytes) if version.resumable and version == self._version else 0

    async def open(self, version: Version, start: int) -> None:
        """Forget the bytes from `start` on."""
        self._version = version
        del self._bytes[start:]

    def put(self, chunk: bytes) -> bool:
        """Add bytes."""
        self._bytes += chunk
        return False

    async def finish(self, version: Version) -> bytes:
        """Return all bytes."""
        return bytes(self._bytes)


@dataclass
class Channel(Sink[None]):
    """One output on its way to a reader, who takes each byte once, in order.

    Attributes:
        generation_id: The id of the generation.
        stream: The end that the reader's stream is connected to.
    """

    generation_id: str
    stream: ObjectSendStream[bytes]
    _version: Version | None = None
    _sent: int = 0
    _waiting: bytearray = field(default_factory=bytearray, repr=False)

    async def expect(self, version: Version) -> None:
        """Refuse any other version than the one whose beginning was passed on."""
        if self._sent and (version != self._version or not version.resumable):
            raise self._broken()

    async def received(self, version: Version) -> int:
        """Return the number of bytes of a version that were passed on."""
        return self._sent if version == self._version else 0

    async def open(self, version: Version, start: int) -> None:
        """Continue where the last attempt ended."""
        if start != self._sent:
            raise self._broken()
        self._version = version

    def put(self, chunk: bytes) -> bool:
        """Add bytes; return True if there are enough to pass on."""
        self._waiting += chunk
        return len(self._waiting) >= PIECE

    async def flush(self) -> None:
        """Pass on what has come."""
        if self._waiting:
            chunk = bytes(self._waiting)
            self._waiting.clear()
            self._sent += len(chunk)
            await self.stream.send(chunk)

    async def close(self) -> None:
        """Drop what was not passed on: it is asked for again."""
        self._waiting.clear()

    def abandon(self) -> None:
        """Drop what was not passed on."""
        self._waiting.clear()

    async def finish(self, version: Version) -> None:
        """Do nothing: all is passed on."""

    def _broken(self) -> DownloadError:
        return DownloadError(
            "the stream broke off, and the storage cannot resume it: open it again",
            generation_id=self.generation_id,
            path=self.path,
            retryable=True,
        )
