"""`luma-poll watch`: each change of state."""

import json

import pytest

from tests.cli.support import SIGNED, Cli, failing, submit


def test_watch_prints_every_change_of_state(cli: Cli) -> None:
    """With the seconds since the beginning, then the URLs."""
    code, out, err = cli("watch", submit("sandbox:duration=8"))
    *changes, url = out.splitlines()
    assert (code, err) == (0, "")
    assert [line.split()[2] for line in changes] == ["queued", "processing", "completed"]
    assert SIGNED in url


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_watch_reports_a_failure(cli: Cli, options: list[str]) -> None:
    """The last change on stdout, the error on stderr, and 1."""
    code, out, err = cli("watch", failing("corrupt_input"), *options)
    assert (code, out.count("\n")) == (1, 1)
    assert err.startswith("CorruptInputError: ")


def test_watch_prints_snapshots_as_json(cli: Cli) -> None:
    """One object for each change."""
    told = cli("watch", submit("sandbox:duration=8"), "--json")
    states = [json.loads(line)["state"] for line in told.out.splitlines()]
    assert states == ["queued", "processing", "completed"]


def test_a_watch_that_was_too_short_is_continued_with_a_longer_timeout(cli: Cli) -> None:
    """The same one would end in the same way."""
    slow = submit("sandbox:duration=60")
    told = cli("watch", slow, "--timeout", "0.3")
    assert (told.code, told.err.splitlines()[-1]) == (3, f"  luma-poll watch {slow} --timeout 600")
