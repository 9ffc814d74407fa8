"""Errors as JSON, for the database, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luma_poll import errors
from luma_poll.errors import LumaError

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
    known = isinstance(found, type) and issubclass(found, LumaError)
    kind: type[LumaError] = found if known else LumaError  # type: ignore[assignment]
    error = kind.__new__(kind)
    error.args = (failure["message"],)
    vars(error).update({"last_generation": None} | failure["fields"])
    return error
