"""Answers of the API, read as generations with the headers that matter attached."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ValidationError

from luma_poll._api.headers import RateLimit
from luma_poll._arguments import MAX_ID_LENGTH, same_id
from luma_poll._texts import cleaned
from luma_poll.errors import InvalidResponseError
from luma_poll.models import Generation, field_of


def note_answer(
    generation: Generation,
    *,
    date: str | None = None,
    retry_after: float | None = None,
    rate_limit: RateLimit | None = None,
    request_id: str | None = None,
) -> Generation:
    """Attach headers of the answer to a snapshot; they do not count when snapshots are compared.

    Args:
        generation: The snapshot.
        date: The `Date` of the answer, for `Generation.age`.
        retry_after: Seconds of its `Retry-After`, for `snapshot_retry_after`.
        rate_limit: The account's rate limit from its headers, for `snapshot_rate_limit`.
        request_id: Its `X-Request-Id`, for `snapshot_request_id`.

    Returns:
        The same snapshot.
    """
    if date is not None:
        vars(generation)["_date"] = date
    object.__setattr__(generation, "_retry_after", retry_after)
    object.__setattr__(generation, "_rate_limit", rate_limit)
    object.__setattr__(generation, "_request_id", request_id)
    return generation


def snapshot_retry_after(generation: Generation) -> float | None:
    """Return the `Retry-After` of the answer with this snapshot, in seconds, or None."""
    seconds: float | None = _header_of(generation, "_retry_after")
    return seconds


def snapshot_rate_limit(generation: Generation) -> RateLimit | None:
    """Return the account's rate limit as the answer with this snapshot reported it, or None."""
    rate_limit: RateLimit | None = _header_of(generation, "_rate_limit")
    return rate_limit


def snapshot_request_id(generation: Generation) -> str | None:
    """Return the `X-Request-Id` of the answer with this snapshot, or None."""
    request_id: str | None = _header_of(generation, "_request_id")
    return request_id


def _header_of(generation: Generation, name: str) -> Any:
    try:
        return object.__getattribute__(generation, name)
    except AttributeError:  # it is from another client, or a copy
        return None


def as_generation(value: object, generation_id: str | None = None) -> Generation:
    """Convert any object that looks like a generation.

    Raises:
        InvalidResponseError: It lacks `id` or `state`, or has another id than expected. The error's
            `generation_id` is the id, if one could be read.
    """
    if isinstance(value, Generation):
        return _checked_id(value, generation_id)
    fields: Any = value
    if isinstance(value, BaseModel):
        # Only its own dump includes the unknown fields of another library's model.
        fields = value.model_dump(warnings=False)
    elif isinstance(value, Mapping):
        fields = dict(value)
    if isinstance(fields, dict):  # pydantic refuses keys that cannot be encoded
        fields = cleaned(fields)
    return _validated(partial(Generation.model_validate, fields), generation_id, fields)


def read_generation(content: bytes, generation_id: str | None = None) -> Generation:
    """Parse the JSON of an answer.

    Raises:
        InvalidResponseError: It is not a generation, or has another id than expected. The error's
            `generation_id` is the id, if one could be read.
    """
    return _validated(partial(_parsed, content), generation_id, content)


def _parsed(content: bytes) -> Generation:
    try:
        return Generation.model_validate_json(content)
    except ValidationError as error:
        if error.errors(include_url=False, include_input=False)[0]["type"] != "json_invalid":
            raise
        try:
            # The standard library's parser is slower but reads more: half of a surrogate pair, a
            # byte order mark, UTF-16. None of these may lose a generation that has been paid for.
            fields = json.loads(content)
        except (ValueError, RecursionError):
            raise error from None
    return Generation.model_validate(cleaned(fields))


def _validated(
    validate: Callable[[], Generation], generation_id: str | None, answer: object
) -> Generation:
    try:
        return _checked_id(validate(), generation_id)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        why = f"{place + ': ' if place else ''}{problem['msg']}"
    except RecursionError:
        why = "it is nested too deep"
    # Raised outside the `except`: pydantic's error holds the body, and with it the signed URLs.
    raise InvalidResponseError(
        f"the answer is not a generation ({why})",
        generation_id=generation_id or _id_in(answer),
    )


def _id_in(answer: object) -> str | None:
    """Return the id in an otherwise unreadable answer: a submission's id must not be lost."""
    try:
        found = field_of(json.loads(answer) if isinstance(answer, bytes) else answer, "id")
    except Exception:  # an object of another library may raise anything
        return None
    return found if isinstance(found, str) and 0 < len(found) <= MAX_ID_LENGTH else None


def _checked_id(generation: Generation, generation_id: str | None) -> Generation:
    if generation_id is None or same_id(generation.id, generation_id):
        return generation
    raise InvalidResponseError(
        "the answer is about another generation", generation_id=generation_id
    )
