"""Helpers of the tests of the command line."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
from rich.console import Console
from tenacity import RetryCallState

from luma_poll import (
    PollEvent,
)
from luma_poll._cli.table import LiveTable
from tests.fakes import ID, snapshot

COMMAND = [sys.executable, "-m", "luma_poll"]
SIGNED = "X-Amz-Signature="


class Outcome(NamedTuple):
    """The exit code and the outputs of a command."""

    code: int | str | None
    out: str
    err: str


Cli = Callable[..., Outcome]


def submit(script: str = "sandbox:duration=0") -> str:
    """The id of a new generation."""
    return submit_at(os.environ["LUMA_BASE_URL"], script)


def submit_at(url: str, script: str = "sandbox:duration=0") -> str:
    key = os.environ["LUMA_AGENTS_API_KEY"]
    answer = httpx.post(
        f"{url}/generations",
        json={"prompt": f"a fox {script}"},
        headers={"Authorization": f"Bearer {key}"},
    )
    return str(answer.json()["id"])


def failing(code: str = "content_moderated") -> str:
    return submit(f"sandbox:duration=0 sandbox:fail={code}")


class Terminal(io.StringIO):
    """Remembers what was written to a terminal."""

    def isatty(self) -> bool:
        return True


def terminal(width: int = 80, height: int = 25) -> Console:
    return Console(
        file=Terminal(),
        force_terminal=True,
        width=width,
        height=height,
        markup=False,
        color_system=None,
    )


def written(console: Console) -> str:
    """The written text, without the sequences that move the cursor."""
    assert isinstance(console.file, Terminal)
    return re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", console.file.getvalue())


def interrupt(_: RetryCallState) -> float:
    """A schedule that is the user's Ctrl-C."""
    signal.raise_signal(signal.SIGINT)
    return 60


def event(state: str | None = None, error: Any = None, attempt: int = 1, id: str = ID) -> PollEvent:
    generation = None if state is None else snapshot(state, id=id)
    return PollEvent(id, attempt, generation, error, elapsed=1.0, next_delay=1.0)


def lines(table: LiveTable, width: int = 80, height: int | None = None) -> list[str]:
    """The table as drawn."""
    console = terminal(width)
    console.print(table.draw(height, width))
    return [line.rstrip() for line in written(console).splitlines()]


@contextmanager
def started(*command: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that does not outlive its test."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def read_screen(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side has gone
        return b""


def ids_of(text: str) -> list[str]:
    return [json.loads(line)["id"] for line in text.splitlines()]


def on_a_terminal(*arguments: str, answer: bytes = b"", **environment: str) -> tuple[int, str]:
    """The exit code of a command, and what it wrote to its terminal.

    Args:
        arguments: Of the command.
        answer: Typed ahead.
        environment: Variables besides those of this process.
    """
    import pty  # POSIX

    ours, theirs = pty.openpty()
    os.write(ours, answer)
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "300", "LINES": "24", **environment}
    with started(*COMMAND, *arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as it:
        os.close(theirs)
        written = b"".join(iter(lambda: read_screen(ours), b"")).decode()
        code = it.wait(50)
    os.close(ours)
    return code, written
