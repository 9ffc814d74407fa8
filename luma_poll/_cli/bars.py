"""Downloads with progress bars, one for each file under way."""

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

from luma_poll._cli.results import Result
from luma_poll._cli.terminal import escape, is_terminal
from luma_poll._client.client import LumaClient
from luma_poll._downloads.output import DownloadProgress
from luma_poll._downloads.saving import Overwrite
from luma_poll.errors import ConfigurationError
from luma_poll.models import Generation


class DownloadBars:
    """The progress bars of the files under way.

    Attributes:
        progress: The bars, as Rich draws them.
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
        """Show the progress of one file; pass this to `LumaClient.download`."""
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
    """Yield the bars, shown until the block ends if `console` is a terminal."""
    bars = DownloadBars(console)
    with bars.progress if is_terminal(console) else nullcontext():
        yield bars


async def fetch(
    client: LumaClient,
    generation: Generation | str,
    directory: str,
    bars: DownloadBars,
    *,
    overwrite: Overwrite = "number",
    name: str | None = None,
    key: str | None = None,
) -> Result:
    """Download the files of one generation, under this name, its key or its id.

    By default an output is saved beside a different file of that name: it has been paid for.

    Returns:
        The result; an error is part of it.
    """
    generation_id = generation if isinstance(generation, str) else generation.id
    snapshot = generation if isinstance(generation, Generation) else None
    try:
        if snapshot is None:
            snapshot = await client.generations.get(generation_id)
        if not snapshot.is_terminal:
            raise ConfigurationError(
                f"generation {generation_id} is {snapshot.state!r} and has no files yet"
            )
        paths = await client.download(
            snapshot,
            directory,
            name=name,
            key=key,
            overwrite=overwrite,
            on_progress=bars.on_progress,
        )
    except Exception as error:
        return Result(generation_id, snapshot, error, [])
    finally:
        bars.forget(generation_id)
    return Result(generation_id, snapshot, paths=paths)
