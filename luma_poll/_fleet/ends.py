"""The ends of submissions, as JSON for the database and for callbacks, and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from luma_poll import errors
from luma_poll._api.answers import as_generation
from luma_poll.errors import (
    GenerationError,
    InvalidResponseError,
    LumaError,
    PollTimeoutError,
    SubmissionUnknownError,
    failure_of,
)
from luma_poll.models import Generation

_PLAIN = (str, int, float, bool, type(None))


def end_of(outcome: Generation | LumaError) -> tuple[str, str]:
    """Return the state of a submission with this outcome, and the outcome as JSON."""
    if isinstance(outcome, LumaError):
        state = "overdue" if isinstance(outcome, PollTimeoutError) else "refused"
        return state, json.dumps(to_json(outcome))
    names = ("id", "state", "failure_code", "failure_reason")
    end = {name: getattr(outcome, name) for name in names}
    return outcome.state, json.dumps(end)


def to_json(error: LumaError) -> dict[str, Any]:
    """Return the class, the message and the plain attributes of an error."""
    fields = {name: value for name, value in vars(error).items() if _is_plain(value)}
    return {"type": type(error).__name__, "message": str(error), "fields": fields}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN) or (isinstance(value, list) and all(map(_is_plain, value)))


def from_json(failure: Mapping[str, Any]) -> LumaError:
    """Return the error from its JSON; a class that a later version added becomes `LumaError`."""
    found = getattr(errors, failure["type"], None)
    kind = found if isinstance(found, type) and issubclass(found, LumaError) else LumaError
    error = kind(failure["message"])
    vars(error).update(failure["fields"])
    return error


def unknown(key: str, request: Mapping[str, Any]) -> SubmissionUnknownError:
    """Return the error for a submission that the API may have accepted."""
    return SubmissionUnknownError(
        f"submission {key!r}: it is not known whether the API accepted it. It may be running and "
        "be billed: look at the usage of the account, then say with Fleet.resolve (or luma-poll "
        "fleet resolve) which id it was, or that it may be submitted.",
        key=key,
        request=request,
    )


def why_failed(generation: Generation) -> GenerationError | None:
    """Return the error of a failed generation, or None if it did not fail."""
    try:
        return failure_of(as_generation(generation))
    except InvalidResponseError:
        return None


def event_of(
    key: str, state: str, end: Mapping[str, Any], submitted: Sequence[str], now: float
) -> dict[str, Any]:
    """Return the content of a callback: the end, or the error in its place."""
    if "type" in end:
        end = {
            "id": submitted[-1] if submitted else None,
            "state": "unknown" if state == "unknown" else "error",
            "failure_code": end["type"],
            "failure_reason": end["message"],
        }
    return {
        "type": f"generation.{end['state']}",
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(),
        "data": {"key": key, **end, "submitted": list(submitted)},
    }


def message_id(fleet: str, key: str, number: int) -> str:
    """Return the id of the message about an end: in ASCII for any key, different for each end.

    Args:
        fleet: The name of the fleet.
        key: The key of the submission.
        number: The number of the end, from 1.
    """
    text = json.dumps([fleet, key, number])
    return f"msg_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
