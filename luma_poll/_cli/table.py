"""A live table of generations for a terminal; of more than fit there, a summary."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luma_poll._cli.bars import DownloadBars
from luma_poll._cli.escaping import escape
from luma_poll._polling.events import PollEvent

DRAWINGS_PER_SECOND = 5
LAST_FAILURES = 5
RATE_OVER = 10.0
"""Seconds over which the polls per second are counted."""
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"

STYLES = {
    "waiting": "dim",
    "asking": "dim",
    "queued": "dim",
    "processing": "yellow",
    "downloading": "blue",
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
    """The rows, by generation id, on a console or, without one, nowhere.

    What a summary shows is counted as it happens: drawing it costs the same for any number.

    Attributes:
        columns: Headings of the labels.
        console: Where to draw.
        expected: How many generations there will be, as far as known.
        more: Whether there may be more than that.
        bars: Those of downloads, to be drawn below.
    """

    columns: tuple[str, ...]
    console: Console | None
    expected: int = 0
    more: bool = False
    bars: DownloadBars | None = None
    rows: dict[str, Row] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    troubles: Counter[str] = field(default_factory=Counter)
    failures: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=LAST_FAILURES))
    ended: int = 0
    polls: int = 0

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._samples = deque([(self._started, 0)])

    def add(self, generation_id: str, *labels: str, state: str = "asking") -> None:
        """Add a generation that is waited for from now on."""
        self.rows[generation_id] = Row(labels, state, time.monotonic())
        self.states[state] += 1

    def on_poll(self, event: PollEvent) -> None:
        """Take what a poll brought; give this to the poller."""
        row = self.rows[event.generation_id]
        row.polls = event.attempt
        self.polls += 1
        state = row.state if event.generation is None else event.generation.state
        self._change(row, state, "" if event.error is None else type(event.error).__name__)

    def set_state(self, generation_id: str, state: str) -> None:
        """Say where a generation stands that is not polled any more."""
        self._change(self.rows[generation_id], state, "")

    def end(self, generation_id: str, state: str, error: Exception | None = None) -> None:
        """Stop the clock of a generation."""
        self.ended += 1
        row = self.rows.get(generation_id)
        if row is not None:  # the API may spell its ids in another way
            self._change(row, state, "")
            row.ended = time.monotonic()
        if error is not None:
            self.failures.append((generation_id, type(error).__name__))

    def _change(self, row: Row, state: str, trouble: str) -> None:
        self.states[row.state] -= 1
        self.states[state] += 1
        self.troubles[row.trouble] -= 1  # that of "" is of no interest
        self.troubles[trouble] += 1
        row.state, row.trouble = state, trouble

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep it at the bottom of the terminal while the block runs; leave the table then."""
        if self.console is None:
            yield
            return
        live = Live(
            console=self.console,
            get_renderable=self._draw_what_fits,
            refresh_per_second=DRAWINGS_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            yield
        if self.rows and self._fits(self.console.height):
            self.console.print(self.draw())

    def draw(self, height: int | None = None) -> RenderableType:
        """The table as it is now, or a summary if it is longer than `height` lines."""
        if height is None or self._fits(height):
            return self._draw(list(self.rows.values()))
        return self._draw_summary(height)

    def _fits(self, height: int) -> bool:
        return max(len(self.rows), self.expected) < height

    def _draw_what_fits(self) -> RenderableType:
        assert self.console is not None
        if self.bars is None or not self.bars.height:
            return self.draw(self.console.height - 1)
        return Group(self.draw(self.console.height - 1 - self.bars.height), self.bars.progress)

    def _draw_summary(self, height: int) -> Table:
        now = time.monotonic()
        total = max(self.expected, len(self.rows))
        # Copies: they change in another thread while this one draws.
        states = {"waiting": total - len(self.rows)} | self.states.copy()
        troubles = {kind: count for kind, count in self.troubles.copy().items() if kind and count}
        lines = [
            self._draw_counts(states, now),
            Text(f"{self._rate(now):.1f} polls/s, {_minutes(now - self._started)}", "dim"),
        ]
        if troubles:
            said = ", ".join(f"{count} {kind}" for kind, count in troubles.items())
            lines.append(Text(f"polling through: {said}", "yellow"))
        failures = [
            Text.assemble((f"{kind} ", "red"), escape(generation_id))
            for generation_id, kind in self.failures.copy()
        ]
        room = max(0, height - 1 - len(lines))
        lines += failures[max(0, len(failures) - room) :] if room else []
        grid = Table.grid()
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(self._draw_bar(total))
        for line in lines[: height - 1]:
            grid.add_row(line)
        return grid

    def _draw_bar(self, total: int) -> Table:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(
            ProgressBar(total=total, completed=self.ended, width=24),
            f"{self.ended}/{total}{'+' if self.more else ''}",
            f"{100 * self.ended // max(1, total)} %",
        )
        return grid

    def _draw_counts(self, states: dict[str, int], now: float) -> Text:
        text = Text(SPINNER[int(now * DRAWINGS_PER_SECOND) % len(SPINNER)] + " ", "yellow")
        order = dict.fromkeys((*STYLES, *states))
        said = [(state, states[state]) for state in order if states.get(state, 0)]
        for number, (state, count) in enumerate(said):
            text.append(", " if number else "")
            text.append(f"{count} {escape(state)}", STYLES.get(state, "magenta"))
        return text

    def _rate(self, now: float) -> float:
        """Polls per second, of late."""
        self._samples.append((now, self.polls))
        while self._samples[1][0] < now - RATE_OVER:
            self._samples.popleft()
        since, before = self._samples[0]
        return (self.polls - before) / max(0.1, now - since)

    def _draw(self, rows: list[Row]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in (*self.columns, "state"):
            table.add_column(_line(column))
        table.add_column("waited", justify="right", no_wrap=True)
        table.add_column("polls", justify="right", no_wrap=True)
        now = time.monotonic()
        for row in rows:
            waited = (now if row.ended is None else row.ended) - row.started
            table.add_row(
                *map(_line, row.labels), _draw_state(row, now), f"{waited:.1f} s", str(row.polls)
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


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _line(text: str) -> Text:
    """A text that is shortened where it does not fit, never wrapped."""
    return Text(escape(text), no_wrap=True, overflow="ellipsis")


def _draw_state(row: Row, now: float) -> Text:
    text = _line("")
    style = STYLES.get(row.state, "magenta" if row.ended is None else "red")
    if row.ended is None:
        text.append(SPINNER[int(now * DRAWINGS_PER_SECOND) % len(SPINNER)] + " ", style)
    text.append(escape(row.state), style)
    text.append(f" {row.trouble}" if row.trouble else "", "red")
    return text
