"""The images and videos that a model names: files in one directory, public URLs, and ids."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from mcp.server.mcpserver.exceptions import ToolError

from luma_poll._api.parameters import Params
from luma_poll._api.request_body import MEDIA_PLACES


def with_references(params: Mapping[str, object], inputs: Path | None) -> Params:
    """Return the parameters with a media reference for each image or video, however deep.

    Args:
        params: The parameters, as the model wrote them.
        inputs: The only directory from which files are read; None to read none.

    Raises:
        ToolError: A file lies outside the directory, or a URL is not public.
    """
    return {name: _resolved(name, value, inputs) for name, value in params.items()}


def _resolved(place: str, value: object, inputs: Path | None) -> Any:
    if isinstance(value, dict):
        return {name: _resolved(f"{place}.{name}", item, inputs) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolved(f"{place}[{n}]", item, inputs) for n, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    if MEDIA_PLACES.fullmatch(place):
        return read_reference(value, inputs)
    if "://" in value or place.endswith(".url"):
        _check_public(value)
    return value


def read_reference(text: str, inputs: Path | None) -> Path | dict[str, str]:
    """Return the media that a model names: a public URL, the id of a generation, or a file.

    Args:
        text: The reference, as the model wrote it.
        inputs: The only directory from which files are read; None to read none.

    Raises:
        ToolError: It is something else, or a file outside the directory.
    """
    if "://" in text:
        _check_public(text)
        return {"url": text}
    try:
        return {"generation_id": str(UUID(text))}
    except ValueError:
        pass
    if inputs is None:
        raise ToolError("files are not allowed as inputs here: give a public https URL or an id")
    try:
        root = inputs.resolve()
        path = (root / text).resolve()  # follows symbolic links, so that none leads outside
        if path.is_relative_to(root) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, a loop of links
        pass
    raise ToolError(f"there is no file of that name below {inputs}")


def _check_public(url: str) -> None:
    """Refuse URLs whose host may be inside a private network."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        raise ToolError("that is not a URL") from None
    if parts.scheme != "https" or parts.username is not None or "." not in host:
        raise ToolError("only public https URLs are allowed, without a user name in them")
    if host.endswith((".local", ".localhost", ".internal", ".home.arpa")):
        raise ToolError("only public hosts are allowed")
    try:
        is_public = ip_address(host.strip("[]")).is_global
    except ValueError:
        # "127.1" and "0x7f.1" are addresses, too, in spellings that only resolvers know.
        is_public = not host.rpartition(".")[2][:1].isdigit()
    if not is_public:
        raise ToolError("only public hosts are allowed")
