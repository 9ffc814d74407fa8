"""Results as JSON lines: written one by one, and read again by a run that goes on."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luma_poll._polling.batch import PollResult
from luma_poll._redaction import redact
from luma_poll.errors import FAILURE_ERRORS, ConfigurationError, GenerationError, PollTimeoutError

_FAILURES = {"GenerationError", *(error.__name__ for error in FAILURE_ERRORS.values())}


@dataclass
class EarlierResults:
    """What a file of results says.

    Attributes:
        done: Whether it completed, for each generation that has ended, by id. One that timed out
            or met trouble with the API has not.
        unreadable: The numbers of lines that are no results.
        cut_off: Whether the last line is one of these because its writing was interrupted.
    """

    done: dict[str, bool] = field(default_factory=dict)
    unreadable: list[int] = field(default_factory=list)
    cut_off: bool = False

    def problems(self) -> Iterator[str]:
        """What is wrong with the file, in words."""
        if self.cut_off:
            yield "the last line was cut off; what it was about is waited for again"
        odd = self.unreadable[:-1] if self.cut_off else self.unreadable
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            yield f"line {odd[0]}{more} ignored: no result of luma-poll wait"


def is_done(error: Exception | None) -> bool:
    """Whether waiting again would bring nothing new."""
    return error is None or isinstance(error, GenerationError)


def verdict(error: Exception | None) -> str:
    """What became of a generation, in a word or two."""
    if error is None:
        return "completed"
    if isinstance(error, PollTimeoutError):
        return "timed out"
    return "failed" if isinstance(error, GenerationError) else type(error).__name__


def to_json(result: PollResult, paths: Sequence[Path] | None = None) -> str:
    """A result as one line, with the paths of its files if they were downloaded."""
    error = result.error
    generation = error.generation if isinstance(error, GenerationError) else result.generation
    line: dict[str, Any] = {
        "id": result.generation_id,
        "ok": result.ok,
        "generation": None if generation is None else generation.model_dump(mode="json"),
        "error": None if error is None else _error_fields(error),
    }
    if paths is not None:
        line["paths"] = [str(path) for path in paths]
    return json.dumps(line)


def _error_fields(error: Exception) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": redact(str(error)),
        "failure_code": getattr(error, "failure_code", None),
        "retryable": getattr(error, "retryable", None),
    }


def append_line(descriptor: int, line: str) -> None:
    """Write a line with its end at once, lest two processes that append to one file mix theirs."""
    rest = memoryview(f"{line}\n".encode())
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read_results(path: str, directory: str | None = None) -> EarlierResults:
    """Read a file that `to_json` wrote, whatever else has got into it.

    Args:
        path: The file.
        directory: Where downloads go, if they are wanted: then a completed generation is done only
            if its files are there.

    Raises:
        ConfigurationError: It is there but cannot be read.
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
    """Take what a line says; False if it is no result."""
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
    """True if these are files in a directory, and there are any."""
    if not isinstance(paths, list) or not paths:
        return False
    return all(isinstance(path, str) and _is_in(directory, path) for path in paths)


def _is_in(directory: str, path: str) -> bool:
    try:
        return os.path.isfile(path) and os.path.samefile(os.path.dirname(path) or ".", directory)
    except (OSError, ValueError):
        return False


def lacks_newline(path: str) -> bool:
    """True if the file's last line was cut off, so that an appended one would continue it."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for a writer
            return False
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:
        return False
