"""Files on the disk: safe names, writes that may be resumed, whole under their final name."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable
from concurrent.futures import Future, wait
from hashlib import sha256
from pathlib import Path
from typing import TypeVar, cast
from uuid import UUID

import anyio
import anyio.to_thread

from luma_poll._downloads.media import HEAD_SIZE

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
BUFFER = 1024**2
"""Bytes that are worth a visit to a thread."""
PIECE = 256 * 1024
"""Bytes that are written at once. For a larger write Linux takes larger pages, and has to look for
them: on ext4 in a virtual machine, pieces of 1 MB took five times as long."""
RESERVED = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)\d")  # the names of devices, on Windows

T = TypeVar("T")


def stem_of(generation_id: str, number: int) -> str:
    """The name of the file without its extension, which no id can lead out of the directory."""
    name = generation_id
    if not _is_safe(name):
        digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:50]}_{digest}"
    return name if number == 1 else f"{name}-{number}"


def _is_safe(name: str) -> bool:
    if not SAFE_ID.fullmatch(name) or RESERVED.fullmatch(name):
        return False
    try:
        return bool(UUID(name))
    except ValueError:
        return not re.search(r"-\d+$", name)  # looks like the second file of another one


def size_of(path: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        status = path.stat()  # asked once: another download may finish it at any time
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class PartFile:
    """A file on its way, which is written from `start` on.

    Whatever interrupts it, and however often something is written again: the bytes are at their
    places, without a gap, since each write has its place, and what was not wholly written is kept.
    `put` only remembers; the other methods block, and must not overlap.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._written = start
        self._buffer, self._filled = bytearray(BUFFER), 0
        self._descriptor: int | None = None

    @property
    def position(self) -> int:
        """Where the next bytes belong."""
        return self._written + self._filled

    @property
    def is_full(self) -> bool:
        """True when enough is remembered to be worth a visit to a thread."""
        return self._filled >= BUFFER

    def open(self, keep: bool) -> bool:
        """Open it; what it has already stays, if `keep` says so.

        False if the bytes before `start` are not there any more: another download has finished it.
        """
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        flags |= 0 if self._written else os.O_CREAT
        try:
            self._descriptor = os.open(self._path, flags if keep else flags | os.O_TRUNC, 0o666)
        except FileNotFoundError:
            if self._written:
                return False
            raise
        _lock(self._descriptor, shared=True)
        return os.fstat(self._descriptor).st_size >= self._written

    def put(self, chunk: bytes) -> None:
        """Remember bytes; the buffer grows only where a piece does not fit in."""
        end = self._filled + len(chunk)
        self._buffer[self._filled : end] = chunk
        self._filled = end

    def flush(self) -> None:
        """Write what is remembered."""
        if self._descriptor is None:
            return
        view, done = memoryview(self._buffer)[: self._filled], 0
        while done < len(view):
            piece = view[done : done + PIECE]
            done += _write_at(self._descriptor, piece, self._written + done)
        self._written, self._filled = self._written + done, 0

    def close(self) -> None:
        """Write what is remembered, and close; nothing if it is closed."""
        try:
            self.flush()
        finally:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


def _write_at(descriptor: int, data: memoryview, place: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, place)
    os.lseek(descriptor, place, os.SEEK_SET)  # on Windows
    return os.write(descriptor, data)


def publish(part: Path, private: Path, size: int | None, named: Callable[[bytes], Path]) -> Path:
    """Give the file its final name, which is up to its first bytes, when it is on the disk.

    In between it has a name that no other download knows: the other one may stand for another
    file by the time that this one is on the disk.

    Raises:
        FileNotFoundError: It is not that one any more: another download has finished it.
    """
    _check_size(part, size)
    with open(part, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(part, private)
    _check_size(private, size)
    with open(private, "rb") as file:
        path = named(file.read(HEAD_SIZE))
    os.replace(private, path)
    with contextlib.suppress(OSError):  # a directory cannot be opened everywhere
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    return path


def _check_size(path: Path, size: int | None) -> None:
    if size is not None and path.stat().st_size != size:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def remove_parts(base: Path, keep: Path | None) -> None:
    """Remove the parts of a file that nobody writes, except one."""
    for path in base.parent.glob(f".{base.name}.*.part"):
        with contextlib.suppress(OSError):  # on Windows it is the system that keeps an open file
            if path != keep and not _is_written(path):
                path.unlink()


def _is_written(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        return not _lock(descriptor, shared=False)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock a file until it is closed; False if somebody else keeps it locked.

    Those who write a part share its lock. It ends with their process, however that ends.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except BlockingIOError:
        return False
    except OSError:  # there are no locks on this file system
        return True
    return True


async def in_thread(function: Callable[[], T]) -> T:
    """Run what blocks in a thread, and end no earlier than it does.

    A task that is cancelled by asyncio itself, as when its loop is closed, would go on at once,
    and the thread beside it. What has not begun by then never will.
    """
    state: Future[None] = Future()

    def run() -> T | None:
        if not state.set_running_or_notify_cancel():
            return None
        try:
            return function()
        finally:
            state.set_result(None)

    try:
        return cast(T, await anyio.to_thread.run_sync(run))
    finally:
        state.cancel()
        with anyio.CancelScope(shield=True):
            while not state.done():
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await anyio.to_thread.run_sync(wait, [state])
