"""`luma-poll create`: any parameter, and a file of prompts, none of which is submitted twice."""

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from luma_poll import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    Generation,
    LumaError,
    RateLimitError,
    ServerError,
)
from luma_poll._client.generations import Generations, retried
from tests.cli.support import COMMAND, Cli, interrupt
from tests.fakes import snapshot


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


PROMPTS = """\
\ufeff# my foxes
a red fox sandbox:duration=0

\ta blue fox sandbox:duration=0 sandbox:outputs=2\r
#a green fox
a bad fox sandbox:duration=0 sandbox:fail=content_moderated"""


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a file of three prompts."""
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("my prompts.txt").write_text(PROMPTS, newline="")
    return "my prompts.txt"


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
    words = ["style=manga", "web_search=true", 'user_id="7"', "seed=7", "self=a=b", "source=null"]
    words.append('image_ref=[{"url": "https://example.com/a.png"}]')
    options = [word for each in words for word in ("--param", each)]
    told = cli("create", "a fox", "--model", "uni-1", *options)
    assert (told.code, told.out, told.err) == (0, "number-1\n", "")
    assert sent == [
        {
            "prompt": "a fox",
            "model": "uni-1",
            "style": "manga",
            "web_search": True,
            "user_id": "7",
            "seed": 7,
            "self": "a=b",
            "source": None,
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
        (["fox", "--param", "prompt=owl"], "--param prompt: the prompt is an argument"),
        (["fox", "--param", "a=1", "--param", "a=2"], "--param a is given twice"),
        (["fox", "--model", "uni-1", "--param", "model=x"], "--param model is given twice"),
        (["fox", "--timeout", "5"], "--timeout goes with --wait"),
        ([], "give a PROMPT, or --file PATH"),
        (["fox", "--file", "prompts.txt"], "give a PROMPT, or --file PATH"),
        (["--file", "missing.txt"], "missing.txt cannot be read: No such file or directory"),
        (["--file", "-"], "there is no prompt in standard input"),
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


def test_a_file_has_a_prompt_a_line(cli: Cli, prompts: str, sent: Sent) -> None:
    """Blank lines and comments are skipped; the ids are printed in the order of the lines."""
    code, out, err = cli("create", "--file", prompts, "--param", "style=manga")
    assert (code, out, err) == (0, "number-1\nnumber-2\nnumber-3\n", "")
    assert [each["prompt"].split(" sandbox:")[0] for each in sent] == [
        "a red fox",
        "a blue fox",
        "a bad fox",
    ]
    assert {each["style"] for each in sent} == {"manga"}


def test_prompts_come_from_stdin_too(cli: Cli) -> None:
    """As JSON, each id comes with its prompt."""
    told = cli("create", "--file", "-", "--json", stdin="a fox\nan owl — Eule\n".encode())
    assert told.code == 0
    assert [json.loads(line)["prompt"] for line in told.out.splitlines()] == [
        "a fox",
        "an owl — Eule",
    ]


def test_a_file_is_submitted_and_waited_for(cli: Cli, prompts: str) -> None:
    """The ids on stderr at once; then the URLs of each, after its id."""
    code, out, err = cli("create", "--file", prompts, "--wait")
    said = err.splitlines()
    ids = [line.removeprefix("Submitted ").rstrip(".") for line in said[:3]]
    assert code == 1
    assert sorted(line.split("\t")[0] for line in out.splitlines()) == sorted([*ids[:2], ids[1]])
    assert said[3].startswith(f"ContentModeratedError: generation {ids[2]} ")


def test_a_prompt_that_is_rejected_does_not_stop_the_others(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, prompts: str
) -> None:
    """It is reported with its line, and decides the exit code."""
    refused = BadRequestError("HTTP 400 Bad Request: too long.", status_code=400)
    sent = answering(monkeypatch, {2: refused})
    code, out, err = cli("create", "--file", prompts)
    assert (code, out) == (4, "number-1\nnumber-3\n")
    assert err == f"line 4 of {prompts}: BadRequestError: HTTP 400 Bad Request: too long.\n"
    assert len(sent) == 3


@pytest.mark.parametrize(
    ("failure", "rest"),
    [
        (AuthenticationError("HTTP 401.", status_code=401), 4),
        (RateLimitError("HTTP 429.", status_code=429), 4),
        (APIConnectionError("no route", request_sent=False), 4),
        (APIConnectionError("cut"), 6),
        (ServerError("HTTP 502.", status_code=502), 6),
    ],
    ids=repr,
)
def test_an_error_that_the_next_prompt_would_meet_too_ends_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, prompts: str, failure: LumaError, rest: int
) -> None:
    """The command for the rest has all options, and leaves out what may have been accepted."""
    sent = answering(monkeypatch, {2: failure})
    options = ["--type", "image", "--aspect-ratio", "16:9", "--param", "style=a b"]
    options += ["--wait", "--timeout", "5", "--json"]
    monkeypatch.setattr(Generations, "get", no_answer)
    code, _, err = cli("create", "--file", prompts, *options)
    said = err.splitlines()
    assert (code, len(sent)) == (4, 2)
    assert said[:2] == ["Submitted number-1.", f"line 4 of {prompts}: {told(failure)}"]
    count = "2 prompts" if rest == 4 else "1 prompt"
    assert said[2:4] == [
        f"Not submitted: {count}, from line {rest} of {prompts} on.",
        f"  tail -n +{rest} '{prompts}' | luma-poll create --file - {shlex.join(options)}",
    ]


async def no_answer(self: Generations, generation_id: str) -> Generation:
    """Let what was accepted fail at once."""
    raise BadRequestError("HTTP 400.", status_code=400)


def told(error: LumaError) -> str:
    return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("wait", [[], ["--wait"]])
def test_ctrl_c_says_what_may_be_billed_and_what_was_not_submitted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, prompts: str, wait: list[str]
) -> None:
    """The ids of those accepted are printed, on stdout or in a command to copy."""
    answering(monkeypatch, {2: KeyboardInterrupt()})
    code, out, err = cli("create", "--file", prompts, *wait)
    waiting = [
        "Interrupted; 1 is still running. To keep waiting:",
        "  luma-poll wait number-1",
    ]
    assert (code, out) == (130, "" if wait else "number-1\n")
    assert err.splitlines() == [
        *(["Submitted number-1."] if wait else []),
        f"Interrupted while submitting line 4 of {prompts}: "
        "it may have been accepted and billed. "
        "Check the account's usage before you submit it again.",
        f"Not submitted: 1 prompt, from line 6 of {prompts} on.",
        f"  tail -n +6 '{prompts}' | luma-poll create --file -{' --wait' if wait else ''}",
        *(waiting if wait else []),
    ]


def test_ctrl_c_while_waiting_names_those_that_run(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have been submitted, so no command submits the rest."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt)
    told = cli("create", "--file", "-", "--wait", stdin=b"a sandbox:duration=60\n" * 2)
    ids = [line.removeprefix("Submitted ").rstrip(".") for line in told.err.splitlines()[:2]]
    assert told.code == 130
    assert told.err.splitlines()[2:] == [
        "Interrupted; 2 are still running. To keep waiting:",
        f"  luma-poll wait {shlex.join(ids)}",
    ]


def test_many_have_a_summary_and_a_command_with_every_id(cli: Cli) -> None:
    """There is no file of ids that it could name."""
    lines = [b"a sandbox:duration=60"] * 11 + [b"a sandbox:duration=0"]
    told = cli("create", "--file", "-", "--wait", "--timeout", "0.5", stdin=b"\n".join(lines))
    said = told.err.splitlines()
    ids = [line.removeprefix("Submitted ").rstrip(".") for line in said[:11]]
    assert told.code == 3
    assert said[-4:-1] == [
        "     11 PollTimeoutError",
        "      1 completed",
        "To wait again for the 11 that may still finish:",
    ]
    words = shlex.split(said[-1])
    assert (words[:2], sorted(words[2:-2])) == (["luma-poll", "wait"], sorted(ids))
    assert words[-2:] == ["--timeout", "0.5"]


def test_an_id_that_cannot_be_printed_is_not_forgotten(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, prompts: str, sent: Sent
) -> None:
    """It is billed: it goes to stderr, and nothing more is submitted."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left")

    monkeypatch.setattr("luma_poll._cli.terminal.print", fail, raising=False)
    code, out, err = cli("create", "--file", prompts)
    assert (code, out, len(sent)) == (4, "", 1)
    assert err.splitlines() == [
        "Submitted number-1.",
        f"Not submitted: 2 prompts, from line 4 of {prompts} on.",
        f"  tail -n +4 '{prompts}' | luma-poll create --file -",
        "Error: [Errno 28] No space left",
    ]


