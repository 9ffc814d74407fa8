"""Requests of `luma-poll run`: from its arguments, a file or standard input."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luma_poll._cli.hints import read_ranges
from luma_poll._cli.ids import decode, read_lines
from luma_poll._running.requests import read_request
from luma_poll.errors import ConfigurationError


@dataclass(frozen=True)
class Line:
    """A request, and where it is written.

    Attributes:
        number: Of its line, or of the argument, from 1.
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
        """True if they were on standard input."""
        return list(self.sources) == ["-"]

    @property
    def is_file(self) -> bool:
        """True if they are in a file."""
        return len(self.sources) == 1 and not self.is_stdin and os.path.exists(self.sources[0])

    def of(self, lines: str | None) -> Prompts:
        """Those of some lines, as `3-7,9,12-`.

        Raises:
            ConfigurationError: That is not how lines are given, or there are none.
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


def read_prompts(sources: Sequence[str], common: Mapping[str, Any]) -> Prompts:
    """The requests in a file, or the arguments if they are prompts: these have a blank in them.

    Args:
        sources: One file, `-` for standard input, or prompts.
        common: Parameters of all that do not have their own.

    Raises:
        ConfigurationError: It cannot be read, has no request, or one of them is unusable.
    """
    if len(sources) == 1 and (sources[0] == "-" or os.path.exists(sources[0])):
        return Prompts(sources, _read_file(sources[0], common))
    for source in sources:
        if " " not in source.strip():
            raise ConfigurationError(
                f"{source} is neither a file nor a prompt of several words. Give one file that "
                f"exists, or prompts in quotes; a prompt of one word is submitted by: "
                f"luma-poll create {source} --wait"
            )
    lines = [Line(number, {**common, "prompt": each}) for number, each in enumerate(sources, 1)]
    for line in lines:
        read_request(line.request)
    return Prompts(sources, lines)


def _read_file(path: str, common: Mapping[str, Any]) -> list[Line]:
    """The requests in a file; lines that are blank, or begin with `#`, are skipped.

    In a `.jsonl` file, and where a line of standard input begins with a brace, a line is a JSON
    object of parameters; elsewhere it is a prompt.
    """
    name = "standard input" if path == "-" else path
    found = []
    for number, line in enumerate(read_lines(path), 1):
        text = decode(line, name, number).strip()
        if not text or text.startswith("#"):
            continue
        is_json = path.lower().endswith(".jsonl") or (path == "-" and text.startswith("{"))
        try:
            request = {**common, **(_parse(text) if is_json else {"prompt": text})}
            read_request(request)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}, line {number}: {error}") from None
        found.append(Line(number, request))
    if not found:
        raise ConfigurationError(f"there is no prompt in {name}")
    return found


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"not JSON: {error}") from None
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise ConfigurationError("not a JSON object")
    return value
