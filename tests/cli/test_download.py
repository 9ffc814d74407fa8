"""Downloads from the command line: `download`, and `wait --download`."""

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from luma_poll import DownloadError, DownloadProgress, Generation, LumaClient
from luma_poll._cli.bars import DownloadBars
from luma_poll._cli.terminal import err
from tests.cli.support import COMMAND, Cli, failing, on_a_terminal, started, submit
from tests.fakes import ID

PNG = b"\x89PNG\r\n\x1a\n"
LARGE = "sandbox:size=100000000"


def ended(script: str = "") -> str:
    """A generation that has completed."""
    generation_id = submit(f"sandbox:duration=0 {script}")
    time.sleep(0.01)
    return generation_id


def test_download_prints_the_paths(cli: Cli, tmp_path: Path) -> None:
    """One per line, and the files are complete."""
    generation_id = ended("sandbox:outputs=2")
    told = cli("download", generation_id, str(tmp_path / "new" / "place"))
    assert (told.code, told.err) == (0, "")
    paths = [Path(line) for line in told.out.splitlines()]
    assert [path.name for path in paths] == [f"{generation_id}.png", f"{generation_id}-2.png"]
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    assert cli("download", generation_id, str(tmp_path / "new" / "place")).out == told.out


def test_a_file_that_exists_is_kept(cli: Cli, tmp_path: Path) -> None:
    """The same command again fetches nothing; with --overwrite it does."""
    generation_id = ended()
    (path,) = cli("download", generation_id, str(tmp_path)).out.splitlines()
    whole = Path(path).read_bytes()
    Path(path).write_bytes(b"x" * len(whole))
    cli("download", generation_id, str(tmp_path))
    assert Path(path).read_bytes() == b"x" * len(whole)
    cli("download", generation_id, str(tmp_path), "--overwrite")
    assert Path(path).read_bytes() == whole


def test_each_download_has_its_own_end(cli: Cli, tmp_path: Path) -> None:
    """A failed, an unknown and an unfinished generation do not disturb the others."""
    good, bad, unfinished = ended(), failing(), submit("sandbox:duration=1000")
    told = cli("download", good, bad, ID, unfinished, good, str(tmp_path), "--json")
    assert told.code == 4
    results = {entry["id"]: entry for entry in map(json.loads, told.out.splitlines())}
    assert len(told.out.splitlines()) == 4
    assert results[good]["paths"] == [str(tmp_path / f"{good}.png")]
    assert results[bad]["error"]["type"] == "ContentModeratedError"
    assert results[ID]["error"]["type"] == "NotFoundError"
    assert results[unfinished]["error"]["type"] == "ConfigurationError"
    assert "no files yet" in results[unfinished]["error"]["message"]
    assert [path.name for path in tmp_path.glob("*.png")] == [f"{good}.png"]


def test_one_that_still_runs_is_to_be_waited_for(cli: Cli, tmp_path: Path) -> None:
    """With a command to copy."""
    running, place = submit("sandbox:duration=1000"), str(tmp_path / "my files")
    code, out, err = cli("download", running, ended(), place)
    assert (code, out.count("\n")) == (2, 1)
    assert err.splitlines() == [
        f"Error: generation {running} is 'queued' and has no files yet",
        "To wait for those still running:",
        f"  luma-poll wait {running} --download {shlex.quote(place)}",
    ]


def test_a_directory_that_cannot_be_is_4(cli: Cli, tmp_path: Path) -> None:
    """The message names it."""
    (tmp_path / "file").write_text("in the way")
    told = cli("download", ended(), str(tmp_path / "file" / "out"))
    assert (told.code, told.out) == (4, "")
    assert str(tmp_path / "file") in told.err


def test_wait_downloads_as_each_ends(cli: Cli, tmp_path: Path) -> None:
    """Paths replace the URLs; a failure is reported as usual."""
    good, bad = submit(), failing()
    told = cli("wait", good, bad, "--download", str(tmp_path))
    assert told.code == 1
    assert told.out.splitlines() == [str(tmp_path / f"{good}.png")]
    assert "ContentModeratedError" in told.err
    assert Path(told.out.strip()).read_bytes().startswith(PNG)


def test_what_could_not_be_downloaded_is_fetched_by_the_printed_command(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It waits again, which costs nothing, and skips what is there."""
    monkeypatch.chdir(tmp_path)
    good, kept = submit(), tmp_path / "results.jsonl"
    command = ["wait", good, "--download", "out", "--output", "results.jsonl"]

    async def fail(self: LumaClient, generation: Generation, *_: Any, **__: Any) -> None:
        path = Path("out") / "x.png"
        raise DownloadError("cut off", generation_id=good, path=path, retryable=True)

    with monkeypatch.context() as patched:
        patched.setattr(LumaClient, "download", fail)
        code, _, err = cli(*command)
    assert code == 4
    *_, said, again = err.splitlines()
    assert said == "1 was not downloaded. To fetch again, which costs nothing:"
    words = shlex.split(again)
    assert words[:3] == ["luma-poll", "wait", good]
    assert cli(*words[1:]).code == 0
    assert (tmp_path / "out" / f"{good}.png").exists()
    errors = [json.loads(line)["error"] for line in kept.read_text().splitlines()]
    assert [error and error["type"] for error in errors] == ["DownloadError", None]
    assert cli(*words[1:]).code == 0
    assert kept.read_text().count("\n") == 2


@pytest.mark.posix
def test_an_interrupted_download_continues(cli: Cli, tmp_path: Path) -> None:
    """SIGINT in the middle of a large file, and the same command again."""
    generation_id = ended(LARGE)
    command = [*COMMAND, "download", generation_id, str(tmp_path)]
    with started(*command, stderr=subprocess.PIPE) as process:
        while not any(part.stat().st_size > 1e6 for part in tmp_path.glob(".*.part")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(50) == 130
        assert process.stderr
        assert process.stderr.read().endswith(
            "To fetch what is missing:\n  "
            + shlex.join(["luma-poll", "download", generation_id, str(tmp_path)])
            + "\n"
        )
    assert not list(tmp_path.glob("*.png"))
    (part,) = tmp_path.glob(".*.part")
    there = part.stat().st_size
    assert 1e6 < there < 1e8
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    path = Path(again.stdout.strip())
    assert path.stat().st_size == 100_000_000
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()


@pytest.mark.posix
def test_a_terminal_has_bars(tmp_path: Path) -> None:
    """With bytes and rate, below the table, for as long as the downloads take."""
    wanted = [submit(f"{LARGE} sandbox:duration=0.1") for _ in range(2)]
    code, screen = on_a_terminal("wait", *wanted, "--download", str(tmp_path), COLUMNS="120")
    assert code == 0
    assert "downloading" in screen
    assert "/100.0 MB" in screen
    assert "MB/s" in screen
    for path in tmp_path.iterdir():
        path.unlink()


def test_a_bar_lasts_as_long_as_its_download() -> None:
    """A success removes it, and so does a failure."""
    bars = DownloadBars(err)
    for index in (0, 1, 2):
        bars.on_progress(DownloadProgress(ID, index, 3, 10, 100))
    bars.on_progress(DownloadProgress("other", 0, 1, 10, None))
    assert bars.height == 4
    assert [task.description for task in bars.progress.tasks][1::2] == [f"{ID} 2/3", "other"]
    bars.on_progress(DownloadProgress(ID, 1, 3, 100, 100, Path("there")))
    assert bars.height == 3
    bars.forget(ID)
    assert [task.description for task in bars.progress.tasks] == ["other"]
