"""`luma-poll run`: prompts in, files out; and `luma-poll journal`, which remembers."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_fixed

from luma_poll import (
    APIConnectionError,
    DownloadError,
    Generation,
    InsufficientBalanceError,
    Journal,
    LumaClient,
    RunResult,
)
from luma_poll._cli.hints import as_option, read_ranges
from luma_poll._cli.process import KEPT
from luma_poll._cli.results import Result
from luma_poll._cli.table import RunTable, name_of
from luma_poll._client.generations import Generations
from luma_poll.events import (
    Run,
    RunBegan,
    RunFound,
    RunRefused,
    RunStateChanged,
    RunSubmitted,
    RunSubmitting,
)
from tests.cli.support import COMMAND, Cli, ids_of, lines, on_a_terminal, read_screen, started
from tests.fakes import ID, snapshot

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("luma_poll._cli.run_command.AdaptiveWait", lambda **_: wait_fixed(0.05))
    monkeypatch.chdir(tmp_path)


def prompts(*texts: str, name: str = "prompts.txt") -> str:
    Path(name).write_text("\n".join(texts) + "\n")
    return name


FOX, OWL, HARE = (f"{name} sandbox:duration=0" for name in ("a red fox", "a grey owl", "a hare"))
BAD = "a bad fox sandbox:duration=0 sandbox:fail=content_moderated"


# --- results -------------------------------------------------------------------------------------


def test_each_url_comes_with_its_prompt(cli: Cli) -> None:
    """In the order of their ends, so the prompt says which is which."""
    code, out, err = cli("run", prompts("# my animals", "", FOX, OWL))
    assert (code, err) == (0, "")
    found = dict(line.split("\t") for line in out.splitlines())
    assert found.keys() == {FOX, OWL}
    assert all("/storage/" in url for url in found.values())


def test_a_failure_is_reported_with_its_prompt(cli: Cli) -> None:
    """On stderr; the others are delivered, and the exit code says that one failed."""
    code, out, err = cli("run", prompts(FOX, BAD))
    assert code == 1
    assert out.startswith(f"{FOX}\t")
    assert err.startswith(f"{BAD}: ContentModeratedError: ")


def test_json_has_the_request_and_the_attempts(cli: Cli) -> None:
    """One object per line, as of `luma-poll wait`, and what was submitted for it."""
    source = prompts(
        json.dumps({"prompt": FOX, "model": "uni-1-max", "key": "fox"}),
        json.dumps(OWL),
        name="prompts.jsonl",
    )
    code, out, _ = cli("run", source, "--json", "--aspect-ratio", "16:9", "--model", "uni-1")
    results = {line["request"]["prompt"]: line for line in map(json.loads, out.splitlines())}
    assert code == 0
    assert results[FOX]["request"] == {
        "prompt": FOX,
        "model": "uni-1-max",  # its own, not that of the command
        "aspect_ratio": "16:9",
        "key": "fox",
    }
    assert results[FOX]["submitted"] == [results[FOX]["id"]]
    assert results[FOX]["ok"]
    assert results[OWL]["generation"]["model"] == "uni-1"


def test_results_are_appended_to_a_file(cli: Cli) -> None:
    """As JSON; with a journal, the same command again adds none twice."""
    command = ("run", prompts(FOX, OWL), "--output", "results.jsonl", "--journal", "runs.db")
    for _ in range(2):
        code, out, _ = cli(*command)
        assert (code, out) == (0, "")
    assert len(ids_of(Path("results.jsonl").read_text())) == 2


def test_files_are_named_by_their_keys(cli: Cli) -> None:
    """Or by the id; a key cannot lead out of the directory, and another output has a number."""
    source = prompts(
        json.dumps({"prompt": FOX, "key": "order-17"}),
        json.dumps({"prompt": OWL, "key": "../../etc/passwd"}),
        json.dumps({"prompt": f"{HARE} sandbox:outputs=2", "key": "two"}),
        json.dumps({"prompt": HARE}),
        name="prompts.jsonl",
    )
    code, out, err = cli("run", source, "--download", "out")
    assert (code, err) == (0, "")
    names = sorted(path.name for path in Path("out").iterdir())
    assert len(names) == 5
    assert {"order-17.png", "two.png", "two~2.png"} < set(names)
    assert any(re.fullmatch(r"[\w.]+etc_passwd_[0-9a-f]{8}\.png", name) for name in names)
    assert all(path.read_bytes().startswith(PNG) for path in Path("out").iterdir())
    assert {line.split("\t")[1] for line in out.splitlines()} == {f"out/{name}" for name in names}
    assert not Path("out/../../etc").exists()


def test_files_have_names_from_a_template(cli: Cli) -> None:
    """Of the key, the id and the number of the output."""
    source = prompts(json.dumps({"prompt": FOX, "key": "Füchse"}), name="p.jsonl")
    code, out, _ = cli("run", source, "--download", "out", "--name", "{key}-{n}")
    assert (code, out) == (0, "Füchse\tout/Füchse-1.png\n")


@pytest.mark.parametrize("keys", [("hero", "HERO"), ("caf\u00e9", "cafe\u0301")])
def test_two_requests_with_one_file_are_refused(cli: Cli, keys: tuple[str, str]) -> None:
    """Before either is paid: macOS and Windows see one name in the two."""
    rows = [json.dumps({"prompt": FOX, "key": key}) for key in keys]
    code, out, err = cli("run", prompts(*rows, name="p.jsonl"), "--download", "out")
    assert (code, out) == (2, "")
    assert "two requests would write the same file" in err
    assert not Path("out").exists()


def test_prompts_come_from_standard_input(cli: Cli) -> None:
    """With their format; a line of JSON may be a prompt alone."""
    stdin = f"{json.dumps(FOX)}\n{json.dumps({'prompt': OWL, 'key': 'owl'})}\n".encode()
    code, out, _ = cli("run", "-", "--format", "jsonl", stdin=stdin)
    assert code == 0
    assert sorted(line.split("\t")[0] for line in out.splitlines()) == [FOX, "owl"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "prompts.txt", "there is no prompt in prompts.txt"),
        ("# nothing\n", "prompts.txt", "there is no prompt in prompts.txt"),
        ("{\n", "p.jsonl", "p.jsonl, line 1: not JSON"),
        ("[1]\n", "p.jsonl", "p.jsonl, line 1: a request is a prompt or an object"),
        ('"one"\n{"prompt": "two", "seed": NaN}\n', "p.jsonl", "p.jsonl, line 2: "),
        (
            '{"key": "k", "prompt": "x"}\n{"key": "k", "prompt": "y"}\n',
            "p.jsonl",
            "line 2: the key",
        ),
        ('[{"prompt": "one"}]\n', "prompts.txt", "line 1: it looks like JSON"),
        ("prompts:\n- fox\n", "prompts.yaml", "the name does not tell the format"),
        ('{"model": "x"}\n', "p.jsonl", "p.jsonl, line 1: prompt must be"),
        ('"ok"\n{"prompt": "x", "key": 7}\n', "p.jsonl", "p.jsonl, line 2: a key is a string"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_sent(
    cli: Cli, text: str, name: str, message: str
) -> None:
    """With the line."""
    Path(name).write_text(text)
    code, out, err = cli("run", name)
    assert (code, out) == (2, "")
    assert message in err


def test_wrong_usage_is_2(cli: Cli) -> None:
    """A missing file, a key that is missing, an option that is out of range."""
    assert cli("run", "missing.txt").code == 2
    assert cli("run", prompts(FOX), "--max-running", "0").code == 2
    assert cli("run", prompts(FOX), "--param", "prompt=x").code == 2
    assert cli("run", prompts(FOX), "--output", "no/such/directory").code == 2


def test_standard_input_says_its_format(cli: Cli) -> None:
    """A table must not be submitted as prompts."""
    code, out, err = cli("run", "-", stdin=b"prompt,key\na fox,1\n")
    assert (code, out) == (2, "")
    assert err.startswith("Error: give the format of standard input: --format text")


def test_a_table_becomes_named_files(cli: Cli) -> None:
    """The columns are parameters."""
    source = prompts("key,prompt,model", f"red fox,{FOX},uni-1", f"owl,{OWL},", name="p.csv")
    assert cli("run", source, "--download", "out").code == 0
    assert len(list(Path("out").iterdir())) == 2


def test_a_dry_run_says_what_would_be_submitted(cli: Cli) -> None:
    """Number, models, types, files, what the journal has, and the keys; nothing is sent."""
    Path("photo.png").write_bytes(PNG + b"x" * 92)
    rows = [
        {"prompt": FOX, "key": "fox", "model": "uni-1"},
        {"prompt": OWL, "key": "owl", "type": "image_edit", "source": "photo.png"},
    ]
    one = prompts(json.dumps(rows[0]), name="one.jsonl")
    both = prompts(*map(json.dumps, rows), name="p.jsonl")
    assert cli("run", one, "--journal", "runs.db").code == 0
    code, out, err = cli("run", both, "--journal", "runs.db", "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "2 generations, models uni-1 (1), default (1)",
        "types default (1), image_edit (1)",
        "file photo.png: 100 bytes, in 1 request",
        "already in the journal: 1 (1 completed)",
        "key fox",
        "key owl",
    ]
    assert cli("run", one, "--journal", "none.db", "--dry-run").code == 0
    assert not Path("none.db").exists()


def test_other_parameters_are_other_requests(cli: Cli) -> None:
    """The same command with --model added pays for everything again, which is said first."""
    command = ("run", prompts(FOX, OWL), "--journal", "runs.db")
    assert cli(*command).err == ""
    assert cli(*command).err == ""
    told = cli(*command, "--model", "uni-1")
    assert told.err.startswith("warning: the journal runs.db has entries, but none for these")
    assert told.err.count("warning") == 1


# --- limits --------------------------------------------------------------------------------------


def test_max_submissions_stops(cli: Cli) -> None:
    """The rest is reported, and costs nothing."""
    code, out, err = cli("run", prompts(FOX, OWL, HARE), "--max-submissions", "1")
    assert code == 4
    assert len(out.splitlines()) == 1
    assert err.count("SubmissionLimitError") == 1
    assert err.splitlines()[1:] == [
        "2 were not submitted.",
        "To run those that were not submitted:",
        "  luma-poll run prompts.txt --lines 2-3 --max-submissions 1",
    ]


def test_max_attempts_submits_again(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what may pass; all ids are in the result."""
    create, calls = Generations.create, []

    async def fail_once(self: Generations, prompt: str, **params: Any) -> Generation:
        calls.append(prompt)
        script = " sandbox:fail=generation_failed" if len(calls) == 1 else ""
        return await create(self, prompt + script, **params)

    monkeypatch.setattr(Generations, "create", fail_once)
    code, out, _ = cli("run", prompts(FOX), "--max-attempts", "2", "--json")
    (result,) = map(json.loads, out.splitlines())
    assert (code, len(result["submitted"])) == (0, 2)


