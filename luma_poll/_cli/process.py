"""The command as a process: its signals, its streams and its exit."""

from __future__ import annotations

import io
import logging
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

import typer

from luma_poll._cli.exit_codes import INTERRUPTED, OUTPUT_CLOSED, TROUBLE, exit_code
from luma_poll._cli.terminal import LogHandler, release_stdout, say, say_error, say_lines
from luma_poll._redaction import redact
from luma_poll.errors import LumaError

KEPT = "luma-poll-interrupted.txt"
"""The file for the hints if standard error cannot be written."""
ENDINGS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
]
"""Signals that end a command like Ctrl-C: from `kill`, a closed terminal, and Ctrl-\\."""


def run_app(app: typer.Typer) -> None:
    """Set up the process, then run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None if it is closed
            stream.reconfigure(errors="backslashreplace")
    # A shell starts the background jobs of a script with SIGINT ignored. asyncio would leave it
    # ignored, and the other signals, which are turned into SIGINT, could not end the command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    heeded = [
        each
        for each in ENDINGS
        if each == signal.SIGTERM or signal.getsignal(each) != signal.SIG_IGN  # nohup
    ]
    for each in heeded:
        signal.signal(each, _interrupt)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    logging.getLogger("luma_poll").addHandler(LogHandler(logging.WARNING))
    try:
        app(prog_name="luma-poll")
    except SystemExit as ended:  # with 1, if Typer or Rich could not print, as into `head`
        if isinstance(ended.__context__, BrokenPipeError):
            release_stdout()
            sys.exit(OUTPUT_CLOSED)
        raise
    finally:  # from here on a second Ctrl-C ends the process at once, without a traceback
        for each in (signal.SIGINT, *heeded):
            if signal.getsignal(each) != signal.SIG_IGN:  # set after a hang-up: another may come
                signal.signal(each, signal.SIG_DFL)


def _interrupt(number: int, _: object) -> None:
    if number != signal.SIGTERM:
        # The shell and the system both send a hang-up. Taken as a second interruption, it would cut
        # off the submission whose answer the first one waits for.
        signal.signal(number, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


@contextmanager
def orderly_exit(hints: Callable[[], Iterable[str]] = tuple) -> Iterator[None]:
    """Turn exceptions that end a command into a message, hints and an exit code.

    Args:
        hints: The lines to print after any end by an exception.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        code = INTERRUPTED
    except LumaError as error:
        say_error(error)
        code = exit_code(error)
    except BrokenPipeError:
        release_stdout()
        code = OUTPUT_CLOSED
    except OSError as error:
        release_stdout()
        say(f"Error: {error}")
        code = TROUBLE
    except Exception:  # even a bug of ours must not lose the ids
        say_lines(redact(traceback.format_exc()).splitlines())
        code = TROUBLE
    else:
        return
    lines = list(hints())
    if lines and not say_lines(lines):
        _keep(lines)
    raise typer.Exit(code)


def _keep(lines: Iterable[str]) -> None:
    """Write the hints to a file if the terminal is gone: the ids in them are billed."""
    with suppress(OSError), open(KEPT, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(f"{line}\n" for line in lines)
