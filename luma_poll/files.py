"""Files on the disk: safe names, writes that may be resumed, whole under their final name."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
RESERVED = re.compile(r"(?i)con|prn|aux|nul|(com|lpt)\d")  # the names of devices, on Windows


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


def open_at(path: Path, start: int, keep: bool) -> BinaryIO | None:
    """Open a file to write from `start` on; what it has already stays, if `keep` says so.

    None if the bytes before `start` are not there any more: another download has finished it.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags if keep else flags | os.O_TRUNC, 0o666)
    file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
    if file.seek(0, os.SEEK_END) < start:
        file.close()
        return None
    file.seek(start)
    return file


def write_and_close(file: BinaryIO, data: bytes) -> None:
    """Write the last bytes."""
    with file:
        write(file, data)


def write(file: BinaryIO, data: bytes) -> None:
    """Write all of `data`: an unbuffered file may take less at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(size)


def publish(part: Path, path: Path, size: int | None) -> None:
    """Give the file its final name when all of it is on the disk.

    Raises:
        FileNotFoundError: It is not that one any more: another download has finished it.
    """
    with open(part, "r+b") as file:
        if size is not None and os.fstat(file.fileno()).st_size != size:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(part))
        os.fsync(file.fileno())
    os.replace(part, path)
    with contextlib.suppress(OSError):  # a directory cannot be opened everywhere
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def remove_parts(base: Path) -> None:
    """Remove what is left of other versions."""
    for path in base.parent.glob(f".{base.name}.*.part"):
        path.unlink(missing_ok=True)
