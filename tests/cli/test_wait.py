"""The command line with hundreds of ids: lists of them, results that are kept, runs that go on."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from tenacity import RetryCallState

from luma_poll import (
    ContentModeratedError,
    Generation,
    PollResult,
    PollTimeoutError,
    ServerError,
)
from luma_poll._cli.results import read_results
from luma_poll._cli.table import LiveTable
from luma_poll._cli.waiting import Batch, Source
from luma_poll._client.generations import Generations
from tests.cli.test_commands import (
    COMMAND,
    Cli,
    _read,
    _settings,
    base_url,
    cli,
    event,
    failing,
    interrupt,
    lines,
    started,
    submit,
)
from tests.fakes import ID, snapshot

__all__ = ["_settings", "base_url", "cli"]

MODERATED = ContentModeratedError(snapshot("failed"))


def ids_of(text: str) -> list[str]:
    return [json.loads(line)["id"] for line in text.splitlines()]


def result(generation_id: str, kind: str | None = None) -> str:
    """A line of results: it completed, or ended with an error of this kind."""
    error = None if kind is None else {"type": kind, "message": "..."}
    return json.dumps({"id": generation_id, "ok": kind is None, "error": error}) + "\n"


def interrupt_after(polls: int, *, every: float) -> Callable[[RetryCallState], float]:
    """A schedule that presses Ctrl-C at this poll; the others are so many seconds apart."""
    numbers = count(1)
    return lambda state: interrupt(state) if next(numbers) == polls else every


# --- ids -----------------------------------------------------------------------------------------


def test_ids_come_from_files_arguments_and_stdin(cli: Cli, tmp_path: Path) -> None:
    """Each is waited for once, and comments and blank lines are nothing."""
    first, second, third, fourth = (submit() for _ in range(4))
    file = tmp_path / "ids.txt"
    file.write_bytes(f"\ufeff# mine\r\n{first} {second} # two\r\n\n#{third}\n{first}".encode())
    told = cli(
        "wait", "--json", second, "-", "--file", str(file), stdin=f"{fourth}\n{first}".encode()
    )
    assert (told.code, told.err) == (0, "")
    assert sorted(ids_of(told.out)) == sorted([first, second, fourth])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "there is no id in {path}"),
        (b"# nothing\n", "there is no id in {path}"),
        (b"\xff\xfea\x00", "{path} is not text in UTF-8 (line 1)"),
        (b"abc\na red, red fox\n", "{path}, line 2: 'red,' is not a generation id"),
        (b'{"id": "a"}\n', "{path}, line 1: '{{\"id\":' is not a generation id"),
    ],
)
def test_a_bad_file_of_ids_is_2(cli: Cli, tmp_path: Path, content: bytes, says: str) -> None:
    """What is wrong is said with the file and the line, before anything is sent."""
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    assert cli("wait", "--file", str(path)) == (2, "", f"Error: {says.format(path=path)}\n")


@pytest.mark.parametrize("option", [["--file"], [ID, "--json", "--resume"], [ID, "--output"]])
def test_a_directory_is_2(cli: Cli, tmp_path: Path, option: list[str]) -> None:
    """Where a file is meant; said with the system's reason."""
    told = cli("wait", *option, str(tmp_path))
    assert (told.code, told.out) == (2, "")
    assert told.err.startswith(f"Error: {tmp_path} cannot be ")
    assert told.err.endswith(": Is a directory\n")


def test_a_missing_file_of_ids_is_2(cli: Cli, tmp_path: Path) -> None:
    """Nothing was waited for."""
    missing = str(tmp_path / "no.txt")
    message = f"Error: {missing} cannot be read: No such file or directory\n"
    assert cli("wait", "--file", missing) == (2, "", message)


