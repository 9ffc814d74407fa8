"""Files on disk: writes that can be resumed, and final names only for complete files."""

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
"""Bytes that are collected for one write in a thread."""
PIECE = 256 * 1024
"""The most bytes of one call to write. Linux looks for larger pages to hold a larger write: on ext4
in a virtual machine, pieces of 1 MB took five times as long."""

T = TypeVar("T")


def size_of(path: Path) -> int | None:
    """Return the bytes of a regular file; None if there is no such file."""
    try:
        status = path.stat()  # one call only: another download may rename the file in between
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class PartFile:
    """An unfinished file, written from `start` on.

    Every write goes to its own offset, and the buffer is kept until all of it is written. So there
    is never a gap, even if a write is interrupted and repeated. `put` only fills the buffer; the
    other methods block, and must not overlap.
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
        """Open the file; `keep` is True to keep the bytes that it already has.

        Returns:
            False if the bytes before `start` are gone, because another download finished the file.
        """
        # No links: another user of the directory could plant one that leads to a file elsewhere.
        # And created only at the start: further on, a missing file was finished by another one.
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        flags |= 0 if self._written else os.O_CREAT
        try:
            self._descriptor = os.open(self._path, flags if keep else flags | os.O_TRUNC, 0o666)
        except FileNotFoundError:
            if self._written:
                return False
            raise
        _lock(self._descriptor, shared=True)  # tells others that the part is in use
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
        """Flush and close the file; a second call does nothing."""
        try:
            self.flush()
        finally:  # a full disk must not leave the descriptor open, and the part locked
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)


def _write_at(descriptor: int, data: memoryview, place: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, place)
    os.lseek(descriptor, place, os.SEEK_SET)  # on Windows, which has no pwrite
    return os.write(descriptor, data)


def seal(part: Path, private: Path, size: int | None) -> bytes:
    """Sync a complete part, and give it a private name.

    Args:
        part: The complete part.
        private: A name that no other download uses.
        size: Bytes that the part must have; None if unknown.

    Returns:
        The first bytes of the file.

    Raises:
        FileNotFoundError: The part is gone, or is not complete: another download finished it.
    """
    _check_size(part, size)
    with open(part, "r+b") as file:
        _sync(file.fileno())
    os.replace(part, private)
    # Again: during the sync another download may have finished the part and begun a new one.
    _check_size(private, size)
    with open(private, "rb") as file:
        return file.read(HEAD_SIZE)


def publish(private: Path, path: Path, *, overwrite: bool) -> None:
    """Give a complete file its final name, at once or not at all.

    Raises:
        FileExistsError: A file has that name, and `overwrite` is False.
    """
    if overwrite:
        os.replace(private, path)
    elif os.name == "nt":
        os.rename(private, path)  # on Windows, this never replaces a file
    else:
        _link(private, path)
    # Only the directory's own sync makes the new name survive a power cut. Windows has none.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _link(private: Path, path: Path) -> None:
    """Rename without replacing anything: add the second name, then remove the first."""
    try:
        os.link(private, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # FAT and some network shares have no hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(private, path)
    else:
        os.unlink(private)


def have_same_bytes(one: Path, other: Path) -> bool:
    """Return True for two regular files with the same bytes."""
    if size_of(one) != size_of(other) or size_of(one) is None:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(BUFFER):
            if piece != second.read(BUFFER):
                return False
    return True


def check_directory(folder: Path) -> None:
    """Create a directory if it is missing, and prove that files can be written to it.

    Raises:
        OSError: The directory is unusable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".luma-poll-{secrets.token_hex(8)}.part"
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    os.close(descriptor)
    probe.unlink()


def _sync(descriptor: int) -> None:
    """Write the bytes to the disk itself: on macOS, `fsync` stops at the disk's own memory."""
    down_to_the_disk: int | None = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and down_to_the_disk is not None:
        with contextlib.suppress(OSError):  # not every file system supports it
            fcntl.fcntl(descriptor, down_to_the_disk)
            return
    os.fsync(descriptor)


def _check_size(path: Path, size: int | None) -> None:
    if size is not None and path.stat().st_size != size:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def remove_parts(base: Path, keep: Path | None) -> None:
    """Remove the parts of a file, except `keep` and those that are being written."""
    for path in base.parent.glob(f"{glob.escape(base.name)}.*.part"):
        with contextlib.suppress(OSError):  # Windows does not delete open files
            if path != keep and not _is_written(path):
                path.unlink()


def _is_written(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:  # a writer shares the lock with other writers, so an exclusive one shows if there is any
        return not _lock(descriptor, shared=False)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock a file until it is closed; return False if another holder prevents it.

    All writers of a part share its lock. A lock ends with its process, even if that is killed.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nothing tells, so no part counts as in use
        return True
    return True


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread, and never return before it has ended.

    anyio alone does not promise that: a task that asyncio itself cancels, for example because its
    loop is closed, continues at once while the thread still runs. A function that has not started
    by then never starts.
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
        state.cancel()  # without effect once the function has started
        # A loop, because asyncio's own cancellation passes the shield, more than once if it must.
        with anyio.CancelScope(shield=True):
            while not state.done():
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await anyio.to_thread.run_sync(wait, [state], limiter=own_threads())


async def on_disk(path: Path, generation_id: str, function: Callable[[], T]) -> T:
    """Run `function` in a thread.

    Args:
        path: The file or directory, for errors that do not name one.
        generation_id: The id of the generation.
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
