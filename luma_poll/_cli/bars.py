"""Progress bars of downloads, one for each file under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

from luma_poll._cli.escaping import escape
from luma_poll._downloads.output import DownloadProgress


class DownloadBars:
    """The bars of files under way.

    Attributes:
        progress: The bars as Rich draws them.
    """

    def __init__(self, console: Console) -> None:
        one_line = Column(no_wrap=True, ratio=1)
        name = TextColumn("{task.description}", markup=False, table_column=one_line)
        self.progress = Progress(
            name,
            BarColumn(bar_width=20),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=5,
        )
        self._tasks: dict[tuple[str, int], TaskID] = {}

    @property
    def height(self) -> int:
        """The number of bars, each one line."""
        return len(self._tasks)

    def on_progress(self, event: DownloadProgress) -> None:
        """Show how far one file is; pass this to `LumaClient.download`."""
        key = event.generation_id, event.index
        if key not in self._tasks:
            number = f" {event.index + 1}/{event.count}" if event.count > 1 else ""
            self._tasks[key] = self.progress.add_task(escape(event.generation_id) + number)
        task = self._tasks[key]
        self.progress.update(task, completed=event.received, total=event.total)
        if event.done:
            self._forget(key)

    def forget(self, generation_id: str) -> None:
        """Remove the bars of a generation whose download has ended."""
        for key in [key for key in self._tasks if key[0] == generation_id]:
            self._forget(key)

    def _forget(self, key: tuple[str, int]) -> None:
        self.progress.remove_task(self._tasks.pop(key))


@contextmanager
def download_bars(console: Console) -> Iterator[DownloadBars]:
    """Bars, shown until the block ends if `console` is a terminal."""
    bars = DownloadBars(console)
    with bars.progress if is_terminal(console) else nullcontext():
        yield bars


def is_terminal(console: Console) -> bool:
    """True if something can be drawn and drawn again.

    Not `Console.is_terminal`: FORCE_COLOR makes every file a terminal.
    """
    return console.file.isatty() and not console.is_dumb_terminal
