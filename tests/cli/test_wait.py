"""`luma-poll wait`: one id or hundreds, from arguments, files and standard input."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from luma_poll import Generation
from luma_poll._client.generations import Generations
from tests.cli.support import COMMAND, SIGNED, Cli, failing, ids_of, started, submit
from tests.fakes import ID, snapshot

NOBODY = "http://127.0.0.1:9/v1"


def test_wait_prints_the_urls_of_each_as_it_ends(cli: Cli) -> None:
    """In the order of their ends, with nothing on stderr, which is not a terminal."""
    slow, fast = submit("sandbox:duration=8"), submit("sandbox:duration=0 sandbox:outputs=2")
    code, out, err = cli("wait", slow, fast)
    ids = [line.split("/")[4] for line in out.splitlines()]
    assert (code, err, ids) == (0, "", [fast, fast, slow])
    assert all(SIGNED in line for line in out.splitlines())


def test_wait_prints_the_id_of_each_url(cli: Cli) -> None:
    """With more than one id, each URL follows its id and a tab."""
    one, two, outputs = submit(), failing(), submit("sandbox:duration=0 sandbox:outputs=2")
    for ids in ([one, two, outputs], ["-"]):
        told = cli("wait", *ids, stdin=f"{one}\n{outputs}".encode())
        fields = [line.split("\t") for line in told.out.splitlines()]
        assert sorted(generation_id for generation_id, _ in fields) == sorted(
            [one, outputs, outputs]
        )
        assert all(f"/storage/{generation_id}/" in url for generation_id, url in fields)
    assert cli("wait", one, one).out.startswith("http")


def test_wait_reports_a_failure_on_stderr(cli: Cli) -> None:
    """The typed error, apart from the URLs."""
    good, bad = submit(), failing()
    code, out, err = cli("wait", good, bad)
    assert (code, out.count("\n")) == (1, 1)
    assert re.fullmatch(rf"ContentModeratedError: generation {bad} failed: .*\n", err)


def test_wait_prints_one_json_object_a_line_and_nothing_else(cli: Cli) -> None:
    """Failures of all kinds included."""
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
    told = cli("wait", slow, bad, "--timeout", "1")
    assert told.code == 3
    assert f"PollTimeoutError: generation {slow} is 'queued' after 1.0 s" in told.err
    assert cli("wait", slow, bad, ID, "--timeout", "1").code == 4


def test_wait_polls_through_trouble_until_the_timeout(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network it times out, and the message says why there was no answer."""
    monkeypatch.setenv("LUMA_BASE_URL", NOBODY)
    code, out, err = cli("wait", ID, "--timeout", "0.2")
    assert (code, out) == (3, "")
    assert "PollTimeoutError" in err
    assert re.search("the connection to the API failed .*: check the network and the base URL", err)


def test_a_timeout_may_be_infinite(cli: Cli) -> None:
    """`inf` means no limit."""
    assert cli("wait", submit(), "--timeout", "inf").code == 0


def test_an_unknown_state_is_a_warning(cli: Cli) -> None:
    """The library logs it; the command line prints it on a line of its own."""
    told = cli("wait", submit("sandbox:duration=2 sandbox:state=throttled"))
    assert told.code == 0
    assert told.err.startswith("warning: generation ")
    assert "'throttled'" in told.err


def test_ids_come_from_files_arguments_and_stdin(cli: Cli, tmp_path: Path) -> None:
    """Each is waited for once, and comments and blank lines are skipped."""
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
    """The message names the file and the line, before anything is sent."""
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    assert cli("wait", "--file", str(path)) == (2, "", f"Error: {says.format(path=path)}\n")


@pytest.mark.parametrize("option", [["--file"], [ID, "--output"]])
def test_a_directory_is_2(cli: Cli, tmp_path: Path, option: list[str]) -> None:
    """In place of a file; the message has the system's reason."""
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
    """The first result is printed while the other end still makes ids."""
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
        assert process.wait(50) == 1


def test_an_unreadable_line_on_stdin_loses_no_result(cli: Cli) -> None:
    """The ids before the unreadable line are waited for; then it is reported."""
    good = submit()
    code, out, err = cli("wait", "-", "--json", stdin=f"{good}\nfox!\n".encode())
    assert (code, ids_of(out)) == (2, [good])
    assert err == "Error: standard input, line 2: 'fox!' is not a generation id\n"


def test_many_have_a_summary_and_a_way_to_wait_again(cli: Cli, tmp_path: Path) -> None:
    """Counts by outcome, and the command for those that may still finish."""
    slow = submit("sandbox:duration=60")
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join([*(submit() for _ in range(9)), failing(), slow]))
    code, out, err = cli(
        "wait", "--file", str(ids), "--json", "--timeout", "1", "--max-rate", "1e9"
    )
    assert (code, len(out.splitlines())) == (3, 11)
    assert err.splitlines() == [
        "      9 completed",
        "      1 ContentModeratedError",
        "      1 PollTimeoutError",
        "1 may still finish. To wait again, which costs nothing:",
        f"  luma-poll wait {slow} --timeout 600 --max-rate 1000000000 --json",
    ]


@pytest.mark.parametrize("download", [[], ["--download", "my files"]])
def test_unknown_ids_are_not_waited_for_again(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, download: list[str]
) -> None:
    """An unknown id is not among those that may still finish; all options are kept."""
    monkeypatch.chdir(tmp_path)
    slow = submit("sandbox:duration=60")
    ids = [*(failing() for _ in range(9)), ID, slow]
    options = ["--output", "my results", *download]
    told = cli("wait", *ids, "--timeout", "1", *options)
    assert told.code == 4
    assert told.err.splitlines()[-2:] == [
        "1 may still finish. To wait again, which costs nothing:",
        f"  luma-poll wait {slow} --timeout 600 {shlex.join(options)}",
    ]


def test_timeouts_are_reported_though_stdin_has_an_unreadable_line(cli: Cli) -> None:
    """A bad last line ends the command, after the usual command to copy."""
    slow = submit("sandbox:duration=60")
    ids = [*(failing() for _ in range(10)), slow, "fox!"]
    told = cli("wait", "-", "--timeout", "1", stdin="\n".join(ids).encode())
    assert told.code == 2
    assert f"  luma-poll wait {slow} --timeout 600" in told.err.splitlines()


def test_no_id_of_stdin_is_forgotten(cli: Cli) -> None:
    """However many there are: the program that made them may have ended, and kept none."""
    ids = [submit("sandbox:duration=60") for _ in range(12)]
    told = cli("wait", "-", "--timeout", "1", stdin="\n".join(ids).encode())
    assert told.code == 3
    words = shlex.split(told.err.splitlines()[-1])
    assert sorted(words) == sorted(["luma-poll", "wait", *ids, "--timeout", "600"])


def test_an_id_that_the_api_spells_in_another_way(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its result is like any other."""

    async def get(self: Generations, generation_id: str) -> Generation:
        return snapshot(id=generation_id.lower())

    monkeypatch.setattr(Generations, "get", get)
    code, out, err = cli("wait", ID.upper(), "--json")
    assert (code, len(out.splitlines()), err) == (0, 1, "")
