"""Files on disk: safe names, resumable writes, and final names for complete files only."""

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
from luma_poll._tasks.threads import own_threads
from luma_poll.errors import DownloadError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
BUFFER = 1024**2
"""Bytes that make a visit to a thread worthwhile."""
PIECE = 256 * 1024
"""Bytes of one write. Linux looks for larger pages to hold a larger write: on ext4 in a virtual
machine, pieces of 1 MB took five times as long."""
RESERVED = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)\d")  # the names of devices, on Windows

T = TypeVar("T")


def stem_of(generation_id: str, number: int, name: str | None = None) -> str:
    """The name of the file without its extension; no id and no name leads out of the directory.

    Args:
        generation_id: The id of the generation.
        number: Of the output, from 1.
        name: A name in place of the id.
    """
    if name is None:
        stem = generation_id if _is_safe(generation_id) else _made_safe(generation_id)
        return stem if number == 1 else f"{stem}-{number}"
    stem = name if _is_file_name(name) else _made_safe(name)
    # Another name may end in -2, but none that is safe has a tilde.
    return stem if number == 1 else f"{stem}~{number}"


def _made_safe(name: str) -> str:
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:50]}_{digest}"


def _is_file_name(name: str) -> bool:
    return bool(SAFE_ID.fullmatch(name)) and not RESERVED.fullmatch(name)


def _is_safe(name: str) -> bool:
    if not _is_file_name(name):
        return False
    try:
        return bool(UUID(name))
    except ValueError:
        return not re.search(r"-\d+$", name)  # looks like the second file of another one


def size_of(path: Path) -> int | None:
    """Bytes of a regular file; None if there is no such file."""
    try:
        status = path.stat()  # asked once: another download may finish it at any time
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class PartFile:
    """An unfinished file, written from `start` on.

    Every write goes to its own offset, and a buffer that was written in part is kept. So there is
    never a gap, whatever interrupts a write and however often it is repeated. `put` only fills the
    buffer; the other methods block, and must not overlap.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._path = path
        self._written = start
        self._buffer, self._filled = bytearray(BUFFER), 0
        self._descriptor: int | None = None

    @property
    def position(self) -> int:
        """The offset of the next bytes."""
        return self._written + self._filled

    @property
    def is_full(self) -> bool:
        """True when the buffer holds enough to be flushed."""
        return self._filled >= BUFFER

    def open(self, keep: bool) -> bool:
        """Open the file; `keep` keeps the bytes that it has already.

        Returns:
            False if the bytes before `start` are gone: another download has finished the file.
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
        """Add bytes to the buffer, which grows only if they do not fit."""
        end = self._filled + len(chunk)
        self._buffer[self._filled : end] = chunk
        self._filled = end

    def flush(self) -> None:
        """Write the buffer to the file."""
        if self._descriptor is None:
            return
        view, done = memoryview(self._buffer)[: self._filled], 0
        while done < len(view):
            piece = view[done : done + PIECE]
            done += _write_at(self._descriptor, piece, self._written + done)
        self._written, self._filled = self._written + done, 0

    def close(self) -> None:
        """Flush and close the file; does nothing if it is closed."""
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
    """Sync a complete part and give it its final name.

    In between it has a private name: by the time the sync has ended, the name of the part may
    belong to another download's file.

    Args:
        part: The complete part.
        private: A name that no other download uses.
        size: Bytes that the part must have; None if unknown.
        named: Makes the final path from the first bytes.

    Returns:
        The final path.

    Raises:
        FileNotFoundError: The part is gone or is another one: another download has finished it.
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
    """Remove the parts of a file that nobody is writing, except `keep`."""
    for path in base.parent.glob(f".{base.name}.*.part"):
        with contextlib.suppress(OSError):  # Windows does not delete open files
            if path != keep and not _is_written(path):
                path.unlink()


def _is_written(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        return not _lock(descriptor, shared=False)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock a file until it is closed; False if somebody else holds the lock.

    The writers of a part share its lock. It ends with their process, however that ends.
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
    """Run a blocking function in a thread, and never return before it has ended.

    A task that asyncio itself cancels, for example because its loop is closed, would otherwise
    continue at once while the thread still runs. A function that has not started by then never
    will.
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
        return cast(T, await anyio.to_thread.run_sync(run, limiter=own_threads()))
    finally:
        state.cancel()
        with anyio.CancelScope(shield=True):
            while not state.done():
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await anyio.to_thread.run_sync(wait, [state], limiter=own_threads())


async def on_disk(path: Path, generation_id: str, function: Callable[[], T]) -> T:
    """Run `function` in a thread.

    Args:
        path: The file or directory in question, for errors that do not name one.
        generation_id: The generation in question.
        function: Reads or writes the disk.

    Raises:
        DownloadError: The disk failed; the `OSError` is the cause.
    """
    try:
        return await in_thread(function)
    except OSError as error:
        raise DownloadError(
            f"cannot write ({error.strerror or type(error).__name__})",
            generation_id=generation_id,
            path=Path(error.filename) if isinstance(error.filename, str) else path,
        ) from error
