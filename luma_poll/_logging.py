"""The logger, and the fields that every one of its records has."""

from __future__ import annotations

import logging

from luma_poll.errors import GenerationError, LumaError
from luma_poll.models import Generation

logger = logging.getLogger("luma_poll")


def fields(
    generation_id: str | None = None,
    *,
    generation: Generation | None = None,
    attempt: int | None = None,
    error: BaseException | None = None,
) -> dict[str, object]:
    """Return the `extra` of a record: all fields, always, so that a formatter can name them.

    Args:
        generation_id: The id of the generation; by default from the snapshot or the error.
        generation: A snapshot of it; by default from the error, if it has one.
        attempt: How many requests have been sent for it, from 1.
        error: The error that the record is about.
    """
    if generation is None and isinstance(error, GenerationError):
        generation = error.generation
    if generation_id is None and generation is not None:
        generation_id = generation.id
    elif generation_id is None and isinstance(error, LumaError):
        generation_id = getattr(error, "generation_id", None) or None
    return {
        "generation_id": generation_id,
        "state": None if generation is None else generation.state,
        "attempt": attempt,
        "error_type": None if error is None else type(error).__name__,
    }
