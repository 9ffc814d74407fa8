"""Errors as problem details (RFC 9457) that are safe to show to the public; for any web framework.

https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from pydantic import BaseModel

from luma_poll._logging import fields, logger
from luma_poll.errors import (
    APIError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    BudgetExhaustedError,
    ConfigurationError,
    ContentModeratedError,
    CorruptInputError,
    DownloadError,
    GenerationError,
    GenerationFailedError,
    GenerationRateLimitedError,
    ImageTooLargeError,
    InsufficientBalanceError,
    InvalidRequestError,
    JournalError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    PollTimeoutError,
    RateLimitError,
    SubmissionLimitError,
    SubmissionUnknownError,
    UnprocessableEntityError,
    UnsupportedFormatError,
    UploadError,
)

__all__ = ["PERHAPS_SUBMITTED", "Problem", "retry_after", "to_problem"]


class Problem(BaseModel):
    """An error as the public may see it: `application/problem+json` (RFC 9457).

    Attributes:
        type: `urn:luma-poll:` and the code.
        title: What the code means. Always the same for a code.
        status: The HTTP status.
        detail: What to do, or what is wrong with the input.
        code: For programs, such as `content_moderated`.
        generation_id: The generation, if there is one: after `timed_out` ask again with it.
        retryable: Whether the same request may succeed later. Where a generation has failed,
            that means to submit it again, as a new one.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    generation_id: str | None
    retryable: bool


class _Kind(NamedTuple):
    status: int
    code: str
    title: str
    detail: str


PERHAPS_SUBMITTED = (
    "It is not known whether the generation was submitted. It may be running: "
    "look for it before you submit it again."
)
_OPERATORS = _Kind(503, "unavailable", "The service is unavailable", "Try again later.")
_KINDS: dict[type[LumaError], _Kind] = {
    LumaError: _Kind(500, "internal", "The server made a mistake", "It has been logged."),
    # The operator's own faults: the public learns no more than this.
    ConfigurationError: _OPERATORS,
    AuthenticationError: _OPERATORS,
    InsufficientBalanceError: _OPERATORS,
    PermissionDeniedError: _OPERATORS,
    BudgetExhaustedError: _OPERATORS,
    JournalError: _OPERATORS,
    SubmissionLimitError: _OPERATORS,
    # The caller's faults.
    BadRequestError: _Kind(
        400, "bad_request", "The parameters were rejected", "Change the parameters."
    ),
    NotFoundError: _Kind(404, "not_found", "There is no such generation", "Check the id."),
    PayloadTooLargeError: _Kind(
        413, "payload_too_large", "The request is too large", "Use smaller images or videos."
    ),
    UnprocessableEntityError: _Kind(
        422, "unprocessable_input", "An input cannot be read", "Check the inputs of the request."
    ),
    ContentModeratedError: _Kind(
        422,
        "content_moderated",
        "The content was rejected by moderation",
        "Change the prompt or the references: the same request will be rejected again.",
    ),
    ImageTooLargeError: _Kind(
        413, "image_too_large", "An input is too large", "Resize or compress the input."
    ),
    UnsupportedFormatError: _Kind(
        415,
        "unsupported_format",
        "The format of an input is not supported",
        "Convert the input to a supported format.",
    ),
    CorruptInputError: _Kind(
        422, "corrupt_input", "An input is corrupt", "Encode the input again, or replace it."
    ),
    InvalidRequestError: _Kind(
        422, "invalid_request", "The request is not valid", "Change the parameters."
    ),
    # Faults of Luma and of the network.
    APIError: _Kind(
        502, "upstream_error", "The generation service is having trouble", "Try again later."
    ),
    RateLimitError: _Kind(
        503, "rate_limited", "The generation service is busy", "Try again a little later."
    ),
    GenerationError: _Kind(
        502, "unknown_failure", "The generation failed", "The reason is unknown."
    ),
    GenerationFailedError: _Kind(
        502, "generation_failed", "The generation failed", "Submit it again."
    ),
    OutputNotFoundError: _Kind(
        502, "output_not_found", "The result of the generation was lost", "Submit it again."
    ),
    GenerationRateLimitedError: _Kind(
        503, "generation_rate_limited", "The generation service is busy", "Submit it again later."
    ),
    DownloadError: _Kind(
        502, "download_failed", "The result could not be fetched", "Try again later."
    ),
    UploadError: _Kind(502, "upload_failed", "An input could not be uploaded", "Try again later."),
    SubmissionUnknownError: _Kind(
        502, "submission_unknown", "The submission got no answer", PERHAPS_SUBMITTED
    ),
    PollTimeoutError: _Kind(
        504,
        "timed_out",
        "The generation has not ended yet",
        "It is still running: ask again with the same id, rather than submit it again.",
    ),
}
_WORD = re.compile(r"\S+")
_LONGEST_DETAIL = 500
"""Characters."""


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
    if kind is _OPERATORS or kind.status == 500:
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
        generation_id=_generation_id(error),
        retryable=_retryable(error, kind),
    )


def retry_after(error: LumaError) -> int | None:
    """The value of the `Retry-After` to answer with.

    Args:
        error: The error that is answered. The cause of a `PollTimeoutError` counts too: the API
            may have asked for more time than the wait had left.

    Returns:
        Whole seconds, rounded up; None if the API gave none, or if the fault is the operator's.
    """
    for found in (error, error.__cause__):
        if isinstance(found, APIStatusError) and found.retry_after is not None:
            return None if _kind(found) is _OPERATORS else math.ceil(found.retry_after)
    return None


def _kind(error: LumaError) -> _Kind:
    if isinstance(error, APIStatusError) and not error.in_api_words and error.status_code < 500:
        return _KINDS[RateLimitError if isinstance(error, RateLimitError) else APIError]
    return next(_KINDS[base] for base in type(error).__mro__ if base in _KINDS)


def _detail(error: LumaError, kind: _Kind) -> str:
    if _may_have_been_submitted(error):
        return PERHAPS_SUBMITTED
    if isinstance(error, OutputNotFoundError) and not error.retryable:
        return "It completed without a result: do not submit it again."
    words = None
    if kind.status < 500:  # Luma's description of a fault in the caller's input
        words = getattr(error, "failure_reason", None) or getattr(error, "detail", None)
    if not words or isinstance(error, NotFoundError):
        return kind.detail
    # Cut first: what a text may cost must not depend on who wrote it.
    return _WORD.sub(_without_link, words[: 4 * _LONGEST_DETAIL])[:_LONGEST_DETAIL]


def _without_link(word: re.Match[str]) -> str:
    return "(link)" if "://" in word[0] else word[0]


def _generation_id(error: LumaError) -> str | None:
    if isinstance(error, GenerationError):
        return error.generation.id
    found: str | None = getattr(error, "generation_id", None)
    return found


def _retryable(error: LumaError, kind: _Kind) -> bool:
    if kind is _OPERATORS:
        return False
    if isinstance(error, PollTimeoutError):
        return True
    if _may_have_been_submitted(error):
        return False  # a second submission may be billed too
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
