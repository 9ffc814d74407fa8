"""A live table of generations for a terminal; without one, a line now and then."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Self

from rich.console import Console, Group, OverflowMethod, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from luma_poll._cli.bars import DownloadBars
from luma_poll._cli.hints import plural
from luma_poll._cli.results import Result, label_of
from luma_poll._cli.terminal import can_print, escape, is_terminal, say
from luma_poll.events import (
    Event,
    PollEnded,
    PollEvent,
    RunBegan,
    RunEvent,
    RunFailed,
    RunFound,
    RunRefused,
    RunStateChanged,
    RunSubmitted,
    RunSubmitting,
    RunUnreachable,
)

DRAWINGS_PER_SECOND = 5
LAST_FAILURES = 5
"""The most failures that the summary lists."""
RATE_OVER = 10.0
"""Seconds over which the polls per second are averaged."""
SAYS_EVERY = 60.0
"""Seconds between the lines without a terminal."""
NARROW = 60
"""Columns below which a terminal has no room for any number but the age."""
SPINNER, ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "-\\|/"

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
    """One generation, or one request: its labels and its state.

    Attributes:
        labels: The texts of the first columns.
        state: The last known state.
        started: When the wait began, or the latest attempt was accepted, in seconds of
            `time.monotonic`; None before that.
        counts: The counts below the table's headings for numbers.
        ended: When the wait ended; None while it lasts.
        trouble: The error of the last poll; empty if it had none.
    """

    labels: tuple[str, ...]
    state: str
    started: float | None
    counts: Counter[str] = field(default_factory=Counter)
    ended: float | None = None
    trouble: str = ""


@dataclass(eq=False)
class LiveTable:
    """The rows of generations by id, drawn on a terminal, or summed up in lines without one.

    The numbers of the summary are counted as events come, so that drawing it costs the same for any
    number of generations.

    Attributes:
        columns: The headings of the labels.
        console: The terminal to draw on; None for no drawing.
        bars: The bars of downloads, drawn below the table.
        speaks: True to print the progress at the beginning, each minute and at the end.
    """

    numbers: ClassVar[tuple[str, ...]] = ("waited", "polls")
    """The headings of the numbers in a row: a duration, then counts."""

    columns: tuple[str, ...]
    console: Console | None = None
    bars: DownloadBars | None = None
    speaks: bool = False

    def __post_init__(self) -> None:
        is_plain = self.console is not None and not can_print(self.console, SPINNER + "…")
        self._spinner = ASCII_SPINNER if is_plain else SPINNER
        self._overflow: OverflowMethod = "crop" if is_plain else "ellipsis"
        self._rows: dict[str, Row] = {}
        self._expected, self._more = 0, False
        self._states, self._troubles = Counter[str](), Counter[str]()
        self._counts = Counter[str]()  # of all rows
        self._failures = deque[tuple[str, str]](maxlen=LAST_FAILURES)
        self._ended = self._rows_ended = 0
        self._started = time.monotonic()
        self._samples = deque([(self._started, 0)])

    @classmethod
    def on(
        cls,
        console: Console,
        *columns: str,
        bars: DownloadBars | None = None,
        quiet: bool = False,
    ) -> Self:
        """Return a table, drawn if `console` is a terminal, else lines; nothing if `quiet`."""
        drawn = is_terminal(console)
        return cls(
            columns,
            console if drawn and not quiet else None,
            bars,
            speaks=not drawn and not quiet,
        )

    def expect(self, total: int, *, more: bool = False) -> None:
        """Set how many generations will come in all; `more` if there may be more than that."""
        self._expected, self._more = total, more

    def add(self, generation_id: str, *labels: str, state: str = "asking") -> None:
        """Add a generation whose wait begins now."""
        self._rows[generation_id] = Row(labels, state, time.monotonic())
        self._states[state] += 1

    def on_poll(self, event: PollEvent) -> None:
        """Show the outcome of a poll; pass this to the poller."""
        self._counts["polls"] += 1
        row = self._rows[event.generation_id]
        row.counts["polls"] = event.attempt
        state = row.state if event.generation is None else event.generation.state
        self._change(row, state, "" if event.error is None else type(event.error).__name__)

    def set_state(self, generation_id: str, state: str) -> None:
        """Show the state of a generation that is no longer polled."""
        self._change(self._rows[generation_id], state, "")

    def end(
        self, name: str, state: str, error: Exception | None = None, label: str | None = None
    ) -> None:
        """Show the end of a generation, and stop its clock.

        Args:
            name: The id, or the name of the row.
            state: The state to show.
            error: The reason why it did not complete, or None.
            label: A name for the summary, if `name` does not suit.
        """
        self._ended += 1
        row = self._rows.get(name)
        if row is not None:  # the API may spell an id differently, or it was not begun
            self._change(row, state, "")
            row.ended = time.monotonic()
            self._rows_ended += 1
        if error is not None:
            self._failures.append((label or name, type(error).__name__))

    def _change(self, row: Row, state: str, trouble: str) -> None:
        self._states[row.state] -= 1
        self._states[state] += 1
        self._troubles[row.trouble] -= 1  # "" as well, whose count is never used
        self._troubles[trouble] += 1
        row.state, row.trouble = state, trouble

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the table at the bottom of the terminal during the block, and leave it there."""
        self._started = time.monotonic()
        if self.console is None:
            with self._speaking():
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
        if self._rows and self._fits(self.console.height):
            self.console.print(self.draw(width=self.console.width))

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Print the progress at the beginning, each minute and at the end of the block."""
        if not self.speaks:
            yield
            return
        ended = threading.Event()

        def speak() -> None:
            while not ended.wait(SAYS_EVERY):
                say(self.status())

        say(self.status())
        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        try:
            yield
        finally:
            ended.set()
            speaker.join()
            say(self.status())

    def status(self) -> str:
        """Return the progress in one line."""
        now, total = time.monotonic(), max(self._expected, len(self._rows))
        said = ", ".join(f"{count} {state}" for state, count in self._counted(total))
        through = ", ".join(f"{count} {kind}" for kind, count in self._trouble_now())
        return (
            f"{_minutes(now - self._started)}  {self._ended} of {total}{'+' * self._more} done"
            f"{f': {said}' if said else ''}{f'; polling through: {through}' if through else ''}"
        )

    def _counted(self, total: int) -> list[tuple[str, int]]:
        """Return how many are in each state, in the order in which states follow each other."""
        # Copies: the originals change while another thread draws.
        states = Counter(waiting=total - len(self._rows)) + self._states.copy()
        order = dict.fromkeys((*STYLES, *states))
        return [(state, states[state]) for state in order if states[state] > 0]

    def _trouble_now(self) -> list[tuple[str, int]]:
        return [(kind, count) for kind, count in self._troubles.copy().items() if kind and count]

    def draw(self, height: int | None = None, width: int = 80) -> RenderableType:
        """Return the table as it is now, or a summary if it is longer than `height` lines."""
        if height is None or self._fits(height):
            return self._draw(list(self._rows.values()), width)
        return self._draw_summary(height)

    def _fits(self, height: int) -> bool:
        return max(len(self._rows), self._expected) < height

    def _draw_what_fits(self) -> RenderableType:
        assert self.console is not None
        height, width = self.console.height - 1, self.console.width
        if self.bars is None or not self.bars.height:
            return self.draw(height, width)
        return Group(self.draw(height - self.bars.height, width), self.bars.progress)

    def _draw_summary(self, height: int) -> Table:
        now = time.monotonic()
        total = max(self._expected, len(self._rows))
        lines = [
            self._draw_counts(total, now),
            Text(f"{self._rate(now):.1f} polls/s, {_minutes(now - self._started)}", "dim"),
        ]
        if troubles := self._trouble_now():
            said = ", ".join(f"{count} {kind}" for kind, count in troubles)
            lines.append(Text(f"polling through: {said}", "yellow"))
        lines += self._footer()
        failures = [
            Text.assemble((f"{kind} ", "red"), escape(generation_id))
            for generation_id, kind in self._failures.copy()
        ]
        room = max(0, height - 1 - len(lines))
        lines += failures[max(0, len(failures) - room) :] if room else []
        grid = Table.grid()
        grid.add_column(no_wrap=True, overflow=self._overflow)
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

    def _draw_counts(self, total: int, now: float) -> Text:
        text = Text(self._spin(now), "yellow")
        for number, (state, count) in enumerate(self._counted(total)):
            text.append(", " if number else "")
            text.append(f"{count} {escape(state)}", STYLES.get(state, "magenta"))
        return text

    def _line(self, text: str, style: str = "") -> Text:
        """Return a text that is shortened if it does not fit, never wrapped."""
        return Text(escape(text), style, no_wrap=True, overflow=self._overflow)

    def _spin(self, now: float) -> str:
        return self._spinner[int(now * DRAWINGS_PER_SECOND) % len(self._spinner)] + " "

    def _footer(self) -> list[Text]:
        """Return the lines below the rows, or in the summary."""
        return []

    def _rate(self, now: float) -> float:
        """Return the polls per second over the last `RATE_OVER` seconds."""
        polls = self._counts["polls"]
        self._samples.append((now, polls))
        while self._samples[1][0] < now - RATE_OVER:
            self._samples.popleft()
        since, before = self._samples[0]
        return (polls - before) / max(0.1, now - since)

    def _draw(self, rows: list[Row], width: int) -> RenderableType:
        numbers = self.numbers if width >= NARROW else self.numbers[:1]
        table = Table(box=None, padding=(0, 2 if width >= NARROW else 1, 0, 0), header_style="bold")
        for column in self.columns:  # shortened first if there is little room
            table.add_column(self._line(column), min_width=8)
        table.add_column("state", no_wrap=True, overflow=self._overflow)
        for column in numbers:
            table.add_column(column, justify="right", no_wrap=True)
        now = time.monotonic()
        for row in rows:
            shown = self._numbers_of(row, now, digits=int(width >= NARROW))
            labels = map(self._line, row.labels)
            table.add_row(*labels, self._draw_state(row, now), *shown[: len(numbers)])
        return Group(table, *self._footer())

    def _draw_state(self, row: Row, now: float) -> Text:
        text = self._line("")
        style = STYLES.get(row.state, "magenta" if row.ended is None else "red")
        if row.ended is None:
            text.append(self._spin(now), style)
        text.append(escape(row.state), style)
        text.append(f" {row.trouble}" if row.trouble else "", "red")
        return text

    def _numbers_of(self, row: Row, now: float, digits: int) -> tuple[str, ...]:
        ended = now if row.ended is None else row.ended
        age = "" if row.started is None else f"{ended - row.started:.{digits}f} s"
        return age, *(str(row.counts[what]) for what in self.numbers[1:])


class RunTable(LiveTable):
    """The rows of requests, by the `id()` of each."""

    numbers: ClassVar[tuple[str, ...]] = ("age", "attempts", "refusals")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._by_id: dict[str, Row] = {}

    def on_event(self, event: Event) -> None:
        """Show an event of a run, or the outcome of a poll."""
        if isinstance(event, PollEnded):
            self._counts["polls"] += 1
            if (row := self._by_id.get(event.wait.generation_id)) is not None:
                is_error = isinstance(event.answer, Exception)
                self._change(row, row.state, type(event.answer).__name__ if is_error else "")
        elif isinstance(event, RunBegan):
            assert not isinstance(event.run.request, str)
            self._rows[name_of(event.run.request)] = Row(
                (label_of(event.run.request),), "waiting", None
            )
            self._states["waiting"] += 1
        elif isinstance(event, RunEvent):
            self._show_step(self._rows[name_of(event.run.request)], event)

    def _show_step(self, row: Row, event: RunEvent) -> None:
        match event:
            case RunRefused() | RunUnreachable() | RunFailed():
                # A refusal is counted, and no trouble: most come only because the account is full.
                is_refusal = isinstance(event, RunRefused)
                if is_refusal:
                    self._count(row, "refusals")
                self._change(row, "waiting", "" if is_refusal else type(event.error).__name__)
            case RunSubmitting():
                self._change(row, "submitting", "")
            case RunFound():  # an earlier process submitted it
                self._begin(row, event.generation_id, "asking")
            case RunSubmitted():
                self._count(row, "attempts")
                self._begin(row, event.generation.id, event.generation.state)
            case RunStateChanged():
                self._change(row, event.state, row.trouble)

    def finish(self, result: Result) -> None:
        """Show the result of a run, and stop its clock."""
        self.end(name_of(result.request), result.verdict, result.error, result.label)

    def _count(self, row: Row, what: str) -> None:
        row.counts[what] += 1
        self._counts[what] += 1

    def _begin(self, row: Row, generation_id: str, state: str) -> None:
        row.started = time.monotonic()
        self._by_id[generation_id] = row
        self._change(row, state, "")

    def _footer(self) -> list[Text]:
        states = self._states.copy()  # the original changes while another thread draws
        begun = states["waiting"] + states["submitting"]
        running = len(self._rows) - begun - self._rows_ended
        waiting = self._expected - self._ended - running
        total = (
            f"{self._ended} done, {running} running, {waiting} waiting; "
            f"{plural(self._counts['attempts'], 'submission')}, "
            f"{plural(self._counts['refusals'], 'refusal')}"
        )
        return [self._line(total, "dim")]


def name_of(request: object) -> str:
    """Return the name of the row of a request: two that are alike are two rows."""
    return str(id(request))


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