def test_ids_on_stdin_are_waited_for_as_they_come() -> None:
    """The first result is there while the other end still makes ids."""
    with started(
        *COMMAND, "wait", "-", "--json", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        for generation_id in (submit(), failing()):
            process.stdin.write(f"{generation_id}\n")
            process.stdin.flush()
            assert ids_of(process.stdout.readline()) == [generation_id]
        process.stdin.close()
        assert process.wait(10) == 1


def test_rubbish_on_stdin_loses_no_result(cli: Cli) -> None:
    """The ids before it are waited for; then it is told."""
    good = submit()
    code, out, err = cli("wait", "-", "--json", stdin=f"{good}\nfox!\n".encode())
    assert (code, ids_of(out)) == (2, [good])
    assert err == "Error: standard input, line 2: 'fox!' is not a generation id\n"


# --- results -------------------------------------------------------------------------------------


def test_output_and_resume_go_on_where_an_earlier_run_was(cli: Cli, tmp_path: Path) -> None:
    """The same command again waits only for what has no final result."""
    ids = [submit(), failing(), submit("sandbox:duration=60")]
    kept = tmp_path / "results.jsonl"
    command = ["wait", *ids, "--output", str(kept), "--resume", str(kept), "--timeout", "0.3"]
    code, out, err = cli(*command)
    assert (code, out) == (3, "")
    assert re.search(f"^ContentModeratedError: generation {ids[1]} ", err, re.MULTILINE)
    assert re.search(f"^PollTimeoutError: generation {ids[2]} ", err, re.MULTILINE)
    assert sorted(ids_of(kept.read_text())) == sorted(ids)
    code, out, err = cli(*command)
    assert (code, out) == (3, "")
    assert err.startswith(f"2 done in {kept}, skipped.\nPollTimeoutError: ")
    assert sorted(ids_of(kept.read_text())) == sorted([*ids, ids[2]])


def test_a_batch_that_is_done_sends_nothing(cli: Cli, tmp_path: Path) -> None:
    """Its exit code is that of the results that are there."""
    kept = tmp_path / "results.jsonl"
    kept.write_text(result("a") + result("b", "ContentModeratedError"))
    assert cli("wait", "a", "--json", "--resume", str(kept)).code == 0
    code, out, err = cli("wait", "a", "b", "--json", "--resume", str(kept))
    assert (code, out, err) == (1, "", f"2 done in {kept}, skipped.\n")


def test_resume_needs_lines_of_json(cli: Cli, tmp_path: Path) -> None:
    """URLs do not tell what they belong to."""
    code, out, err = cli("wait", ID, "--resume", str(tmp_path / "results.jsonl"))
    assert (code, out) == (2, "")
    assert err.startswith("Error: --resume goes with --json or --output")


@pytest.mark.parametrize("through_the_shell", [True, False])
def test_a_cut_off_line_swallows_no_result(tmp_path: Path, through_the_shell: bool) -> None:
    """What is appended begins on a new line, and the rest of the file is kept as it was."""
    done, torn = submit(), submit()
    kept = tmp_path / "results.jsonl"
    before = result(done) + result(torn)[:30]
    kept.write_text(before)
    command = [*COMMAND, "wait", done, torn, "--resume", str(kept)]
    if through_the_shell:
        with kept.open("a") as output:
            told = subprocess.run([*command, "--json"], stdout=output, check=True, timeout=20)
    else:
        told = subprocess.run([*command, "--output", str(kept)], check=True, timeout=20)
    assert told.returncode == 0
    assert kept.read_text().startswith(f"{before}\n")
    assert read_results(str(kept)).done == {done: True, torn: True}


def test_what_is_no_result_is_a_warning(cli: Cli, tmp_path: Path) -> None:
    """It is named by its line, and the others count."""
    kept = tmp_path / "results.jsonl"
    odd = b'[1]\n\xff\n{"id": 1, "ok": true}\n' + b"[" * 100_000 + b"\n\n"
    kept.write_bytes(result("a").encode() + odd + result("b").encode() + b'{"id": "c"')
    told = cli("wait", "a", "b", "--json", "--resume", str(kept))
    assert told.code == 0
    assert told.err.splitlines() == [
        f"warning: {kept}: the last line was cut off; what it was about is waited for again",
        f"warning: {kept}: line 2 and 3 more ignored: no result of luma-poll wait",
        f"2 done in {kept}, skipped.",
    ]


def test_what_an_earlier_run_did_not_settle_is_open(tmp_path: Path) -> None:
    """A timeout and trouble with the API settle nothing, in whatever order the lines come."""
    kept = tmp_path / "results.jsonl"
    kept.write_text(
        "".join(
            [
                result("timed out", "PollTimeoutError"),
                result("refused", "AuthenticationError"),
                result("failed", "OutputNotFoundError"),
                result("late", "PollTimeoutError"),
                result("late"),
                result("late", "PollTimeoutError"),
            ]
        )
    )
    earlier = read_results(str(kept))
    assert earlier.done == {"failed": False, "late": True}
    assert list(earlier.problems()) == []
    assert read_results(str(tmp_path / "none")).done == {}


# --- many ----------------------------------------------------------------------------------------


def test_many_have_a_summary_and_a_way_to_wait_again(cli: Cli, tmp_path: Path) -> None:
    """Counts by outcome, and the command for what may still end."""
    slow = submit("sandbox:duration=60")
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join([*(submit() for _ in range(9)), failing(), slow]))
    code, out, err = cli(
        "wait", "--file", str(ids), "--json", "--timeout", "2", "--max-rate", "1e9"
    )
    assert (code, len(out.splitlines())) == (3, 11)
    assert err.splitlines() == [
        "      9 completed",
        "      1 ContentModeratedError",
        "      1 PollTimeoutError",
        "To wait again for the 1 that may still end:",
        f"  luma-poll wait {slow} --timeout 2 --max-rate 1000000000 --json",
    ]


