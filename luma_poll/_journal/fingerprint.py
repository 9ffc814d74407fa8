"""Digests that identify a request, today and in a later process."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from luma_poll._api.parameters import Params
from luma_poll._api.request_body import described, local_media
from luma_poll._redaction import redact_value
from luma_poll.errors import ConfigurationError

MAX_TEXT = 2000
"""Characters of one string that are kept for people to read; an image in Base64 has millions."""

# The parameters of a URL that change each time it is signed, although the file is the same. The
# second kind have other meanings too, and the third are Azure's: they count only if the URL also
# has a signature. Any other parameter may tell which file it is, so it stays.
_SIGNING = re.compile(r"x-(?:amz|goog|oss|ms|cos|tos|obs)-.+|signature|sig|token")
_BESIDE = re.compile("expires?|(?:aws|oss)accesskeyid|googleaccessid|key-pair-id|policy")
_BESIDE_SIG = re.compile("se|sp|sv|sr|st|ss|srt|spr|sip|sdd|sk(?:oid|tid|t|e|s|v)|scid|saoid|suoid")

_QUERY = re.compile(r"(://[^\s?#]*)\?([^\s#]*)")
_PART = re.compile(r"""([^=&]+)=([^&"'<>(),;]*)""")
_SIGNED = re.compile(r"(?i)(://[^\s?]*)\?[^\s]*\b(?:x-amz-|signature=|sig=|token=)[^\s]*")


def fingerprint(params: Mapping[str, object]) -> str:
    """Return a digest of a request's parameters, whatever their order or their URLs' signatures.

    Raises:
        ConfigurationError: They are not JSON.
    """
    return _digest(described(params), lambda text: _QUERY.sub(_without_signature, text))


def older_fingerprint(params: Mapping[str, object]) -> str:
    """Return the digest by the first version's rules, which drop the query of a signed URL."""
    params = described(params) if local_media(params) else params
    return _digest(params, lambda text: _SIGNED.sub(r"\1", text))


def _digest(params: Mapping[str, object], unsigned: Callable[[str], str]) -> str:
    try:
        plain = _plain(params, unsigned)
        text = json.dumps(plain, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"the parameters are not JSON: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object, unsigned: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return unsigned(value)
    if isinstance(value, Mapping):
        return {name: _plain(item, unsigned) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, unsigned) for item in value]
    return value


def _without_signature(found: re.Match[str]) -> str:
    """Return a URL without the parameters that its signature consists of."""
    address, query = found[1], found[2]
    parts = [(_PART.match(part), part) for part in query.split("&")]
    names = {match[1].lower() for match, _ in parts if match}
    signing = {name for name in names if _SIGNING.fullmatch(name)}
    for beside, is_one in ((_BESIDE, bool(signing)), (_BESIDE_SIG, "sig" in signing)):
        signing |= {name for name in names if is_one and beside.fullmatch(name)}
    # A prompt may hold a URL: the bracket or quote that follows it is not part of the value.
    rests = [
        part[match.end() :] if match and match[1].lower() in signing else part
        for match, part in parts
    ]
    rest = "&".join(rest for rest in rests if rest)
    return f"{address}?{rest}" if rest else address


def readable(params: Mapping[str, object]) -> Params:
    """Return the parameters for people to read: without secrets and media, long strings cut."""
    found: Params = redact_value(_cut(described(params)))
    return found


def _cut(value: object) -> Any:
    if isinstance(value, dict):
        return {
            str(name): _described(item) if name == "data" and isinstance(item, str) else _cut(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_cut(item) for item in value]
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value):,} characters)"
    return value


def _described(data: str) -> str:
    return f"... ({len(data):,} characters)"
