"""The terminal: hostile texts, and outputs that cannot be written."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from luma_poll import DownloadProgress, Generation, PollTimeoutError
from luma_poll._cli.bars import DownloadBars
from luma_poll._cli.table import LiveTable
from luma_poll._cli.terminal import put_line
from tests.cli.support import (
    COMMAND,
    Cli,
    Terminal,
    lines,
    on_a_terminal,
    started,
    submit,
    terminal,
)
from tests.fakes import ID


@pytest.mark.parametrize("command", ["get", "wait", "watch"])
@pytest.mark.parametrize(
    ("trouble", "code", "says"),
    [
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "Full"), 4, "Error: [Errno 28] Full: 'standard output'\n"),
    ],
)
def test_an_output_that_cannot_be_written_ends_it(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    trouble: OSError,
    code: int,
    says: str,
) -> None:
    """Quietly if the reader has gone, as with `head`."""

    def fail(*_: object, **__: object) -> None:
        raise trouble

    generation_id = submit()
    monkeypatch.setattr("luma_poll._cli.terminal.print", fail, raising=False)
    told = cli(command, generation_id)
    assert (told.code, told.out) == (code, "")
    assert told.err.startswith(says)


def test_a_full_disk_and_others_still_running(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later results could not be written either, so they are not waited for."""

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    ids = [submit("sandbox:duration=60"), submit()]
    monkeypatch.setattr("luma_poll._cli.terminal.print", fail, raising=False)
    told = cli("wait", *ids)
    assert (told.code, told.out) == (141, "")
    assert f"  luma-poll wait {shlex.join(ids)}\n" in told.err


@pytest.mark.posix
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stdout_is_trouble(closed: str) -> None:
    """The result could not be printed, so the exit code does not say that all went well."""
    command = f"{shlex.join(COMMAND)} get {submit()} {closed}"
    assert subprocess.run(["sh", "-c", command], check=False, timeout=50).returncode == 4


@pytest.mark.posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stderr_does_not_change_the_exit_code() -> None:
    """It is the only message that can still be given."""
    command = f"LUMA_BASE_URL=http://127.0.0.1:9/v1 {shlex.join(COMMAND)} get {ID} 2>/dev/full"
    assert subprocess.run(["sh", "-c", command], check=False, timeout=60).returncode == 4


