"""The parameters of a submission on their way: given, checked, described, sent.

`create`, the Runner, the fleet and the command line all use this, so all accept the same inputs.
"""

from __future__ import annotations

import math
import os
import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from luma_poll._api.media_reference import (
    MAX_DATA,
    PIECE,
    LocalMedia,
    in_thread,
    is_local,
    read_local,
    string_given,
    takes_time,
    too_large,
)
from luma_poll._api.parameters import Params
from luma_poll._arguments import check_prompt, shown
from luma_poll.errors import ConfigurationError

Upload: TypeAlias = Callable[[LocalMedia], Awaitable[str]]
"""A function that uploads a file and returns its id."""

MAX_DEPTH = 50
"""Levels of nesting; the API's own parameters have six."""
MEDIA_PLACES = re.compile(
    r"source|image_ref\[\d+\]|video\.(start_frame|end_frame|(edit\.)?keyframes\[\d+\])"
)
LISTS_OF_MEDIA = ("image_ref", "video.keyframes", "video.edit.keyframes")


def read_params(given: Mapping[str, object]) -> Params:
    """Check the parameters of a submission, and copy them, so that they cannot change later.

    This blocks only to read the first few bytes of each file.

    Returns:
        A copy without those that are None. Each local image or video is a `LocalMedia` in it.

    Raises:
        ConfigurationError: One of them is unusable; the message names it.
    """
    params: Params = {}
    for name, value in given.items():
        if not isinstance(name, str):
            raise ConfigurationError(f"a parameter's name is a string, not {shown(name)}")
        if value is not None:
            params[name] = _checked(name, value, MAX_DEPTH)
    if params.get("type") != "layering" or "prompt" in params:
        check_prompt(params.get("prompt"), optional=params.get("type") == "layering")
    return params


async def read_params_async(given: Mapping[str, object]) -> Params:
    """Check the parameters of a submission, in a thread if there are files to look at."""
    return await in_thread(takes_time_to_read(given), read_params, given)


