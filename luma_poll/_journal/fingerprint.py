"""Which request is this? Keys and comparisons that survive the process."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from luma_poll._api.request_body import described
from luma_poll._redaction import redact_value
from luma_poll.errors import ConfigurationError

MAX_TEXT = 2000
"""Characters of one string that are kept for people to read; an image in Base64 has millions."""

# Such a URL is signed anew each time, for the same file.
_SIGNED = re.compile(r"(?i)(://[^\s?]*)\?[^\s]*\b(?:x-amz-|signature=|sig=|token=)[^\s]*")


def fingerprint(params: Mapping[str, Any]) -> str:
    """A digest of a request's parameters, in any order, and with any signature of their URLs.

    Raises:
        ConfigurationError: They are not JSON.
    """
    try:
        unsigned = _unsigned(described(params))
        text = json.dumps(unsigned, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"the parameters are not JSON: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()


def _unsigned(value: Any) -> Any:
    if isinstance(value, str):
        return _SIGNED.sub(r"\1", value)
    if isinstance(value, dict):
        return {name: _unsigned(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unsigned(item) for item in value]
    return value


def readable(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters for people to read: without secrets, and with long strings cut."""
    found: dict[str, Any] = redact_value(
        json.loads(json.dumps(described(params)), object_hook=_cut)
    )
    return found


def _cut(mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: _cut_value(value) for name, value in mapping.items()}


def _cut_value(value: Any) -> Any:
    if isinstance(value, list):
        return [_cut_value(item) for item in value]
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value):,} characters)"
    return value
