"""Results: the ends of generations, printed or appended to a file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from luma_poll._cli.terminal import in_words, put_line, say_error, try_descriptor, try_stdout
from luma_poll._redaction import redact, redact_value
from luma_poll._texts import reason_of
from luma_poll.errors import (
    FAILURE_ERRORS,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    GenerationError,
    InsufficientBalanceError,
    NotFoundError,
    PermissionDeniedError,
    PollTimeoutError,
    SubmissionLimitError,
    UnprocessableEntityError,
)
from luma_poll.models import Generation

HOPELESS = (BadRequestError, ConfigurationError, NotFoundError, UnprocessableEntityError)
"""Errors that asking again for the same id would only repeat."""

OF_ALL = (
    AuthenticationError,
    InsufficientBalanceError,
    PermissionDeniedError,
    SubmissionLimitError,
)
"""Errors of one submission that every other one would get, too."""

_FAILURES = {"GenerationError", *(error.__name__ for error in FAILURE_ERRORS.values())}


@dataclass(frozen=True)
class Result:
    """The end of one generation: waited for and, if wanted, downloaded.

    Attributes:
        generation_id: The id that was given.
        generation: The last snapshot, if there was one.
        error: The reason why it did not complete, or its files were not fetched; else None.
        paths: Its files; None if there was no download.
        request: The parameters of its submission, if this command submitted it.
        submitted: The ids of all attempts, if this command submitted it.
    """

    generation_id: str
    generation: Generation | None
    error: Exception | None = None
    paths: Sequence[Path] | None = None
    request: Mapping[str, Any] | None = None
    submitted: Sequence[str] = ()

    @property
    def label(self) -> str:
        """The name by which a person knows it: its key, its prompt, or its id."""
        return self.generation_id if self.request is None else label_of(self.request)

    @property
    def is_final(self) -> bool:
        """True if it completed or failed, so that waiting again would change nothing."""
        return self.error is None or isinstance(self.error, GenerationError)

    @property
    def is_open(self) -> bool:
        """True if running the same command again may end differently."""
        return not self.is_final and not isinstance(self.error, HOPELESS)

    @property
    def is_unsent(self) -> bool:
        """True if it was not submitted for a reason that holds for all."""
        return self.request is not None and not self.submitted and isinstance(self.error, OF_ALL)

    @property
    def is_running(self) -> bool:
        """True if it had not ended at the last snapshot."""
        return self.generation is not None and not self.generation.is_terminal

    @property
    def verdict(self) -> str:
        """The outcome in a word or two."""
        if self.error is None:
            return "completed"
        if isinstance(self.error, PollTimeoutError):
            return "timed out"
        if self.is_unsent:
            return "not submitted"
        return "failed" if isinstance(self.error, GenerationError) else type(self.error).__name__


def label_of(request: Mapping[str, object]) -> str:
    """Return the name of a request for people: its key, or its prompt."""
    return str(request.get("key") or request.get("prompt", ""))


Put = Callable[[Result], None]
"""A function that prints or writes a result."""


@contextmanager
def writing(output: str | None = None, *, as_json: bool = False, alone: bool) -> Iterator[Put]:
    """Yield the function that prints each result, or appends it to a file.

    It is tried at once, before anything is submitted, whether the place can be written.

    Args:
        output: The file to append to; None for standard output.
        as_json: True to print JSON.
        alone: True to print URLs without the id of their generation, if there is only one.

    Raises:
        ConfigurationError: The file cannot be written.
        OSError: Standard output cannot be written.
    """
    told = _Told()
    if output is not None:
        with _appending(output, told) as put:
            yield put
        return
    try_stdout()
    yield put_json if as_json else partial(put_text, told=told, alone=alone)


class _Told:
    """The errors printed to stderr; one that concerns all requests is printed once."""

    def __init__(self) -> None:
        self._words: set[str] = set()

    def tell(self, result: Result) -> None:
        assert result.error is not None
        place = "" if result.request is None else result.label
        if result.is_unsent:
            place = ""
            if in_words(result.error) in self._words:
                return
            self._words.add(in_words(result.error))
        say_error(result.error, place)


def put_json(result: Result) -> None:
    """Print a result as a line of JSON."""
    put_line(to_json(result))


def put_text(result: Result, *, told: _Told, alone: bool = True) -> None:
    """Print the paths or URLs, each after its id unless there is only one; or the error."""
    before = [] if alone else [result.label]
    if result.error is not None:
        told.tell(result)
    elif result.paths is not None:
        for path in result.paths:
            put_line(*before[: result.request is not None], str(path))
    elif result.generation is not None:
        put_urls(result.generation, *before)


def put_urls(generation: Generation, *before: str) -> None:
    """Print the URL of each output after these fields."""
    for output in generation.output:
        put_line(*before, output.url)


def put_entry(entry: Any, *, as_json: bool) -> None:
    """Print an entry of a journal or a fleet."""
    if as_json:
        put_line(json.dumps(asdict(entry) | {"updated_at": entry.updated_at.isoformat()}))
        return
    prompt = str(entry.request.get("prompt", ""))
    put_line(entry.state, entry.key, entry.generation_id or "", entry.failure_code or "", prompt)


def to_json(result: Result) -> str:
    """Return a result as one line of JSON, with the paths of its files if it has any."""
    error = result.error
    generation = error.generation if isinstance(error, GenerationError) else None
    generation = generation or result.generation
    line: dict[str, object] = {
        "id": result.generation_id or None,
        "ok": error is None,
        "generation": None if generation is None else generation.model_dump(mode="json"),
        "error": None if error is None else _error_fields(error),
    }
    if result.paths is not None:
        line["paths"] = [str(path) for path in result.paths]
    if result.request is not None:
        line |= {"request": redact_value(result.request), "submitted": list(result.submitted)}
    return json.dumps(line)


def _error_fields(error: Exception) -> dict[str, object]:
    return {
        "type": type(error).__name__,
        "message": redact(str(error)),
        "failure_code": getattr(error, "failure_code", None),
        "retryable": getattr(error, "retryable", None),
    }


@contextmanager
def _appending(path: str, told: _Told) -> Iterator[Put]:
    """Yield the function that appends a result to a file, unless the file already has it."""
    there, cut_off = _final_in(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {reason_of(error)}") from None

    def put(result: Result) -> None:
        if not result.is_final or (result.generation_id, result.paths is not None) not in there:
            append_line(descriptor, to_json(result))
        if result.error is not None:  # on the screen as well, to be seen at once
            told.tell(result)

    try:
        try_descriptor(descriptor)
        if cut_off:  # a new line first, or the next one would continue it
            append_line(descriptor, "")
        yield put
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise
    finally:
        os.close(descriptor)


def append_line(descriptor: int, line: str) -> None:
    """Write a line with its end in one go, so that two processes do not mix their lines."""
    rest = memoryview(f"{line}\n".encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _final_in(path: str) -> tuple[set[tuple[str, bool]], bool]:
    """Return the final results in a file, each as its id and True if it has paths.

    Returns:
        The results, and True if the last line was cut off.
    """
    found: set[tuple[str, bool]] = set()
    line = b"\n"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            return found, False
        with open(path, "rb") as file:
            for line in file:
                try:
                    match json.loads(line):
                        case {"id": str(id_), "ok": bool(ok), "error": error, **fields}:
                            if ok or (error or {}).get("type") in _FAILURES:
                                found.add((id_, "paths" in fields))
                except (ValueError, RecursionError, AttributeError):
                    continue
    except OSError:  # a missing file is created later; any other error comes when it is opened
        return found, False
    return found, not line.endswith(b"\n")
