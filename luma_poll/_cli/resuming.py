"""Commands to copy, which continue after an interruption or a timeout."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from luma_poll._arguments import check_generation_id
from luma_poll._cli.ids import read_ids
from luma_poll._cli.results import EarlierResults, read_results
from luma_poll._cli.waiting import FEW, Batch
from luma_poll._polling.poller import MAX_RATE, TIMEOUT
from luma_poll.errors import ConfigurationError


@dataclass(frozen=True)
class Source:
    """The arguments of `luma-poll wait`: where ids come from, and where results go.

    Attributes:
        arguments: Ids, or `-` for standard input.
        files: Files of ids, or `-` for standard input.
        as_json: Print JSON.
        output: The file to which results are appended.
        resume: The file of earlier results.
        download: The directory of the downloads.
        timeout: Seconds for the wait for each generation.
        max_rate: Requests per second.
    """

    arguments: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    as_json: bool = False
    output: str | None = None
    resume: str | None = None
    download: str | None = None
    timeout: float = TIMEOUT
    max_rate: float = MAX_RATE

    @property
    def has_stdin(self) -> bool:
        """True if ids are on standard input."""
        return "-" in (*self.arguments, *self.files)

    def read_ids(self) -> list[str]:
        """The ids of the arguments and the files.

        Raises:
            ConfigurationError: There are none, or one is not valid.
        """
        ids = [check_generation_id(each) for each in self.arguments if each != "-"]
        for path in self.files:
            ids += [] if path == "-" else read_ids(path)
        if not ids and not self.has_stdin:
            raise ConfigurationError("nothing to wait for: give ids, - or --file PATH")
        return ids

    def read_earlier(self) -> EarlierResults:
        """The results of the run that `--resume` continues.

        Raises:
            ConfigurationError: They cannot be read, or this run would not continue their file.
        """
        if self.resume is None:
            return EarlierResults()
        if not self.as_json and self.output is None:
            raise ConfigurationError("--resume goes with --json or --output: it reads their lines")
        return read_results(self.resume, self.download)

    def after_interrupt(self, batch: Batch) -> list[str]:
        """The lines to print after Ctrl-C."""
        rest = [*batch.again, *batch.pending]
        if not rest:
            return []
        interrupted = _interrupted(len(batch.pending), len(batch.again))
        return [*batch.summary(), interrupted, *self._commands(rest)]

    def after_end(self, batch: Batch) -> list[str]:
        """The lines to print at the end: a summary, and how to wait again; none for a few ids."""
        if not batch.again or not batch.is_large:
            return [*batch.summary()]
        return [
            *batch.summary(),
            f"To wait again for the {len(batch.again)} that may still finish:",
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
                "  (if results.jsonl has what this run printed)"
                if self.as_json
                else "  (this keeps the results, so that the run can be resumed)"
            ]
        return [kept.command(self._sources()), *note]

    def command(self, words: Sequence[str]) -> str:
        """A command to copy that waits for these, with the same options."""
        through_the_shell = self.as_json and self.output is None
        options = words_of(
            timeout=unless(TIMEOUT, self.timeout),
            max_rate=unless(MAX_RATE, self.max_rate),
            download=self.download,
            json=through_the_shell,
            output=self.output,
            resume=self.resume,
        )
        into = f" >> {shlex.quote(self.resume)}" if through_the_shell and self.resume else ""
        return f"  luma-poll wait {shlex.join([*words, *options])}{into}"

    def _sources(self) -> list[str]:
        few = len(self.arguments) <= FEW
        return [*(self.arguments if few else ["ID..."]), *words_of(file=self.files)]


def _interrupted(running: int, again: int) -> str:
    said = [f"{running} {'is' if running == 1 else 'are'} still running"] * bool(running)
    said += [f"{again} timed out or met trouble"] * bool(again)
    return f"Interrupted; {', '.join(said)}. To keep waiting:"


def words_of(**options: str | bool | Sequence[str] | None) -> list[str]:
    """The words of a command line that give these options; None and False give none."""
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] * value
        elif value is not None:
            for each in [value] if isinstance(value, str) else value:
                words += [option, each]
    return words


def unless(usual: float, value: float) -> str | None:
    """A number as text; None if it is the usual one."""
    return None if value == usual else str(value).removesuffix(".0")
