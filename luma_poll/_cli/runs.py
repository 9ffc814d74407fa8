"""The runs of `luma-poll run`: how far each has come, and what is left after an interruption."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.console import Console, Group, RenderableType
from rich.text import Text

from luma_poll._cli.bars import DownloadBars
from luma_poll._cli.exit_codes import COMPLETED, exit_code
from luma_poll._cli.prompts import Line, ranges
from luma_poll._cli.results import Result, label_of
from luma_poll._cli.table import LiveTable, Row, seconds_since
from luma_poll._cli.waiting import FEW
from luma_poll.errors import SubmissionUnknownError
from luma_poll.events import (
    Event,
    PollEvent,
    RunBegan,
    RunEvent,
    RunFailed,
    RunFound,
    RunRefused,
    RunSubmitted,
    RunSubmitting,
    RunUnreachable,
)


@dataclass
class RunRow(Row):
    """One request.

    Attributes:
        attempts: How often it was submitted.
        refusals: How often the account was full.
        submitted: When its latest attempt was accepted, in seconds of `time.monotonic`.
    """

    attempts: int = 0
    refusals: int = 0
    submitted: float | None = None


class RunTable(LiveTable):
    """The rows of requests; a request is known by its identity."""

    numbers: ClassVar[tuple[str, ...]] = ("age", "attempts", "refusals")

    def __init__(
        self,
        columns: tuple[str, ...],
        console: Console | None = None,
        bars: DownloadBars | None = None,
    ) -> None:
        super().__init__(columns, console, bars)
        self._runs: dict[int, RunRow] = {}
        self._by_id: dict[str, RunRow] = {}
        self._counts = Counter[str]()
        self._rows_ended = 0

    def on_run(self, event: Event) -> None:
        """Show a step of a run."""
        if not isinstance(event, RunEvent):
            return
        request = event.run.request
        assert not isinstance(request, str)
        if isinstance(event, RunBegan):
            row = RunRow((label_of(request),), "waiting", 0.0)
            self._runs[id(request)] = self._rows[str(event.run.number)] = row
            self._states["waiting"] += 1
            return
        row = self._runs[id(request)]
        if isinstance(event, RunRefused | RunUnreachable | RunFailed):
            is_refusal = isinstance(event, RunRefused)
            row.refusals += is_refusal
            self._counts["refusals"] += is_refusal
            self._change(row, "waiting", type(event.error).__name__)
        elif isinstance(event, RunSubmitting):
            self._change(row, "submitting", "")
        elif isinstance(event, RunFound) and event.running:
            row.submitted = time.monotonic()
            self._by_id[event.generation_id] = row
            self._change(row, "queued", "")
        elif isinstance(event, RunSubmitted):
            row.attempts += 1
            row.submitted = time.monotonic()
            self._counts["submissions"] += 1
            self._by_id[event.generation.id] = row
            self._change(row, event.generation.state, "")

    def on_poll(self, event: PollEvent) -> None:
        """Show the outcome of a poll."""
        self._polls += 1
        row = self._by_id.get(event.generation_id)
        if row is not None:
            self._show_poll(row, event)

    def download(self, request: object) -> None:
        """Show that the files of a run are being downloaded."""
        self._change(self._runs[id(request)], "downloading", "")

    def finish(self, result: Result) -> None:
        """Show the result of a run, and stop its clock."""
        row = self._runs.get(id(result.request))
        self._ended += 1
        if row is not None:  # not sent, after a refusal that ends all
            self._change(row, result.verdict, "")
            row.ended = time.monotonic()
            self._rows_ended += 1
        if result.error is not None:
            self._failures.append((result.label, type(result.error).__name__))

    def _draw(self, rows: list[Row]) -> RenderableType:
        states = self._states.copy()  # the original changes while another thread draws
        begun = states["waiting"] + states["submitting"]
        running = len(self._rows) - begun - self._rows_ended
        waiting = self._expected - self._ended - running
        total = (
            f"{self._ended} done, {running} running, {waiting} waiting; "
            f"{self._counts['submissions']} submissions, {self._counts['refusals']} refusals"
        )
        return Group(super()._draw(rows), Text(total, "dim", no_wrap=True, overflow="ellipsis"))

    def _numbers_of(self, row: Row, now: float) -> tuple[str, ...]:
        assert isinstance(row, RunRow)
        age = "" if row.submitted is None else seconds_since(row.submitted, row, now)
        return age, str(row.attempts), str(row.refusals)


@dataclass
class Runs:
    """The requests of one command, and what has become of them.

    Attributes:
        lines: All of them.
        path: Their file; `-` is standard input.
        options: The command's options, for the command that runs the rest.
        journal: The path of the journal, if there is one.
        sent: The requests, by identity, whose submission was begun, with the ids of its attempts.
        ended: The requests, by identity, that have their results.
        outcomes: How many ended in which way.
        unknown: The keys of those that may have been submitted.
        code: The exit code so far.
    """

    lines: Sequence[Line] = ()
    path: str = "-"
    options: Sequence[str] = ()
    journal: str | None = None
    sent: dict[int, list[str]] = field(init=False, default_factory=dict)
    ended: set[int] = field(init=False, default_factory=set)
    outcomes: Counter[str] = field(init=False, default_factory=Counter)
    unknown: list[str] = field(init=False, default_factory=list)
    code: int = field(init=False, default=COMPLETED)

    def on_run(self, event: Event) -> None:
        """Note a step of a run."""
        if not isinstance(event, RunEvent):
            return
        key = id(event.run.request)
        if isinstance(event, RunSubmitting):
            self.sent.setdefault(key, [])
        elif isinstance(event, RunRefused | RunUnreachable) and not self.sent.get(key):
            self.sent.pop(key, None)  # it was certainly not accepted
        elif isinstance(event, RunSubmitted):
            self.sent.setdefault(key, []).append(event.generation.id)

    def end(self, result: Result) -> None:
        """Note a result."""
        self.ended.add(id(result.request))
        error = result.error
        self.outcomes["completed" if error is None else type(error).__name__] += 1
        self.code = max(self.code, exit_code(error))
        if isinstance(error, SubmissionUnknownError):
            self.unknown.append(error.key)

    def after_end(self) -> Iterator[str]:
        """The lines to print at the end."""
        if len(self.lines) > FEW:
            for outcome, count in self.outcomes.most_common():
                yield f"{count:>7} {outcome}"
        if self.unknown:
            yield "To settle what may have been submitted:"
            words = ["luma-poll", "journal", str(self.journal), "--state", "unknown"]
            yield f"  {shlex.join(words)}"

    def after_interrupt(self) -> Iterator[str]:
        """The lines to print after Ctrl-C."""
        left = [line for line in self.lines if id(line.request) not in self.ended]
        if not left:
            return
        running = [ids[-1] for line in left if (ids := self.sent.get(id(line.request)))]
        lost = [line for line in left if self.sent.get(id(line.request)) == []]
        unsent = [line for line in left if id(line.request) not in self.sent]
        yield from self.after_end()
        yield _interrupted(len(running), len(unsent))
        yield from self._lost(lost)
        if self.journal is not None:
            yield "The same command continues where this one stopped; nothing is submitted twice."
            return
        if running:
            yield "To wait for those that run:"
            yield f"  luma-poll wait {shlex.join(running)}"
        yield from self._rest([line.number for line in unsent])

    def _lost(self, lines: Sequence[Line]) -> Iterator[str]:
        if lines:
            yield (
                f"{_lines([line.number for line in lines])} of {self._name}: it is not known "
                "whether the API accepted it; it may be billed. Check the account's usage before "
                "you submit it again."
            )

    def _rest(self, numbers: Sequence[int]) -> Iterator[str]:
        if not numbers:
            return
        if self.path == "-":
            yield f"Not submitted: {_lines(numbers)} of standard input."
            return
        chosen = ";".join(f"{a}p" if a == b else f"{a},{b}p" for a, b in ranges(numbers))
        yield "To run those that were not submitted:"
        read = shlex.join(["sed", "-n", chosen, self.path])
        yield f"  {read} | luma-poll run {shlex.join(['-', *self.options])}"

    @property
    def _name(self) -> str:
        return "standard input" if self.path == "-" else self.path


def _interrupted(running: int, unsent: int) -> str:
    said = [f"{running} {'runs' if running == 1 else 'run'} on and will be billed"] * bool(running)
    said += [f"{unsent} {'was' if unsent == 1 else 'were'} not submitted"] * bool(unsent)
    return f"Interrupted{'; ' if said else ''}{', '.join(said)}."


def _lines(numbers: Iterable[int]) -> str:
    found = [str(a) if a == b else f"{a} to {b}" for a, b in ranges(list(numbers))]
    word = "Line" if len(found) == 1 and " to " not in found[0] else "Lines"
    return f"{word} {', '.join(found)}"
