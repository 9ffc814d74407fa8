"""The command line: what it prints where, and how it exits; against a sandbox on a real socket."""

import io
import json
import logging
import os
import pty
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from rich.console import Console
from tenacity import RetryCallState, wait_fixed

from luma_poll import Generation, NotFoundError, PollEvent, ServerError, __version__
from luma_poll.__main__ import HOW_TO_INSTALL, main
from luma_poll._cli.table import LiveTable, live_table
from luma_poll._client.generations import Generations
from luma_poll.sandbox import Sandbox
from tests.fakes import ID, URL, snapshot

COMMAND = [sys.executable, "-m", "luma_poll"]
NOBODY = "http://127.0.0.1:9/v1"
SIGNED = "X-Amz-Signature="


class Told(NamedTuple):
    """What a command told."""

    code: int | str | None
    out: str
    err: str


Cli = Callable[..., Told]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A sandbox in a thread of its own."""
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
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: str, stdin: bytes | None = b"") -> Told:
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
        return Told(exited.value.code, *capsys.readouterr())

    return run


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
    """What was written, without what moves the cursor."""
    assert isinstance(console.file, Terminal)
    return re.sub(r"\x1b\[[?\d]*[A-Za-z]", "", console.file.getvalue())


# --- get -----------------------------------------------------------------------------------------


def test_get_prints_a_snapshot(cli: Cli) -> None:
    """Facts that are there, a line each, with the URL whole on one of them."""
    generation_id = submit()
    code, out, err = cli("get", generation_id)
    facts = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert (facts["id"], facts["state"], facts["model"]) == (generation_id, "completed", "uni-1")
    assert SIGNED in facts["output"]
    assert facts["expires"].endswith(" UTC")
    assert "failure code" not in facts


def test_get_prints_a_failed_snapshot_too(cli: Cli) -> None:
    """It was asked for a snapshot, and got it."""
    code, out, err = cli("get", failing())
    assert (code, err) == (0, "")
    assert "failure code    content_moderated\n" in out


def test_get_prints_json(cli: Cli) -> None:
    """The snapshot in one line that reads back as itself."""
    generation_id = submit()
    code, out, err = cli("get", generation_id, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert Generation.model_validate_json(out).id == generation_id


def test_get_prints_a_url_that_does_not_tell_when_it_expires(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made up."""

    async def get(self: Generations, generation_id: str) -> Generation:
        return snapshot()

    monkeypatch.setattr(Generations, "get", get)
    told = cli("get", ID)
    assert told.out.endswith(f"output          {URL}\n")


# --- wait ----------------------------------------------------------------------------------------


def test_wait_prints_the_urls_of_each_as_it_ends(cli: Cli) -> None:
    """First what ends first, and nothing on stderr, which is no terminal."""
    slow, fast = submit("sandbox:duration=1"), submit("sandbox:duration=0 sandbox:outputs=2")
    code, out, err = cli("wait", slow, fast)
    ids = [line.split("/")[4] for line in out.splitlines()]
    assert (code, err, ids) == (0, "", [fast, fast, slow])
    assert all(SIGNED in line for line in out.splitlines())


def test_wait_tells_whose_each_url_is(cli: Cli) -> None:
    """With its id before it, in a column of its own, where more than one id was named."""
    one, two, outputs = submit(), failing(), submit("sandbox:duration=0 sandbox:outputs=2")
    for ids in ([one, two, outputs], ["-"]):
        told = cli("wait", *ids, stdin=f"{one}\n{outputs}".encode())
        fields = [line.split("\t") for line in told.out.splitlines()]
        assert sorted(generation_id for generation_id, _ in fields) == sorted(
            [one, outputs, outputs]
        )
        assert all(f"/storage/{generation_id}/" in url for generation_id, url in fields)
    assert cli("wait", one, one).out.startswith("http")


def test_wait_tells_a_failure_on_stderr(cli: Cli) -> None:
    """The typed error, apart from the URLs."""
    good, bad = submit(), failing()
    code, out, err = cli("wait", good, bad)
    assert (code, out.count("\n")) == (1, 1)
    assert re.fullmatch(rf"ContentModeratedError: generation {bad} failed: .*\n", err)


