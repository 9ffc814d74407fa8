"""The command as a process: its signals and streams, and how it ends."""

from __future__ import annotations

import io
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import typer

from luma_poll._cli.exit_codes import INTERRUPTED, OUTPUT_CLOSED, TROUBLE, exit_code
from luma_poll._cli.terminal import LogHandler, release_stdout, say, say_error, say_lines
from luma_poll.errors import LumaError


def run_app(app: typer.Typer) -> None:
    """Set up the process, then run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")
    # A shell starts a script's background jobs with SIGINT ignored. asyncio would leave it ignored,
    # and SIGTERM, which is turned into SIGINT, could not end the command in an orderly way.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    logging.getLogger("luma_poll").addHandler(LogHandler(logging.WARNING))
    try:
        app(prog_name="luma-poll")
    except SystemExit as ended:  # with 1, where Typer or Rich could not print, as to `head`
        if isinstance(ended.__context__, BrokenPipeError):
            release_stdout()
            sys.exit(OUTPUT_CLOSED)
        raise
    finally:  # from here on a second Ctrl-C ends the process at once, without a traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def orderly_exit(hints: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """Turn exceptions that end a command into a message and an exit code.

    Args:
        hints: The lines to print after Ctrl-C.
    """
    try:
        yield
    except LumaError as error:
        say_error(error)
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        say_lines(hints())
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        release_stdout()
        raise typer.Exit(OUTPUT_CLOSED) from None
    except OSError as error:
        release_stdout()
        say(f"Error: {error}")
        raise typer.Exit(TROUBLE) from None
