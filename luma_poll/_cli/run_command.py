"""`luma-poll run`: prompts in, files out, as fast as the account allows."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any

import anyio
import typer

from luma_poll._cli.bars import DownloadBars, fetch
from luma_poll._cli.exit_codes import COMPLETED, INTERRUPTED, exit_code
from luma_poll._cli.hints import (
    FEW,
    as_option,
    command,
    counts,
    in_words,
    longer_timeout,
    options_given,
    plural,
    unfinished,
    were,
)
from luma_poll._cli.options import (
    AspectRatioOption,
    DownloadOption,
    JsonOption,
    MaxRateOption,
    ModelOption,
    NameOption,
    OutputOption,
    ParamOption,
    QuietOption,
    TimeoutOption,
    TypeOption,
    check_place,
    open_client,
    read_params,
)
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.prompts import Line, Prompts, in_full, in_short, read_prompts
from luma_poll._cli.results import Put, Result, writing
from luma_poll._cli.table import RunTable, name_of
from luma_poll._cli.terminal import err, is_terminal, put_line, say, say_lines
from luma_poll._client.client import LumaClient
from luma_poll._journal.entry import JournalEntry
from luma_poll._journal.journal import Journal
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.poller import Poller
from luma_poll._running.request_files import Overview, RequestFormat
from luma_poll._running.run_result import RunResult
from luma_poll._running.runner import REQUEST_COST, Runner
from luma_poll._tasks.each import run_each
from luma_poll.errors import DownloadError, PollTimeoutError, SubmissionUnknownError
from luma_poll.events import (
    Event,
    RunEvent,
    RunFound,
    RunRefused,
    RunSubmitted,
    RunSubmitting,
    RunUnreachable,
)

MANY = 20
"""The most prompts that are submitted from a terminal without a question."""


def run(
    ctx: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|PROMPT...",
            help="A file of prompts or parameters (.txt, .jsonl, .json, .csv, .tsv), - for "
            "standard input, or prompts in quotes.",
        ),
    ],
    model: ModelOption = None,
    kind: TypeOption = None,
    aspect_ratio: AspectRatioOption = None,
    param: ParamOption = None,
    form: Annotated[
        RequestFormat | None,
        typer.Option("--format", help="The format of the file, if its name does not tell."),
    ] = None,
    lines: Annotated[
        str | None, typer.Option(metavar="3-7,9,12-", help="Only these lines of the file.")
    ] = None,
    download: DownloadOption = None,
    name: NameOption = None,
    max_running: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Generations at once (default: all that fit)."),
    ] = None,
    max_attempts: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Submissions per prompt, if failures are retryable."),
    ] = 1,
    max_submissions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The most submissions in all.")
    ] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Record the submissions; the same command continues the run."
        ),
    ] = None,
    timeout: TimeoutOption = 600.0,
    max_rate: MaxRateOption = 30.0,
    as_json: JsonOption = False,
    output: OutputOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help=f"Do not ask before more than {MANY} submissions.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and submit nothing.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Submit prompts as fast as the account allows, wait, and print the URLs of the outputs.

    Each generation is billed. Nothing is submitted twice, unless --max-attempts allows it.

    Example: luma-poll run prompts.txt --download outputs --journal runs.db
    """
    runs = Runs(ctx)

    async def run_all(prompts: Prompts, kept: Journal | None, put: Put) -> None:
        nonlocal runs
        bars = DownloadBars(err)
        table = RunTable.on(err, "prompt", bars=bars, quiet=quiet)
        async with open_client() as client:
            runs = Runs(ctx, prompts)
            poller = Poller(
                client,
                wait=AdaptiveWait(request_cost=REQUEST_COST),
                timeout=timeout,
                max_rate=max_rate,
            )
            runner = Runner(
                client,
                poller,
                max_running=max_running,
                max_attempts=max_attempts,
                max_submissions=max_submissions,
                journal=kept,
            )
            runner.observe(runs.on_run)
            runner.observe(table.on_event)
            await run_prompts(runs, client, runner, table, bars, put, directory=download, name=name)

    with orderly_exit(lambda: runs.after_interrupt()):
        usual = {"model": model, "type": kind, "aspect_ratio": aspect_ratio}
        prompts = read_prompts(sources, read_params(usual, param), form).of(lines)
        found = prompts.overview()
        if dry_run:
            _put_overview(found, journal)
            return
        keys = [line.request.get("key") for line in prompts.lines]
        check_place(download, name, keys)
        with (
            nullcontext() if journal is None else Journal(journal) as kept,
            writing(output, as_json=as_json, alone=False) as put,
        ):
            if kept is not None and kept.entries() and not _known(found, kept):
                say(
                    f"warning: the journal {journal} has entries, but none for these: all are "
                    "submitted, and billed. Changed parameters make a new request."
                )
                kept._store.are_strangers_said = True  # said here, before the question
            if not yes:
                _ask(found)
            anyio.run(run_all, prompts, kept, put)
        say_lines(runs.after_end())
        raise typer.Exit(runs.code)


