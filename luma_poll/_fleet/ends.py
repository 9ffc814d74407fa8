"""How a submission ended, as JSON for the database and for callbacks, and back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from luma_poll import errors
from luma_poll._api.answers import as_generation
from luma_poll._fleet.ledger import Accepted
from luma_poll.errors import (
    GenerationError,
    InvalidResponseError,
    LumaError,
    SubmissionUnknownError,
)
from luma_poll.models import Generation

_PLAIN = (str, int, float, bool, type(None))


def to_json(error: LumaError) -> dict[str, Any]:
    """The class, the message and the plain attributes of an error."""
    fields = {name: value for name, value in vars(error).items() if _is_plain(value)}
    return {"type": type(error).__name__, "message": str(error), "fields": fields}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN) or (isinstance(value, list) and all(map(_is_plain, value)))


def from_json(failure: Mapping[str, Any]) -> LumaError:
    """The error again; one of a later version, whose class is not known here, is a `LumaError`."""
    found = getattr(errors, failure["type"], None)
    kind = found if isinstance(found, type) and issubclass(found, LumaError) else LumaError
    error = kind.__new__(kind)
    error.args = (failure["message"],)
    vars(error).update({"last_generation": None} | failure["fields"])
    return error


def as_json(outcome: Accepted | Generation | LumaError) -> dict[str, Any]:
    """The outcome of a step. Steps raise nothing: what they raise is not the same when replayed."""
    if isinstance(outcome, LumaError):
        return to_json(outcome)
    if isinstance(outcome, Accepted):
        return {"id": outcome.generation_id, "at": outcome.at}
    names = ("id", "state", "failure_code", "failure_reason")
    return {name: getattr(outcome, name) for name in names}


def why_failed(end: Mapping[str, Any]) -> GenerationError | None:
    """Why a generation failed; None where it did not, or where it is not known."""
    try:
        as_generation(end).raise_for_failure()
    except GenerationError as error:
        return error
    except InvalidResponseError:  # it is no generation, but an error
        pass
    return None


def event_of(key: str, end: Mapping[str, Any], submitted: list[str]) -> dict[str, Any]:
    """The content of a callback: the end, or the error in its place."""
    if "type" in end:
        unknown = end["type"] == SubmissionUnknownError.__name__
        end = {
            "id": submitted[-1] if submitted else None,
            "state": "unknown" if unknown else "error",
            "failure_code": end["type"],
            "failure_reason": end["message"],
        }
    return {
        "type": f"generation.{end['state']}",
        "timestamp": datetime.now(UTC).isoformat(),
        "data": {"key": key, **end, "submitted": submitted},
    }
