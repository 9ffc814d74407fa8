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
    Generation,
    InsufficientBalanceError,
    Journal,
    RunResult,
    SubmissionUnknownError,
)
from luma_poll._cli.prompts import Line, ranges
from luma_poll._cli.results import Result
from luma_poll._cli.runs import Runs, RunTable
from luma_poll._client.generations import Generations
from luma_poll._running.run_events import RunEvent
from tests.cli.support import COMMAND, Cli, event, ids_of, lines, on_a_terminal, started
from tests.fakes import ID, snapshot

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("luma_poll._cli.running.AdaptiveWait", lambda **_: wait_fixed(0.05))
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
    """As JSON; `luma-poll wait --resume` reads them too."""
    code, out, _ = cli("run", prompts(FOX, OWL), "--output", "results.jsonl")
    assert (code, out) == (0, "")
    (first, second) = ids_of(Path("results.jsonl").read_text())
    waited = cli("wait", first, second, "--output", "results.jsonl", "--resume", "results.jsonl")
    assert (waited.code, waited.err) == (0, "Skipped 2 that are done in results.jsonl.\n")


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
    assert any(re.fullmatch(r"______etc_passwd_[0-9a-f]{16}\.png", name) for name in names)
    assert all(path.read_bytes().startswith(PNG) for path in Path("out").iterdir())
    assert {line.split("\t")[1] for line in out.splitlines()} == {f"out/{name}" for name in names}
    assert not Path("out/../../etc").exists()


def test_prompts_come_from_standard_input(cli: Cli) -> None:
    """Prompts and JSON objects may be mixed there."""
    stdin = f"{FOX}\n{json.dumps({'prompt': OWL, 'key': 'owl'})}\n".encode()
    code, out, _ = cli("run", "-", stdin=stdin)
    assert code == 0
    assert sorted(line.split("\t")[0] for line in out.splitlines()) == [FOX, "owl"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "prompts.txt", "there is no prompt in prompts.txt"),
        ("# nothing\n", "prompts.txt", "there is no prompt in prompts.txt"),
        ("{\n", "p.jsonl", "p.jsonl, line 1: not JSON"),
        ("[1]\n", "p.jsonl", "p.jsonl, line 1: not a JSON object"),
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


# --- limits --------------------------------------------------------------------------------------