def test_an_empty_purse_ends_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is not sent, which is told once."""
    sent = []

    async def create(self: Generations, prompt: str, **_: Any) -> Generation:
        sent.append(prompt)
        raise InsufficientBalanceError("HTTP 402", status_code=402, detail="No funds")

    monkeypatch.setattr(Generations, "create", create)
    code, out, err = cli("run", prompts(FOX, OWL, HARE))
    assert (code, out, sent) == (4, "", [FOX])
    assert err.splitlines() == [
        "InsufficientBalanceError: HTTP 402",
        "3 were not submitted.",
        "To run those that were not submitted:",
        "  luma-poll run prompts.txt",
    ]


# --- the journal ---------------------------------------------------------------------------------


def test_a_journal_continues_the_same_command(cli: Cli) -> None:
    """Nothing is submitted twice; the results come again, with URLs that work."""
    command = ("run", prompts(FOX, BAD), "--journal", "runs.db", "--json")
    first, second = cli(*command), cli(*command)
    assert (first.code, second.code) == (1, 1)
    assert sorted(ids_of(first.out)) == sorted(ids_of(second.out))


def test_the_journal_is_listed(cli: Cli) -> None:
    """State, key, id, failure and prompt; or JSON."""
    source = prompts(
        json.dumps({"prompt": FOX, "key": "fox"}),
        json.dumps({"prompt": BAD, "key": "bad"}),
        name="prompts.jsonl",
    )
    cli("run", source, "--journal", "runs.db")
    code, out, _ = cli("journal", "list", "runs.db")
    rows = {row[1]: row for row in (line.split("\t") for line in out.splitlines())}
    assert code == 0
    assert (rows["fox"][0], rows["fox"][3:]) == ("completed", ["", FOX])
    assert (rows["bad"][0], rows["bad"][3:]) == ("failed", ["content_moderated", BAD])
    assert cli("journal", "list", "runs.db", "--state", "failed").out.count("\n") == 1
    (line,) = cli("journal", "list", "runs.db", "--state", "completed", "--json").out.splitlines()
    entry = json.loads(line)
    assert entry["key"] == "fox"
    assert entry["submitted"] == [entry["generation_id"]]


def test_an_unknown_entry_is_settled(cli: Cli) -> None:
    """The run says how; by the id, or by another submission."""
    source = prompts(
        json.dumps({"prompt": FOX, "key": "fox"}),
        json.dumps({"prompt": OWL, "key": "owl"}),
        name="prompts.jsonl",
    )
    cli("run", source, "--journal", "runs.db")
    with Journal("runs.db") as journal:  # as a process that died would have left it
        journal._store._database.connection.execute(
            "UPDATE entries SET state = 'submitting', generation_id = NULL"
        )
    code, out, err = cli("run", source, "--journal", "runs.db")
    assert (code, out) == (4, "")
    assert err.count("SubmissionUnknownError") == 2
    assert err.endswith("  luma-poll journal list runs.db --state unknown\n")
    submitted = cli("create", FOX).out.strip()
    assert cli("journal", "resolve", "runs.db", "fox", "--id", submitted).err == (
        f"fox: the next run waits for {submitted}.\n"
    )
    assert cli("journal", "resolve", "runs.db", "owl", "--resubmit").err == (
        "owl: the next run submits it.\n"
    )
    code, out, _ = cli("run", source, "--journal", "runs.db", "--json")
    assert code == 0
    assert submitted in ids_of(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("list", "missing.db"), "there is no journal at missing.db"),
        (("settle", "runs.db"), "No such command"),
        (("resolve", "runs.db", "--resubmit"), "give the keys of entries, or --all-unknown"),
        (("resolve", "runs.db", "k"), "give --id ID, or --resubmit"),
        (("resolve", "runs.db", "k", "--resubmit"), "k"),
        (("list", "runs.db", "--state", "odd"), "a state is one of"),
    ],
)
def test_wrong_usage_of_the_journal_is_2(
    cli: Cli, arguments: tuple[str, ...], message: str
) -> None:
    """And never makes a new journal where a name was misspelt."""
    Journal("runs.db").close()
    code, out, err = cli("journal", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("missing.db").exists()


# --- interruptions -------------------------------------------------------------------------------


def interrupted(*arguments: str, after: str) -> tuple[int, str, str]:
    """Run the command until something is in the sandbox, then press Ctrl-C."""
    with started(
        *COMMAND, "run", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert after in line
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=50)
        return process.returncode, line + out, err


SLOW = "slow sandbox:duration=60"


@pytest.mark.posix
def test_ctrl_c_says_what_runs_and_what_was_not_submitted(cli: Cli) -> None:
    """With a command for each, to copy; the second one submits exactly the rest."""
    source = prompts("# a comment", FOX, SLOW, OWL, "#", HARE)
    code, out, err = interrupted(
        source, "--max-running", "1", "--max-submissions", "5", "--timeout", "77", after=FOX
    )
    assert code == 130
    assert "1 generation may be running, and billed; 2 were not submitted." in err
    waiting, rest = (line.strip() for line in err.splitlines() if line.startswith("  "))
    assert re.fullmatch(r"luma-poll wait [0-9a-f-]{36} --timeout 77", waiting)
    assert rest == (
        "luma-poll run prompts.txt --lines 4,6 --max-running 1 --max-submissions 3 --timeout 77"
    )
    again = cli(*shlex.split(rest)[1:])
    assert [line.split("\t")[0] for line in again.out.splitlines()] == [OWL, HARE]
    assert FOX in out


@pytest.mark.parametrize("journal", [(), ("--journal", "runs.db")])
def test_what_completed_but_is_not_downloaded_is_not_said_to_run(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, journal: tuple[str, ...]
) -> None:
    """The printed command fetches it, and submits nothing."""

    async def fail(*_: object, **__: object) -> None:
        raise DownloadError("no space", generation_id=ID, path=Path("out"), retryable=True)

    with monkeypatch.context() as patched:
        patched.setattr(LumaClient, "download", fail)
        told = cli("run", prompts(FOX), "--download", "out", *journal)
    assert told.code == 4
    *_, before, last, again = told.err.splitlines()
    assert "1 was not downloaded." in (before, last)
    assert "may still finish" not in told.err
    fetched = cli(*shlex.split(again)[1:])
    assert fetched.code == 0
    assert fetched.out.strip().endswith(".png")
    assert len(os.listdir("out")) == 1


@pytest.mark.posix
def test_ctrl_c_with_a_journal_needs_no_more_than_the_same_command() -> None:
    """It continues; nothing is submitted twice."""
    source = prompts(FOX, SLOW, OWL)
    command = (source, "--max-running", "1", "--journal", "runs.db")
    code, _, err = interrupted(*command, after=FOX)
    assert code == 130
    assert err.splitlines()[-2:] == [
        "The same command continues; nothing is submitted twice:",
        f"  luma-poll run {shlex.join(command)}",
    ]
    with Journal("runs.db") as journal:
        assert sorted(entry.state for entry in journal.entries()) == ["completed", "running"]


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT"])
def test_other_signals_are_as_ctrl_c(name: str) -> None:
    """A closed terminal and a dropped ssh say SIGHUP, and may say it twice."""
    source = prompts(FOX, SLOW)
    with started(
        *COMMAND,
        *("run", source, "--max-running", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert FOX in process.stdout.readline()
        time.sleep(0.2)
        for _ in range(1 if name == "SIGTERM" else 2):
            process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=50)
    assert process.returncode == 130
    assert "luma-poll wait " in err


@pytest.mark.posix
def test_a_terminal_that_has_gone_is_told_by_a_file(tmp_path: Path) -> None:
    """The ids of what runs, and is billed, are in it."""
    source = prompts(SLOW)
    import pty  # POSIX

    ours, theirs = pty.openpty()
    with started(
        *COMMAND, "run", source, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        while b"queued" not in read_screen(ours):
            assert process.poll() is None
        os.close(ours)
        process.send_signal(signal.SIGHUP)
        assert process.wait(50) in (4, 130)  # whether it draws or ends first
    assert re.search(r"  luma-poll wait [0-9a-f-]{36}", Path(KEPT).read_text())


@pytest.mark.posix
def test_nohup_keeps_it_alive() -> None:
    """A signal that was ignored from the start stays ignored."""
    shell = f"trap '' HUP; exec {shlex.join([*COMMAND, 'run', prompts(FOX, OWL)])}"
    with started("sh", "-c", shell, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert process.wait(50) == 0


def test_a_reader_that_goes_away_is_told_what_runs() -> None:
    """`luma-poll run ... | head -1`: the ids that are billed are on stderr."""
    source = prompts(FOX, SLOW, OWL)
    with started(
        *COMMAND,
        *("run", source, "--max-running", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(50) == 141
    assert re.search(r"  luma-poll wait [0-9a-f-]{36}", err)


def test_of_standard_input_the_lines_are_told(cli: Cli) -> None:
    """The command reads it again, from those lines."""
    told = cli(
        *("run", "-", "--format", "text", "--max-submissions", "1"),
        stdin=f"{FOX}\n\n{OWL}\n{HARE}\n".encode(),
    )
    assert told.err.splitlines()[-2:] == [
        "Not submitted: lines 3-4 of standard input. Give it again to:",
        "  luma-poll run - --format text --lines 3-4 --max-submissions 1",
    ]


def test_ranges() -> None:
    """Lines are written as they are read."""
    assert as_option([3, 1, 2, 7, 9, 8, 5]) == "1-3,5,7-9"
    assert read_ranges("1-3,5,7-") == [(1, 3), (5, 5), (7, float("inf"))]
    for wrong in ("", "a", "3-1", "0", "-3", "1,,2"):
        with pytest.raises(ValueError):  # noqa: PT011 (of `int` too)
            read_ranges(wrong)


# --- prompts as arguments ------------------------------------------------------------------------


def test_prompts_may_be_arguments(cli: Cli) -> None:
    """In quotes: what has a blank in it is no file."""
    code, out, _ = cli("run", FOX, OWL, "--download", "out")
    assert code == 0
    assert {line.split("\t")[0] for line in out.splitlines()} == {FOX, OWL}
    assert len(list(Path("out").iterdir())) == 2


def test_what_is_neither_a_file_nor_a_prompt_is_told_both_ways(cli: Cli) -> None:
    """A misspelt file is not submitted as a prompt."""
    code, out, err = cli("run", "prompt.txt")
    assert (code, out) == (2, "")
    assert err.startswith("Error: prompt.txt is neither a file nor a prompt of several words.")
    assert "luma-poll create prompt.txt" in err


@pytest.mark.posix
def test_many_are_asked_about_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; --yes answers."""
    source = prompts(*[FOX] * 21)
    asked = "21 generations, model default (21): submit? [y/N]"
    code, screen = on_a_terminal("run", source, answer=b"n\n")
    assert code == 130
    assert asked in screen
    assert "Nothing was submitted." in screen
    code, screen = on_a_terminal("run", source, "--yes")
    assert code == 0
    assert asked not in screen