def _checked(place: str, value: object, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _checked_text(place, value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigurationError(f"{place} is {value}, which is not JSON")
        return value
    if not depth:
        raise ConfigurationError(
            f"{place.partition('.')[0].partition('[')[0]} is nested too deeply"
        )
    if isinstance(value, Mapping):
        return _checked_mapping(place, value, depth)
    if isinstance(value, (list, tuple)):
        return [_checked(f"{place}[{n}]", item, depth - 1) for n, item in enumerate(value)]
    if isinstance(value, UUID):
        return str(value)
    if place in LISTS_OF_MEDIA:
        raise ConfigurationError(f"{place} is a list of media references, not one")
    return read_local(place, value)


def _checked_text(place: str, value: str) -> str:
    if MEDIA_PLACES.fullmatch(place):
        raise ConfigurationError(string_given(place, value))
    if place in LISTS_OF_MEDIA:
        raise ConfigurationError(f"{place} is a list of media references, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{place} is not text: it has half of a surrogate pair") from None
    return value


def _checked_mapping(place: str, value: Mapping[Any, object], depth: int) -> Params:
    for name in value:
        if not isinstance(name, str):
            raise ConfigurationError(f"{place}: a name in it is a string, not {shown(name)}")
    checked = {name: _checked(f"{place}.{name}", item, depth - 1) for name, item in value.items()}
    if MEDIA_PLACES.fullmatch(place) and place != "source" and not checked:
        raise ConfigurationError(f"{place} is an empty media reference")
    return checked


def local_media(value: object) -> list[LocalMedia]:
    """Return the local images and videos, in the order of the parameters."""
    if isinstance(value, LocalMedia):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value
    if not isinstance(items, (list, type({}.values()))):
        return []
    return [found for item in items for found in local_media(item)]


def described(params: Mapping[str, object]) -> Params:
    """Return checked parameters as short JSON, with a digest in place of each image and video.

    It reads every file that has not been read before. The same bytes have the same digest, whether
    in a file or in Base64.
    """
    return {name: _described(value) for name, value in params.items()}


def _described(value: object) -> Any:
    if isinstance(value, LocalMedia):
        return {"sha256": value.digest, "media_type": value.media_type, "bytes": value.size}
    if isinstance(value, list):
        return [_described(item) for item in value]
    if not isinstance(value, dict):
        return value
    digest = _digest_of(value.get("data"))
    rest = value if digest is None else {k: v for k, v in value.items() if k != "data"}
    return {**(digest or {}), **{name: _described(item) for name, item in rest.items()}}


def _digest_of(data: object) -> Params | None:
    try:
        content = b64decode(data, validate=True) if isinstance(data, str) else b""
    except ValueError:  # not Base64: left as it is, for the API to refuse
        return None
    return {"sha256": sha256(content).hexdigest(), "bytes": len(content)} if content else None


def recalled(value: object, recorded: object) -> Any:
    """Return parameters with files that are gone replaced by what was recorded of them.

    Args:
        value: The parameters, or a part of them, as they were given.
        recorded: The same part, as `described` returned it when the files were there.
    """
    if isinstance(value, os.PathLike) and not os.path.exists(value):
        match recorded:
            case {"sha256": str(digest), "media_type": str(media_type), "bytes": int(size)}:
                found = LocalMedia(Path(value).name, media_type, size, Path(value))
                vars(found)["digest"] = digest  # which would read the file
                return found
    if isinstance(value, Mapping) and isinstance(recorded, Mapping):
        return {name: recalled(item, recorded.get(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)) and isinstance(recorded, list):
        return [recalled(*each) for each in zip_longest(value, recorded[: len(value)])]
    return value


async def uploaded(
    params: Mapping[str, object], upload: Upload | None, *, larger_than: int = MAX_DATA
) -> Params:
    """Upload what is larger than a request may carry.

    Args:
        params: Checked parameters.
        upload: Uploads a file; None if the client cannot.
        larger_than: The size in bytes above which a file is uploaded; 0 uploads every local file.

    Raises:
        ConfigurationError: There is something to upload, but the client cannot upload.
        LumaError: An upload failed.
    """

    async def convert(found: LocalMedia) -> object:
        if found.size <= larger_than:
            return found
        if upload is None:
            raise ConfigurationError(too_large(found))
        return {"file_id": await upload(found)}

    return await _converted(params, convert)


async def encoded(params: Mapping[str, object]) -> Params:
    """Read the remaining local files into the parameters, in the form that the API accepts.

    Raises:
        ConfigurationError: A file cannot be read, or has changed since it was checked.
    """

    async def convert(found: LocalMedia) -> object:
        return await in_thread(found.size > PIECE, LocalMedia.as_data, found)

    return await _converted(params, convert)


async def _converted(
    params: Mapping[str, object], convert: Callable[[LocalMedia], Awaitable[object]]
) -> Params:
    """Return a copy with all local media converted, each once, however often it occurs."""
    done = {id(found): await convert(found) for found in local_media(params)}
    return {name: _replaced(value, done) for name, value in params.items()} if done else {**params}


def _replaced(value: object, done: Mapping[int, object]) -> Any:
    if isinstance(value, LocalMedia):
        return done[id(value)]
    if isinstance(value, list):
        return [_replaced(item, done) for item in value]
    if isinstance(value, dict):
        return {name: _replaced(item, done) for name, item in value.items()}
    return value


def takes_time_to_read(value: object) -> bool:
    """Return True if it contains something that takes time to look at."""
    return _holds(value, takes_time, MAX_DEPTH)


def holds_media(value: object) -> bool:
    """Return True if it contains a local image or video."""
    return _holds(value, is_local, MAX_DEPTH)


def _holds(value: object, test: Callable[[object], bool], depth: int) -> bool:
    if isinstance(value, (str, int, float, type(None))) or not depth:
        return False
    if isinstance(value, Mapping):
        return any(_holds(item, test, depth - 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds(item, test, depth - 1) for item in value)
    return test(value)
