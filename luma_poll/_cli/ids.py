"""Ids of generations, and other lines, from files and standard input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress

import anyio

from luma_poll._texts import reason_of
from luma_poll.errors import ConfigurationError

_ID = re.compile(r"[\w.-]{1,1000}", re.ASCII)


def read_lines(path: str) -> list[bytes]:
    """Return the lines of a file, or of standard input for `-`.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        with open(_stdin() if path == "-" else path, "rb", closefd=path != "-") as file:
            return file.readlines()
    except OSError as error:
        name = "standard input" if path == "-" else path
        raise ConfigurationError(f"{name} cannot be read: {reason_of(error)}") from None


def decode(line: bytes, name: str, number: int) -> str:
    """Return the text of a line, without a byte order mark.

    Args:
        line: The bytes of the line.
        name: The name of its file, for the error.
        number: The number of the line, from 1.

    Raises:
        ConfigurationError: The line is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{name} is not text in UTF-8 (line {number})") from None


def read_ids(path: str) -> list[str]:
    """Return the ids in a file: one or more per line, with white space between; `#` for comments.

    Raises:
        ConfigurationError: The file cannot be read, contains anything else, or has no id.
    """
    lines = enumerate(read_lines(path), 1)
    ids = [found for number, line in lines for found in _split(line, path, number)]
    if not ids:
        raise ConfigurationError(f"there is no id in {path}")
    return ids


async def read_ids_from_stdin() -> AsyncGenerator[str]:
    """Yield the ids on standard input, in the format of a file, as soon as a line is complete.

    Raises:
        ConfigurationError: Standard input cannot be read, contains anything else, or has no id.
    """
    rest, number, found_any = b"", 0, False
    while True:
        chunk = await _read_stdin()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines if chunk else [rest]:
            number += 1
            for found in _split(line, "standard input", number):
                found_any = True
                yield found
        if not chunk:
            break
    if not found_any:
        raise ConfigurationError("there is no id on standard input")


async def _read_stdin() -> bytes:
    """Return the bytes that have arrived; empty at the end of the input."""
    descriptor = _stdin()
    try:
        if sys.platform != "win32":  # Windows can only wait for sockets
            with suppress(PermissionError):  # a regular file, which is always readable
                await anyio.wait_readable(descriptor)
        return os.read(descriptor, 65536)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"standard input cannot be read: {why}") from None


def _stdin() -> int:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # it is None after `<&-`
        raise ConfigurationError("standard input is closed") from None


def _split(line: bytes, name: str, number: int) -> Iterator[str]:
    for word in decode(line, name, number).split():
        if word.startswith("#"):
            return
        if not _ID.fullmatch(word) or word in (".", ".."):
            raise ConfigurationError(f"{name}, line {number}: {word[:50]!r} is not a generation id")
        yield word
