"""Fixtures of the tests of the command line: a sandbox on a real socket, and the command."""

import logging
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from tenacity import wait_fixed

import luma_poll._cli.commands  # noqa: F401  (here, not in the first second of a test)
from luma_poll.__main__ import main
from luma_poll._cli.process import ENDINGS
from luma_poll.sandbox import Sandbox
from tests.cli.support import Cli, Outcome

PROGRESS = re.compile(r"^\d+:\d\d  \d+ of .*\n", re.MULTILINE)
"""Lines that say how far a command is, which most tests leave out."""


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A sandbox that runs in its own thread."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Sandbox().serve()) as url,
    ):
        yield url


@pytest.fixture(autouse=True)
def _settings(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMA_BASE_URL", base_url)
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-cli")
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", wait_fixed(0.05))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs the command in this process, which it leaves as it was."""
    logger = logging.getLogger("luma_poll")
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, *ENDINGS)}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: str, stdin: bytes | None = b"", progress: bool = False) -> Outcome:
        file = None if stdin is None else tmp_path.joinpath("stdin").open("wb+")
        if file is not None:
            file.write(stdin or b"")
            file.seek(0)
        monkeypatch.setattr(sys, "argv", ["luma-poll", *arguments])
        monkeypatch.setattr(sys, "stdin", file)
        monkeypatch.setattr(logger, "handlers", [])
        try:
            with pytest.raises(SystemExit) as exited:
                main()
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
            if file is not None:
                file.close()
        out, err = capsys.readouterr()
        return Outcome(exited.value.code, out, err if progress else PROGRESS.sub("", err))

    return run
