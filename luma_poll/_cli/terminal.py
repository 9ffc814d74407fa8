"""The terminal: results go to stdout, messages to stderr, both without control characters."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.text import Text

from luma_poll._redaction import redact
from luma_poll.errors import ConfigurationError

out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

# Control characters, line ends, and marks that change the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    r"""Escape what would control a terminal or end a line, as JSON does: `\u001b`, `\n`.

    So a line of JSON keeps its meaning.
    """
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


class LogHandler(logging.Handler):
    """A handler that prints the library's log messages as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, above the table if there is one."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        say(f"{prefix}{record.getMessage()}")


def is_terminal(console: Console) -> bool:
    """Return True if something can be drawn and drawn again.

    `Console.is_terminal` does not tell: FORCE_COLOR makes it True for every file.
    """
    return console.file.isatty() and not console.is_dumb_terminal


def can_print(console: Console, text: str) -> bool:
    """Return True if the encoding of the console has these characters."""
    try:
        text.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def release_stdout() -> None:
    """Discard the rest of stdout, so that Python does not fail to flush it at exit."""
    _release(sys.stdout)


def _release(stream: TextIO) -> None:
    with suppress(OSError, AttributeError):  # it has no descriptor under pytest, or is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_unsaid: list[OSError] = []
"""The errors of messages that could not be written."""


@contextmanager
def _saying() -> Iterator[None]:
    """Note that stderr cannot be written, so that the exit code tells."""
    try:
        yield
    except OSError as error:
        _unsaid.append(error)
        _release(sys.stderr)


def try_stdout() -> None:
    """Check that results can be printed, before anything is submitted.

    Raises:
        OSError: Standard output is closed, its reader has gone, or its disk is full.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise OSError(errno.EBADF, "standard output is closed")
    # Under pytest it has no descriptor.
    with _naming_stdout(), suppress(ValueError, AttributeError):
        try_descriptor(sys.stdout.fileno())


def try_descriptor(descriptor: int) -> None:
    """Check that a file can be written, without writing to it.

    Raises:
        OSError: It is closed, has no reader, or is on a full disk.
    """
    os.write(descriptor, b"")  # fails if it is closed, and for /dev/full
    if sys.platform == "win32":
        return
    import select
    import stat

    poll = select.poll()
    poll.register(descriptor, 0)
    if any(happened & select.POLLERR for _, happened in poll.poll(0)):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.fstatvfs(descriptor).f_bavail == 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def put_line(*fields: str) -> None:
    """Print a result to stdout, its fields separated by tabs, above the table if there is one."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise OSError(errno.EBADF, "standard output is closed")
    text = "\t".join(map(escape, fields))
    if _same_terminal():
        err.print(Text(text), soft_wrap=True)
    else:
        with _naming_stdout():
            print(text, flush=True)


@contextmanager
def _naming_stdout() -> Iterator[None]:
    """Name standard output in an error about it, as a file is named."""
    try:
        yield
    except OSError as error:
        error.filename = "standard output"
        raise


def _same_terminal() -> bool:
    """Return True if a table on stderr would be drawn over what is written to stdout."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or not a file
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            return False
        if not hasattr(os, "ttyname"):  # on Windows, a process has one console
            return True
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    return False


def say(text: str) -> None:
    """Print a message to stderr, above the table if there is one, wrapped only on a terminal."""
    with _saying():
        err.print(escape(text), soft_wrap=not err.is_terminal)


def say_lines(lines: Iterable[str]) -> bool:
    """Print messages to stderr; indented ones are commands to copy, which are never wrapped.

    Returns:
        True if they could be written.
    """
    with _saying():
        for line in lines:
            err.print(escape(line), soft_wrap=line.startswith(" ") or not err.is_terminal)
    return not _unsaid and sys.stderr is not None


def say_error(error: Exception, where: str = "") -> None:
    """Print an error to stderr without secrets, after the place that it refers to."""
    place = f"{where}: " if where else ""
    say(f"{place}{in_words(error)}")


def in_words(error: Exception) -> str:
    """Return the text of an error with its notes, without secrets."""
    name = "Error" if isinstance(error, ConfigurationError) else type(error).__name__
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    return f"{name}: {redact(str(error))}{notes}"
