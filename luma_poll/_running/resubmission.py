"""The pause before the next attempt at a request whose generation failed. Pure."""

from __future__ import annotations

import random

from luma_poll.errors import GenerationError, GenerationRateLimitedError


def pause_before_next(error: GenerationError, attempt: int) -> float:
    """Return the seconds before the next attempt: 0, or a backoff after an upstream rate limit."""
    if not isinstance(error, GenerationRateLimitedError):
        return 0.0
    return min(5.0 * 2.0 ** min(attempt, 10), 60.0) * random.uniform(0.75, 1.0)
