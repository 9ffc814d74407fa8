"""`luma-poll wait`: one generation or hundreds, from arguments, files and standard input."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Annotated

import anyio
import typer

from luma_poll._arguments import check_generation_id
from luma_poll._cli.bars import DownloadBars, fetch
from luma_poll._cli.exit_codes import COMPLETED, exit_code
from luma_poll._cli.hints import (
    FEW,
    command,
    counts,
    longer_timeout,
    options_given,
    unfinished,
)
from luma_poll._cli.ids import read_ids, read_ids_from_stdin
from luma_poll._cli.options import (
    DownloadOption,
    JsonOption,
    MaxRateOption,
    OutputOption,
    QuietOption,
    TimeoutOption,
    check_place,
    open_client,
)
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import Put, Result, writing
from luma_poll._cli.table import LiveTable
from luma_poll._cli.terminal import err, say_lines
from luma_poll._client.client import LumaClient
from luma_poll._polling.poll_result import PollResult
from luma_poll._polling.poller import Poller
from luma_poll._tasks.each import run_each
from luma_poll.errors import ConfigurationError, DownloadError, PollTimeoutError
from luma_poll.models import Generation


def wait(
    ctx: typer.Context,
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID...", help="Ids of generations; - reads them from stdin."),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Also read ids from a file; # begins a comment."),
    ] = None,
    timeout: TimeoutOption = 600.0,
    max_rate: MaxRateOption = 30.0,
    as_json: JsonOption = False,
    output: OutputOption = None,
    download: DownloadOption = None,
    quiet: QuietOption = False,
) -> None:
    """Wait for generations, and print the URLs of the outputs of each as it ends.

    With several ids, each URL follows its id and a tab. Failures go to standard error; with --json,
    they are in the object. Running the same command again costs nothing, and adds no result twice
    to the file of --output.

    Example: luma-poll wait --file ids.txt --download outputs
    """
    words, files = ids or [], file or []
    batch = Batch()
    begun = False

    async def wait_for_all(put: Put) -> None:
        nonlocal begun
        async with open_client() as client:
            begun = True
            await wait_for(
                batch,
                client,
                put,
                timeout=timeout,
                max_rate=max_rate,
                directory=download,
                quiet=quiet,
            )

    def hints() -> Iterator[str]:
        if not begun:
            return
        yield from batch.summary()
        if not batch.rest:
            return
        running = len(batch.rest) - len(batch.completed)
        left = unfinished(running, len(batch.completed))
        yield f"{left}. To {'wait' if running else 'fetch'} again, which costs nothing:"
        sources, changed = list(batch.rest), longer_timeout(ctx, batch.timed_out)
        if len(sources) > FEW and not batch.stdin:
            kept = output or (None if as_json else "results.jsonl")
            yield command("wait", *words, *options_given(ctx, output=kept, **changed))
        else:
            yield command("wait", *sources, *options_given(ctx, file=None, **changed))

    with orderly_exit(hints):
        batch = Batch(_read_ids(words, files), stdin="-" in (*words, *files))
        check_place(download)
        with writing(output, as_json=as_json, alone=batch.is_one) as put:
            anyio.run(wait_for_all, put)
        say_lines(hints() if batch.is_large or download is not None else ())
        raise typer.Exit(batch.code)


def _read_ids(words: Sequence[str], files: Sequence[str]) -> list[str]:
    ids = [check_generation_id(each) for each in words if each != "-"]
    for path in files:
        ids += [] if path == "-" else read_ids(path)
    if not ids and "-" not in (*words, *files):
        raise ConfigurationError("nothing to wait for: give ids, - or --file PATH")
    return ids


class Batch:
    """Generations to wait for, and their outcomes so far.

    Args:
        given: Generations, or their ids.
        stdin: True if more ids come from standard input.

    Attributes:
        generations: The generations to wait for, each once.
        rest: The ids of those that have not ended, timed out, or had a transient error.
        completed: Those of them that have completed, but are not downloaded.
        timed_out: True if one of them timed out.
        code: The exit code so far.
    """

    def __init__(self, given: Iterable[str | Generation] = (), *, stdin: bool = False) -> None:
        self.stdin = stdin
        self.generations: list[str | Generation] = []
        self.rest: dict[str, None] = {}
        self.completed: set[str] = set()
        self.timed_out = False
        self.code = COMPLETED
        self._seen: set[str] = set()
        self._outcomes = Counter[str]()
        for generation in given:
            self.add(generation)

    @property
    def is_one(self) -> bool:
        """True if there is one generation, and no more can come."""
        return len(self._seen) == 1 and not self.stdin

    @property
    def is_large(self) -> bool:
        """True if there are more than `FEW`."""
        return len(self._seen) > FEW

    def add(self, generation: str | Generation) -> bool:
        """Add a generation; return False if it was added before."""
        generation_id = _id_of(generation)
        if generation_id in self._seen:
            return False
        self._seen.add(generation_id)
        self.generations.append(generation)
        self.rest[generation_id] = None
        return True

    def end(self, result: Result) -> None:
        """Note the outcome of one generation."""
        self._outcomes["completed" if result.error is None else type(result.error).__name__] += 1
        self.code = max(self.code, exit_code(result.error))
        self.timed_out |= isinstance(result.error, PollTimeoutError)
        if not result.is_open:
            self.rest.pop(result.generation_id, None)  # the API may spell an id differently
        elif isinstance(result.error, DownloadError) and result.generation_id in self.rest:
            self.completed.add(result.generation_id)

    def summary(self) -> Iterator[str]:
        """Yield the outcomes of a large batch; those of a small one have all been printed."""
        if self.is_large:
            yield from counts(self._outcomes.most_common())
            if running := len(self._seen) - self._outcomes.total():
                yield from counts([("still running", running)])


def _id_of(generation: str | Generation) -> str:
    return generation if isinstance(generation, str) else generation.id


async def wait_for(
    batch: Batch,
    client: LumaClient,
    put: Put,
    *,
    timeout: float,
    max_rate: float = 30.0,
    directory: str | None = None,
    quiet: bool = False,
) -> None:
    """Wait for a batch, and `put` each result as it ends.

    Args:
        batch: The generations, which note their outcomes.
        client: The client for polls and downloads.
        put: A function that is called with each result, after its files were downloaded.
        timeout: Seconds for each wait.
        max_rate: Polls per second, for all together.
        directory: The directory for the outputs; None for no download.
        quiet: True to show no progress.
    """
    bars = DownloadBars(err)

    async def finish(polled: PollResult) -> Result:
        result = Result(polled.generation_id, polled.generation, polled.error)
        if directory is None or polled.generation is None or not polled.ok:
            return result
        table.set_state(polled.generation_id, "downloading")
        return await fetch(client, polled.generation, directory, bars)

    table = LiveTable.on(err, "generation", bars=bars, quiet=quiet)
    table.expect(len(batch.generations), more=batch.stdin)
    with table.shown():
        poller = Poller(client, timeout=timeout, max_rate=max_rate, on_poll=table.on_poll)
        async with (
            poller.as_completed(_taken(batch, table)) as polled,
            run_each(finish, polled, limit=None) as results,
        ):
            async for result in results:
                put(result)
                batch.end(result)
                table.end(result.generation_id, result.verdict, result.error)


async def _taken(batch: Batch, table: LiveTable) -> AsyncGenerator[str | Generation]:
    """Yield the generations as the poller takes them; those of stdin as they arrive."""
    for generation in tuple(batch.generations):
        _show(table, generation)
        yield generation
    if batch.stdin:
        async with aclosing(read_ids_from_stdin()) as ids:
            async for generation_id in ids:
                if batch.add(generation_id):
                    _show(table, generation_id)
                    yield generation_id
        table.expect(len(batch.generations))


def _show(table: LiveTable, generation: str | Generation) -> None:
    known = {} if isinstance(generation, str) else {"state": generation.state}
    table.add(_id_of(generation), _id_of(generation), **known)
