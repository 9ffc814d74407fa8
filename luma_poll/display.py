"""A live table of generations for a terminal: state, age, polls."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table

from luma_poll.poller import PollEvent

REFRESH = 0.1
"""Seconds between two drawings."""

STYLES = {"queued": "dim", "processing": "yellow", "completed": "green", "failed": "red"}


@dataclass
class Row:
    """One generation: what it is called, and where it stands."""

    labels: tuple[str, ...]
    started: float
    state: str = "submitted"
    polls: int = 0
    ended: float | None = None
    trouble: str = ""


@dataclass
class LiveTable:
    """The rows, by generation id. With a `None` live display nothing is drawn."""

    columns: tuple[str, ...]
    live: Live | None
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, generation_id: str, *labels: str) -> None:
        """Add a generation that is waited for from now on."""
        self.rows[generation_id] = Row(labels, anyio.current_time())

    def on_poll(self, event: PollEvent) -> None:
        """Take what a poll brought; give this to the poller."""
        row = self.rows[event.generation_id]
        row.polls = event.attempt
        row.trouble = "" if event.error is None else type(event.error).__name__
        if event.generation is not None:
            row.state = event.generation.state

    def end(self, generation_id: str, state: str | None = None) -> None:
        """Stop the clock of a generation."""
        row = self.rows[generation_id]
        row.state, row.ended = state or row.state, anyio.current_time()

    def print(self, text: str, console: Console) -> None:
        """Print a line above the table."""
        if self.live is not None:
            self.live.stop()
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        if self.live is not None:
            self.live.start(refresh=True)

    def draw(self) -> Table:
        """The table as it is now."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for column in (*self.columns, "state", "age", "polls"):
            table.add_column(column, justify="right" if column in ("age", "polls") else "left")
        now = anyio.current_time()
        for row in self.rows.values():
            style = STYLES.get(row.state, "magenta")
            state = Spinner("dots", f"[{style}]{escape(row.state)}[/] [red]{row.trouble}[/]")
            age = (row.ended or now) - row.started
            table.add_row(
                *map(escape, row.labels),
                state if row.ended is None else f"[{style}]{escape(row.state)}[/]",
                f"{age:.1f} s",
                str(row.polls),
            )
        return table


@asynccontextmanager
async def live_table(*columns: str, console: Console) -> AsyncGenerator[LiveTable]:
    """Show a live table until the block ends, if `console` is a terminal."""
    if not console.is_terminal:
        yield LiveTable(columns, None)
        return
    live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    table = LiveTable(columns, live)

    async def redraw() -> None:
        while True:
            live.update(table.draw(), refresh=True)
            await anyio.sleep(REFRESH)

    with live:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(redraw)
            try:
                yield table
            finally:
                tasks.cancel_scope.cancel()
                live.update(table.draw(), refresh=True)
