"""Files on disk: resumable writes, and final names for complete files only."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import stat
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar, cast

import anyio
import anyio.to_thread

from luma_poll._api.media_types import HEAD_SIZE
from luma_poll._tasks.threads import own_threads
from luma_poll.errors import DownloadError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

BUFFER = 1024**2
"""Bytes that make a visit to a thread worthwhile."""
PIECE = 256 * 1024
"""Bytes of one write. Linux looks for larger pages to hold a larger write: on ext4 in a virtual
machine, pieces of 1 MB took five times as long."""

T = TypeVar("T")


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


def seal(part: Path, private: Path, size: int | None) -> bytes:
    """Sync a complete part, and give it a private name.

    By the time the sync has ended, the name of the part may belong to another download's file.

    Args:
        part: The complete part.
        private: A name that no other download uses.
        size: Bytes that the part must have; None if unknown.

    Returns:
        The first bytes of the file.

    Raises:
        FileNotFoundError: The part is gone or is another one: another download has finished it.
    """
    _check_size(part, size)
    with open(part, "r+b") as file:
        _sync(file.fileno())
    os.replace(part, private)
    _check_size(private, size)
    with open(private, "rb") as file:
        return file.read(HEAD_SIZE)


def publish(private: Path, path: Path, *, overwrite: bool) -> None:
    """Give a complete file its final name, at once or not at all.

    Raises:
        FileExistsError: There is such a file, and it is not to be overwritten.
    """
    if overwrite:
        os.replace(private, path)
    elif os.name == "nt":
        os.rename(private, path)  # refuses to replace anything there
    else:
        _link(private, path)
    with contextlib.suppress(OSError):  # a directory cannot be opened everywhere
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _link(private: Path, path: Path) -> None:
    """Rename without replacing: a second name, then the first is removed."""
    try:
        os.link(private, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # FAT, and some network shares, have no links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(private, path)
    else:
        os.unlink(private)


def have_same_bytes(one: Path, other: Path) -> bool:
    """Compare two files, to the last byte; False for what is no regular file."""
    if size_of(one) != size_of(other) or size_of(one) is None:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(BUFFER):
            if piece != second.read(BUFFER):
                return False
    return True


def check_directory(folder: Path) -> None:
    """Make a directory, and prove that files can be written to it.

    Raises:
        OSError: It is unusable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".luma-poll-{secrets.token_hex(8)}.part"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.close(descriptor)
    probe.unlink()


def _sync(descriptor: int) -> None:
    """Have the bytes on the disk itself: on macOS, `fsync` stops at the disk's own memory."""
    down_to_the_disk: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and down_to_the_disk is not None:
        with contextlib.suppress(OSError):  # not of every file system
            fcntl.fcntl(descriptor, down_to_the_disk)
            return
    os.fsync(descriptor)


def _check_size(path: Path, size: int | None) -> None:
    if size is not None and path.stat().st_size != size:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def remove_parts(base: Path, keep: Path | None) -> None:
    """Remove the parts of a file that nobody is writing, except `keep`."""
    for path in base.parent.glob(f"{glob.escape(base.name)}.*.part"):
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
