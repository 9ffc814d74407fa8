"""What `luma-poll create` was asked to submit, and how far it has come."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from luma_poll._cli.ids import decode, read_lines
from luma_poll.errors import (
    APIError,
    BadRequestError,
    ConfigurationError,
    PayloadTooLargeError,
    UnprocessableEntityError,
)
from luma_poll.models import Generation

PATIENCE = 4
"""How often a prompt of a file is tried again where the API has certainly not accepted it."""
OF_ONE_PROMPT = (BadRequestError, PayloadTooLargeError, UnprocessableEntityError)
"""Any other refusal would meet the next prompt, too."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the number of its line if it has one."""

    text: str
    line: int | None = None


def read_prompts(path: str) -> list[Prompt]:
    """The prompts in a file, one a line; a line that begins with `#` is a comment.

    Args:
        path: `-` is standard input.

    Raises:
        ConfigurationError: It cannot be read, or there is none in it.
    """
    name = "standard input" if path == "-" else path
    texts = [decode(line, name, number) for number, line in enumerate(read_lines(path), 1)]
    lines = [Prompt(text.strip(), number) for number, text in enumerate(texts, 1)]
    prompts = [line for line in lines if line.text and not line.text.startswith("#")]
    if not prompts:
        raise ConfigurationError(f"there is no prompt in {name}")
    return prompts


def read_params(given: dict[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """The parameters of `generations.create`: those of options, and each `KEY=VALUE`.

    A value is JSON. What is none, as in `style=manga`, is a text.

    Raises:
        ConfigurationError: One of the words is none, or a key comes twice.
    """
    params = {key: value for key, value in given.items() if value is not None}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigurationError(f"--param takes KEY=VALUE, not {word!r}")
        if key == "prompt":
            raise ConfigurationError("--param prompt: the prompt is an argument, or in --file")
        if key in params:
            raise ConfigurationError(f"--param {key}: it is given twice")
        params[key] = _read_value(key, value)
    return params


def _read_value(key: str, value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if not value.lstrip().startswith(("{", "[", '"')):
            return value
        raise ConfigurationError(f"--param {key}: {value!r} is not JSON: {error}") from None


@dataclass
class Submissions:
    """Prompts that are submitted one after the other.

    Attributes:
        prompts: All of them.
        path: The file that they are from, or None.
        options: Those of the command line, for one that goes on.
        accepted: What became of those that were accepted.
        settled: How many have been accepted or refused, or may have been accepted.
        under_way: Whether the one after these is being submitted.
    """

    prompts: Sequence[Prompt] = ()
    path: str | None = None
    options: Sequence[str] = ()
    accepted: list[Generation] = field(init=False, default_factory=list)
    settled: int = field(init=False, default=0)
    under_way: bool = field(init=False, default=False)

    def __iter__(self) -> Iterator[Prompt]:
        """Give one after the other, each when the one before has been accepted or refused."""
        while self.settled < len(self.prompts):
            self.under_way = True
            yield self.prompts[self.settled]

    def accept(self, generation: Generation) -> None:
        """Note what the one under way has become."""
        self.under_way = False
        self.settled += 1
        self.accepted.append(generation)

    def refuse(self, error: Exception) -> bool:
        """Note that the one under way failed. True if the others may fare better."""
        self.under_way = False
        others_may = isinstance(error, OF_ONE_PROMPT)
        perhaps_accepted = isinstance(error, APIError) and error.may_have_been_accepted
        self.settled += others_may or perhaps_accepted
        return others_may

    def place(self) -> str:
        """Where the first one that is not settled is written, if in a file."""
        line = self.prompts[self.settled].line
        name = "standard input" if self.path == "-" else self.path
        return "" if line is None else f"line {line} of {name}"

    def after_interrupt(self) -> Iterator[str]:
        """What to say after Ctrl-C."""
        if self.under_way:
            at = f" {self.place()}" if self.path is not None else ""
            yield (
                f"Interrupted while submitting{at}: it may have been accepted, and be billed. "
                "Look at the usage of the account before you submit it again."
            )
            self.settled += 1
        yield from self.after_end()

    def after_end(self) -> Iterator[str]:
        """What to say of prompts that were not submitted."""
        rest = self.prompts[self.settled :]
        if self.path is None or not rest:
            return
        prompts = "1 prompt" if len(rest) == 1 else f"{len(rest)} prompts"
        yield f"Not submitted: {prompts}, from {self.place()} on."
        if self.path != "-":
            read = shlex.join(["tail", "-n", f"+{rest[0].line}", self.path])
            yield f"  {read} | luma-poll create {shlex.join(['--file', '-', *self.options])}"
