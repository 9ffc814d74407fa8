"""`luma-poll mcp` in this process: its ends and its refusals; tests/mcp has it as agents see it."""

import json
from pathlib import Path

import pytest

from luma_poll import Journal
from tests.cli.support import Cli

pytest.importorskip("mcp", reason="the extra mcp is not installed")


def test_the_end_of_its_input_is_a_clean_end(cli: Cli, tmp_path: Path) -> None:
    """Exit code 0, and a journal beside the files."""
    assert cli("mcp", "--download", str(tmp_path / "out")).code == 0
    with Journal(tmp_path / "out/luma-poll.db") as journal:
        assert journal.entries() == []


def test_it_answers_a_client(cli: Cli, tmp_path: Path) -> None:
    """Over a file too, which is its input all at once."""
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    line = json.dumps(hello).encode() + b"\n"
    assert cli("mcp", "--download", str(tmp_path / "out"), stdin=line).code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--inputs", "missing"], "inputs: there is no directory missing"),
        (["--patience", "0"], "must be above 0"),
        (["--max-submissions", "-1"], "max-submissions"),
    ],
)
def test_unusable_options_are_2(cli: Cli, tmp_path: Path, options: list[str], says: str) -> None:
    """Before anything is served."""
    code, _, err = cli("mcp", "--download", str(tmp_path / "out"), *options)
    assert code == 2
    assert says in err


def test_without_a_key_it_says_so(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every command does."""
    monkeypatch.delenv("LUMA_AGENTS_API_KEY")
    code, _, err = cli("mcp", "--download", str(tmp_path / "out"))
    assert code == 2
    assert "LUMA_AGENTS_API_KEY" in err
