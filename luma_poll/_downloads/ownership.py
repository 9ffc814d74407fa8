"""The output that a file holds, recorded in the file's own attributes, which move with the bytes.

Neither a name nor a size identifies an output. The attribute is set before the file gets its name,
so the name never exists without it, and no lock or index has to be shared between processes. Some
file systems have no attributes (FAT, older tmpfs, many network shares), and copies lose them. Then
nothing is known, and only equal bytes prove anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import stat
import sys
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import Final

ATTRIBUTE: Final = "user.luma-poll"
_MAX_VALUE: Final = 4096
_EDGE: Final = 64 * 1024


@dataclass(frozen=True)
class Owner:
    """The output that a file holds."""

    generation_id: str
    number: int


class Claim(Enum):
    """The relation of a file to an output."""

    OURS = "it holds the output, as it was downloaded"
    CHANGED = "it held the output, and has been changed since"
    UNKNOWN = "it holds another output, or nothing tells"


def mark(path: Path, owner: Owner) -> None:
    """Record on a complete file which output it holds, if the file system can."""
    note = {
        "generation": owner.generation_id,
        "output": owner.number,
        "size": path.stat().st_size,
        "edges": _edges(path),
    }
    with contextlib.suppress(OSError, AttributeError):
        _set(path, json.dumps(note).encode())


def claim_of(path: Path, owner: Owner) -> Claim | None:
    """Return the relation of the file at a path to an output; None if there is no file."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return Claim.UNKNOWN
    try:
        note = json.loads(_get(path))
        if (note["generation"], note["output"]) != (owner.generation_id, owner.number):
            return Claim.UNKNOWN
        same = status.st_size == note["size"] and _edges(path) == note["edges"]
        return Claim.OURS if same else Claim.CHANGED
    except (OSError, AttributeError, ValueError, LookupError, TypeError):
        return Claim.UNKNOWN


def _edges(path: Path) -> str:
    """Return a digest of both ends of a file: it shows an edit, and is cheap for any size."""
    with path.open("rb") as file:
        head = file.read(_EDGE)
        file.seek(max(len(head), os.fstat(file.fileno()).st_size - _EDGE))
        return sha256(head + file.read(_EDGE)).hexdigest()[:32]


def _set(path: Path, value: bytes) -> None:
    if sys.platform == "win32":
        Path(f"{path.absolute()}:luma-poll").write_bytes(value)  # a stream of the file on NTFS
    elif sys.platform == "darwin":
        arguments = (os.fsencode(path), ATTRIBUTE.encode(), value, len(value), 0, 0)
        if ctypes.CDLL(None, use_errno=True).setxattr(*arguments):
            raise OSError(ctypes.get_errno(), "setxattr")
    else:
        os.setxattr(path, ATTRIBUTE, value)


def _get(path: Path) -> bytes:
    if sys.platform == "win32":
        with Path(f"{path.absolute()}:luma-poll").open("rb") as stream:
            return stream.read(_MAX_VALUE)
    elif sys.platform == "darwin":
        buffer = ctypes.create_string_buffer(_MAX_VALUE)
        library = ctypes.CDLL(None, use_errno=True)
        library.getxattr.restype = ctypes.c_ssize_t
        arguments = (os.fsencode(path), ATTRIBUTE.encode(), buffer, _MAX_VALUE, 0, 0)
        size = library.getxattr(*arguments)
        if size < 0:
            raise OSError(ctypes.get_errno(), "getxattr")
        return buffer.raw[:size]
    else:
        return os.getxattr(path, ATTRIBUTE)