# --- without a terminal --------------------------------------------------------------------------


def test_it_says_how_far_it_is(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the beginning, now and then, and at the end; silent with --quiet."""
    monkeypatch.setattr("luma_poll._cli.table.SAYS_EVERY", 0.3)
    source = prompts(FOX, "a slow fox sandbox:duration=1")
    said = cli("run", source, progress=True).err.splitlines()
    assert said[0] == "0:00  0 of 2 done: 2 waiting"
    assert any(" 1 completed" in line for line in said[1:-1])
    assert re.fullmatch(r"\d:\d\d  2 of 2 done: 2 completed", said[-1])
    assert cli("run", source, "--quiet", progress=True).err == ""


# --- the table -----------------------------------------------------------------------------------


def test_a_row_follows_its_run() -> None:
    """State, age, attempts and refusals, and the totals below."""
    table = RunTable(("prompt",), None)
    request: dict[str, str]
    request, other = {"prompt": "fox"}, {"prompt": "owl", "key": "order-17"}

    runs = [Run(0, request, None, ()), Run(1, other, "order-17", ())]
    table.expect(3)
    table.on_event(RunBegan(runs[0], 1, None))
    table.on_event(RunBegan(runs[1], 1, None))
    table.on_event(RunSubmitting(runs[0], 1, None))
    table.on_event(RunRefused(runs[0], 1, None, APIConnectionError("full")))
    assert re.search(r"fox +. waiting +0 +1$", lines(table)[1])
    assert lines(table)[-1] == "0 done, 0 running, 3 waiting; 0 submissions, 1 refusal"
    table.on_event(RunSubmitting(runs[0], 1, None))
    table.on_event(RunSubmitted(runs[0], 1, snapshot("queued")))
    table.on_event(RunStateChanged(runs[0], 1, snapshot("processing")))
    assert re.search(r"fox +. processing +\d\.\d s +1 +1$", lines(table)[1])
    assert re.search(r"order-17 +. waiting +0 +0$", lines(table)[2])
    assert lines(table)[-1] == "0 done, 1 running, 2 waiting; 1 submission, 1 refusal"
    table.set_state(name_of(request), "downloading")
    assert "downloading" in lines(table)[1]
    table.finish(Result(ID, snapshot(), request=request))
    assert re.search(r"fox +completed +\d\.\d s +1 +1$", lines(table)[1])
    table.finish(Result("", None, APIConnectionError("no"), request={"prompt": "never begun"}))
    assert lines(table)[-1] == "2 done, 0 running, 1 waiting; 1 submission, 1 refusal"


def test_what_an_earlier_process_submitted_runs() -> None:
    """It is found in the journal, and is not waiting for its turn."""
    table = RunTable(("prompt",), None)
    table.expect(1)
    run = Run(0, {"prompt": "fox"}, None, ())
    table.on_event(RunBegan(run, 1, None))
    table.on_event(RunFound(run, 1, None, ID, running=True))
    assert re.search(r"fox +. asking +\d\.\d s +0 +0$", lines(table)[1])
    assert lines(table)[-1] == "0 done, 1 running, 0 waiting; 0 submissions, 0 refusals"


@pytest.mark.posix
def test_ctrl_c_of_a_resumed_run_counts_what_runs() -> None:
    """What an earlier process submitted is not "not submitted"."""
    source = prompts(FOX, SLOW, SLOW, OWL)
    command = (source, "--max-running", "2", "--journal", "runs.db")
    interrupted(*command, after=FOX)
    _, _, err = interrupted(*command, after=FOX)
    assert "2 generations may be running, and billed; 1 was not submitted." in err


def test_a_prompt_cannot_command_the_terminal() -> None:
    """It comes from a file that somebody else may have written."""
    table = RunTable(("prompt",), None)
    table.on_event(RunBegan(Run(0, {"prompt": "\x1b[2Jfox [red]"}, None, ()), 1, None))
    assert "\\u001b[2Jfox [red]" in lines(table, width=100)[1]


@pytest.mark.posix
def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table, the totals and the results, as a person sees them."""
    code, screen = on_a_terminal("run", prompts(FOX, OWL), "--max-running", "1")
    assert code == 0
    assert "prompt" in screen
    assert "2 submissions, 0 refusals" in screen
    assert f"{FOX}" in screen


def test_a_result_has_a_label() -> None:
    """The key, the prompt or the id."""
    assert Result("x", None).label == "x"
    assert Result("x", None, request={"prompt": "p"}).label == "p"
    assert Result("x", None, request={"prompt": "p", "key": "k"}).label == "k"
    assert RunResult("p", None).ok
