"""The terminal: where results and messages go, and how a command ends."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

import typer
from rich.console import Console
from rich.text import Text

from luma_poll._cli.escaping import escape
from luma_poll._cli.waiting import INTERRUPTED, OUTPUT_CLOSED, TROUBLE, exit_code
from luma_poll._redaction import redact
from luma_poll.errors import ConfigurationError, LumaError

out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)


class LogHandler(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message above the table, if there is one."""
        say(f"warning: {record.getMessage()}")


@contextmanager
def exit_codes(on_interrupt: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn what ends a command early into words and exit codes."""
    try:
        yield
    except LumaError as error:
        say_error(error)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        on_interrupt()
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        let_go_of_stdout()
        raise typer.Exit(OUTPUT_CLOSED) from None
    except OSError as error:
        let_go_of_stdout()
        say(f"Error: {error}")
        raise typer.Exit(TROUBLE) from None


def let_go_of_stdout() -> None:
    """Python would try to write the rest at exit, and complain."""
    _let_go(sys.stdout)


def _let_go(stream: TextIO) -> None:
    with suppress(OSError, AttributeError):  # in a test it has no number; closed, it is None
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _saying() -> Iterator[None]:
    """Where nothing can be said, the exit code still says it."""
    try:
        yield
    except OSError:
        _let_go(sys.stderr)


def put_line(*fields: str) -> None:
    """Print a result, its fields with tabs between them, above the table if there is one."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise OSError(errno.EBADF, "standard output is closed")
    text = "\t".join(map(escape, fields))
    if _same_terminal():
        err.print(Text(text), soft_wrap=True)
    else:
        print(text, flush=True)


def _same_terminal() -> bool:
    with suppress(OSError, ValueError, AttributeError):  # there is none, or no such thing
        return os.ttyname(sys.stdout.fileno()) == os.ttyname(sys.stderr.fileno())
    return False


def say(text: str) -> None:
    """Print to stderr, above the table if there is one; a terminal gets whole words in a line."""
    with _saying():
        err.print(escape(text), soft_wrap=not err.is_terminal)


def say_lines(lines: Iterable[str]) -> None:
    """Print to stderr; what is indented may be copied, so it is never broken."""
    with _saying():
        for line in lines:
            err.print(escape(line), soft_wrap=line.startswith(" ") or not err.is_terminal)


def say_error(error: Exception, where: str = "") -> None:
    """Print to stderr what went wrong, and where, without a secret."""
    name = "Error" if isinstance(error, ConfigurationError) else type(error).__name__
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    place = f"{where}: " if where else ""
    say(f"{place}{name}: {redact(str(error))}{notes}")
