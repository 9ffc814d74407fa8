"""Requests of `luma-poll run`: from its arguments, a file or standard input."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luma_poll._cli.hints import plural, read_ranges
from luma_poll._cli.ids import read_lines
from luma_poll._journal.entry import JournalEntry
from luma_poll._running.request_files import Overview, RequestFormat, overview, requests_from
from luma_poll._running.requests import read_request
from luma_poll.errors import ConfigurationError


@dataclass(frozen=True)
class Line:
    """A request, and its place.

    Attributes:
        number: The number of its line, or of the argument, from 1.
        request: A mapping of the parameters of `generations.create`.
    """

    number: int
    request: Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """The requests of one command.

    Attributes:
        sources: The arguments: one file, `-`, or prompts.
        lines: The requests.
    """

    sources: Sequence[str] = ()
    lines: Sequence[Line] = ()

    @property
    def is_stdin(self) -> bool:
        """True if they came from standard input."""
        return list(self.sources) == ["-"]

    @property
    def is_file(self) -> bool:
        """True if they are in a file."""
        return len(self.sources) == 1 and not self.is_stdin and os.path.exists(self.sources[0])

    def of(self, lines: str | None) -> Prompts:
        """Return the requests of some lines, given as `3-7,9,12-`.

        Raises:
            ConfigurationError: `lines` has another form, or there are no such lines.
        """
        if lines is None:
            return self
        try:
            wanted = read_ranges(lines)
        except ValueError:
            raise ConfigurationError(f"--lines takes 3-7,9,12-, not {lines!r}") from None
        left = [line for line in self.lines if any(a <= line.number <= b for a, b in wanted)]
        if not left:
            raise ConfigurationError(f"there is no prompt in these lines: {lines}")
        return replace(self, lines=left)

    def overview(self) -> Overview:
        """Return a summary of what would be submitted.

        Raises:
            ConfigurationError: A file that a request refers to is unusable.
        """
        return overview(line.request for line in self.lines)


class _Stdin(io.BytesIO):
    """The bytes of standard input, with a name for messages."""

    name = "<stdin>"


def read_prompts(
    sources: Sequence[str], common: Mapping[str, object], form: RequestFormat | None
) -> Prompts:
    """Return the requests in a file, or the arguments if they contain a blank, as prompts do.

    Args:
        sources: One file, `-` for standard input, or prompts.
        common: Parameters for every request that does not have its own.
        form: The format of the file; None if its name tells.

    Raises:
        ConfigurationError: The file cannot be read, has no request, or a request is unusable.
    """
    source = sources[0]
    if len(sources) == 1 and (source == "-" or os.path.exists(source)):
        if source == "-" and form is None:
            raise ConfigurationError(
                "give the format of standard input: --format text (a prompt per line), jsonl, "
                "json, csv or tsv"
            )
        content = _Stdin(b"".join(read_lines("-"))) if source == "-" else source
        read = requests_from(content, format=form, defaults=common)
        return Prompts(sources, list(map(Line, read.lines, read)))
    for each in sources:
        if os.path.exists(each):
            raise ConfigurationError(f"give only one file; {each} is one of {len(sources)}")
        if " " not in each.strip():
            raise ConfigurationError(
                f"{each} is neither a file nor a prompt of several words. Give one existing file, "
                "or prompts in quotes; to submit a prompt of one word, use: "
                f"luma-poll create {each} --wait"
            )
    lines = [Line(number, {**common, "prompt": each}) for number, each in enumerate(sources, 1)]
    for line in lines:
        read_request(line.request)
    return Prompts(sources, lines)


def in_short(found: Overview) -> str:
    """Return a summary of what would be submitted, in one line: how many, for which models."""
    models = ", ".join(
        f"{model or 'default'} ({count})" for model, count in found.models.most_common()
    )
    word = "model" if len(found.models) == 1 else "models"
    return f"{plural(found.count, 'generation')}, {word} {models}"


def in_full(found: Overview, known: Iterable[JournalEntry]) -> Iterator[str]:
    """Yield a summary of what would be submitted, in lines.

    Args:
        found: The requests.
        known: The entries that the journal has for them.
    """
    yield in_short(found)
    types = ", ".join(f"{kind or 'default'} ({n})" for kind, n in found.types.most_common())
    yield f"{'type' if len(found.types) == 1 else 'types'} {types}"
    for name, (size, times) in found.media.items():
        yield f"file {name or '(bytes)'}: {size:,} bytes, in {plural(times, 'request')}"
    states = [entry.state for entry in known]
    if states:
        said = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        yield f"already in the journal: {len(states)} ({said})"
    for key in found.keys:
        yield f"key {key}"