@pytest.mark.parametrize("download", [[], ["--download", "my files"]])
def test_what_is_lost_is_not_waited_for_again(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, download: list[str]
) -> None:
    """An id that the API does not know is not among those that may end; all options are kept."""
    monkeypatch.chdir(tmp_path)
    slow = submit("sandbox:duration=60")
    ids = [*(failing() for _ in range(9)), ID, slow]
    options = [*download, "--output", "my results", "--resume", "my results"]
    told = cli("wait", *ids, "--timeout", "0.5", *options)
    assert told.code == 4
    assert told.err.splitlines()[-2:] == [
        "To wait again for the 1 that may still end:",
        f"  luma-poll wait {slow} --timeout 0.5 {shlex.join(options)}",
    ]


def test_what_timed_out_is_told_though_stdin_has_rubbish(cli: Cli) -> None:
    """A bad line at the end ends the command, after the same words."""
    slow = submit("sandbox:duration=60")
    ids = [*(failing() for _ in range(10)), slow, "fox!"]
    told = cli("wait", "-", "--timeout", "0.5", stdin="\n".join(ids).encode())
    assert told.code == 2
    assert f"  luma-poll wait {slow} --timeout 0.5" in told.err.splitlines()


def test_ctrl_c_counts_what_its_command_names(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run, and apart from them those that timed out; none that is lost."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt_after(6, every=0.05))
    slow = [submit("sandbox:duration=60") for _ in range(2)]
    told = cli("wait", ID, *slow)
    assert told.code == 130
    assert told.err.splitlines()[1:] == [
        "Interrupted; 2 are still running. To wait on:",
        f"  luma-poll wait {shlex.join(slow)}",
    ]
    batch = Batch(["late", "refused", "slow"])
    late = PollTimeoutError("late", last_generation=None, elapsed=1, attempts=1)
    batch.end(PollResult("late", None, late))
    batch.end(PollResult("refused", None, ServerError("HTTP 500", status_code=500)))
    assert Source().after_interrupt(batch) == [
        "Interrupted; 1 is still running, 2 timed out or met trouble. To wait on:",
        "  luma-poll wait late refused slow",
    ]


@pytest.mark.usefixtures("sockets_left_to_the_collector")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--output", "r.jsonl"],
            ["  luma-poll wait --file ids.txt --output r.jsonl --resume r.jsonl"],
        ),
        (
            ["--json"],
            [
                "  luma-poll wait --file ids.txt --json --resume results.jsonl >> results.jsonl",
                "  (results.jsonl has what this run printed)",
            ],
        ),
        (
            [],
            [
                "  luma-poll wait --file ids.txt --output results.jsonl --resume results.jsonl",
                "  (which keeps its results, so that it can be resumed)",
            ],
        ),
    ],
)
def test_ctrl_c_among_many_names_their_file(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], says: list[str]
) -> None:
    """Nobody copies a command with hundreds of ids."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt)
    monkeypatch.chdir(tmp_path)
    Path("ids.txt").write_text("\n".join(submit("sandbox:duration=60") for _ in range(11)))
    code, out, err = cli("wait", "--file", "ids.txt", *options)
    assert (code, out) == (130, "")
    assert err.splitlines() == [
        "     11 still running",
        "Interrupted; 11 are still running. To wait on:",
        *says,
    ]


def test_an_interrupted_run_loses_nothing_and_a_resumed_one_repeats_nothing(tmp_path: Path) -> None:
    """Sixty ids, SIGINT in the middle, the same command again: each has one result."""
    ids, kept = tmp_path / "ids.txt", tmp_path / "results.jsonl"
    wanted = [submit("sandbox:duration=0") for _ in range(60)]
    ids.write_text("\n".join(wanted))
    command = [*COMMAND, "wait", "--file", str(ids), "--output", str(kept), "--resume", str(kept)]
    with started(*command, "--max-rate", "30", stderr=subprocess.PIPE) as process:
        while not (kept.exists() and kept.read_text().count("\n") >= 10):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finished = ids_of(kept.read_text())
    assert 10 <= len(finished) < 60
    again = subprocess.run(
        [*command, "--max-rate", "1000"], capture_output=True, text=True, check=True, timeout=30
    )
    assert f"{len(finished)} done before" in again.stderr
    assert sorted(ids_of(kept.read_text())) == sorted(wanted)


def test_many_on_a_terminal_have_a_bar_that_never_scrolls() -> None:
    """Neither its own lines nor the URLs, which come above it, break a line or leave a trace."""
    wanted = [submit(f"sandbox:duration={number / 60}") for number in range(60)]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "300", "LINES": "10"}
    with started(
        *COMMAND, "wait", *wanted, "--max-rate", "100",
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    ) as process:  # fmt: skip
        os.close(theirs)
        screen = b"".join(iter(lambda: _read(ours), b"")).decode()
        assert process.wait(10) == 0
    os.close(ours)
    assert screen.count("/storage/") == 60
    assert "polls/s" in screen
    assert "/60" in screen
    assert "generation " not in screen
    assert screen.rstrip().endswith("60 completed")


# --- the summary ---------------------------------------------------------------------------------


def table_of(count: int) -> LiveTable:
    table = LiveTable(("generation",), None, expected=count + 5)
    for number in range(count):
        table.add(f"number-{number}", f"number-{number}")
    return table


def test_a_table_that_does_not_fit_is_a_summary() -> None:
    """Finished of all, counts by state, the trouble on the way, and the last failures."""
    table = table_of(45)
    for number in range(30):
        table.on_poll(event("processing", id=f"number-{number}"))
    table.on_poll(event(error=ServerError("HTTP 503", status_code=503), id="number-29"))
    for number in range(20):
        error = None if number < 13 else MODERATED
        table.end(f"number-{number}", "completed" if error is None else "failed", error)
    drawn = lines(table, height=20)
    assert drawn[0].split()[-3:] == ["20/50", "40", "%"]
    assert drawn[1][2:] == "5 waiting, 15 asking, 10 processing, 13 completed, 7 failed"
    assert "polls/s" in drawn[2]
    assert drawn[3] == "polling through: 1 ServerError"
    assert drawn[4:] == [f"ContentModeratedError number-{number}" for number in range(15, 20)]
    table.on_poll(event("processing", id="number-29"))
    assert not any("polling through" in line for line in lines(table, height=20))


@pytest.mark.parametrize("height", range(1, 12))
def test_a_summary_stays_inside_the_terminal(height: int) -> None:
    """However small it is; the latest failures are those that are left."""
    table = table_of(40)
    for number in range(30):
        timeout = PollTimeoutError(ID, last_generation=None, elapsed=1, attempts=1)
        table.end(f"number-{number}", f"a state of some length {number}", timeout)
    drawn = lines(table, width=30, height=height)
    assert 1 <= len(drawn) <= height
    assert all(len(line) <= 30 for line in drawn)
    assert height < 4 or drawn[-1] == "PollTimeoutError number-29"


def test_a_source_that_goes_on_is_told_by_a_plus() -> None:
    """How many will come nobody knows."""
    table = table_of(40)
    table.more = True
    assert " 0/45+ " in lines(table, height=10)[0]


def test_ctrl_c_among_ids_of_stdin(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few that were read are named; those that come are the user's to give again."""
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", interrupt_after(2, every=60))
    ids = [submit("sandbox:duration=60") for _ in range(2)]
    told = cli("wait", "-", "--json", stdin="\n".join(ids).encode())
    assert told.code == 130
    assert told.err.splitlines()[-1] == f"  luma-poll wait {ids[0]} {ids[1]} --json"


