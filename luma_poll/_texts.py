"""Texts from outside, made harmless: encodable, on one line, of limited length."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

MAX_DEPTH = 100
"""Levels of nested containers; deeper ones are left out."""
_SURROGATES = re.compile("[\ud800-\udfff]")
# Control characters, line ends, and marks that change the direction of writing.
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def encodable(text: str) -> str:
    """Replace what no encoding can write: halves of surrogate pairs.

    JSON contains them if something like JavaScript's `slice` has cut an emoji, and Python's own
    parser reads them. Two halves side by side become the character that they make.
    """
    if text.isascii() or not _SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_line(text: str) -> str:
    r"""Escape what would end a line or command a terminal: `\n`, `\x1b`."""
    return _NOT_IN_A_LINE.sub(lambda found: ascii(found[0])[1:-1], text)


def reason_of(error: OSError) -> str:
    """Return the system's reason, without the path: Windows denies permission to a directory."""
    if isinstance(error, PermissionError) and os.path.isdir(error.filename or ""):
        return os.strerror(errno.EISDIR)
    return error.strerror or str(error) or type(error).__name__


def cleaned(value: object, longest: int | None = None, depth: int = MAX_DEPTH) -> Any:
    """Make all texts in a JSON value encodable, and cut those that are longer than `longest`."""
    if isinstance(value, str):
        return encodable(value[:longest])
    if not isinstance(value, (dict, list, tuple)):
        return value
    if not depth:
        return None

    def clean(item: object) -> Any:
        return cleaned(item, longest, depth - 1)

    if isinstance(value, dict):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value]


def brief(value: object) -> Any:
    """Return a request for a repr, with its bytes and data left out."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _Shown(f"<{len(value):,} bytes>")
    if isinstance(value, Mapping):
        return {
            name: _Shown(f"<{len(item):,} characters>")
            if name == "data" and isinstance(item, str)
            else brief(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [brief(item) for item in value]
    return value


class _Shown(str):
    """Text that a repr shows without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def with_brief_request(shown: Any) -> str:
    """Return the repr of a dataclass, with its field `request` made `brief`."""
    given = {each.name: getattr(shown, each.name) for each in fields(shown) if each.repr}
    parts = [
        f"{name}={(brief(value) if name == 'request' else value)!r}"
        for name, value in given.items()
    ]
    return f"{type(shown).__name__}({', '.join(parts)})"
