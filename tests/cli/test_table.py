"""The live table, and the summary where it does not fit."""

import io
import re
from itertools import count
from types import SimpleNamespace

import pytest
from rich.console import Console

from luma_poll import ContentModeratedError, PollTimeoutError, ServerError
from luma_poll._cli.table import LiveTable
from tests.cli.support import (
    Cli,
    event,
    failing,
    lines,
    on_a_terminal,
    submit,
    terminal,
    written,
)
from tests.fakes import ID, snapshot


def test_a_table_on_a_terminal_leaves_results_alone(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress goes to stderr, results to stdout, and the table stays on the screen at the end."""
    screen = terminal(width=100)
    for module in ("wait_command", "terminal"):
        monkeypatch.setattr(f"luma_poll._cli.{module}.err", screen)
    slow, bad = submit("sandbox:duration=1"), failing()
    code, out, err = cli("wait", slow, bad, ID)
    assert (code, err, out.count("\n")) == (4, "", 1)
    table = [line.split() for line in written(screen).splitlines()[-4:]]
    assert table[0] == ["generation", "state", "waited", "polls"]
    assert table[1][:2] == [slow, "completed"]
    assert table[2][:2] == [bad, "failed"]
    assert table[3][:2] == [ID, "NotFoundError"]


def test_the_table_shows_a_timeout(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not called failed, as it may still finish."""
    screen = terminal(width=100)
    for module in ("wait_command", "terminal"):
        monkeypatch.setattr(f"luma_poll._cli.{module}.err", screen)
    assert cli("wait", submit("sandbox:duration=60"), "--timeout", "0.1").code == 3
    assert " timed out " in written(screen).splitlines()[-1]


def test_a_row_follows_the_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """State, trouble and polls are those of the last poll; an end stops the clock."""
    now = count(100.0, 0.0)
    monkeypatch.setattr("luma_poll._cli.table.time", SimpleNamespace(monotonic=lambda: next(now)))
    table = LiveTable(("generation",), None)
    table.add(ID, "fox")
    assert re.search(r"fox +. asking +0\.0 s +0$", lines(table)[1])
    now = count(102.0, 0.0)
    table.on_poll(event("processing", attempt=2))
    assert re.search(r"fox +. processing +2\.0 s +2$", lines(table)[1])
    table.on_poll(event(error=ServerError("HTTP 503", status_code=503), attempt=3))
    assert re.search(r"fox +. processing ServerError +2\.0 s +3$", lines(table)[1])
    table.end(ID, "completed")
    now = count(200.0, 0.0)
    assert re.search(r"fox +completed +2\.0 s +3$", lines(table)[1])


def test_a_narrow_table_shortens_and_never_wraps() -> None:
    """A generation is one line; only the age is left of its numbers, and the state is whole."""
    table = LiveTable(("generation",), None)
    table.add(ID, ID, state="processing")
    _, row = lines(table, width=40)
    assert re.fullmatch(r"182bd5e5-6e\S*… . processing +0 s", row)


def test_labels_are_not_markup() -> None:
    """A prompt may contain anything."""
    table = LiveTable(("prompt",), None)
    table.add(ID, "[red]:fox:[/]")
    assert "[red]:fox:[/]" in lines(table)[1]


@pytest.mark.parametrize("forced", [True, False])
def test_no_table_is_drawn_where_there_is_no_terminal(forced: bool) -> None:
    """FORCE_COLOR asks for colours, not for a table in a log file."""
    console = Console(file=io.StringIO(), force_terminal=forced)
    table = LiveTable.on(console, "generation")
    with table.shown():
        table.add(ID, ID)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""


def test_a_table_without_rows_leaves_nothing() -> None:
    """Nothing was waited for."""
    console = terminal()
    with LiveTable.on(console, "generation").shown():
        pass
    assert "generation" not in written(console)[-20:]


MODERATED = ContentModeratedError(snapshot("failed"))


@pytest.mark.posix
def test_many_on_a_terminal_have_a_bar_that_never_scrolls() -> None:
    """Neither its own lines nor the URLs, which come above it, break a line or leave a trace."""
    wanted = [submit(f"sandbox:duration={number / 60}") for number in range(60)]
    code, screen = on_a_terminal("wait", *wanted, "--max-rate", "100", LINES="10")
    assert code == 0
    assert screen.count("/storage/") == 60
    assert "polls/s" in screen
    assert "/60" in screen
    assert "generation " not in screen
    assert screen.rstrip().endswith("60 completed")


def table_of(count: int) -> LiveTable:
    table = LiveTable(("generation",))
    table.expect(count + 5)
    for number in range(count):
        table.add(f"number-{number}", f"number-{number}")
    return table


def test_a_table_that_does_not_fit_is_a_summary() -> None:
    """Progress, counts by state, current trouble, and the last failures."""
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
    """However small it is; the latest failures are kept."""
    table = table_of(40)
    for number in range(30):
        timeout = PollTimeoutError(generation_id=ID, last_generation=None, elapsed=1, attempts=1)
        table.end(f"number-{number}", f"a state of some length {number}", timeout)
    drawn = lines(table, width=30, height=height)
    assert 1 <= len(drawn) <= height
    assert all(len(line) <= 30 for line in drawn)
    assert height < 4 or drawn[-1] == "PollTimeoutError number-29"


def test_a_source_with_more_to_come_has_a_plus() -> None:
    """The total is not known yet."""
    table = table_of(40)
    table.expect(45, more=True)
    assert " 0/45+ " in lines(table, height=10)[0]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    """A spinner or an ellipsis that its encoding lacks would be drawn as an escape, too wide."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    console = Console(file=stream, force_terminal=True, width=40, color_system=None)
    table = LiveTable(("generation",), console)
    table.add(ID, ID * 3, state="processing")
    console.print(table.draw(width=40))
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    drawn = stream.buffer.getvalue().decode()
    assert "\\u" not in drawn
    assert all(len(line) <= 40 for line in drawn.splitlines())
