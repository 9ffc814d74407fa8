"""`luma-poll create`: one prompt with any parameter, and one file."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

from luma_poll import (
    Generation,
    RateLimitError,
    ServerError,
)
from luma_poll._client.generations import Generations
from tests.cli.support import COMMAND, Cli, started
from tests.fakes import ID, snapshot


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


Sent = list[dict[str, Any]]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """The parameters that are submitted; each submission is accepted, with its number as the id."""
    return answering(monkeypatch, {})


def answering(monkeypatch: pytest.MonkeyPatch, failures: dict[int, BaseException]) -> Sent:
    """Let the submissions of these numbers fail."""
    sent: Sent = []

    async def create(self: Generations, /, prompt: str, **params: Any) -> Generation:
        sent.append({"prompt": prompt, **params})
        failure = failures.get(len(sent))
        if isinstance(failure, KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            await anyio.sleep_forever()
        if failure is not None:
            raise failure
        return snapshot("queued", id=f"number-{len(sent)}")

    monkeypatch.setattr(Generations, "create", create)
    return sent


def test_any_parameter_can_be_given(cli: Cli, sent: Sent) -> None:
    """As JSON or as plain text, together with the options that exist for some."""
    words = [
        "video.duration=5s",
        "video.loop=true",
        "style=manga",
        "web_search=true",
        'user_id="7"',
        "seed=7",
        "self=a=b",
        "source=null",
    ]
    words.append('image_ref=[{"url": "https://example.com/a.png"}]')
    options = [word for each in words for word in ("--param", each)]
    told = cli("create", "a fox", "--model", "uni-1", *options)
    assert (told.code, told.out, told.err) == (0, "number-1\n", "")
    assert sent == [
        {
            "prompt": "a fox",
            "model": "uni-1",
            "video": {"duration": "5s", "loop": True},
            "style": "manga",
            "web_search": True,
            "user_id": "7",
            "seed": 7,
            "self": "a=b",
            "image_ref": [{"url": "https://example.com/a.png"}],
        }
    ]


def test_a_parameter_reaches_the_api(cli: Cli) -> None:
    """Even one that has the name of a positional argument."""
    told = cli("create", "a fox", "--param", "model=uni-1-max", "--json")
    assert json.loads(told.out)["model"] == "uni-1-max"
    told = cli("create", "a fox", "--param", "self=1")
    assert "400 Bad Request: Unknown parameter: self" in told.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fox", "--param", "style"], "--param takes KEY=VALUE, not 'style'"),
        (["fox", "--param", "=manga"], "--param takes KEY=VALUE, not '=manga'"),
        (["fox", "--param", "image_ref[0]=x"], "--param takes KEY=VALUE, not 'image_ref[0]=x'"),
        (["fox", "--param", "source={url:x}"], "--param source: '{url:x}' is not JSON: "),
        (["fox", "--param", "prompt=owl"], "--param prompt: give the prompt as an argument"),
        (["fox", "--param", "a=1", "--param", "a=2"], "--param a is given twice"),
        (["fox", "--param", "a.b=1", "--param", "a.b=2"], "--param a.b is given twice"),
        (["fox", "--param", "a=1", "--param", "a.b=2"], "--param a.b: a is also given as a whole"),
        (["fox", "--model", "uni-1", "--param", "model=x"], "--param model is given twice"),
        (["fox", "--timeout", "5"], "--timeout needs --wait or --download"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_submits_nothing(cli: Cli, sent: Sent, arguments: list[str], says: str) -> None:
    """The exit code is 2, and a message says why."""
    code, out, err = cli("create", *arguments, stdin=b"# none\n")
    assert (code, out, sent) == (2, "", [])
    assert err.startswith(f"Error: {says}")


def test_a_value_that_json_cannot_write_is_refused(cli: Cli) -> None:
    """Before anything is sent."""
    told = cli("create", "a fox", "--param", "seed=NaN")
    assert told.code == 2
    assert told.err.startswith("Error: seed is nan, which is not JSON")


PNG = b"\x89PNG\r\n\x1a\n"


def test_one_prompt_becomes_one_file(cli: Cli, tmp_path: Path) -> None:
    """Of the name that was given; or in a directory, under the id."""
    fox = tmp_path / "fox.png"
    code, out, err = cli("create", "a red fox sandbox:duration=0", "-o", str(fox))
    assert (code, out) == (0, f"{fox}\n")
    assert fox.read_bytes().startswith(PNG)
    generation_id = err.removeprefix("Submitted ").rstrip(".\n")
    told = cli("create", "a red fox sandbox:duration=0", "--download", str(tmp_path / "out"))
    assert told.out.startswith(str(tmp_path / "out"))
    assert generation_id not in told.out


def test_what_is_paid_for_is_saved_beside_another_file(cli: Cli, tmp_path: Path) -> None:
    """It replaces no file; and to wait for it again finds it, under the number that it has."""
    fox = tmp_path / "fox.png"
    fox.write_bytes(b"mine")
    code, out, err = cli("create", "a red fox sandbox:duration=0", "-o", str(fox))
    assert (code, out) == (0, f"{tmp_path / 'fox (2).png'}\n")
    assert fox.read_bytes() == b"mine"
    generation_id = err.removeprefix("Submitted ").rstrip(".\n")
    assert cli("wait", generation_id, "--download", str(fox)).out == out


def test_a_file_is_an_input(cli: Cli, sent: Sent, tmp_path: Path) -> None:
    """By --source, --image and @; also an address, and the id of a generation."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(PNG + b"x" * 92)
    options = ["--source", str(photo), "--image", "https://example.com/a.png", "--image", ID]
    assert cli("create", "at night", "--type", "image_edit", *options).code == 0
    assert cli("create", "at night", "--param", f"source=@{photo}").code == 0
    assert repr(sent[0]["source"]) == "<photo.png: image/png, 100 bytes>"
    assert sent[0]["image_ref"] == [{"url": "https://example.com/a.png"}, {"generation_id": ID}]
    assert repr(sent[1]["source"]) == repr(sent[0]["source"])
    told = cli("create", "at night", "--source", str(tmp_path / "none.png"))
    assert (told.code, len(sent)) == (2, 2)
    assert "source" in told.err
    assert "none.png" in told.err


