"""Requests of `luma-poll run`: prompts or mappings, one per line of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from luma_poll._cli.ids import decode, read_lines
from luma_poll._running.requests import read_request
from luma_poll.errors import ConfigurationError


@dataclass(frozen=True)
class Line:
    """A request, and where it is written.

    Attributes:
        number: Of its line, from 1.
        request: A mapping of the parameters of `generations.create`.
    """

    number: int
    request: Mapping[str, Any]


def read_requests(path: str, common: Mapping[str, Any]) -> list[Line]:
    """The requests in a file; lines that are blank, or begin with `#`, are skipped.

    In a `.jsonl` file, and where a line of standard input begins with a brace, a line is a JSON
    object of parameters; elsewhere it is a prompt.

    Args:
        path: The file; `-` is standard input.
        common: Parameters of all that do not have their own.

    Raises:
        ConfigurationError: It cannot be read, has no request, or a line is not one.
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


def ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and last of each run of consecutive numbers."""
    groups = groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return [(run[0], run[-1]) for run in runs]
