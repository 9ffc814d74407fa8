"""The command as a whole: `get`, wrong usage, help, completion and installation."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from luma_poll import (
    ConfigurationError,
    DownloadError,
    Generation,
    GenerationFailedError,
    PollTimeoutError,
    ServerError,
    __version__,
)
from luma_poll.__main__ import HOW_TO_INSTALL, main
from luma_poll._cli.commands import app
from luma_poll._cli.exit_codes import MEANINGS, exit_code
from luma_poll._client.generations import Generations
from tests.cli.support import COMMAND, SIGNED, Cli, failing, submit, submit_at
from tests.fakes import ID, URL, snapshot


def test_get_prints_a_snapshot(cli: Cli) -> None:
    """One line for each known fact, and the complete URL on one of them."""
    generation_id = submit()
    code, out, err = cli("get", generation_id)
    facts = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in out.splitlines())
    assert (code, err) == (0, "")
    assert (facts["id"], facts["state"], facts["model"]) == (generation_id, "completed", "uni-1")
    assert SIGNED in facts["output"]
    assert facts["expires"].endswith(" UTC")
    assert "failure code" not in facts


def test_get_prints_a_failed_snapshot_too(cli: Cli) -> None:
    """A snapshot was asked for, whatever its state."""
    code, out, err = cli("get", failing())
    assert (code, err) == (0, "")
    assert "failure code    content_moderated\n" in out


def test_get_prints_json(cli: Cli) -> None:
    """The snapshot in one line that reads back as itself."""
    generation_id = submit()
    code, out, err = cli("get", generation_id, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert Generation.model_validate_json(out).id == generation_id


def test_get_prints_a_url_without_an_expiry(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown expiry is left out."""

    async def get(self: Generations, generation_id: str) -> Generation:
        return snapshot()

    monkeypatch.setattr(Generations, "get", get)
    told = cli("get", ID)
    assert told.out.endswith(f"output          {URL}\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["wait", "."], "Error: '.' is not a generation id"),
        (["wait", "-"], "Error: there is no id on standard input"),
        (["get", " "], "Error: ' ' is not a generation id"),
        (["create", " "], "Error: prompt must be a string"),
        (["wait", ID, "--timeout", "0"], "must be above 0, not 0"),
        (["watch", ID, "--timeout", "nan"], "must be above 0, not nan"),
        (["wait", ID, "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["wait"], "Error: nothing to wait for: give ids, - or --file PATH"),
        (["sandbox", "--speed", "-1"], "must be above 0, not -1"),
        (["sandbox", "--port", "70000"], "Invalid value for '--port'"),
        (["sandbox", "--faults", "1.5"], "Invalid value for '--faults'"),
        (["sandbox", "--host", "not a host"], "Error: cannot listen on not a host, port 8787: "),
        (["sleep"], "No such command 'sleep'"),
    ],
)
def test_wrong_usage_is_2(cli: Cli, arguments: list[str], says: str) -> None:
    """A message on stderr, no traceback."""
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_a_binary_file_is_not_a_list_of_ids(cli: Cli) -> None:
    """It cannot be read as text."""
    told = cli("wait", "-", stdin=b"\x7fELF\xff")
    assert told.code == 2
    assert told.err.startswith("Error: standard input is not text in UTF-8")


def test_a_missing_key_says_what_to_set_and_where_to_get_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also names a command that needs no key."""
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
    """The user has not written the library's parameter `base_url`."""
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
    monkeypatch.setattr("luma_poll._client.generations.backoff", lambda attempt: 0.0)
    code, out, err = cli("get", ID)
    warned, failed = err.splitlines()
    assert (code, out) == (4, "")
    assert warned.startswith("warning: the API key will be sent to localhost.invalid unencrypted")
    assert failed.startswith("APIConnectionError: ")


def test_the_version(cli: Cli) -> None:
    """Alone on stdout."""
    assert cli("--version") == (0, f"luma-poll {__version__}\n", "")


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
    for promise in ("0 all completed", "1 a generation failed", "2 a bad argument", "3 timed out"):
        assert promise in words
    assert "4 an error of the API" in words
    assert "130 interrupted" in words


@pytest.mark.parametrize("code", MEANINGS)
def test_the_documentation_of_the_exit_codes_is_that_of_the_help(code: int) -> None:
    """The page has every code, with the same words."""
    page = Path(__file__).parents[2] / "docs" / "command-line.md"
    assert f"\n| {code} | {MEANINGS[code]} |\n" in page.read_text()


PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
ELSEWHERE = ("worker", "fleet")
"""Commands whose options are described on the pages of fleets and of agents."""


def commands(group: Any, before: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each command, and its options."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, f"{before}{name} ")
        else:
            options = [max(param.opts, key=len) for param in each.params]
            yield before + name, {word for word in options if word.startswith("--")} - {"--help"}


def test_the_page_has_every_command_and_option() -> None:
    """And no other: the tables are compared with the program."""
    found = dict(commands(typer.main.get_command(app)))
    page = PAGE.read_text()
    described = {
        name: set(options.replace("`", "").split())
        for name, options in re.findall(r"^\| `([a-z ]+)` \| (.*) \|$", page, re.MULTILINE)
    }
    assert described == {
        name: options for name, options in found.items() if name.split()[0] not in ELSEWHERE
    }
    listed = re.findall(r"^\| `luma-poll ([a-z ]+?)(?: [A-Z.]+)*` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(
        {*described, *{name.split()[0] for name in found} & {*ELSEWHERE}}
    )


@pytest.mark.parametrize("name", [None, *dict(commands(typer.main.get_command(app)))])
def test_every_help_has_an_example(cli: Cli, name: str | None) -> None:
    """So that nobody has to look for one."""
    code, out, _ = cli(*(name or "").split(), "--help")
    assert code == 0
    assert name in ELSEWHERE or (name or "").split()[:1] == ["fleet"] or "Example: " in out


def test_a_help_is_readable_on_a_narrow_terminal() -> None:
    """No option is shortened."""
    told = subprocess.run(
        [*COMMAND, "run", "--help"],
        env={**os.environ, "COLUMNS": "40"},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    found = dict(commands(typer.main.get_command(app)))["run"]
    assert [option for option in found if option not in told.stdout] == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (GenerationFailedError(snapshot("failed")), 1),
        (ConfigurationError("no API key"), 2),
        (PollTimeoutError(generation_id=ID, last_generation=None, elapsed=1, attempts=1), 3),
        (ServerError("HTTP 500", status_code=500), 4),
        (DownloadError("full", generation_id=ID, path=Path("a"), retryable=False), 4),
    ],
    ids=repr,
)
def test_each_kind_of_error_has_its_exit_code(error: Exception | None, code: int) -> None:
    """Success is 0, and every error that is not a failure, usage or a timeout is trouble."""
    assert exit_code(error) == code


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
    """The way the function of `luma-poll --show-completion` asks for them."""
    asked = {"_LUMA_POLL_COMPLETE": "complete_bash", "COMP_WORDS": words}
    told = subprocess.run(
        COMMAND,
        env={**os.environ, **asked, "COMP_CWORD": str(words.count(" "))},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert (set(told.stdout.split()), told.stderr) == (offers, "")


def test_without_the_extra_it_says_how_to_install_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each of the usual tools."""
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
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50
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


def test_python_m() -> None:
    """In a real process, too."""
    told = subprocess.run(
        [*COMMAND, "--version"], capture_output=True, text=True, check=True, timeout=50
    )
    assert (told.stdout, told.stderr) == (f"luma-poll {__version__}\n", "")