def test_max_submissions_stops(cli: Cli) -> None:
    """The rest is reported, and costs nothing."""
    code, out, err = cli("run", prompts(FOX, OWL, HARE), "--max-submissions", "1")
    assert code == 4
    assert len(out.splitlines()) == 1
    assert err.count("SubmissionLimitError") == 2


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
    """The rest is not sent; each is told."""
    sent = []

    async def create(self: Generations, prompt: str, **_: Any) -> Generation:
        sent.append(prompt)
        raise InsufficientBalanceError("HTTP 402", status_code=402)

    monkeypatch.setattr(Generations, "create", create)
    code, out, err = cli("run", prompts(FOX, OWL, HARE))
    assert (code, out, sent) == (4, "", [FOX])
    assert err.count("InsufficientBalanceError") == 3


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
    code, out, _ = cli("journal", "runs.db")
    rows = {row[1]: row for row in (line.split("\t") for line in out.splitlines())}
    assert code == 0
    assert (rows["fox"][0], rows["fox"][3:]) == ("completed", ["", FOX])
    assert (rows["bad"][0], rows["bad"][3:]) == ("failed", ["content_moderated", BAD])
    assert cli("journal", "runs.db", "--state", "failed").out.count("\n") == 1
    (line,) = cli("journal", "runs.db", "--state", "completed", "--json").out.splitlines()
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
    assert err.endswith("  luma-poll journal runs.db --state unknown\n")
    submitted = cli("create", FOX).out.strip()
    assert cli("journal", "runs.db", "resolve", "fox", "--id", submitted).err == (
        f"fox: the next run waits for {submitted}.\n"
    )
    assert cli("journal", "runs.db", "resolve", "owl", "--resubmit").err == (
        "owl: the next run submits it.\n"
    )
    code, out, _ = cli("run", source, "--journal", "runs.db", "--json")
    assert code == 0
    assert submitted in ids_of(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.db",), "there is no journal at missing.db"),
        (("runs.db", "settle", "k"), "the only action is"),
        (("runs.db", "resolve"), "the only action is"),
        (("runs.db", "resolve", "k"), "either generation_id or resubmit"),
        (("runs.db", "resolve", "k", "--resubmit"), "not in the journal"),
        (("runs.db", "--state", "odd"), "a state is one of"),
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
        out, err = process.communicate(timeout=20)
        return process.returncode, line + out, err


SLOW = "slow sandbox:duration=60"


def test_ctrl_c_says_what_runs_on_and_what_was_not_submitted() -> None:
    """With a command for each, to copy; the second one submits exactly the rest."""
    source = prompts("# a comment", FOX, SLOW, OWL, "#", HARE)
    code, out, err = interrupted(source, "--max-running", "1", after=FOX)
    assert code == 130
    assert "1 runs on and will be billed, 2 were not submitted." in err
    waiting, rest = (line.strip() for line in err.splitlines() if line.startswith("  "))
    assert re.fullmatch(r"luma-poll wait [0-9a-f-]{36}", waiting)
    read, _, command = rest.partition(" | ")
    assert command == "luma-poll run - --max-running 1"
    left = subprocess.run(shlex.split(read), capture_output=True, text=True, check=True).stdout
    assert left.splitlines() == [OWL, HARE]
    assert FOX in out


def test_ctrl_c_with_a_journal_needs_no_more_than_the_same_command() -> None:
    """It continues; nothing is submitted twice."""
    source = prompts(FOX, SLOW, OWL)
    code, _, err = interrupted(source, "--max-running", "1", "--journal", "runs.db", after=FOX)
    assert code == 130
    assert err.endswith(
        "The same command continues where this one stopped; nothing is submitted twice.\n"
    )
    with Journal("runs.db") as journal:
        assert sorted(entry.state for entry in journal.entries()) == ["completed", "running"]


def runs_of(*numbers: int, path: str = "p.txt", journal: str | None = None) -> Runs:
    found = [Line(number, {"prompt": f"prompt {number}"}) for number in numbers]
    return Runs(found, path, ["--max-running", "2"], journal)


def step(runs: Runs, index: int, name: Any, **fields: Any) -> None:
    runs.on_run(RunEvent(index, name, runs.lines[index].request, 1, **fields))


def test_what_is_left_is_exact() -> None:
    """A refused submission was not accepted; one without an answer may have been."""
    runs = runs_of(1, 2, 4, 5, 6, 9)
    step(runs, 0, "submitting")
    step(runs, 0, "submitted", generation=snapshot("queued"))
    step(runs, 1, "submitting")
    step(runs, 1, "refused", error=APIConnectionError("full"))
    step(runs, 2, "submitting")
    runs.end(Result("x", None, APIConnectionError("no"), request=runs.lines[4].request))
    told = list(runs.after_interrupt())
    assert told == [
        "Interrupted; 1 runs on and will be billed, 3 were not submitted.",
        "Line 4 of p.txt: it is not known whether the API accepted it; it may be billed. Check "
        "the account's usage before you submit it again.",
        "To wait for those that run:",
        f"  luma-poll wait {ID}",
        "To run those that were not submitted:",
        "  sed -n '2p;5p;9p' p.txt | luma-poll run - --max-running 2",
    ]


def test_of_standard_input_the_lines_are_told() -> None:
    """There is no command that reads it again."""
    told = list(runs_of(1, 2, 3, path="-").after_interrupt())
    assert told[-1] == "Not submitted: Lines 1 to 3 of standard input."
    assert list(Runs().after_interrupt()) == []


def test_many_have_a_summary() -> None:
    """Of few, each was printed."""
    runs = runs_of(*range(1, 13), journal="runs.db")
    for number, line in enumerate(runs.lines):
        error = SubmissionUnknownError("?", key=f"k{number}", request={}) if number > 9 else None
        runs.end(Result("x", None, error, request=line.request))
    assert list(runs.after_end()) == [
        "     10 completed",
        "      2 SubmissionUnknownError",
        "To settle what may have been submitted:",
        "  luma-poll journal runs.db --state unknown",
    ]
    assert runs.code == 4


def test_ranges() -> None:
    """Runs of consecutive numbers, from any order."""
    assert ranges([3, 1, 2, 7, 9, 8, 5]) == [(1, 3), (5, 5), (7, 9)]
    assert ranges([]) == []


# --- the table -----------------------------------------------------------------------------------


def test_a_row_follows_its_run() -> None:
    """State, age, attempts and refusals, and the totals below."""
    table = RunTable(("prompt",), None)
    request, other = {"prompt": "fox"}, {"prompt": "owl", "key": "order-17"}

    def show(name: Any, of: Any = request, **fields: Any) -> None:
        number = int(of is other)
        table.on_run(RunEvent(number, name, of, 1, **fields))

    table.expect(3)
    show("begun")
    show("begun", other)
    show("submitting")
    show("refused", error=APIConnectionError("full"))
    assert re.search(r"fox +. waiting APIConnectionError +0 +1$", lines(table)[1])
    assert lines(table)[-1] == "0 done, 0 running, 3 waiting; 0 submissions, 1 refusals"
    show("submitting")
    show("submitted", generation=snapshot("queued"))
    table.on_poll(event("processing"))
    table.on_poll(event("processing", id="of nobody"))
    assert re.search(r"fox +. processing +\d\.\d s +1 +1$", lines(table)[1])
    assert re.search(r"order-17 +. waiting +0 +0$", lines(table)[2])
    assert lines(table)[-1] == "0 done, 1 running, 2 waiting; 1 submissions, 1 refusals"
    table.download(request)
    assert "downloading" in lines(table)[1]
    table.finish(Result(ID, snapshot(), request=request))
    assert re.search(r"fox +completed +\d\.\d s +1 +1$", lines(table)[1])
    table.finish(Result("", None, APIConnectionError("no"), request={"prompt": "never begun"}))
    assert lines(table)[-1] == "2 done, 0 running, 1 waiting; 1 submissions, 1 refusals"


def test_a_prompt_cannot_command_the_terminal() -> None:
    """It comes from a file that somebody else may have written."""
    table = RunTable(("prompt",), None)
    table.on_run(RunEvent(0, "begun", {"prompt": "\x1b[2Jfox [red]"}, 1))
    assert "\\u001b[2Jfox [red]" in lines(table, width=100)[1]


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
