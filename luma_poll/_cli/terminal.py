"""The terminal: results go to stdout, messages to stderr, and neither can command it."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.text import Text

from luma_poll._cli.escaping import escape
from luma_poll._redaction import redact
from luma_poll.errors import ConfigurationError

out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


class LogHandler(logging.Handler):
    """Prints log messages of the library as warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, above the table if there is one."""
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        say(f"{prefix}{record.getMessage()}")


def release_stdout() -> None:
    """Send the rest of stdout nowhere, so that Python does not fail to flush it at exit."""
    _release(sys.stdout)


def _release(stream: TextIO) -> None:
    with suppress(OSError, AttributeError):  # under pytest it has no number; closed, it is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _saying() -> Iterator[None]:
    """Let the exit code speak where stderr cannot be written."""
    try:
        yield
    except OSError:
        _release(sys.stderr)


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
    with suppress(OSError, ValueError, AttributeError):  # at least one is not a terminal
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    return False


def say(text: str) -> None:
    """Print a message to stderr, above the table if there is one; only a terminal wraps it."""
    with _saying():
        err.print(escape(text), soft_wrap=not err.is_terminal)


def say_lines(lines: Iterable[str]) -> None:
    """Print messages to stderr; indented ones are commands to copy, and never wrapped."""
    with _saying():
        for line in lines:
            err.print(escape(line), soft_wrap=line.startswith(" ") or not err.is_terminal)


def say_error(error: Exception, where: str = "") -> None:
    """Print an error to stderr without its secrets, after the place that it refers to."""
    name = "Error" if isinstance(error, ConfigurationError) else type(error).__name__
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    place = f"{where}: " if where else ""
    say(f"{place}{name}: {redact(str(error))}{notes}")
