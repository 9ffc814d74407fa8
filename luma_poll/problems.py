"""Errors as problem details (RFC 9457) that are safe to show in public, for any web framework.

https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import math
import re

from pydantic import BaseModel

from luma_poll._logging import fields, logger
from luma_poll.errors import (
    UNAVAILABLE,
    APIError,
    APIStatusError,
    DownloadError,
    GenerationError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    PollTimeoutError,
    ProblemKind,
    RateLimitError,
    SubmissionUnknownError,
    UploadError,
)

__all__ = ["PERHAPS_SUBMITTED", "Problem", "ProblemKind", "retry_after", "to_problem"]


class Problem(BaseModel):
    """An error as the public may see it: `application/problem+json` (RFC 9457).

    Attributes:
        type: `urn:luma-poll:`, followed by the code.
        title: The meaning of the code, always the same for a code.
        status: The HTTP status.
        detail: Advice, or what is wrong with the input.
        code: The code for programs, such as `content_moderated`.
        generation_id: The id of the generation, or None; after `timed_out`, ask again with it.
        retryable: True if the same request may succeed later. After a failed generation, that
            means to submit it again, as a new one.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    generation_id: str | None
    retryable: bool


PERHAPS_SUBMITTED = SubmissionUnknownError.problem.detail
_WORD = re.compile(r"\S+")
_LONGEST_DETAIL = 500
"""Characters of a detail."""


def to_problem(error: LumaError) -> Problem:
    """Describe an error to the public, and log the rest.

    Faults of the operator (key, balance, budget, configuration) all look the same; they are logged
    as errors, with a traceback. Other problems with a status from 500 up are logged as warnings.

        problem = to_problem(error)
        return Response(problem.model_dump_json(), problem.status, "application/problem+json")

    Args:
        error: Any error of luma-poll.

    Returns:
        The problem. It holds no key, no URL and nothing about the operator's account.
    """
    kind = _kind(error)
    if kind is UNAVAILABLE or kind.status == 500:
        extra = fields(error=error)
        logger.error("answered %d: %s", kind.status, error, exc_info=error, extra=extra)
    elif kind.status in (502, 503):
        logger.warning("answered %d: %s", kind.status, error, extra=fields(error=error))
    return Problem(
        type=f"urn:luma-poll:{kind.code}",
        title=kind.title,
        status=kind.status,
        detail=_detail(error, kind),
        code=kind.code,
        generation_id=getattr(error, "generation_id", None) or None,
        retryable=_retryable(error, kind),
    )


def retry_after(error: LumaError) -> int | None:
    """Return the value of the `Retry-After` to answer with.

    Args:
        error: The error that is answered. The cause of a `PollTimeoutError` counts, too: the API
            may have asked for more time than the wait had left.

    Returns:
        Whole seconds, rounded up; None if the API gave none, or the fault is the operator's.
    """
    for found in (error, error.__cause__):
        if isinstance(found, APIStatusError) and found.retry_after is not None:
            return None if _kind(found) is UNAVAILABLE else math.ceil(found.retry_after)
    return None


def _kind(error: LumaError) -> ProblemKind:
    if isinstance(error, APIStatusError) and not error.in_api_words and error.status_code < 500:
        return (RateLimitError if isinstance(error, RateLimitError) else APIError).problem
    return error.problem


def _detail(error: LumaError, kind: ProblemKind) -> str:
    if _may_have_been_submitted(error):
        return PERHAPS_SUBMITTED
    if isinstance(error, OutputNotFoundError) and not error.retryable:
        return "It has no result. Do not submit it again."
    words = None
    if kind.status < 500:  # Luma's description of a fault in the caller's input
        words = getattr(error, "failure_reason", None) or getattr(error, "detail", None)
    if not words or isinstance(error, NotFoundError):
        return kind.detail or getattr(error, "hint", "")
    # Cut first: the work must not grow with the length of a text from outside.
    return _WORD.sub(_without_link, words[: 4 * _LONGEST_DETAIL])[:_LONGEST_DETAIL]


def _without_link(word: re.Match[str]) -> str:
    return "(link)" if "://" in word[0] else word[0]


def _retryable(error: LumaError, kind: ProblemKind) -> bool:
    if kind is UNAVAILABLE:
        return False
    if isinstance(error, PollTimeoutError):
        return True
    if _may_have_been_submitted(error):
        return False  # a second submission may be billed, too
    return (
        isinstance(error, (APIError, GenerationError, DownloadError, UploadError))
        and error.retryable
    )


def _may_have_been_submitted(error: LumaError) -> bool:
    if isinstance(error, SubmissionUnknownError):
        return True
    if not isinstance(error, APIError) or error.generation_id is not None:
        return False
    return error.may_have_been_accepted
