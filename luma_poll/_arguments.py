"""Checks of arguments, made before anything is sent."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from enum import Enum
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

import httpx

from luma_poll.errors import ConfigurationError

DEFAULT_BASE_URL = "https://agents.lumalabs.ai/v1"
MAX_ID_LENGTH = 1000
"""Characters; a UUID has 36."""


class UseDefault(Enum):
    """The type of `USE_DEFAULT`, for annotations: `timeout: float | UseDefault | None`."""

    USE_DEFAULT = "USE_DEFAULT"

    def __repr__(self) -> str:
        return self.name


USE_DEFAULT: Final = UseDefault.USE_DEFAULT
"""The default of every `timeout`: the poller's or the client's own timeout applies.

None already means "no limit". Pass this on from your own function that has a timeout:

    async def first_url(id: str, timeout: float | UseDefault | None = USE_DEFAULT) -> str:
        return (await poller.wait(id, timeout=timeout))[0].url
"""


def shown(value: object, as_text: Callable[[object], str] = repr) -> str:
    """Return the value as text for a message, even if its own `repr` or `str` raises."""
    try:
        return as_text(value)
    except Exception:
        return f"<{type(value).__name__}>"


def check_generation_id(generation_id: object) -> str:
    """Return the id as a string.

    Raises:
        ConfigurationError: The id is neither a string nor a UUID, is blank, or cannot be part of
            a URL's path.
    """
    if isinstance(generation_id, UUID):
        return str(generation_id)
    if not isinstance(generation_id, str):
        raise ConfigurationError(
            f"a generation id is a string or UUID, not {type(generation_id).__name__}"
        )
    stripped = generation_id.strip()
    if stripped in ("", ".", "..") or len(stripped) > MAX_ID_LENGTH:
        raise ConfigurationError(f"{generation_id[:50]!r} is not a generation id")
    try:
        stripped.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{generation_id!r} is not a generation id") from None
    return stripped


def same_id(one: str | None, other: str | None) -> bool:
    """Return True for two spellings of the same id: UUIDs are compared as UUIDs."""
    return one == other or (
        one is not None and other is not None and canonical_id(one) == canonical_id(other)
    )


def canonical_id(generation_id: str) -> str:
    """Return the usual spelling of an id: a UUID in lower case, with hyphens."""
    try:
        return str(UUID(generation_id))
    except ValueError:
        return generation_id


def check_prompt(prompt: object, *, optional: bool = False) -> str:
    """Return the prompt.

    Args:
        prompt: A string; it may be blank only if it is `optional`.
        optional: True for the types of generation that need no prompt.

    Raises:
        ConfigurationError: The prompt is not a string, or is blank.
    """
    if not isinstance(prompt, str) or not (optional or prompt.strip()):
        raise ConfigurationError(f"prompt must be a string that is not blank, not {shown(prompt)}")
    return prompt


def check_positive(name: str, value: object) -> float | None:
    """Return the argument called `name` as a float, or None for no limit.

    Raises:
        ConfigurationError: It is not a number above 0.
    """
    return None if value is None else check_number(name, value, ", or None for no limit")


def check_number(name: str, value: object, alternative: str = "") -> float:
    """Return the argument called `name` as a float.

    Args:
        name: The name, for the message.
        value: What the caller passed.
        alternative: What else the caller may pass, for the message.

    Raises:
        ConfigurationError: It is not a number above 0.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ConfigurationError(
            f"{name} must be a number above 0{alternative}, not {shown(value)}"
        )
    try:
        return float(value)
    except OverflowError:
        raise ConfigurationError(f"{name} is too large a number") from None


def check_timeout(timeout: float | UseDefault | None, default: float | None) -> float | None:
    """Return the timeout that was given, else the default, in seconds.

    Raises:
        ConfigurationError: It is not a number above 0.
    """
    return default if timeout is USE_DEFAULT else check_positive("timeout", timeout)


def check_count(name: str, value: object) -> int | None:
    """Return the argument called `name` as a whole number, or None for no limit.

    Raises:
        ConfigurationError: It is not a whole number of at least 1.
    """
    return None if value is None else check_whole(name, value, ", or None")


def check_whole(name: str, value: object, alternative: str = "") -> int:
    """Return the argument called `name` as a whole number.

    Args:
        name: The name, for the message.
        value: What the caller passed.
        alternative: What else the caller may pass, for the message.

    Raises:
        ConfigurationError: It is not a whole number of at least 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(
            f"{name} must be a whole number from 1{alternative}, not {shown(value)}"
        )
    return value


def check_token(token: object) -> str:
    """Return the API key: the argument, else the environment variable.

    Raises:
        ConfigurationError: There is no key, or it cannot be one.
    """
    if token is None:
        token = os.environ.get("LUMA_AGENTS_API_KEY", "")
    if not isinstance(token, str):
        raise ConfigurationError(f"auth_token must be a string, not {type(token).__name__}")
    token = token.strip()
    if not token:
        raise ConfigurationError(
            "no API key: set the environment variable LUMA_AGENTS_API_KEY or pass auth_token. "
            "Create a key at https://platform.lumalabs.ai"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            "the API key contains white space or characters that no key has: "
            "pass the key alone, without 'Bearer'"
        )
    return token


def check_base_url(base_url: str | httpx.URL | None) -> str:
    """Return the base URL without a trailing slash: the argument, the environment's, the default.

    Raises:
        ConfigurationError: It is not an http(s) URL, or has a user, a query or a fragment.
    """
    name = "base_url" if base_url else "LUMA_BASE_URL"
    url = str(base_url or os.environ.get("LUMA_BASE_URL") or DEFAULT_BASE_URL).strip()
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # parsed lazily
        httpx.URL(url)
        (host or "").encode("idna")
    except (ValueError, httpx.InvalidURL):  # a UnicodeError is a ValueError
        raise ConfigurationError(f"{name} is not a valid URL") from None
    if any(character.isspace() for character in url):
        raise ConfigurationError(f"{name} must not have white space inside")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{name} must begin with https:// (or http://) and a host")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(f"{name} must not have a user name or password")
    if "?" in url or "#" in url:
        raise ConfigurationError(f"{name} must not have a query or fragment")
    if parts.scheme == "http" and not is_loopback(host):
        warnings.warn(f"the API key will be sent to {host} unencrypted: use https://", stacklevel=3)
    return url.rstrip("/")


def may_be_plain(host: str, base_url: str) -> bool:
    """Return True if a URL that the API gave for this host may be plain http.

    On the API's host it may if the base URL is plain http. On this machine it may only if the API
    is here as well: a remote API must not direct us to other servers on this machine.
    """
    api = urlsplit(base_url)
    if is_loopback(host):
        return is_loopback(api.hostname or "")
    return api.scheme == "http" and api.hostname == host


def is_loopback(host: str) -> bool:
    """Return True if the host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def check_retries(max_retries: object) -> int:
    """Return the number of retries.

    Raises:
        ConfigurationError: It is not a whole number of at least 0.
    """
    if not isinstance(max_retries, int) or isinstance(max_retries, bool) or max_retries < 0:
        raise ConfigurationError(
            f"max_retries must be a whole number from 0, not {shown(max_retries)}"
        )
    return max_retries