def test_the_outputs_are_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file if there is one, else the URL."""
    opened: list[str] = []
    monkeypatch.setattr("luma_poll._cli.create_command.typer.launch", opened.append)
    fox = str(tmp_path / "fox.png")
    assert cli("create", "a fox sandbox:duration=0", "--open", "-o", fox).code == 0
    assert cli("create", "a fox sandbox:duration=0", "--open").code == 0
    assert opened[0] == fox
    assert opened[1].startswith("http")


def test_an_unusable_place_is_found_out_before_anything_is_submitted(
    cli: Cli, sent: Sent, tmp_path: Path
) -> None:
    """A file in the way, or a directory that cannot be made."""
    (tmp_path / "file").write_text("in the way")
    for command in (["create", "a fox"], ["run", "a red fox"]):
        code, out, err = cli(*command, "--download", str(tmp_path / "file" / "out"))
        assert (code, out, sent) == (2, "", [])
        assert err.startswith(f"Error: no files can be written to {tmp_path / 'file' / 'out'}: ")


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("trouble", [OSError(28, "No space left"), RuntimeError("a mistake")])
def test_an_id_that_cannot_be_printed_is_not_forgotten(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    sent: Sent,
    options: list[str],
    trouble: Exception,
) -> None:
    """It is billed: it goes to stderr, with the command that waits for it."""

    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr("luma_poll._cli.terminal.print", fail, raising=False)
    code, out, err = cli("create", "a fox", *options)
    assert (code, out, len(sent)) == (4, "", 1)
    assert err.splitlines()[-2:] == [
        "Generation number-1 was submitted. To wait for it:",
        shlex.join(["  luma-poll", "wait", "number-1", *options]).replace("'", ""),
    ]


@pytest.mark.parametrize("answer", ["accepted", "refused"])
def test_ctrl_c_waits_for_the_answer(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """It has an id, or it says that nothing is billed."""

    async def create(self: Generations, /, prompt: str, **_: Any) -> Generation:
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(0.1)
        if answer == "refused":
            raise RateLimitError("HTTP 429: full", status_code=429)
        return snapshot("queued", id="number-1")

    monkeypatch.setattr(Generations, "create", create)
    code, out, err = cli("create", "a fox", "--wait")
    assert (code, out) == (130, "")
    ends = {
        "accepted": [
            "Generation number-1 was submitted. To wait for it:",
            "  luma-poll wait number-1",
        ],
        "refused": ["RateLimitError: HTTP 429: full"],
    }
    said, *rest = err.splitlines()
    assert said == "Waiting for the answer, which has the id. Ctrl-C again gives up."
    assert rest == ends[answer]


@pytest.mark.posix
@pytest.mark.parametrize("command", [["create", "a fox"], ["run", "a red fox"]])
def test_an_output_is_tried_before_anything_is_submitted(command: list[str]) -> None:
    """One that is closed, on a full disk, or whose reader has gone: the id would be lost."""
    shell = shlex.join([*COMMAND, *command])
    nobody = {**os.environ, "LUMA_BASE_URL": "http://127.0.0.1:9/v1"}
    for closed, code in ((">&-", 4), (">/dev/full", 4)):
        told = subprocess.run(
            ["sh", "-c", f"{shell} {closed}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
            env=nobody,
        )
        assert told.returncode == code
        assert told.stderr.startswith("Error: [Errno ")
    read, write = os.pipe()
    os.close(read)
    with started(*COMMAND, *command, stdout=write, stderr=subprocess.PIPE, env=nobody) as process:
        os.close(write)
        assert process.stderr
        assert (process.wait(50), process.stderr.read()) == (141, "")
