"""A live table of generations for a terminal; a summary if there are more than fit."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luma_poll._cli.bars import DownloadBars, is_terminal
from luma_poll._cli.escaping import escape
from luma_poll.events import PollEvent

DRAWINGS_PER_SECOND = 5
LAST_FAILURES = 5
"""Failures that the summary lists."""
RATE_OVER = 10.0
"""Seconds over which the polls per second are averaged."""
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
    """One generation: its labels and its state.

    Attributes:
        labels: The texts of the first columns.
        state: The last known state.
        started: When the wait began, in seconds of `time.monotonic`.
        polls: How many polls there were.
        ended: When the wait ended; None while it lasts.
        trouble: The error that the last poll met; empty if none.
    """

    labels: tuple[str, ...]
    state: str
    started: float
    polls: int = 0
    ended: float | None = None
    trouble: str = ""


class LiveTable:
    """The rows of generations, by id, drawn on a console or, without one, nowhere.

    The numbers of the summary are counted as events come, so drawing it costs the same for any
    number of generations.

    Args:
        columns: The headings of the labels.
        console: The terminal to draw on; None for no drawing.
        bars: The bars of downloads, drawn below the table.
    """

    numbers: ClassVar[tuple[str, ...]] = ("waited", "polls")
    """The headings of the numbers in a row."""

    def __init__(
        self,
        columns: tuple[str, ...],
        console: Console | None = None,
        bars: DownloadBars | None = None,
    ) -> None:
        self._columns = columns
        self._console = console
        self._bars = bars
        self._rows: dict[str, Row] = {}
        self._expected, self._more = 0, False
        self._states, self._troubles = Counter[str](), Counter[str]()
        self._failures = deque[tuple[str, str]](maxlen=LAST_FAILURES)
        self._ended = 0
        self._polls = 0
        self._started = time.monotonic()
        self._samples = deque([(self._started, 0)])

    @classmethod
    def on(cls, console: Console, *columns: str, bars: DownloadBars | None = None) -> Self:
        """A table that is drawn if `console` is a terminal."""
        return cls(columns, console if is_terminal(console) else None, bars)

    def expect(self, total: int, *, more: bool = False) -> None:
        """Set how many generations will come in all; `more` if there may be even more."""
        self._expected, self._more = total, more

    def add(self, generation_id: str, *labels: str, state: str = "asking") -> None:
        """Add a generation whose wait begins now."""
        self._rows[generation_id] = Row(labels, state, time.monotonic())
        self._states[state] += 1

    def on_poll(self, event: PollEvent) -> None:
        """Show the outcome of a poll; pass this to the poller."""
        self._polls += 1
        self._show_poll(self._rows[event.generation_id], event)

    def _show_poll(self, row: Row, event: PollEvent) -> None:
        row.polls = event.attempt
        state = row.state if event.generation is None else event.generation.state
        self._change(row, state, "" if event.error is None else type(event.error).__name__)

    def set_state(self, generation_id: str, state: str) -> None:
        """Show the state of a generation that is no longer polled."""
        self._change(self._rows[generation_id], state, "")

    def end(self, generation_id: str, state: str, error: Exception | None = None) -> None:
        """Show the end of a generation, and stop its clock."""
        self._ended += 1
        row = self._rows.get(generation_id)
        if row is not None:  # the API may spell its ids in another way
            self._change(row, state, "")
            row.ended = time.monotonic()
        if error is not None:
            self._failures.append((generation_id, type(error).__name__))

    def _change(self, row: Row, state: str, trouble: str) -> None:
        self._states[row.state] -= 1
        self._states[state] += 1
        self._troubles[row.trouble] -= 1  # the count of "" is never used
        self._troubles[trouble] += 1
        row.state, row.trouble = state, trouble

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table at the bottom of the terminal during the block, and leave it there."""
        if self._console is None:
            yield
            return
        live = Live(
            console=self._console,
            get_renderable=self._draw_what_fits,
            refresh_per_second=DRAWINGS_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            yield
        if self._rows and self._fits(self._console.height):
            self._console.print(self.draw())

    def draw(self, height: int | None = None) -> RenderableType:
        """The table as it is now, or a summary if it is longer than `height` lines."""
        if height is None or self._fits(height):
            return self._draw(list(self._rows.values()))
        return self._draw_summary(height)

    def _fits(self, height: int) -> bool:
        return max(len(self._rows), self._expected) < height

    def _draw_what_fits(self) -> RenderableType:
        assert self._console is not None
        if self._bars is None or not self._bars.height:
            return self.draw(self._console.height - 1)
        return Group(self.draw(self._console.height - 1 - self._bars.height), self._bars.progress)

    def _draw_summary(self, height: int) -> Table:
        now = time.monotonic()
        total = max(self._expected, len(self._rows))
        # Copies: the originals change while another thread draws.
        states = {"waiting": total - len(self._rows)} | self._states.copy()
        troubles = {kind: count for kind, count in self._troubles.copy().items() if kind and count}
        lines = [
            self._draw_counts(states, now),
            Text(f"{self._rate(now):.1f} polls/s, {_minutes(now - self._started)}", "dim"),
        ]
        if troubles:
            said = ", ".join(f"{count} {kind}" for kind, count in troubles.items())
            lines.append(Text(f"polling through: {said}", "yellow"))
        failures = [
            Text.assemble((f"{kind} ", "red"), escape(generation_id))
            for generation_id, kind in self._failures.copy()
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
            ProgressBar(total=total, completed=self._ended, width=24),
            f"{self._ended}/{total}{'+' if self._more else ''}",
            f"{100 * self._ended // max(1, total)} %",
        )
        return grid

    def _draw_counts(self, states: dict[str, int], now: float) -> Text:
        text = Text(_spinner(now) + " ", "yellow")
        order = dict.fromkeys((*STYLES, *states))
        said = [(state, states[state]) for state in order if states.get(state, 0)]
        for number, (state, count) in enumerate(said):
            text.append(", " if number else "")
            text.append(f"{count} {escape(state)}", STYLES.get(state, "magenta"))
        return text

    def _rate(self, now: float) -> float:
        """Polls per second over the last `RATE_OVER` seconds."""
        self._samples.append((now, self._polls))
        while self._samples[1][0] < now - RATE_OVER:
            self._samples.popleft()
        since, before = self._samples[0]
        return (self._polls - before) / max(0.1, now - since)

    def _draw(self, rows: list[Row]) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in (*self._columns, "state"):
            table.add_column(_line(column))
        for column in self.numbers:
            table.add_column(column, justify="right", no_wrap=True)
        now = time.monotonic()
        for row in rows:
            table.add_row(
                *map(_line, row.labels), _draw_state(row, now), *self._numbers_of(row, now)
            )
        return table

    def _numbers_of(self, row: Row, now: float) -> tuple[str, ...]:
        return seconds_since(row.started, row, now), str(row.polls)


@contextmanager
def live_table(
    *columns: str, console: Console, bars: DownloadBars | None = None
) -> Iterator[LiveTable]:
    """A live table, shown until the block ends if `console` is a terminal."""
    table = LiveTable.on(console, *columns, bars=bars)
    with table.shown():
        yield table


def seconds_since(started: float, row: Row, now: float) -> str:
    """The seconds from then to the end of a row, or to now."""
    return f"{(now if row.ended is None else row.ended) - started:.1f} s"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _spinner(now: float) -> str:
    return SPINNER[int(now * DRAWINGS_PER_SECOND) % len(SPINNER)]


def _line(text: str) -> Text:
    """A text that is shortened where it does not fit, never wrapped."""
    return Text(escape(text), no_wrap=True, overflow="ellipsis")


def _draw_state(row: Row, now: float) -> Text:
    text = _line("")
    style = STYLES.get(row.state, "magenta" if row.ended is None else "red")
    if row.ended is None:
        text.append(_spinner(now) + " ", style)
    text.append(escape(row.state), style)
    text.append(f" {row.trouble}" if row.trouble else "", "red")
    return text
