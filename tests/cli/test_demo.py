"""`luma-poll demo`: generations end to end, without a key."""

import os
import re
import sys
import time
from typing import Any

import pytest

from luma_poll import Generation, NotFoundError, ServerError
from luma_poll._client.generations import Generations
from luma_poll.sandbox import Sandbox
from tests.cli.support import SIGNED, Cli, read_screen, started


def test_the_demo_shows_outputs_errors_and_the_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no key, ends with 0 though two of its generations fail, and shows no secret."""
    monkeypatch.setattr("luma_poll._cli.demo_command.SPEED", 60.0)
    monkeypatch.delenv("LUMA_AGENTS_API_KEY")
    code, out, err = cli("demo")
    assert (code, err) == (0, "")
    assert out.count("completed  ") == 4
    assert out.count("failed     ") == 2
    assert out.count("/storage/") == 5
    assert re.search(r"\n  ContentModeratedError: .*change the prompt or the references\.\n", out)
    assert re.search(r"\n  GenerationFailedError: .*Submit it again\.\n", out)
    assert SIGNED not in out
    assert out.endswith("    outputs = await Poller(client).wait(generation)\n")


def test_the_demo_of_a_bad_day(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results are the same, and the faults are counted."""
    monkeypatch.setattr("luma_poll._cli.demo_command.SPEED", 60.0)
    monkeypatch.setattr(
        "luma_poll._cli.demo_command.Sandbox",
        lambda speed, faults: Sandbox(speed=speed, faults={"503": faults, "reset": faults}),
    )
    code, out, err = cli("demo", "--chaos")
    assert (code, err) == (0, "")
    assert "On a bad day" in out
    assert out.count("completed  ") == 4
    assert out.count("failed     ") == 2
    told = re.search(r"Faults served: (.*)\. None of them ended a wait\.", out)
    assert told
    assert re.fullmatch(r"(\d+ (503|reset)(, |$))+", told[1])


def test_the_demo_reports_trouble_with_the_api(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wait it is the result of that one; during a submission it ends the demo, in one line."""
    monkeypatch.setattr("luma_poll._cli.demo_command.SPEED", 60.0)
    error = ServerError("HTTP 500", status_code=500)

    async def get(self: Generations, generation_id: str) -> Generation:
        raise NotFoundError("HTTP 404", status_code=404)

    async def create(self: Generations, prompt: str, **_: Any) -> Generation:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Generations, "get", get)
        patched.setattr("luma_poll._polling.decisions.NOT_FOUND_GRACE", 0.0)
        code, out, err = cli("demo")
    assert (code, err) == (0, "")
    assert out.count("NotFoundError: HTTP 404\n") == 6
    monkeypatch.setattr(Generations, "create", create)
    code, out, err = cli("demo")
    assert (code, err) == (4, "ServerError: HTTP 500\n")


def test_the_demo_leaves_no_gap(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off a terminal, where there is no table, one blank line is in its place."""
    monkeypatch.setattr("luma_poll._cli.demo_command.SPEED", 60.0)
    assert "\n\n\n" not in cli("demo").out


@pytest.mark.posix
def test_the_demo_on_a_terminal() -> None:
    """A live table is drawn and drawn again, then the results; here at twice the speed."""
    import pty  # POSIX

    ours, theirs = pty.openpty()
    began = time.monotonic()
    code = (
        "from luma_poll import __main__; from luma_poll._cli import demo_command as demo; "
        "demo.SPEED = 20; __main__.main()"
    )
    command = (sys.executable, "-c", code, "demo")
    with started(*command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        screen = b"".join(iter(lambda: read_screen(ours), b"")).decode()
        assert process.wait(50) == 0
    os.close(ours)
    assert time.monotonic() - began < 30
    assert screen.count("waited") > 10
    for words in ("queued", "processing", "completed", "Results", "ContentModeratedError"):
        assert words in screen
    assert "\x1b[?25h" in screen, "the cursor is shown again"
