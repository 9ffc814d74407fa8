"""Files of results: appended to by one run, and continued by the next."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luma_poll._cli.results import read_results
from tests.cli.support import COMMAND, Cli, failing, ids_of, started, submit
from tests.fakes import ID


def result(generation_id: str, kind: str | None = None) -> str:
    """A line of results: completed, or ended with an error of this kind."""
    error = None if kind is None else {"type": kind, "message": "..."}
    return json.dumps({"id": generation_id, "ok": kind is None, "error": error}) + "\n"


def test_output_and_resume_continue_an_earlier_run(cli: Cli, tmp_path: Path) -> None:
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
    assert err.startswith(f"Skipped 2 that are done in {kept}.\nPollTimeoutError: ")
    assert sorted(ids_of(kept.read_text())) == sorted([*ids, ids[2]])


def test_a_batch_that_is_done_sends_nothing(cli: Cli, tmp_path: Path) -> None:
    """The exit code is that of the earlier results."""
    kept = tmp_path / "results.jsonl"
    kept.write_text(result("a") + result("b", "ContentModeratedError"))
    assert cli("wait", "a", "--json", "--resume", str(kept)).code == 0
    code, out, err = cli("wait", "a", "b", "--json", "--resume", str(kept))
    assert (code, out, err) == (1, "", f"Skipped 2 that are done in {kept}.\n")


def test_resume_needs_lines_of_json(cli: Cli, tmp_path: Path) -> None:
    """A URL alone does not name its generation."""
    code, out, err = cli("wait", ID, "--resume", str(tmp_path / "results.jsonl"))
    assert (code, out) == (2, "")
    assert err.startswith("Error: --resume goes with --json or --output")


@pytest.mark.parametrize("through_the_shell", [True, False])
def test_a_cut_off_line_swallows_no_result(tmp_path: Path, through_the_shell: bool) -> None:
    """New results begin on a new line, and the file keeps what it had."""
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


def test_a_line_that_is_not_a_result_is_a_warning(cli: Cli, tmp_path: Path) -> None:
    """The warning has its line number, and the other lines count."""
    kept = tmp_path / "results.jsonl"
    odd = b'[1]\n\xff\n{"id": 1, "ok": true}\n' + b"[" * 100_000 + b"\n\n"
    kept.write_bytes(result("a").encode() + odd + result("b").encode() + b'{"id": "c"')
    told = cli("wait", "a", "b", "--json", "--resume", str(kept))
    assert told.code == 0
    assert told.err.splitlines() == [
        f"warning: {kept}: the last line was cut off; its generation is waited for again",
        f"warning: {kept}: ignored line 2 and 3 more: not a result of luma-poll wait",
        f"Skipped 2 that are done in {kept}.",
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
    """It is not opened for reading first, which would wait for a writer, endlessly."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = submit()
    with started(*COMMAND, "wait", done, "--output", str(pipe)) as process:
        assert ids_of(pipe.read_text()) == [done]
        assert process.wait(20) == 0
