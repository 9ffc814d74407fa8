"""The next step for a key, decided from its entry in the journal, without I/O or a clock."""

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
    failure_of,
)
from luma_poll.models import Generation

E = TypeVar("E", bound=LumaError)


def may_submit_again(error: GenerationError, attempt: int, max_attempts: int) -> bool:
    """Return True if a failed request may be submitted again, as a generation that is billed again.

    Args:
        error: The failure of its latest attempt.
        attempt: How often it was submitted so far.
        max_attempts: How often it may be submitted in all.
    """
    return error.retryable and attempt < max_attempts


@dataclass(frozen=True)
class Submit:
    """The step to submit a request.

    Attributes:
        attempt: The number of the submission, from 1.
        submitted: The ids of the earlier attempts.
    """

    attempt: int
    submitted: tuple[str, ...] = ()


@dataclass(frozen=True)
class WaitFor:
    """The step to wait for a generation that was submitted before.

    Attributes:
        generation_id: The id.
        running: True if it may still run, and occupy the account; False if it has completed.
        submitted: The ids of all attempts.
    """

    generation_id: str
    running: bool
    submitted: tuple[str, ...]

    def told(self, error: E, key: str) -> E:
        """Return an error of this wait with a text that says what the journal knows."""
        if isinstance(error, NotFoundError):
            text = (
                f"{error} It is the id of request {key!r} in the journal. If the API no longer has "
                "it, allow a new submission, which is billed again: Journal.resolve, or "
                "luma-poll journal resolve FILE"
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
                f"generation {self.generation_id} completed earlier, but could not be fetched "
                f"again{why.removesuffix(': ')}. Run the request again with the same journal: "
                "that fetches it, and submits nothing."
            )
        told = copy.copy(error)  # the same class and fields, with another text
        told.args = (text,)
        told.__cause__ = error.__cause__
        return told


@dataclass(frozen=True)
class Raise:
    """The step to submit nothing, and to raise an error.

    Attributes:
        error: The failure that the request ended with, or the reason why it cannot continue.
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
    "is being submitted by another Runner of this process, or its outcome could not be recorded: "
    "nothing was sent. Let runs that share keys share one Runner."
)


def next_step(entry: JournalEntry | None, max_attempts: int, *, same: bool = True) -> Step:
    """Decide how to proceed with a key, by its entry in the journal.

    Args:
        entry: The entry of the key, or None.
        max_attempts: How often it may be submitted in all.
        same: False if the entry belongs to a request with other parameters.
    """
    if entry is None:
        return Submit(1)
    # First of all: any other step would give this request the result of another one.
    if not same:
        error: LumaError = ConfigurationError(
            f"key {entry.key!r} was used for a request with other parameters; nothing was sent"
        )
        return Raise(error, ())
    if entry.state in ("unknown", "submitting") or entry.generation_id is None:
        # Opening the file made `unknown` of whatever a dead process was submitting, so this
        # `submitting` was written by our own process.
        advice = _IN_USE if entry.state == "submitting" else _UNKNOWN
        error = SubmissionUnknownError(
            f"request {entry.key!r} {advice}",
            key=entry.key,
            request=entry.request,
            submission_id=entry.request_id,
        )
        return Raise(error, entry.submitted)
    # A completed one as well: its URLs have expired, so it is fetched again, which is free.
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
    failure = failure_of(Generation.model_validate(fields))
    assert failure is not None, "it failed"
    return failure
