"""Files of results: appended to by one run, and continued by the next."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import COMMAND, Cli, failing, ids_of, started, submit


def test_the_same_command_again_adds_no_result_twice(cli: Cli, tmp_path: Path) -> None:
    """What timed out has another line; what has ended is waited for again, and has its one."""
    ids = [submit(), failing(), submit("sandbox:duration=60")]
    kept = tmp_path / "results.jsonl"
    command = ["wait", *ids, "--output", str(kept), "--timeout", "1"]
    for known in ([], [ids[2]]):
        code, out, err = cli(*command)
        assert (code, out) == (3, "")
        assert re.search(f"^ContentModeratedError: generation {ids[1]} ", err, re.MULTILINE)
        assert re.search(f"^PollTimeoutError: generation {ids[2]} ", err, re.MULTILINE)
        assert sorted(ids_of(kept.read_text())) == sorted([*ids, *known])


def test_a_result_with_files_is_another_one(cli: Cli, tmp_path: Path) -> None:
    """The paths are worth a line, where there was one without them."""
    kept, good = tmp_path / "results.jsonl", submit()
    for options in ([], ["--download", str(tmp_path)], [], ["--download", str(tmp_path)]):
        assert cli("wait", good, "--output", str(kept), *options).code == 0
    assert ["paths" in json.loads(line) for line in kept.read_text().splitlines()] == [False, True]


def test_lines_that_are_no_results_are_left_alone(cli: Cli, tmp_path: Path) -> None:
    """One that was cut off is ended, so that it swallows no result."""
    kept, good = tmp_path / "results.jsonl", submit()
    odd = b'[1]\n\xff\n{"id": 1, "ok": true}\n' + b"[" * 100_000 + b'\n\n{"id": "c", "ok": fal'
    kept.write_bytes(odd)
    assert cli("wait", good, "--output", str(kept)).code == 0
    added = kept.read_bytes().removeprefix(odd + b"\n")
    assert ids_of(added.decode()) == [good]


@pytest.mark.posix
def test_an_interrupted_run_loses_nothing_and_the_next_repeats_nothing(tmp_path: Path) -> None:
    """Sixty ids, SIGINT in the middle, the same command again: each has one result."""
    ids, kept = tmp_path / "ids.txt", tmp_path / "results.jsonl"
    wanted = [submit("sandbox:duration=0") for _ in range(60)]
    ids.write_text("\n".join(wanted))
    command = [*COMMAND, "wait", "--file", str(ids), "--output", str(kept)]
    with started(*command, "--max-rate", "30", stderr=subprocess.PIPE) as process:
        while not (kept.exists() and kept.read_text().count("\n") >= 10):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(50) == 130
    assert 10 <= len(ids_of(kept.read_text())) < 60
    subprocess.run(
        [*command, "--max-rate", "1000"], capture_output=True, text=True, check=True, timeout=50
    )
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
    assert [writer.wait(50) for writer in writers] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["a" * 100_000] * 200 + ["b" * 100_000] * 200


@pytest.mark.posix
def test_results_go_to_a_pipe_with_a_name(tmp_path: Path) -> None:
    """It is not opened for reading first, which would wait for a writer, endlessly."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = submit()
    with started(*COMMAND, "wait", done, "--output", str(pipe)) as process:
        assert ids_of(pipe.read_text()) == [done]
        assert process.wait(50) == 0
