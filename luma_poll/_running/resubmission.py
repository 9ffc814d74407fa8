"""The next step after a failed submission or generation. Decided without I/O or a clock."""

from __future__ import annotations

import random
from typing import TypeGuard

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


def ends_all(error: object) -> TypeGuard[APIError]:
    """True for a refusal of a submission that the next one would meet, too."""
    return isinstance(error, _OF_THE_ACCOUNT) and error.generation_id is None


def may_try_again(error: APIError) -> bool:
    """True where the API has certainly not accepted a submission, and later may."""
    return error.retryable and not error.may_have_been_accepted


def is_refusal(error: APIError) -> bool:
    """True for a 429: the submission waits its turn again, for as long as it takes."""
    return isinstance(error, RateLimitError)


def pause_before_next(error: GenerationError, attempt: int) -> float:
    """Seconds before the next attempt: none, or a backoff where the API was throttled upstream."""
    if not isinstance(error, GenerationRateLimitedError):
        return 0.0
    return min(5.0 * 2.0 ** min(attempt, 10), 60.0) * random.uniform(0.75, 1.0)
