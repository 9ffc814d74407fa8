"""The pause before the next attempt at a request whose generation failed. Pure."""

from __future__ import annotations

from luma_poll._tasks.backoff import backoff
from luma_poll.errors import GenerationError, GenerationRateLimitedError


def pause_before_next(error: GenerationError, attempt: int) -> float:
    """Return the seconds before the next attempt: 0, or a backoff after an upstream rate limit."""
    if not isinstance(error, GenerationRateLimitedError):
        return 0.0
    return backoff(attempt, 10.0, 60.0)