@pytest.mark.parametrize("count", [2, 11])
def test_a_reader_that_has_gone_is_noticed_at_once(count: int) -> None:
    """`luma-poll wait ... | true` ends before it asks for anything."""
    read, write = os.pipe()
    os.close(read)
    ids = [submit("sandbox:duration=60") for _ in range(count)]
    with started(*COMMAND, "wait", *ids, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr
        assert (process.wait(50), process.stderr.read()) == (141, "")


EVIL = "\x1b]52;c;aGk=\x07\x9b2J\x7f\t\r\n\u2028\u202eforged"
ESCAPED = r"\u001b]52;c;aGk=\u0007\u009b2J\u007f\t\r\n\u2028\u202eforged"


RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")
OWN = re.compile(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]+")
"""What a table is drawn with: sequences that colour and move, and the ends of lines."""


def evil(state: str = "completed", **fields: Any) -> dict[str, Any]:
    """A generation that says something to the terminal wherever it can."""
    said = {"model": EVIL, "type": EVIL, "created_at": EVIL, "failure_reason": EVIL, "new": EVIL}
    output = [{"url": f"https://storage.example.com/{EVIL}", "type": EVIL}]
    return {"id": ID, "state": state, "output": output, **said, f"key {EVIL}": 1, **fields}


class EvilAPI(BaseHTTPRequestHandler):
    """Answers with the state that the id names, or with an error."""

    polls = 0

    def do_GET(self) -> None:
        asked = unquote(self.path.rpartition("/")[2])
        type(self).polls += 1
        states = {"state": EVIL if self.polls % 2 else "completed", "failed": "failed"}
        if asked == "refused":
            return self._answer(404, {"detail": EVIL})
        return self._answer(200, evil(states.get(asked, "completed")) | {"id": asked})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(201, evil(id=EVIL))

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Request-Id", "\x1b]0;forged\x07\x9b2J")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def evil_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An API whose every text is hostile."""
    with ThreadingHTTPServer(("127.0.0.1", 0), EvilAPI) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        monkeypatch.setenv("LUMA_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        monkeypatch.setattr(EvilAPI, "polls", 0)
        yield
        server.shutdown()
        thread.join()


DRAWN = [
    ["get", ID],
    ["get", ID, "--json"],
    ["create", "a fox", "--wait"],
    ["wait", EVIL, "state", "failed", "refused"],
    ["watch", "state"],
    ["download", "refused", "failed", "out"],
]


PRINTED = [
    *DRAWN,
    ["get", "refused"],
    ["create", "a fox"],
    ["create", "a fox", "--json"],
    ["wait", ID, "--json"],
    ["watch", "failed", "--json"],
]


@pytest.mark.usefixtures("evil_api")
@pytest.mark.parametrize("arguments", PRINTED, ids=" ".join)
def test_nothing_from_outside_is_raw(cli: Cli, arguments: list[str]) -> None:
    """Neither in results nor in messages: control characters and line ends are escaped."""
    _, out, err = cli(*arguments)
    assert out + err
    assert not RAW.search(out + err)
    assert not any(line.startswith("forged") for line in (out + err).splitlines())


@pytest.mark.posix
@pytest.mark.usefixtures("evil_api")
@pytest.mark.parametrize("arguments", DRAWN, ids=" ".join)
def test_nothing_from_outside_reaches_a_terminal_raw(arguments: list[str]) -> None:
    """Not in a table either: the screen has only what this library draws."""
    _, written = on_a_terminal(*arguments)
    pieces = OWN.split(written)
    assert not any(RAW.search(piece) or piece.startswith("forged") for piece in pieces)


@pytest.mark.usefixtures("evil_api")
def test_an_escaped_line_of_json_means_the_same(cli: Cli) -> None:
    """A reader of the JSON gets the texts as the API wrote them."""
    read = json.loads(cli("get", ID, "--json").out)
    assert read == Generation.model_validate(evil()).model_dump(mode="json")


@pytest.mark.usefixtures("evil_api")
def test_escaped_text_says_what_it_was(cli: Cli) -> None:
    """A field stays on its line."""
    out = cli("get", ID).out
    assert f"\nnew             {ESCAPED}\n" in out
    assert f"\noutput          https://storage.example.com/{ESCAPED}\n" in out


@pytest.mark.parametrize("height", [None, 10])
def test_a_table_escapes_what_it_shows(height: int | None) -> None:
    """Labels, states and the last failures, in a table and in a summary."""
    table = LiveTable(("generation",), None)
    for number in range(12):
        table.add(f"{number}{EVIL}", f"{number}{EVIL}", state=EVIL)
    table.end(
        f"11{EVIL}",
        EVIL,
        PollTimeoutError(generation_id=ID, last_generation=None, elapsed=1, attempts=1),
    )
    drawn = lines(table, width=300, height=height)
    assert not RAW.search("".join(drawn))
    assert sum(ESCAPED in line for line in drawn) == (12 if height is None else 2)


def test_a_bar_has_its_label_as_it_is() -> None:
    """It is escaped, and not read as markup."""
    screen = terminal(width=200)
    bars = DownloadBars(screen)
    bars.on_progress(DownloadProgress(f"[/red]{EVIL}", 0, 1, 10, 100))
    screen.print(bars.progress)
    assert isinstance(screen.file, Terminal)
    assert f"[/red]{ESCAPED}" in screen.file.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["wait", "-h"], ["--version"], ["demo"], ["sandbox", "--port", "0"]],
    ids=" ".join,
)
def test_a_reader_that_has_gone_is_141(arguments: list[str]) -> None:
    """Without a message, whatever prints: `luma-poll --help | head -1`."""
    read, write = os.pipe()
    os.close(read)
    with started(*COMMAND, *arguments, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr
        said = process.stderr.read()
        assert (process.wait(50), said.partition("The sandbox listens at ")[0]) == (141, "")


def test_a_terminal_without_names_is_one_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows there is no `os.ttyname`: results are printed above the table, not under it."""
    screen = terminal(width=100)
    monkeypatch.setattr("luma_poll._cli.terminal.err", screen)
    monkeypatch.delattr(os, "ttyname", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    put_line("fox", "out/fox.png")
    assert isinstance(screen.file, Terminal)
    assert "out/fox.png" in screen.file.getvalue()
