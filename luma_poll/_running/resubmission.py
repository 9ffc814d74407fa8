"""What follows a failed submission, and a failed generation. Decided without I/O or a clock."""

from __future__ import annotations

import random

from luma_poll.errors import (
    APIError,
    AuthenticationError,
    GenerationError,
    GenerationRateLimitedError,
    InsufficientBalanceError,
    PermissionDeniedError,
    RateLimitError,
)

_OF_THE_ACCOUNT = (AuthenticationError, InsufficientBalanceError, PermissionDeniedError)


def ends_all(error: Exception | None) -> bool:
    """True for a refusal of a submission that the next one would meet, too."""
    return isinstance(error, _OF_THE_ACCOUNT) and error.generation_id is None


def may_try_again(error: APIError) -> bool:
    """True where the API has certainly not accepted a submission, and later may."""
    return error.retryable and not error.may_have_been_accepted


def is_refusal(error: APIError) -> bool:
    """True for a 429: the submission waits its turn again, for as long as it takes."""
    return isinstance(error, RateLimitError)


def may_submit_again(error: GenerationError, attempt: int, max_attempts: int) -> bool:
    """True where a failed generation may be submitted once more, as a new one that is billed anew.

    Args:
        error: Its failure.
        attempt: How often it was submitted by now.
        max_attempts: How often it may be.
    """
    return error.retryable and attempt < max_attempts


def pause_before_next(error: GenerationError, attempt: int) -> float:
    """Seconds before the next attempt: none, or a backoff where the API was throttled upstream."""
    if not isinstance(error, GenerationRateLimitedError):
        return 0.0
    return min(5.0 * 2.0 ** min(attempt, 10), 60.0) * random.uniform(0.75, 1.0)
