"""Ctrl-C: a command to copy, exit code 130, and no traceback."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from tenacity import RetryCallState

import luma_poll
from luma_poll import PollTimeoutError, ServerError
from luma_poll._cli.results import Result
from luma_poll._cli.wait_command import Batch
from luma_poll._client.generations import Generations
from tests.cli.support import COMMAND, Cli, interrupt, started, submit
from tests.fakes import ID


@pytest.mark.parametrize("command", [["wait"], ["watch"], ["create", "--wait"]])
def test_ctrl_c_says_how_to_continue(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """With the ids that have not ended, in a command to copy."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt)
    argument = "x sandbox:duration=60" if "--wait" in command else submit("sandbox:duration=60")
    code, _, err = cli(*command, argument, "--timeout", "77")
    assert code == 130
    again = shlex.split(err.splitlines()[-1])
    assert again[:2] == ["luma-poll", "watch" if command == ["watch"] else "wait"]
    assert re.fullmatch("[0-9a-f-]{36}", again[2])
    assert again[3:] == ["--timeout", "77"]


def test_ctrl_c_leaves_out_what_has_ended(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command names only those that still run."""
    done, slow, slower = submit(), *(submit("sandbox:duration=60") for _ in range(2))
    polls: list[RetryCallState] = []

    def interrupt_later(state: RetryCallState) -> float:
        polls.append(state)
        return interrupt(state) if len(polls) == 6 else 0.05

    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt_later)
    code, out, err = cli("wait", done, slow, slower)
    assert (code, out.count("\n")) == (130, 1)
    assert err == (
        "2 may still finish. To wait again, which costs nothing:\n"
        f"  luma-poll wait {slow} {slower}\n"
    )


def test_a_second_ctrl_c_while_submitting_says_that_it_may_be_billed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits for the answer, which does not come."""

    async def create(self: Generations, prompt: str, **_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        await anyio.lowlevel.cancel_shielded_checkpoint()
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    monkeypatch.setattr(Generations, "create", create)
    code, out, err = cli("create", "a fox")
    assert (code, out) == (130, "")
    assert "it may have been accepted and billed" in err


def test_ctrl_c_while_reading_ids_ends_quietly(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """No generation is known yet."""

    async def read() -> bytes:
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(60)
        return b""

    monkeypatch.setattr("luma_poll._cli.ids._read_stdin", read)
    assert cli("wait", "-") == (130, "", "")


def test_ctrl_c_at_the_very_beginning_ends_quietly(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even before there is a command."""

    def start() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luma_poll._cli.commands.run", start)
    assert cli("get", ID) == (130, "", "")


@pytest.mark.posix
def test_ctrl_c_in_a_process() -> None:
    """130, the URL that had been printed, and two lines about resuming."""
    done, slow = submit(), submit("sandbox:duration=60")
    with started(
        *COMMAND, "wait", done, slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        assert done in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(50) == 130
        assert process.stderr.read().endswith(
            f"1 may still finish. To wait again, which costs nothing:\n  luma-poll wait {slow}\n"
        )


def interrupt_after(polls: int, *, every: float) -> Callable[[RetryCallState], float]:
    """A schedule that presses Ctrl-C at this poll; between the others it waits so many seconds."""
    numbers = count(1)
    return lambda state: interrupt(state) if next(numbers) == polls else every


def test_ctrl_c_counts_what_its_command_names(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run and, separately, those that timed out; not those that are unknown."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt_after(6, every=0.05))
    slow = [submit("sandbox:duration=60") for _ in range(2)]
    told = cli("wait", ID, *slow)
    assert told.code == 130
    assert told.err.splitlines()[1:] == [
        "2 may still finish. To wait again, which costs nothing:",
        f"  luma-poll wait {shlex.join(slow)}",
    ]
    batch = Batch(["late", "refused", "slow"])
    late = PollTimeoutError(generation_id="late", last_generation=None, elapsed=1, attempts=1)
    batch.end(Result("late", None, late))
    batch.end(Result("refused", None, ServerError("HTTP 500", status_code=500)))
    assert list(batch.rest) == ["late", "refused", "slow"]


@pytest.mark.usefixtures("sockets_left_to_the_collector")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--output", "r.jsonl", "--quiet"],
            "  luma-poll wait --file ids.txt --output r.jsonl --quiet",
        ),
        (["--json"], "  luma-poll wait --file ids.txt --json"),
        ([], "  luma-poll wait --file ids.txt --output results.jsonl"),
    ],
)
def test_ctrl_c_among_many_names_their_file(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], says: str
) -> None:
    """Nobody copies a command with hundreds of ids."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt)
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("\n".join(submit("sandbox:duration=60") for _ in range(11)))
    code, out, err = cli("wait", "--file", "ids.txt", *options)
    assert (code, out) == (130, "")
    assert err.splitlines() == [
        "     11 still running",
        "11 may still finish. To wait again, which costs nothing:",
        says,
    ]


def test_ctrl_c_among_ids_of_stdin(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few that were read are named; the user has to give those that were not."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt_after(2, every=60))
    ids = [submit("sandbox:duration=60") for _ in range(2)]
    told = cli("wait", "-", "--json", stdin="\n".join(ids).encode())
    assert told.code == 130
    assert told.err.splitlines()[-1] == f"  luma-poll wait {ids[0]} {ids[1]} --json"


def test_ctrl_c_before_the_command_has_begun_ends_quietly() -> None:
    """While Typer reads the options."""
    code = (
        "import signal, typer.core; from luma_poll._cli.commands import run;"
        "typer.core.TyperGroup.parse_args = lambda *_: signal.raise_signal(signal.SIGINT); run()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50
    )
    assert (told.returncode, told.stdout, told.stderr) == (130, "", "")


ROOT = str(Path(luma_poll.__file__).parents[1])
STARTS = {
    "module": ("-m", "luma_poll"),
    "script": ("luma-poll",),  # as an installer writes it
}
SCRIPT = "import sys\nfrom luma_poll.__main__ import main\nsys.exit(main())\n"


@pytest.mark.posix
@pytest.mark.parametrize("start", STARTS)
def test_ctrl_c_during_the_imports_ends_quietly(tmp_path: Path, start: str) -> None:
    """While the command imports what it needs, before there is anything to interrupt."""
    tmp_path.joinpath("luma-poll").write_text(SCRIPT)
    command = (sys.executable, "-X", "importtime", *STARTS[start], "get", ID)
    silent = socket.create_server(("127.0.0.1", 0))  # were the signal late, there is no answer yet
    address = {"LUMA_BASE_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/v1"}
    environment = {**os.environ, **address, "PYTHONPATH": ROOT}
    with (
        silent,
        started(*command, stderr=subprocess.PIPE, cwd=tmp_path, env=environment) as process,
    ):
        assert process.stderr
        while process.stderr.readline().rpartition("|")[2].strip() != "typer":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr if not line.startswith("import time:")]
        assert (process.wait(50), said) == (130, [])


@pytest.mark.posix
def test_ctrl_c_in_what_an_import_executes_ends_with_130(tmp_path: Path) -> None:
    """CPython would end `python -m` by the signal, though the interruption was caught."""
    tmp_path.joinpath("typer.py").write_text("exec('import signal; signal.raise_signal(2)')")
    told = subprocess.run(
        (sys.executable, "-m", "luma_poll", "get", ID),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), ROOT])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stdout, told.stderr) == (130, "", "")


def test_a_script_of_the_same_name_keeps_its_handler(tmp_path: Path) -> None:
    """Importing the library in a user's own `luma-poll.py` leaves Ctrl-C, and `finally`, to it."""
    script = tmp_path / "luma-poll.py"
    script.write_text(
        "import signal, luma_poll\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('caught')\n"
        "finally:\n    print('finally')\n"
    )
    told = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert (told.returncode, told.stdout.split()) == (0, ["caught", "finally"])


@pytest.mark.parametrize("command", [["app.py"], ["-m", "app", "luma_poll"], ["luma_poll"]])
def test_ctrl_c_in_a_program_that_uses_the_library_is_its_own(
    tmp_path: Path, command: list[str]
) -> None:
    """Importing luma_poll changes no handler, however the program is called."""
    program = "import signal; before = signal.getsignal(signal.SIGINT); import luma_poll\n"
    program += "assert signal.getsignal(signal.SIGINT) is before\n"
    app = tmp_path / "app"
    app.mkdir()
    for path in (tmp_path / "app.py", tmp_path / "luma_poll", app / "__init__.py"):
        path.write_text(program)
    app.joinpath("__main__.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": ROOT}
    subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, check=True, timeout=50
    )
