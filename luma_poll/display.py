"""A live table of generations for a terminal: state, age, polls."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from luma_poll.poller import PollEvent

DRAWINGS_PER_SECOND = 10
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

STYLES = {
    "asking": "dim",
    "queued": "dim",
    "processing": "yellow",
    "completed": "green",
    "failed": "red",
    "timed out": "red",
}


@dataclass
class Row:
    """One generation: what it is called, and where it stands."""

    labels: tuple[str, ...]
    state: str
    started: float
    polls: int = 0
    ended: float | None = None
    trouble: str = ""


@dataclass
class LiveTable:
    """The rows, by generation id, on a console or, without one, nowhere."""

    columns: tuple[str, ...]
    console: Console | None
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, generation_id: str, *labels: str, state: str = "asking") -> None:
        """Add a generation that is waited for from now on."""
        self.rows[generation_id] = Row(labels, state, time.monotonic())

    def on_poll(self, event: PollEvent) -> None:
        """Take what a poll brought; give this to the poller."""
        row = self.rows[event.generation_id]
        row.polls = event.attempt
        row.trouble = "" if event.error is None else type(event.error).__name__
        if event.generation is not None:
            row.state = event.generation.state

    def end(self, generation_id: str, state: str) -> None:
        """Stop the clock of a generation."""
        row = self.rows[generation_id]
        row.state, row.trouble, row.ended = state, "", time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table at the bottom of the terminal while the block runs, and leave it then."""
        if self.console is None:
            yield
            return
        self._show()
        try:
            yield
        finally:
            self._live.stop()
            if self.rows:
                self.console.print(self.draw())

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Take the table away while the block prints, as that may go to the same terminal."""
        if self.console is None:
            yield
            return
        self._live.stop()
        try:
            yield
        finally:
            self._show()

    def draw(self, height: int | None = None) -> RenderableType:
        """The table as it is now, in at most `height` lines."""
        rows = list(self.rows.values())
        if height is None or len(rows) < height:
            return self._draw(rows)
        # What has ended has been printed already, so what still runs comes first.
        rows.sort(key=lambda row: row.ended is not None)
        cut = max(0, height - 2)
        states = Counter(row.state for row in rows[cut:])
        more = ", ".join(f"{count} {state}" for state, count in states.items())
        return Group(self._draw(rows[:cut]), Text(f"and {more}", "dim", no_wrap=True))

    def _show(self) -> None:
        assert self.console is not None
        # A new one each time: one that is started again would erase what was printed meanwhile.
        self._live = Live(
            console=self.console,
            get_renderable=self._draw_what_fits,
            refresh_per_second=DRAWINGS_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start(refresh=True)

    def _draw_what_fits(self) -> RenderableType:
        assert self.console is not None
        return self.draw(self.console.height - 1)

    def _draw(self, rows: list[Row]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in (*self.columns, "state"):
            table.add_column(_line(column))
        table.add_column("age", justify="right", no_wrap=True)
        table.add_column("polls", justify="right", no_wrap=True)
        now = time.monotonic()
        for row in rows:
            age = (now if row.ended is None else row.ended) - row.started
            table.add_row(
                *map(_line, row.labels), _draw_state(row, now), f"{age:.1f} s", str(row.polls)
            )
        return table


@contextmanager
def live_table(*columns: str, console: Console) -> Iterator[LiveTable]:
    """Show a live table until the block ends, if `console` is a terminal."""
    # Not console.is_terminal: FORCE_COLOR makes a terminal of everything.
    is_terminal = console.file.isatty() and not console.is_dumb_terminal
    table = LiveTable(columns, console if is_terminal else None)
    with table.shown():
        yield table


def _line(text: str) -> Text:
    """A text that is shortened where it does not fit, never wrapped."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _draw_state(row: Row, now: float) -> Text:
    text = _line("")
    style = STYLES.get(row.state, "magenta" if row.ended is None else "red")
    if row.ended is None:
        text.append(SPINNER[int(now * DRAWINGS_PER_SECOND) % len(SPINNER)] + " ", style)
    text.append(row.state, style)
    text.append(f" {row.trouble}" if row.trouble else "", "red")
    return text