def test_wait_prints_one_json_object_a_line_and_nothing_else(cli: Cli) -> None:
    """Failures of all kinds too."""
    good, bad, empty = submit(), failing(), submit("sandbox:duration=0 sandbox:outputs=0")
    code, out, err = cli("wait", "--json", good, bad, empty, ID)
    found = {line["id"]: line for line in map(json.loads, out.splitlines())}
    assert (code, err) == (4, "")
    assert found[good]["ok"]
    assert found[good]["error"] is None
    assert SIGNED in found[good]["generation"]["output"][0]["url"]
    assert not found[bad]["ok"]
    assert found[bad]["generation"]["state"] == "failed"
    assert found[bad]["error"]["type"] == "ContentModeratedError"
    assert found[bad]["error"]["failure_code"] == "content_moderated"
    assert found[bad]["error"]["retryable"] is False
    assert found[empty]["generation"]["state"] == "completed"
    assert found[empty]["error"]["type"] == "OutputNotFoundError"
    assert found[ID]["generation"] is None
    assert found[ID]["error"]["type"] == "NotFoundError"


def test_wait_reads_ids_from_stdin(cli: Cli) -> None:
    """In place of `-`, separated by any white space, each waited for once."""
    first, second = submit(), submit()
    told = cli("wait", first, "-", stdin=f"\n{second}\t{first}\r\n".encode())
    assert told.code == 0
    assert sorted(line.split("/")[4] for line in told.out.splitlines()) == sorted([first, second])


def test_the_highest_exit_code_wins(cli: Cli) -> None:
    """3 is worse than 1, and 4 is worse than 3."""
    slow, bad = submit("sandbox:duration=60"), failing()
    told = cli("wait", slow, bad, "--timeout", "2")
    assert told.code == 3
    assert f"PollTimeoutError: generation {slow} is 'queued' after 2.0 s" in told.err
    assert cli("wait", slow, bad, ID, "--timeout", "2").code == 4


