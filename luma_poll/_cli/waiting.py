"""Waiting for a batch of generations, with a live table, and downloading each as it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import InitVar, dataclass, field

import anyio

from luma_poll._cli.bars import DownloadBars
from luma_poll._cli.exit_codes import COMPLETED, FAILED, exit_code
from luma_poll._cli.fetching import fetch
from luma_poll._cli.ids import read_ids_from_stdin
from luma_poll._cli.results import EarlierResults, Put, Result
from luma_poll._cli.table import LiveTable, live_table
from luma_poll._cli.terminal import err
from luma_poll._client.client import LumaClient
from luma_poll._polling.poll_result import PollResult
from luma_poll._polling.poller import MAX_RATE, Poller
from luma_poll._tasks.each import run_each
from luma_poll.errors import (
    BadRequestError,
    ConfigurationError,
    NotFoundError,
    UnprocessableEntityError,
)
from luma_poll.models import Generation

FEW = 10
"""Up to so many ids fit into a command to copy, and need no summary."""

HOPELESS = (BadRequestError, ConfigurationError, NotFoundError, UnprocessableEntityError)
"""Errors that waiting again for the same id would meet again."""


@dataclass
class Batch:
    """Generations to wait for, and their outcomes so far.

    Args:
        given: Generations, or their ids.

    Attributes:
        generations: Those to wait for, each once.
        stdin: True if more ids are on standard input.
        earlier: The results of an earlier run; its completed and failed generations are skipped.
        pending: Those that have not ended, by id, in their order.
        again: Those that timed out, or met trouble that may pass.
        outcomes: How many ended in which way.
        skipped: How many were skipped.
        code: The exit code so far.
    """

    given: InitVar[Iterable[str | Generation]] = ()
    stdin: bool = False
    earlier: EarlierResults = field(default_factory=EarlierResults)
    generations: list[str | Generation] = field(init=False, default_factory=list)
    pending: dict[str, None] = field(init=False, default_factory=dict)
    again: list[str] = field(init=False, default_factory=list)
    outcomes: Counter[str] = field(init=False, default_factory=Counter)
    skipped: int = field(init=False, default=0)
    code: int = field(init=False, default=COMPLETED)

    def __post_init__(self, given: Iterable[str | Generation]) -> None:
        self._seen: set[str] = set()
        for generation in given:
            self.add(generation)

    @property
    def is_one(self) -> bool:
        """True if there is one generation, and no more can come."""
        return len(self._seen) == 1 and not self.stdin

    @property
    def is_large(self) -> bool:
        """True if there are more than `FEW`."""
        return self.outcomes.total() + len(self.pending) > FEW

    def add(self, generation: str | Generation) -> bool:
        """Add a generation; False if it was added before, or is skipped."""
        generation_id = _id_of(generation)
        if generation_id in self._seen:
            return False
        self._seen.add(generation_id)
        completed = self.earlier.done.get(generation_id)
        if completed is not None:
            self.skipped += 1
            self.code = max(self.code, COMPLETED if completed else FAILED)
            return False
        self.generations.append(generation)
        self.pending[generation_id] = None
        return True

    def end(self, result: Result) -> None:
        """Note the outcome of one."""
        self.pending.pop(result.generation_id, None)  # the API may spell its ids in another way
        error = result.error
        self.outcomes["completed" if error is None else type(error).__name__] += 1
        self.code = max(self.code, exit_code(error))
        if not result.is_final and not isinstance(error, HOPELESS):
            self.again.append(result.generation_id)

    def summary(self) -> Iterator[str]:
        """The outcomes of a large batch, in lines; a small one's have all been printed."""
        if not self.is_large:
            return
        if self.skipped:
            yield f"{self.skipped:>7} done before"
        for outcome, count in self.outcomes.most_common():
            yield f"{count:>7} {outcome}"
        if self.pending:
            yield f"{len(self.pending):>7} still running"


def _id_of(generation: str | Generation) -> str:
    return generation if isinstance(generation, str) else generation.id


async def wait_for(
    batch: Batch,
    client: LumaClient,
    put: Put,
    *,
    timeout: float,
    max_rate: float = MAX_RATE,
    directory: str | None = None,
) -> None:
    """Wait for a batch, and `put` each result as it ends.

    Args:
        batch: The generations; takes note of their outcomes.
        client: The client to poll and download with.
        put: Called with each result, after its files were downloaded.
        timeout: Seconds for the wait for each.
        max_rate: Requests per second, for all together.
        directory: Where to download the outputs; None for no download.
    """
    bars = DownloadBars(err)

    async def finish(polled: PollResult) -> Result:
        result = Result(polled.generation_id, polled.generation, polled.error)
        if directory is None or polled.generation is None or not polled.ok:
            return result
        table.set_state(polled.generation_id, "downloading")
        return await fetch(client, polled.generation, directory, bars)

    with live_table("generation", console=err, bars=bars) as table:
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
    """The generations one by one, as the poller takes them; those of stdin as they arrive."""
    table.expect(len(batch.generations), more=batch.stdin)
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


async def watch(
    client: LumaClient,
    generation_id: str,
    put: Callable[[Generation, float], None],
    *,
    timeout: float,
) -> None:
    """`put` each change of a generation's state, with the seconds since the beginning.

    Raises:
        GenerationError: It failed.
    """
    started = anyio.current_time()
    async for generation in Poller(client).watch(generation_id, timeout=timeout):
        put(generation, anyio.current_time() - started)
        generation.raise_for_failure()
