"""The next step of a key, by its entry in the journal. Decided without I/O or a clock."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from luma_poll._journal.entry import JournalEntry
from luma_poll.errors import (
    ConfigurationError,
    GenerationError,
    LumaError,
    NotFoundError,
    PollTimeoutError,
    SubmissionUnknownError,
)
from luma_poll.models import Generation

E = TypeVar("E", bound=LumaError)


def may_submit_again(error: GenerationError, attempt: int, max_attempts: int) -> bool:
    """True where a failed generation may be submitted once more, as a new one that is billed again.

    Args:
        error: Its failure.
        attempt: How often it was submitted by now.
        max_attempts: How often it may be.
    """
    return error.retryable and attempt < max_attempts


@dataclass(frozen=True)
class Submit:
    """Submit it.

    Attributes:
        attempt: Which submission it will be, from 1.
        submitted: The ids of the attempts before.
    """

    attempt: int
    submitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class WaitFor:
    """Wait for this generation; if it is `running`, it occupies the account.

    Attributes:
        generation_id: The id.
        running: False if it has completed.
        submitted: The ids of all attempts.
    """

    generation_id: str
    running: bool
    submitted: tuple[str, ...]

    def told(self, error: E, key: str) -> E:
        """Return an error of this wait in words that fit what the journal knows."""
        if isinstance(error, NotFoundError):
            text = (
                f"{error} It is that of request {key!r} in the journal. If the API knows it no "
                "longer, say that it may be submitted, and billed, again: Journal.resolve, or "
                f"luma-poll journal FILE resolve"
            )
        elif self.running:
            return error
        else:
            why = (
                f": {error.__cause__ or ''}"
                if isinstance(error, PollTimeoutError)
                else f": {error}"
            )
            text = (
                f"generation {self.generation_id} has completed before, and could not be fetched "
                f"again{why.removesuffix(': ')}. Run the request again with the same journal: it "
                "is fetched, and not submitted."
            )
        told = copy.copy(error)
        told.args = (text,)
        told.__cause__ = error.__cause__
        return told


@dataclass(frozen=True)
class Raise:
    """Submit nothing: this is its end, or why there is none.

    Attributes:
        error: The error.
        submitted: The ids of all attempts.
    """

    error: LumaError
    submitted: tuple[str, ...]


Step: TypeAlias = Submit | WaitFor | Raise


_UNKNOWN = (
    "may have been submitted, and be billed, although its id is not known: no usable answer came, "
    "or the process died first. Look at the usage of the account, then say with Journal.resolve "
    "(or luma-poll journal resolve FILE) which id it was, or that it may be submitted."
)
_IN_USE = (
    "is being submitted by another Runner of this process, or could not be recorded when it was: "
    "nothing was sent. Let runs that share keys share one Runner."
)


def next_step(entry: JournalEntry | None, max_attempts: int, *, same: bool = True) -> Step:
    """Decide how to proceed with a key, by its entry in the journal.

    Args:
        entry: Of the key, or None if there is none.
        max_attempts: How often it may be submitted.
        same: False if the entry is of a request with other parameters.
    """
    if entry is None:
        return Submit(1)
    if not same:
        error: LumaError = ConfigurationError(
            f"key {entry.key!r} was used for a request with other parameters; nothing was sent"
        )
        return Raise(error, ())
    if entry.state in ("unknown", "submitting") or entry.generation_id is None:
        advice = _IN_USE if entry.state == "submitting" else _UNKNOWN
        error = SubmissionUnknownError(
            f"request {entry.key!r} {advice}",
            key=entry.key,
            request=entry.request,
            submission_id=entry.request_id,
        )
        return Raise(error, entry.submitted)
    if entry.state != "failed":
        return WaitFor(entry.generation_id, entry.state == "running", entry.submitted)
    failure = _failure(entry)
    if may_submit_again(failure, entry.attempt, max_attempts):
        return Submit(entry.attempt + 1, entry.submitted)
    return Raise(failure, entry.submitted)


def _failure(entry: JournalEntry) -> GenerationError:
    fields = {
        "id": entry.generation_id,
        "state": "failed",
        "failure_code": entry.failure_code,
        "failure_reason": entry.failure_reason,
    }
    try:
        Generation.model_validate(fields).raise_for_failure()
    except GenerationError as error:
        return error.with_traceback(None)
    raise AssertionError("a failed generation raises its failure")