def test_wait_polls_through_trouble_until_the_timeout(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network it times out, and says why it has not seen anything."""
    monkeypatch.setenv("LUMA_BASE_URL", NOBODY)
    code, out, err = cli("wait", ID, "--timeout", "0.2")
    assert (code, out) == (3, "")
    assert "PollTimeoutError" in err
    assert "the connection to the API failed" in err


def test_a_timeout_may_be_infinite(cli: Cli) -> None:
    """`inf` waits for ever."""
    assert cli("wait", submit(), "--timeout", "inf").code == 0


def test_an_unknown_state_is_a_warning(cli: Cli) -> None:
    """The library logs it; the command line puts it into a line of its own."""
    told = cli("wait", submit("sandbox:duration=2 sandbox:state=throttled"))
    assert told.code == 0
    assert told.err.startswith("warning: generation ")
    assert "'throttled'" in told.err


def test_a_table_on_a_terminal_leaves_results_alone(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress goes to stderr, results to stdout, and the table stays on the screen at the end."""
    screen = terminal(width=100)
    for module in ("commands", "terminal"):
        monkeypatch.setattr(f"luma_poll._cli.{module}.err", screen)
    slow, bad = submit("sandbox:duration=1"), failing()
    code, out, err = cli("wait", slow, bad, ID)
    assert (code, err, out.count("\n")) == (4, "", 1)
    table = [line.split() for line in written(screen).splitlines()[-4:]]
    assert table[0] == ["generation", "state", "waited", "polls"]
    assert table[1][:2] == [slow, "completed"]
    assert table[2][:2] == [bad, "failed"]
    assert table[3][:2] == [ID, "NotFoundError"]


def test_the_table_tells_a_timeout(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not called failed, as it may still finish."""
    screen = terminal(width=100)
    for module in ("commands", "terminal"):
        monkeypatch.setattr(f"luma_poll._cli.{module}.err", screen)
    assert cli("wait", submit("sandbox:duration=60"), "--timeout", "0.1").code == 3
    assert " timed out " in written(screen).splitlines()[-1]


# --- watch ---------------------------------------------------------------------------------------


def test_watch_prints_every_change_of_state(cli: Cli) -> None:
    """With the seconds since it began, and at last the URLs."""
    code, out, err = cli("watch", submit("sandbox:duration=3"))
    *changes, url = out.splitlines()
    assert (code, err) == (0, "")
    assert [line.split()[2] for line in changes] == ["queued", "processing", "completed"]
    assert SIGNED in url


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_watch_tells_a_failure(cli: Cli, options: list[str]) -> None:
    """The last change on stdout, the error on stderr, and 1."""
    code, out, err = cli("watch", failing("corrupt_input"), *options)
    assert (code, out.count("\n")) == (1, 1)
    assert err.startswith("CorruptInputError: ")


def test_watch_prints_snapshots_as_json(cli: Cli) -> None:
    """One object a change."""
    told = cli("watch", submit("sandbox:duration=3"), "--json")
    states = [json.loads(line)["state"] for line in told.out.splitlines()]
    assert states == ["queued", "processing", "completed"]


# --- create --------------------------------------------------------------------------------------


def test_create_prints_the_id(cli: Cli) -> None:
    """Alone, so that a script can take it."""
    code, out, err = cli("create", "a fox", "--model", "uni-1-max", "--aspect-ratio", "16:9")
    assert (code, err) == (0, "")
    assert "model           uni-1-max\n" in cli("get", out.strip()).out


def test_create_prints_json(cli: Cli) -> None:
    """The first snapshot, and what it was submitted for."""
    told = cli("create", "a fox", "--model", "ray-3.2", "--type", "video", "--json")
    assert json.loads(told.out).items() >= {"type": "video", "prompt": "a fox"}.items()


def test_create_waits(cli: Cli) -> None:
    """The id on stderr at once, as it is billed from now on; then the URLs on stdout."""
    code, out, err = cli("create", "a fox sandbox:duration=0", "--wait")
    submitted = re.fullmatch(r"Submitted (\S+)\.\n", err)
    assert code == 0
    assert submitted
    assert f"/{submitted[1]}/0?" in out


def test_create_says_when_it_is_unknown_whether_it_is_billed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note of the library is part of the message."""
    error = ServerError("HTTP 500", status_code=500)
    error.add_note("It is not known.")

    async def create(self: Generations, prompt: str, **_: Any) -> Generation:
        raise error

    monkeypatch.setattr(Generations, "create", create)
    assert cli("create", "a fox") == (4, "", "ServerError: HTTP 500 It is not known.\n")


def test_create_says_what_the_api_refuses(cli: Cli) -> None:
    """In the API's own words."""
    code, out, err = cli("create", "a fox", "--model", "sora")
    assert (code, out) == (4, "")
    assert "BadRequestError: HTTP 400 Bad Request: Unknown model: sora." in err


# --- what a user gets wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wait", "."], "Error: '.' is not a generation id"),
        (["wait", "-"], "Error: there is no id on standard input"),
        (["get", " "], "Error: ' ' is not a generation id"),
        (["create", " "], "Error: prompt must be a string"),
        (["wait", ID, "--timeout", "0"], "0 is not above 0"),
        (["watch", ID, "--timeout", "nan"], "nan is not above 0"),
        (["wait", ID, "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["wait"], "Error: there is nothing to wait for: give ids, - or --file PATH"),
        (["sandbox", "--speed", "-1"], "-1 is not above 0"),
        (["sandbox", "--port", "70000"], "Invalid value for '--port'"),
        (["sandbox", "--faults", "1.5"], "Invalid value for '--faults'"),
        (["sandbox", "--host", "not a host"], "Error: cannot listen on not a host, port 8787: "),
        (["sleep"], "No such command 'sleep'"),
    ],
)
def test_wrong_usage_is_2(cli: Cli, arguments: list[str], says: str) -> None:
    """Words on stderr, no traceback."""
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_a_binary_file_is_no_list_of_ids(cli: Cli) -> None:
    """It cannot be read as text."""
    told = cli("wait", "-", stdin=b"\x7fELF\xff")
    assert told.code == 2
    assert told.err.startswith("Error: standard input is not text in UTF-8")


def test_a_missing_key_says_what_to_set_and_where_to_get_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what works without one."""
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", " ")
    code, out, err = cli("get", ID)
    assert (code, out) == (2, "")
    for words in ("LUMA_AGENTS_API_KEY", "https://platform.lumalabs.ai", "luma-poll demo"):
        assert words in err


def test_a_wrong_key_is_4(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable and not the key."""
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-invalid")
    code, out, err = cli("wait", ID)
    assert (code, out) == (4, "")
    assert err.startswith("AuthenticationError: ")
    assert "LUMA_AGENTS_API_KEY" in err
    assert "luma-api-invalid" not in err


def test_a_wrong_address_names_the_variable(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameter of the library is nothing the user has written."""
    monkeypatch.setenv("LUMA_BASE_URL", "localhost:8787")
    assert cli("get", ID) == (
        2,
        "",
        "Error: LUMA_BASE_URL must begin with https:// (or http://) and a host\n",
    )


@pytest.mark.parametrize("command", ["get", "wait", "create"])
@pytest.mark.parametrize("path", ["", "/v1/generations"])
def test_a_wrong_path_blames_the_address(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, base_url: str, command: str, path: str
) -> None:
    """The id may be right: nobody looked it up."""
    monkeypatch.setenv("LUMA_BASE_URL", base_url.removesuffix("/v1") + path)
    code, out, err = cli(command, submit_at(base_url))
    assert (code, out) == (4, "")
    assert "Check the base URL (LUMA_BASE_URL), which does not end in /v1" in err
    assert "Check the id" not in err


@pytest.mark.filterwarnings("always")
def test_an_unencrypted_address_is_a_warning_in_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the file and line of Python's own."""
    monkeypatch.setenv("LUMA_BASE_URL", "http://localhost.invalid/v1")
    monkeypatch.setattr("luma_poll._client.generations._backoff", lambda attempt: 0.0)
    code, out, err = cli("get", ID)
    warned, failed = err.splitlines()
    assert (code, out) == (4, "")
    assert warned.startswith("warning: the API key will be sent to localhost.invalid unencrypted")
    assert failed.startswith("APIConnectionError: ")


def test_a_port_in_use_is_2(cli: Cli, base_url: str) -> None:
    """With the system's reason."""
    port = str(httpx.URL(base_url).port)
    code, out, err = cli("sandbox", "--port", port)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: cannot listen on 127.0.0.1, port {port}: Address")


@pytest.mark.parametrize("command", ["get", "wait", "watch"])
@pytest.mark.parametrize(
    ("trouble", "code", "says"),
    [
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left"), 4, "Error: [Errno 28] No space left\n"),
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
    """Quietly where the reader has gone, as with `head`."""

    def fail(*_: object, **__: object) -> None:
        raise trouble

    generation_id = submit()
    monkeypatch.setattr("luma_poll._cli.terminal.print", fail, raising=False)
    assert cli(command, generation_id) == (code, "", says)


def test_a_full_disk_and_others_still_running(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that comes could be written, so it is not waited for."""

    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    ids = [submit("sandbox:duration=60"), submit()]
    monkeypatch.setattr("luma_poll._cli.terminal.print", fail, raising=False)
    assert cli("wait", *ids) == (141, "", "")


# --- interruptions -------------------------------------------------------------------------------


def interrupt(_: RetryCallState) -> float:
    """A schedule that is the user's Ctrl-C."""
    signal.raise_signal(signal.SIGINT)
    return 60


@pytest.mark.parametrize("command", [["wait"], ["watch"], ["create", "--wait"]])
def test_ctrl_c_says_how_to_resume(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """With the ids that have not ended, in a command to copy."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt)
    argument = "x sandbox:duration=60" if "--wait" in command else submit("sandbox:duration=60")
    code, _, err = cli(*command, argument)
    assert code == 130
    assert "Interrupted; 1 is still running. To wait on:\n" in err
    resume = shlex.split(err.splitlines()[-1])
    assert resume[:2] == ["luma-poll", "wait"]
    assert re.fullmatch("[0-9a-f-]{36}", resume[2])


def test_ctrl_c_leaves_out_what_has_ended(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what still runs is to be waited for again."""
    done, slow, slower = submit(), *(submit("sandbox:duration=60") for _ in range(2))
    polls: list[RetryCallState] = []

    def interrupt_later(state: RetryCallState) -> float:
        polls.append(state)
        return interrupt(state) if len(polls) == 6 else 0.05

    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt_later)
    code, out, err = cli("wait", done, slow, slower)
    assert (code, out.count("\n")) == (130, 1)
    assert err == (
        f"Interrupted; 2 are still running. To wait on:\n  luma-poll wait {slow} {slower}\n"
    )


def test_ctrl_c_while_submitting_says_that_it_may_be_billed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether the request got through."""

    async def create(self: Generations, prompt: str, **_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep_forever()

    monkeypatch.setattr(Generations, "create", create)
    code, out, err = cli("create", "a fox")
    assert (code, out) == (130, "")
    assert "it may have been accepted, and be billed" in err


def test_ctrl_c_while_reading_ids_ends_quietly(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of any generation yet."""

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


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_as_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch, ctrl_c: Any) -> None:
    """Also in the background of a script, where Ctrl-C is ignored."""

    async def sleep_forever() -> None:
        signal.raise_signal(signal.SIGTERM)
        await anyio.sleep(60)

    monkeypatch.setattr("luma_poll._cli.commands.anyio.sleep_forever", sleep_forever)
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        code, out, err = cli("sandbox", "--port", "0", "--seed", "1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    url = re.search(r"http://127\.0\.0\.1:\d+/v1", err)
    assert url
    assert out.splitlines() == [
        f"export LUMA_BASE_URL={url[0]}",
        "export LUMA_AGENTS_API_KEY=luma-api-sandbox",
    ]


# --- the command as a whole ----------------------------------------------------------------------


def test_the_version(cli: Cli) -> None:
    """Alone on stdout."""
    assert cli("--version") == (0, f"{__version__}\n", "")


def test_the_package_runs_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m luma_poll` is the command."""
    monkeypatch.delitem(sys.modules, "luma_poll.__main__")
    monkeypatch.setattr("luma_poll._cli.commands.run", partial(print, "it runs"))
    runpy.run_module("luma_poll", run_name="__main__")
    assert capsys.readouterr() == ("it runs\n", "")


def test_help_documents_the_exit_codes(cli: Cli) -> None:
    """Without the docs at hand."""
    told = cli("--help")
    words = " ".join(told.out.split())
    assert told.code == 0
    for promise in ("0 all completed", "1 a generation failed", "2 usage", "3 timed out"):
        assert promise in words
    assert "4 trouble with the API" in words
    assert "130 interrupted" in words


@pytest.mark.parametrize("command", [[], ["demo"], ["wait"], ["create"], ["sandbox"]])
def test_h_is_help(cli: Cli, command: list[str]) -> None:
    """On the command itself and on each of its commands."""
    assert cli(*command, "-h") == cli(*command, "--help")
    assert cli(*command, "-h").code == 0


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("luma-poll wa", {"wait", "watch"}),
        ("luma-poll wait --ou", {"--output"}),
        ("luma-poll create fox --model uni", {"uni-1", "uni-1-max"}),
        ("luma-poll create fox --type video_", {"video_edit", "video_reframe"}),
    ],
)
def test_a_shell_completes_words(words: str, offers: set[str]) -> None:
    """As the function asks that `luma-poll --show-completion` prints."""
    asked = {"_LUMA_POLL_COMPLETE": "complete_bash", "COMP_WORDS": words}
    told = subprocess.run(
        COMMAND,
        env={**os.environ, **asked, "COMP_CWORD": str(words.count(" "))},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert (set(told.stdout.split()), told.stderr) == (offers, "")


def test_without_the_extra_it_says_how_to_install_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has installed it."""
    monkeypatch.delitem(sys.modules, "luma_poll._cli.commands", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    told = cli("demo")
    assert (told.code, told.out) == (2, "")
    assert told.err == HOW_TO_INSTALL.format(missing="typer") + "\n"
    for tool in ("pip", "pipx", "uv tool", "uvx"):
        assert f"\n  {tool} " in told.err


def test_without_half_of_the_extra_it_says_so_too() -> None:
    """Typer and Rich come with many packages, the sandbox's own dependencies do not."""
    code = (
        "import sys; sys.modules['starlette'] = None; sys.argv = ['luma-poll', 'demo'];"
        "from luma_poll.__main__ import main; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20
    )
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("The command line needs starlette, ")


def test_a_broken_installation_is_not_explained_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing module of our own is a bug."""
    monkeypatch.setitem(sys.modules, "luma_poll._cli.commands", None)
    with pytest.raises(ModuleNotFoundError):
        main()


def test_closed_stdin_is_2(cli: Cli) -> None:
    """As after `<&-`."""
    assert cli("wait", "-", stdin=None) == (2, "", "Error: standard input is closed\n")


# --- the demo ------------------------------------------------------------------------------------


def test_the_demo_shows_outputs_errors_and_the_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no key, ends with 0 though two of its generations fail, and shows no secret."""
    monkeypatch.setattr("luma_poll._cli.demo.SPEED", 60.0)
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
    """The same ends, with faults on the way, which are told."""
    monkeypatch.setattr("luma_poll._cli.demo.SPEED", 60.0)
    monkeypatch.setattr(
        "luma_poll._cli.demo.Sandbox",
        lambda speed, faults: Sandbox(speed=speed, faults={"503": faults, "reset": faults}),
    )
    code, out, err = cli("demo", "--chaos")
    assert (code, err) == (0, "")
    assert "It has a bad day" in out
    assert out.count("completed  ") == 4
    assert out.count("failed     ") == 2
    told = re.search(r"Faults on the way: (.*)\. No wait ended by one\.", out)
    assert told
    assert re.fullmatch(r"(\d+ (503|reset)(, |$))+", told[1])


def test_the_sandbox_serves_a_bad_day(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--faults` is the share of the answers to polls that is replaced."""
    seen: list[dict[str, Any]] = []

    def sandbox(**options: Any) -> Sandbox:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("luma_poll.sandbox.Sandbox", sandbox)
    assert cli("sandbox", "--faults", "0.3").code == 130
    assert seen == [{"speed": 1.0, "seed": None, "faults": 0.3}]


def test_the_demo_reports_trouble_with_the_api(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wait it is what came out of that one; while submitting it ends the demo, in a line."""
    monkeypatch.setattr("luma_poll._cli.demo.SPEED", 60.0)
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
    monkeypatch.setattr("luma_poll._cli.demo.SPEED", 60.0)
    assert "\n\n\n" not in cli("demo").out


@pytest.mark.parametrize(
    ("host", "reachable"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")]
)
def test_the_sandbox_prints_an_address_to_connect_to(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, host: str, reachable: str
) -> None:
    """That of all interfaces is none."""

    async def sleep_forever() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luma_poll._cli.commands.anyio.sleep_forever", sleep_forever)
    out = cli("sandbox", "--host", host, "--port", "0").out
    assert out.startswith(f"export LUMA_BASE_URL=http://{reachable}:")


# --- the table -----------------------------------------------------------------------------------


def event(state: str | None = None, error: Any = None, attempt: int = 1, id: str = ID) -> PollEvent:
    generation = None if state is None else snapshot(state, id=id)
    return PollEvent(id, attempt, generation, error, elapsed=1.0, next_delay=1.0)


def lines(table: LiveTable, width: int = 80, height: int | None = None) -> list[str]:
    """The table as drawn."""
    console = terminal(width)
    console.print(table.draw(height))
    return [line.rstrip() for line in written(console).splitlines()]


def test_a_row_follows_the_polls() -> None:
    """State, trouble and polls are those of the last poll; an end stops the clock."""
    table = LiveTable(("generation",), None)
    table.add(ID, "fox")
    assert re.search(r"fox +. asking +0\.0 s +0$", lines(table)[1])
    table.on_poll(event("processing", attempt=2))
    assert re.search(r"fox +. processing +0\.0 s +2$", lines(table)[1])
    table.on_poll(event(error=ServerError("HTTP 503", status_code=503), attempt=3))
    assert re.search(r"fox +. processing ServerError +0\.0 s +3$", lines(table)[1])
    table.end(ID, "completed")
    assert re.search(r"fox +completed +0\.0 s +3$", lines(table)[1])


def test_a_narrow_table_shortens_and_never_wraps() -> None:
    """A generation is one line, and its numbers stay whole."""
    table = LiveTable(("generation",), None)
    table.add(ID, ID)
    _, row = lines(table, width=40)
    assert "…" in row
    assert row.endswith("0.0 s      0")


def test_labels_are_not_markup() -> None:
    """A prompt may contain anything."""
    table = LiveTable(("prompt",), None)
    table.add(ID, "[red]:fox:[/]")
    assert "[red]:fox:[/]" in lines(table)[1]


@pytest.mark.parametrize("forced", [True, False])
def test_no_table_is_drawn_where_there_is_no_terminal(forced: bool) -> None:
    """FORCE_COLOR asks for colours, not for a table in a log file."""
    console = Console(file=io.StringIO(), force_terminal=forced)
    with live_table("generation", console=console) as table:
        table.add(ID, ID)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_a_table_without_rows_leaves_nothing() -> None:
    """Nothing was waited for."""
    console = terminal()
    with live_table("generation", console=console):
        pass
    assert "generation" not in written(console)[-20:]


# --- true processes ------------------------------------------------------------------------------


@contextmanager
def started(*command: str, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that does not outlive its test."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def test_python_m() -> None:
    """It is the command in a process of its own, too."""
    told = subprocess.run(
        [*COMMAND, "--version"], capture_output=True, text=True, check=True, timeout=20
    )
    assert (told.stdout, told.stderr) == (f"{__version__}\n", "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stdout_is_trouble(closed: str) -> None:
    """The result could not be printed, so the exit code does not say that all went well."""
    command = f"{shlex.join(COMMAND)} get {submit()} {closed}"
    assert subprocess.run(["sh", "-c", command], check=False, timeout=20).returncode == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_stderr_does_not_change_the_exit_code() -> None:
    """Where nothing can be said, the exit code still says it."""
    command = f"LUMA_BASE_URL=http://127.0.0.1:9/v1 {shlex.join(COMMAND)} get {ID} 2>/dev/full"
    assert subprocess.run(["sh", "-c", command], check=False, timeout=60).returncode == 4


def test_ctrl_c_in_a_process() -> None:
    """130, the URL that had been printed, and two lines how to resume."""
    done, slow = submit(), submit("sandbox:duration=60")
    with started(
        *COMMAND, "wait", done, slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        assert done in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read() == (
            f"Interrupted; 1 is still running. To wait on:\n  luma-poll wait {slow}\n"
        )


def test_a_reader_that_goes_away() -> None:
    """`luma-poll wait ... | true` ends at once and quietly."""
    read, write = os.pipe()
    os.close(read)
    ids = [submit(), submit("sandbox:duration=60")]
    with started(*COMMAND, "wait", *ids, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr
        assert (process.wait(10), process.stderr.read()) == (141, "")


def test_the_sandbox_ends_with_sigterm() -> None:
    """Though started where Ctrl-C is ignored, as in the background of a script."""
    command = ("sh", "-c", f"trap '' INT; exec {shlex.join(COMMAND)} sandbox --port 0")
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        url = process.stdout.readline().partition("=")[2].strip()
        process.stdout.readline()
        assert httpx.get(f"{url}/generations/{ID}").status_code == 401
        process.terminate()
        assert process.wait(10) == 130
        assert process.stderr.read().count("\n") == 1


def test_the_demo_on_a_terminal() -> None:
    """A live table is drawn and drawn again, then the results; here at twice the speed."""
    ours, theirs = pty.openpty()
    began = time.monotonic()
    code = (
        "from luma_poll import __main__; from luma_poll._cli import demo; "
        "demo.SPEED = 20; __main__.main()"
    )
    command = (sys.executable, "-c", code, "demo")
    with started(*command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        screen = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.wait(10) == 0
    os.close(ours)
    assert time.monotonic() - began < 30
    assert screen.count("waited") > 10
    for words in ("queued", "processing", "completed", "What came out", "ContentModeratedError"):
        assert words in screen
    assert "\x1b[?25h" in screen, "the cursor is shown again"


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other side has gone
        return b""