def test_no_id_of_stdin_is_forgotten(cli: Cli) -> None:
    """However many there are: whoever made them may have ended, and told nobody else."""
    ids = [submit("sandbox:duration=60") for _ in range(12)]
    told = cli("wait", "-", "--timeout", "0.5", stdin="\n".join(ids).encode())
    assert told.code == 3
    words = shlex.split(told.err.splitlines()[-1])
    assert sorted(words) == sorted(["luma-poll", "wait", *ids, "--timeout", "0.5"])


def test_an_id_that_the_api_spells_in_another_way(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is a result as others are."""

    async def get(self: Generations, generation_id: str) -> Generation:
        return snapshot(id=generation_id.lower())

    monkeypatch.setattr(Generations, "get", get)
    code, out, err = cli("wait", ID.upper(), "--json")
    assert (code, len(out.splitlines()), err) == (0, 1, "")


def test_a_reader_that_goes_away_hears_nothing_of_many() -> None:
    """`luma-poll wait ... | head -1` ends quietly."""
    read, write = os.pipe()
    os.close(read)
    ids = [submit() for _ in range(11)]
    with started(*COMMAND, "wait", *ids, stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        assert process.stderr
        assert (process.wait(10), process.stderr.read()) == (141, "")


def test_results_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    """Lines far longer than a buffer, appended by two at the same time, stay whole."""
    path = tmp_path / "results.jsonl"
    code = (
        "import os, sys; from luma_poll._cli.results import append_line;"
        "f = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666);"
        "[append_line(f, sys.argv[2] * 100_000) for _ in range(200)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), word]) for word in "ab"]
    assert [writer.wait(30) for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["a" * 100_000] * 200 + ["b" * 100_000] * 200


def test_results_go_to_a_pipe_with_a_name(tmp_path: Path) -> None:
    """It is not opened for reading first, which would wait for a writer: for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = submit()
    with started(*COMMAND, "wait", done, "--output", str(pipe)) as process:
        assert ids_of(pipe.read_text()) == [done]
        assert process.wait(20) == 0
