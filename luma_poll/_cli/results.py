"""Results: one generation's end each, printed or appended to a file, and read by a later run."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from luma_poll._cli.terminal import put_line, say_error
from luma_poll._redaction import redact, redact_value
from luma_poll.errors import FAILURE_ERRORS, ConfigurationError, GenerationError, PollTimeoutError
from luma_poll.models import Generation

_FAILURES = {"GenerationError", *(error.__name__ for error in FAILURE_ERRORS.values())}


@dataclass(frozen=True)
class Result:
    """The end of one generation: waited for and, if wanted, downloaded.

    Attributes:
        generation_id: The id that was given.
        generation: The last snapshot, if there was one.
        error: Why it did not complete, or why its files could not be fetched; else None.
        paths: Its files; None if they were not to be downloaded.
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
        """The name that a person knows it by: its key, its prompt, or its id."""
        return self.generation_id if self.request is None else label_of(self.request)

    @property
    def is_final(self) -> bool:
        """True if it completed or failed, so that waiting again would change nothing."""
        return self.error is None or isinstance(self.error, GenerationError)

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
        return "failed" if isinstance(self.error, GenerationError) else type(self.error).__name__


def label_of(request: Mapping[str, Any]) -> str:
    """The name of a request for people: its key, or its prompt."""
    return str(request.get("key") or request["prompt"])


Put = Callable[[Result], None]
"""Prints or writes a result."""


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def writing(
    output: str | None = None, resume: str | None = None, *, as_json: bool = False, alone: bool
) -> Iterator[Put]:
    """Gives the function that prints each result, or appends it to a file.

    Args:
        output: The file to append to; None for standard output.
        resume: The file of earlier results, to which the shell may append standard output.
        as_json: Print JSON.
        alone: Print URLs without the id of their generation, as there is only one.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    if output is not None:
        with _appending(output) as put:
            yield put
        return
    if resume is not None:
        _end_cut_off_line(resume)
    yield put_json if as_json else partial(put_text, alone=alone)


def put_json(result: Result) -> None:
    """Print a result as a line of JSON."""
    put_line(to_json(result))


def put_text(result: Result, *, alone: bool = True) -> None:
    """Print the paths or else the URLs, after the id unless there is only one; or the error."""
    before = [] if alone else [result.label]
    if result.error is not None:
        say_error(result.error, "" if result.request is None else result.label)
    elif result.paths is not None:
        for path in result.paths:
            put_line(*before[: result.request is not None], str(path))
    elif result.generation is not None:
        put_urls(result.generation, *before)


def put_urls(generation: Generation, *before: str) -> None:
    """Print the URL of each output after these fields."""
    for output in generation.output:
        put_line(*before, output.url)


def describe(generation: Generation) -> Iterator[str]:
    """A snapshot in lines to read, one for each fact."""
    facts = list(generation.model_dump(exclude={"output"}).items())
    for output in generation.output:
        facts.append(("output", output.url))
        if output.expires_at is not None:
            facts.append(("  expires", f"{output.expires_at:%Y-%m-%d %H:%M:%S} UTC"))
    for name, value in facts:
        if value is not None:
            yield f"{name.replace('_', ' '):<15} {value}"


def to_json(result: Result) -> str:
    """A result as one line of JSON, with the paths of its files if they were downloaded."""
    error = result.error
    generation = error.generation if isinstance(error, GenerationError) else result.generation
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
def _appending(path: str) -> Iterator[Put]:
    cut_off = lacks_newline(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None

    def put(result: Result) -> None:
        append_line(descriptor, to_json(result))
        if result.error is not None:  # nobody looks into the file meanwhile
            say_error(result.error, "" if result.request is None else result.label)

    try:
        if cut_off:
            append_line(descriptor, "")
        yield put
    finally:
        os.close(descriptor)


def append_line(descriptor: int, line: str) -> None:
    """Write a line and its end at once: two processes that append to a file must not mix theirs."""
    rest = memoryview(f"{line}\n".encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _end_cut_off_line(path: str) -> None:
    """End the last line of a file to which the shell appends stdout, if it was cut off."""
    with suppress(OSError, ValueError, AttributeError):
        same = os.path.samestat(os.fstat(sys.stdout.fileno()), os.stat(path))
        if same and lacks_newline(path):
            put_line("")


def lacks_newline(path: str) -> bool:
    """True if the file's last line was cut off, so that an appended one would continue it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False


# --- reading -------------------------------------------------------------------------------------


@dataclass
class EarlierResults:
    """The contents of a file of results.

    Attributes:
        done: The generations that have ended, by id: True if completed, False if failed.
            Those that timed out or met trouble with the API are not among them.
        unreadable: The numbers of the lines that are not results.
        cut_off: True if the last line is one of these because its writing was interrupted.
    """

    done: dict[str, bool] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    cut_off: bool = False

    def problems(self) -> Iterator[str]:
        """Warnings about lines that were ignored."""
        if self.cut_off:
            yield "the last line was cut off; its generation is waited for again"
        odd = self.unreadable[:-1] if self.cut_off else self.unreadable
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            yield f"ignored line {odd[0]}{more}: not a result of luma-poll wait"


def read_results(path: str, directory: str | None = None) -> EarlierResults:
    """Read a file of results, ignoring all other lines.

    Args:
        path: The file; a missing one is empty.
        directory: The directory of the downloads, if they are wanted: then a completed generation
            counts as done only if its files are there.

    Raises:
        ConfigurationError: The file exists but cannot be read.
    """
    earlier, line, number = EarlierResults(), b"\n", 0
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and not _take(line, earlier.done, directory):
                    earlier.unreadable.append(number)
    except FileNotFoundError:
        return earlier
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    earlier.cut_off = not line.endswith(b"\n") and number in earlier.unreadable
    return earlier


def _take(line: bytes, done: dict[str, bool], directory: str | None) -> bool:
    """Add the result in a line to `done` if it is final; False if the line is not a result."""
    try:
        match json.loads(line):
            case {"id": str(generation_id), "ok": True, **fields}:
                if directory is None or _are_in(directory, fields.get("paths")):
                    done[generation_id] = True
            case {"id": str(generation_id), "ok": False, "error": {"type": str(kind)}}:
                if kind in _FAILURES:
                    done.setdefault(generation_id, False)
            case _:
                return False
    except (ValueError, RecursionError):
        return False
    return True


def _are_in(directory: str, paths: object) -> bool:
    """True if `paths` is a list of existing files in a directory, and not empty."""
    if not isinstance(paths, list) or not paths:
        return False
    return all(isinstance(path, str) and _is_in(directory, path) for path in paths)


def _is_in(directory: str, path: str) -> bool:
    try:
        return os.path.isfile(path) and os.path.samefile(os.path.dirname(path) or ".", directory)
    except (OSError, ValueError):
        return False