def _ask(found: Overview) -> None:
    """Ask a person before many submissions; a script is never asked."""
    if found.count <= MANY or not (
        is_terminal(err) and sys.stdin is not None and sys.stdin.isatty()
    ):
        return
    if not typer.confirm(f"{in_short(found)}: submit?", err=True):
        say("Nothing was submitted.")
        raise typer.Exit(INTERRUPTED)


def _put_overview(found: Overview, journal: str | None) -> None:
    known = []
    if journal is not None and os.path.exists(journal):
        with Journal(journal) as kept:
            known = _known(found, kept)
    for line in in_full(found, known):
        put_line(line)


def _known(found: Overview, journal: Journal) -> list[JournalEntry]:
    """Return the entries that the journal has for these requests."""
    entries = {entry.key: entry for entry in journal.entries()}
    return [entries[key] for key in found.keys if key in entries]


async def run_prompts(
    runs: Runs,
    client: LumaClient,
    runner: Runner,
    table: RunTable,
    bars: DownloadBars,
    put: Put,
    *,
    directory: str | None,
    name: str | None,
) -> None:
    """Run requests, and `put` each result as it ends.

    Args:
        runs: The requests, which note their outcomes.
        client: The client for the downloads.
        runner: The Runner that submits and waits.
        table: The table that shows the progress.
        bars: The bars of the downloads.
        put: A function that is called with each result, after its files were downloaded.
        directory: The directory for the outputs; None for no download.
        name: The template of the files' names, or None.
    """

    async def finish(ran: RunResult) -> Result:
        generation, request = ran.generation, ran.request
        assert not isinstance(request, str)
        generation_id = ran.submitted[-1] if ran.submitted else ""
        result = Result(
            generation_id, generation, ran.error, request=request, submitted=ran.submitted
        )
        if directory is None or generation is None or not ran.ok:
            return result
        table.set_state(name_of(request), "downloading")
        fetched = await fetch(
            client, generation, directory, bars, name=name, key=request.get("key")
        )
        return replace(result, error=fetched.error, paths=fetched.paths)

    table.expect(len(runs.prompts.lines))
    with table.shown():
        async with (
            # A list, so that those that the journal has come first.
            runner.as_completed([line.request for line in runs.prompts.lines]) as ran,
            run_each(finish, ran, limit=None) as results,
        ):
            async for result in results:
                put(result)
                runs.end(result)
                table.finish(result)


