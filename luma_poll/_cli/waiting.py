"""What `luma-poll wait` was asked for, what has become of it, and how to go on."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from luma_poll._arguments import check_generation_id
from luma_poll._cli.ids import read_ids, read_ids_from_stdin
from luma_poll._cli.results import EarlierResults, is_done
from luma_poll._cli.table import LiveTable
from luma_poll._polling.batch import PollResult
from luma_poll._polling.poller import MAX_RATE, TIMEOUT
from luma_poll.errors import (
    BadRequestError,
    ConfigurationError,
    GenerationError,
    NotFoundError,
    PollTimeoutError,
    UnprocessableEntityError,
)
from luma_poll.models import Generation

FAILED, USAGE, TIMED_OUT, TROUBLE, INTERRUPTED, OUTPUT_CLOSED = 1, 2, 3, 4, 130, 141

FEW = 10
"""So many ids make a command line that somebody copies, and need no summary."""

HOPELESS = (BadRequestError, ConfigurationError, NotFoundError, UnprocessableEntityError)
"""After these the same id would bring the same again."""


def exit_code(error: Exception) -> int:
    """The exit code that stands for an error."""
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, PollTimeoutError):
        return TIMED_OUT
    return FAILED if isinstance(error, GenerationError) else TROUBLE


@dataclass
class Batch:
    """Generations that are waited for, and what has become of them.

    Attributes:
        generations: Those that are known from the start, each once.
        stdin: Whether more ids are on standard input.
        earlier: What an earlier run wrote. What it has done is skipped.
        pending: Those known and not ended, by id, in their order.
        again: Those that timed out, or met trouble that may pass.
        outcomes: How many ended how.
        skipped: How many were skipped.
        code: The exit code, so far.
    """

    generations: Sequence[str | Generation] = ()
    stdin: bool = False
    earlier: EarlierResults = field(default_factory=EarlierResults)
    pending: dict[str, None] = field(init=False, default_factory=dict)
    again: list[str] = field(init=False, default_factory=list)
    outcomes: Counter[str] = field(init=False, default_factory=Counter)
    skipped: int = field(init=False, default=0)
    code: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._seen: set[str] = set()
        self.generations = [each for each in self.generations if self._is_wanted(_id_of(each))]
        self.pending.update(dict.fromkeys(map(_id_of, self.generations)))

    @property
    def is_one(self) -> bool:
        """Whether it is one generation, and stays one."""
        return len(self._seen) == 1 and not self.stdin

    @property
    def is_large(self) -> bool:
        """Whether there are more than `FEW`."""
        return self.outcomes.total() + len(self.pending) > FEW

    async def take(self, table: LiveTable) -> AsyncGenerator[str | Generation]:
        """Give one after the other, those of standard input as they come."""
        table.expected, table.more = len(self.generations), self.stdin
        for generation in self.generations:
            known = {} if isinstance(generation, str) else {"state": generation.state}
            table.add(_id_of(generation), _id_of(generation), **known)
            yield generation
        if self.stdin:
            async with aclosing(read_ids_from_stdin()) as ids:
                async for generation_id in ids:
                    if self._is_wanted(generation_id):
                        self.pending[generation_id] = None
                        table.add(generation_id, generation_id)
                        yield generation_id
            table.more = False

    def end(self, result: PollResult) -> None:
        """Note what became of one."""
        self.pending.pop(result.generation_id, None)  # the API may spell its ids in another way
        error = result.error
        self.outcomes["completed" if error is None else type(error).__name__] += 1
        self.code = max(self.code, 0 if error is None else exit_code(error))
        if not is_done(error) and not isinstance(error, HOPELESS):
            self.again.append(result.generation_id)

    def summary(self) -> Iterator[str]:
        """What became of many, in lines; of few each one has been told."""
        if not self.is_large:
            return
        if self.skipped:
            yield f"{self.skipped:>7} done before"
        for outcome, count in self.outcomes.most_common():
            yield f"{count:>7} {outcome}"
        if self.pending:
            yield f"{len(self.pending):>7} still running"

    def _is_wanted(self, generation_id: str) -> bool:
        """Whether it has neither been named before nor ended in an earlier run."""
        if generation_id in self._seen:
            return False
        self._seen.add(generation_id)
        completed = self.earlier.done.get(generation_id)
        if completed is None:
            return True
        self.skipped += 1
        self.code = max(self.code, 0 if completed else FAILED)
        return False


def _id_of(generation: str | Generation) -> str:
    return generation if isinstance(generation, str) else generation.id


@dataclass(frozen=True)
class Source:
    """The arguments of `luma-poll wait` that say what to wait for and where results go."""

    arguments: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    as_json: bool = False
    output: str | None = None
    resume: str | None = None
    download: str | None = None
    limits: tuple[str, ...] = ()

    @property
    def has_stdin(self) -> bool:
        """Whether ids are on standard input."""
        return "-" in (*self.arguments, *self.files)

    def read_ids(self) -> list[str]:
        """The ids that are known from the start.

        Raises:
            ConfigurationError: There are none, or one is none.
        """
        ids = [check_generation_id(each) for each in self.arguments if each != "-"]
        for path in self.files:
            ids += [] if path == "-" else read_ids(path)
        if not ids and not self.has_stdin:
            raise ConfigurationError("there is nothing to wait for: give ids, - or --file PATH")
        return ids

    def after_interrupt(self, batch: Batch) -> list[str]:
        """What to say after Ctrl-C."""
        rest = [*batch.again, *batch.pending]
        if not rest:
            return []
        interrupted = _interrupted(len(batch.pending), len(batch.again))
        return [*batch.summary(), interrupted, *self._commands(rest)]

    def after_end(self, batch: Batch) -> list[str]:
        """What to say of many: what became of them, and how to wait again."""
        if not batch.again or not batch.is_large:
            return [*batch.summary()]
        return [
            *batch.summary(),
            f"To wait again for the {len(batch.again)} that may still end:",
            *self._commands(batch.again),
        ]

    def _commands(self, ids: list[str]) -> list[str]:
        can_be_named_again = (self.arguments or self.files) and not self.has_stdin
        if len(ids) <= FEW or not can_be_named_again:
            return [self.command(ids)]
        results = self.output or self.resume or "results.jsonl"
        output = self.output if self.as_json else results
        kept = replace(self, output=output, resume=self.resume or results)
        note = []
        if self.output is None and self.resume is None:
            note = [
                "  (results.jsonl has what this run printed)"
                if self.as_json
                else "  (which keeps its results, so that it can be resumed)"
            ]
        return [kept.command(self._sources()), *note]

    def command(self, words: list[str]) -> str:
        """A command to copy that waits for these, with the same options."""
        through_the_shell = self.as_json and self.output is None
        words = [*words, *self.limits, *option("download", self.download)]
        words += ["--json"] if through_the_shell else option("output", self.output)
        words += option("resume", self.resume)
        appended = through_the_shell and self.resume is not None
        into = f" >> {shlex.quote(str(self.resume))}" if appended else ""
        return f"  luma-poll wait {shlex.join(words)}{into}"

    def _sources(self) -> list[str]:
        few = len(self.arguments) <= FEW
        words = list(self.arguments) if few else ["ID..."]
        for path in self.files:
            words += ["--file", path]
        return words


def option(name: str, value: str | None) -> list[str]:
    """The words that give this value to the option of this name."""
    return [] if value is None else [f"--{name.replace('_', '-')}", value]


def _interrupted(running: int, again: int = 0) -> str:
    are = "1 is" if running == 1 else f"{running} are"
    said = [f"{are} still running"] * bool(running)
    said += [f"{again} timed out or met trouble"] * bool(again)
    return f"Interrupted; {', '.join(said)}. To wait on:"


def limits(timeout: float, max_rate: float = MAX_RATE) -> tuple[str, ...]:
    """The options that ask for these, where they are not the usual ones."""
    asked = {"--timeout": (timeout, TIMEOUT), "--max-rate": (max_rate, MAX_RATE)}
    return tuple(
        word
        for option, (value, usual) in asked.items()
        if value != usual
        for word in (option, str(value).removesuffix(".0"))
    )
