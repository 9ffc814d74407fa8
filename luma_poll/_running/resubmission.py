"""The pause before the next attempt at a request whose generation failed. Pure."""

from __future__ import annotations

import random

from luma_poll.errors import GenerationError, GenerationRateLimitedError


def pause_before_next(error: GenerationError, attempt: int) -> float:
    """Seconds before the next attempt: none, or a backoff where the API was throttled upstream."""
    if not isinstance(error, GenerationRateLimitedError):
        return 0.0
    return min(5.0 * 2.0 ** min(attempt, 10), 60.0) * random.uniform(0.75, 1.0)
