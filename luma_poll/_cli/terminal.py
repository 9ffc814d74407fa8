"""The terminal: results go to stdout, messages to stderr, and neither can command it."""

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
    r"""Write characters that would command a terminal, or end a line, as in JSON: `\u001b`, `\n`.

    So the meaning of a line of JSON does not change.
    """
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)


class LogHandler(logging.Handler):
    """Prints log messages of the library as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, above the table if there is one."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        say(f"{prefix}{record.getMessage()}")


def is_terminal(console: Console) -> bool:
    """True if something can be drawn and drawn again.

    Not `Console.is_terminal`: FORCE_COLOR makes every file a terminal.
    """
    return console.file.isatty() and not console.is_dumb_terminal


def can_print(console: Console, text: str) -> bool:
    """True if the encoding of the console has these characters."""
    try:
        text.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def release_stdout() -> None:
    """Send the rest of stdout nowhere, so that Python does not fail to flush it at exit."""
    _release(sys.stdout)


def _release(stream: TextIO) -> None:
    with suppress(OSError, AttributeError):  # under pytest it has no number; closed, it is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_unsaid: list[OSError] = []
"""Why messages could not be written, if any could not."""


@contextmanager
def _saying() -> Iterator[None]:
    """Let the exit code speak where stderr cannot be written."""
    try:
        yield
    except OSError as error:
        _unsaid.append(error)
        _release(sys.stderr)


def try_stdout() -> None:
    """Find out before anything is submitted that results cannot be printed.

    Raises:
        OSError: Standard output is closed, its reader has gone, or its disk is full.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise OSError(errno.EBADF, "standard output is closed")
    with suppress(ValueError, AttributeError):  # under pytest it has no number
        try_descriptor(sys.stdout.fileno())


def try_descriptor(descriptor: int) -> None:
    """Find out whether a file can be written, without writing to it.

    Raises:
        OSError: It cannot: closed, without a reader, or on a full disk.
    """
    os.write(descriptor, b"")  # tells of a closed one, and of /dev/full
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
        print(text, flush=True)


def _same_terminal() -> bool:
    """True if what is written to stdout would be drawn over by a table on stderr."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or not a file
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            return False
        if not hasattr(os, "ttyname"):  # Windows, where a process has one console
            return True
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    return False


def say(text: str) -> None:
    """Print a message to stderr, above the table if there is one; only a terminal wraps it."""
    with _saying():
        err.print(escape(text), soft_wrap=not err.is_terminal)


def say_lines(lines: Iterable[str]) -> bool:
    """Print messages to stderr; indented ones are commands to copy, and never wrapped.

    Returns:
        True if they could be written.
    """
    with _saying():
        for line in lines:
            err.print(escape(line), soft_wrap=line.startswith(" ") or not err.is_terminal)
    return not _unsaid and sys.stderr is not None


def say_error(error: Exception, where: str = "") -> None:
    """Print an error to stderr without its secrets, after the place that it refers to."""
    place = f"{where}: " if where else ""
    say(f"{place}{in_words(error)}")


def in_words(error: Exception) -> str:
    """An error without its secrets, with its notes."""
    name = "Error" if isinstance(error, ConfigurationError) else type(error).__name__
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    return f"{name}: {redact(str(error))}{notes}"
