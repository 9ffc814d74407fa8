"""Prompts to submit one after the other, each at most once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luma_poll._cli.exit_codes import COMPLETED, exit_code
from luma_poll._cli.ids import decode, read_lines
from luma_poll._cli.terminal import say_error, say_lines
from luma_poll._client.client import LumaClient
from luma_poll.errors import (
    APIError,
    BadRequestError,
    ConfigurationError,
    LumaError,
    PayloadTooLargeError,
    UnprocessableEntityError,
)
from luma_poll.models import Generation

PATIENCE = 4
"""How often a prompt from a file is tried again if the API has certainly not accepted it."""
OF_ONE_PROMPT = (BadRequestError, PayloadTooLargeError, UnprocessableEntityError)
"""Errors that the next prompt may not meet; it would meet any other one, too."""


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the number of its line if it is from a file."""

    text: str
    line: int | None = None


def read_prompts(path: str) -> list[Prompt]:
    """The prompts in a file, one per line; a line that begins with `#` is a comment.

    Args:
        path: The file; `-` is standard input.

    Raises:
        ConfigurationError: It cannot be read, or has no prompt.
    """
    name = "standard input" if path == "-" else path
    texts = [decode(line, name, number) for number, line in enumerate(read_lines(path), 1)]
    lines = [Prompt(text.strip(), number) for number, text in enumerate(texts, 1)]
    prompts = [line for line in lines if line.text and not line.text.startswith("#")]
    if not prompts:
        raise ConfigurationError(f"there is no prompt in {name}")
    return prompts


def read_submissions(prompt: str | None, path: str | None, options: Sequence[str]) -> Submissions:
    """The submission of a prompt, or of those in a file.

    Raises:
        ConfigurationError: Neither or both are given, or the file is unusable.
    """
    if (prompt is None) == (path is None):
        raise ConfigurationError("give a PROMPT, or --file PATH")
    prompts = [Prompt(prompt or "")] if path is None else read_prompts(path)
    return Submissions(prompts, path, options)


def read_params(given: Mapping[str, Any], words: Iterable[str]) -> dict[str, Any]:
    """The parameters of `generations.create`, from options and from `KEY=VALUE` words.

    A value is JSON; what is not valid JSON, as in `style=manga`, is plain text.

    Raises:
        ConfigurationError: A word is not `KEY=VALUE`, or a key is given twice.
    """
    params = {key: value for key, value in given.items() if value is not None}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigurationError(f"--param takes KEY=VALUE, not {word!r}")
        if key == "prompt":
            raise ConfigurationError("--param prompt: the prompt is an argument, or in --file")
        if key in params:
            raise ConfigurationError(f"--param {key} is given twice")
        params[key] = _read_value(key, value)
    return params


def _read_value(key: str, value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if not value.lstrip().startswith(("{", "[", '"')):
            return value
        raise ConfigurationError(f"--param {key}: {value!r} is not JSON: {error}") from None


@dataclass
class Submissions:
    """Prompts to submit, and how far their submission has come.

    Attributes:
        prompts: All of them.
        path: The file that they are from, or None.
        options: The command's options, for the command that submits the rest.
        accepted: The generations of those that were accepted.
        settled: How many were accepted or refused, or may have been accepted.
        under_way: True while the one after these is being submitted.
    """

    prompts: Sequence[Prompt] = ()
    path: str | None = None
    options: Sequence[str] = ()
    accepted: list[Generation] = field(init=False, default_factory=list)
    settled: int = field(init=False, default=0)
    under_way: bool = field(init=False, default=False)

    def __iter__(self) -> Iterator[Prompt]:
        """Yields a prompt once the one before it is settled."""
        while self.settled < len(self.prompts):
            self.under_way = True
            yield self.prompts[self.settled]

    def accept(self, generation: Generation) -> None:
        """Note that the one under way was accepted."""
        self.under_way = False
        self.settled += 1
        self.accepted.append(generation)

    def refuse(self, error: Exception) -> bool:
        """Note that the one under way failed; True if the next may fare better."""
        self.under_way = False
        next_may = isinstance(error, OF_ONE_PROMPT)
        may_have_been_accepted = isinstance(error, APIError) and error.may_have_been_accepted
        self.settled += next_may or may_have_been_accepted
        return next_may

    def place(self) -> str:
        """The line of the first prompt that is not settled; empty unless it is from a file."""
        line = self.prompts[self.settled].line
        name = "standard input" if self.path == "-" else self.path
        return "" if line is None else f"line {line} of {name}"

    def after_interrupt(self) -> Iterator[str]:
        """The lines to print after Ctrl-C."""
        if self.under_way:
            at = f" {self.place()}" if self.path is not None else ""
            yield (
                f"Interrupted while submitting{at}: it may have been accepted and billed. "
                "Check the account's usage before you submit it again."
            )
            self.settled += 1
        yield from self.after_end()

    def after_end(self) -> Iterator[str]:
        """The lines to print about prompts that were not submitted."""
        rest = self.prompts[self.settled :]
        if self.path is None or not rest:
            return
        prompts = "1 prompt" if len(rest) == 1 else f"{len(rest)} prompts"
        yield f"Not submitted: {prompts}, from {self.place()} on."
        if self.path != "-":
            read = shlex.join(["tail", "-n", f"+{rest[0].line}", self.path])
            yield f"  {read} | luma-poll create {shlex.join(['--file', '-', *self.options])}"


async def submit(
    client: LumaClient,
    submissions: Submissions,
    params: Mapping[str, Any],
    put: Callable[[Prompt, Generation], None],
) -> int:
    """Submit one prompt after the other, until one fails as the next would.

    Args:
        client: The client to submit with.
        submissions: The prompts; takes note of what became of them.
        params: The other parameters of each.
        put: Called with each prompt that is accepted, and its generation.

    Returns:
        The exit code.
    """
    if submissions.path is not None:
        client = client.with_options(max_retries=PATIENCE)
    code = COMPLETED
    for prompt in submissions:
        try:
            generation = await client.generations.create(prompt.text, **params)
        except LumaError as error:
            say_error(error, submissions.place())
            code = max(code, exit_code(error))
            if not submissions.refuse(error):
                break
        else:
            submissions.accept(generation)
            try:
                put(prompt, generation)
            except OSError:  # it is billed, so its id must not be lost
                say_lines([f"Submitted {generation.id}.", *submissions.after_end()])
                raise
    say_lines(submissions.after_end())
    return code
