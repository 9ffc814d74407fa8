"""Keeps secrets out of everything that is shown: messages, logs and reprs."""

import re
from typing import Any

_SECRETS = re.compile(
    r"""(?ix)
    (\b[a-z][a-z0-9+.-]{,20}://[^\s?<>]{1,1000}\?) [^\s<>]*  # a URL's query: may be a signature
    | (x-amz-(?:signature|credential|security-token)=) [^\s&"'<>]+
    | (\bbearer\s+) [^\s"'<>,]+
    | (luma-api-) [\w-]+                     # the API's keys
    """
)


def redact(text: str) -> str:
    """Replace URL queries and API keys in `text` by `...`."""
    return _SECRETS.sub(lambda found: f"{found[found.lastindex or 0]}...", text)


def redact_value(value: Any) -> Any:
    """`redact` every string in `value`, inside dicts, lists and tuples too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_value(key): redact_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_value(item) for item in value]
    if isinstance(value, tuple):
        return tuple(redact_value(item) for item in value)
    return value