class Runs:
    """The requests of one command, their outcomes, and the commands to continue.

    Args:
        ctx: The context of the command, whose options the commands to continue repeat.
        prompts: The requests.

    Attributes:
        code: The exit code so far.
    """

    def __init__(self, ctx: typer.Context, prompts: Prompts | None = None) -> None:
        self.prompts = prompts or Prompts()
        self.code = COMPLETED
        self._ctx = ctx
        # For each request (by `id()`) whose submission began, the ids of its attempts.
        self._sent: dict[int, list[str]] = {}
        self._ended: dict[int, Result] = {}
        self._outcomes = Counter[str]()
        self._submissions = 0

    def on_run(self, event: Event) -> None:
        """Note an event of a run."""
        if not isinstance(event, RunEvent):
            return
        key = id(event.run.request)
        if isinstance(event, RunSubmitting):
            self._sent.setdefault(key, [])
        elif isinstance(event, RunRefused | RunUnreachable) and not self._sent.get(key):
            self._sent.pop(key, None)  # it was certainly not accepted
        elif isinstance(event, RunFound) and event.running:
            self._sent.setdefault(key, []).append(event.generation_id)
        elif isinstance(event, RunSubmitted):
            self._sent.setdefault(key, []).append(event.generation.id)
            self._submissions += 1

    def end(self, result: Result) -> None:
        """Note a result."""
        self._ended[id(result.request)] = result
        error = result.error
        if not result.is_unsent:
            self._outcomes["completed" if error is None else type(error).__name__] += 1
        self.code = max(self.code, exit_code(error))

    def after_end(self) -> Iterator[str]:
        """Yield the lines to print at the end."""
        if len(self.prompts.lines) > FEW:
            yield from counts(self._outcomes.most_common())
        unsent = [line for line in self.prompts.lines if self._is_unsent(line)]
        if unsent:
            yield f"{were(len(unsent))} not submitted."
            yield from self._rest(unsent)
        late = [each for each in self._ended.values() if each.generation_id and each.is_open]
        if late:
            completed = sum(isinstance(each.error, DownloadError) for each in late)
            yield f"{unfinished(len(late) - completed, completed)}."
        if late and self._journal is not None:
            yield "The same command continues; nothing is submitted twice:"
            yield self._again(None)
        elif late:
            yield from self._waiting([each.generation_id for each in late])
        yield from self._unknown()

    def after_interrupt(self) -> Iterator[str]:
        """Yield the lines to print after an interruption or an error."""
        lines, ended = self.prompts.lines, self._ended
        left = [line for line in lines if id(line.request) not in ended]
        if not left:
            return
        running = [ids[-1] for line in left if (ids := self._sent.get(id(line.request)))]
        lost = [line for line in left if self._sent.get(id(line.request)) == []]
        unsent = [line for line in left if id(line.request) not in self._sent]
        if len(lines) > FEW:
            yield from counts(self._outcomes.most_common())
        yield "; ".join(
            [
                *[f"{plural(len(running), 'generation')} may be running, and billed"]
                * bool(running),
                *[f"{were(len(unsent))} not submitted"] * bool(unsent),
            ]
        ) + "." * bool(running or unsent)
        if lost:
            yield (
                f"{self._place(lost)}: the API may have accepted it, and it may be billed. Check "
                "the account's usage before you submit it again."
            )
        if self._journal is not None:
            yield "The same command continues; nothing is submitted twice:"
            yield self._again(None)
            yield from self._unknown()
            return
        yield from self._waiting(running)
        unsent += [line for line in lines if self._is_unsent(line)]
        yield from self._rest(sorted(unsent, key=lambda line: line.number))
        yield from self._unknown()

    def _is_unsent(self, line: Line) -> bool:
        result = self._ended.get(id(line.request))
        return result is not None and result.is_unsent

    @property
    def _longer_timeout(self) -> dict[str, float]:
        errors = (result.error for result in self._ended.values())
        return longer_timeout(self._ctx, any(isinstance(e, PollTimeoutError) for e in errors))

    @property
    def _journal(self) -> str | None:
        return self._ctx.params.get("journal")

    def _waiting(self, ids: list[str]) -> Iterator[str]:
        """Yield the command that waits for what was submitted, and fetches the files."""
        if ids:
            yield "To wait for them, and to fetch their files, which costs nothing:"
            only = ("timeout", "max_rate", "download", "as_json", "output")
            again = options_given(self._ctx, *only, **self._longer_timeout)
            yield command("wait", *ids, *again)

    def _rest(self, lines: list[Line]) -> Iterator[str]:
        """Yield the command that runs what was not submitted."""
        if not lines:
            return
        numbers = [line.number for line in lines]
        if self.prompts.is_stdin:
            yield f"Not submitted: {in_words(numbers)} of standard input. Give it again to:"
        else:
            yield "To run those that were not submitted:"
        yield self._again(numbers)

    def _again(self, numbers: list[int] | None) -> str:
        """Return the command for some of the lines, or for all."""
        sources = list(self.prompts.sources)
        changed: dict[str, Any] = {**self._longer_timeout}
        if numbers is not None:
            if len(numbers) == len(self.prompts.lines):
                pass
            elif self.prompts.is_file or self.prompts.is_stdin:
                changed["lines"] = as_option(numbers)
            else:
                sources = [sources[number - 1] for number in numbers]
        most = self._ctx.params.get("max_submissions")
        if most is not None:
            left = most - self._submissions
            changed["max_submissions"] = str(left or most)
        return command("run", *sources, *options_given(self._ctx, **changed))

    def _unknown(self) -> Iterator[str]:
        """Yield the command that settles what may have been submitted."""
        errors = [each.error for each in self._ended.values()]
        if self._journal is not None and any(isinstance(e, SubmissionUnknownError) for e in errors):
            yield "To settle what may have been submitted:"
            yield command("journal", "list", self._journal, "--state", "unknown")

    def _place(self, lines: list[Line]) -> str:
        where = "standard input" if self.prompts.is_stdin else self.prompts.sources[0]
        numbers = in_words([line.number for line in lines])
        if not self.prompts.is_stdin and not self.prompts.is_file:
            return f"{numbers.replace('line', 'prompt')}"
        return f"{numbers} of {where}"
