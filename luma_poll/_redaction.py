"""The removal of secrets from text that may be shown: messages, logs and reprs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_URL = re.compile(r"(://[^\s?<>]*)(\?[^\s<>]*)?")  # its query may be a signature
_SECRETS = re.compile(
    r"""(?ix)
      (x-amz-(?:signature|credential|security-token)=) [^\s&"'<>]+
    | (\bbearer\s+) [^\s"'<>,]+
    | (luma-api-) [\w-]+                     # the API's keys
    """
)
MIN_SECRET_LENGTH = 8
"""Characters; anything shorter may be part of an ordinary word."""
LONGEST_SECRET = 200
"""Characters of the longest key or signature that is expected."""
MAX_DEPTH = 20
"""Levels of nested containers; deeper ones are left out."""


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace URL queries, API keys and these `secrets` in `text` by `...`."""
    for secret in secrets:
        if len(secret) >= MIN_SECRET_LENGTH:
            text = text.replace(secret, "...")
    text = _URL.sub(lambda found: f"{found[1]}?..." if found[2] else found[0], text)
    return _SECRETS.sub(lambda found: f"{found[found.lastindex or 0]}...", text)


def excerpt(text: str, length: int, secrets: Iterable[str] = ()) -> str:
    """`redact` the beginning of a foreign text, at a cost that does not grow with the text."""
    if len(text) > 4 * length:
        # The cut may leave half of a secret at the end, which nothing would recognise.
        text = (
            text[: 4 * length - LONGEST_SECRET]
            + text[4 * length - LONGEST_SECRET : 4 * length].rpartition(" ")[0]
        )
    return redact(text, secrets)[:length]


def redact_value(value: object, secrets: Iterable[str] = (), depth: int = MAX_DEPTH) -> Any:
    """`redact` every string in `value`, including those in mappings, lists and tuples."""
    if isinstance(value, str):
        return redact(value, secrets)
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    if not depth:
        return "..."

    def clean(item: object) -> Any:
        return redact_value(item, secrets, depth - 1)

    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    items = [clean(item) for item in value]
    make: Any = getattr(value, "_make", tuple)  # a named tuple stays a named tuple
    return make(items)