def test_a_refusal_for_now_is_waited_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, prompts: str
) -> None:
    """The API does not take a whole file of prompts at once, so a 429 is tried again."""
    monkeypatch.setattr("luma_poll._client.generations.backoff", lambda attempt: 0.0)
    tries: list[None] = []

    async def busy(
        send: Callable[[], Awaitable[Generation]], retryable: Any, max_retries: int
    ) -> Generation:
        async def try_to_send() -> Generation:
            tries.append(None)
            if len(tries) < 5:
                raise RateLimitError("HTTP 429.", status_code=429)
            return await send()

        return await retried(try_to_send, retryable, max_retries)

    monkeypatch.setattr("luma_poll._client.generations.retried", busy)
    told = cli("create", "--file", prompts)
    assert (told.code, told.out.count("\n"), len(tries)) == (0, 3, 7)


def test_ids_go_to_another_command_as_they_come(tmp_path: Path) -> None:
    """`luma-poll create --file prompts.txt | luma-poll wait -`."""
    path = tmp_path / "prompts.txt"
    path.write_text(PROMPTS)
    create = shlex.join([*COMMAND, "create", "--file", str(path)])
    wait = shlex.join([*COMMAND, "wait", "-", "--json"])
    told = subprocess.run(
        ["sh", "-c", f"{create} | {wait}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert (told.returncode, told.stderr) == (1, "")
    assert sorted(json.loads(line)["ok"] for line in told.stdout.splitlines()) == [0, 1, 1]
