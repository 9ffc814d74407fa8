"""The logger, and the fields that every one of its records has."""

from __future__ import annotations

import logging

from luma_poll.models import Generation

logger = logging.getLogger("luma_poll")


def fields(
    generation_id: str | None = None,
    *,
    generation: Generation | None = None,
    attempt: int | None = None,
    error: BaseException | None = None,
) -> dict[str, object]:
    """The `extra` of a record. All fields are always present, so that a formatter may name them.

    Args:
        generation_id: The generation; by default that of the snapshot or of the error.
        generation: A snapshot of it.
        attempt: How many requests have been sent for it, from 1.
        error: The trouble.
    """
    if generation_id is None:
        generation_id = generation.id if generation else getattr(error, "generation_id", None)
    return {
        "generation_id": generation_id,
        "state": None if generation is None else generation.state,
        "attempt": attempt,
        "error_type": None if error is None else type(error).__name__,
    }
