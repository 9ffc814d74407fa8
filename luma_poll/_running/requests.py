"""Requests as callers give them, and as they are submitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from luma_poll._arguments import check_prompt, shown
from luma_poll._running.account import Kind
from luma_poll.errors import ConfigurationError

MAX_KEY_LENGTH = 1000
"""Characters; a key is a name, and messages show it."""

AnyRequest: TypeAlias = str | Mapping[str, Any]
"""A prompt, or a mapping of the parameters of `generations.create`; `key` in it is ours."""


@dataclass(frozen=True)
class Request:
    """A request that can be submitted.

    Attributes:
        params: The parameters of `generations.create`, with the prompt; none of them is None.
        key: What the caller calls it, or None.
    """

    params: Mapping[str, Any]
    key: str | None

    @property
    def kind(self) -> Kind:
        """The parameters that its weight depends on, as far as is known."""
        return shown(self.params.get("model")), shown(self.params.get("type"))


def read_request(given: object) -> Request:
    """Check a request of a batch.

    Raises:
        ConfigurationError: It is unusable.
    """
    if isinstance(given, str):
        return Request({"prompt": check_prompt(given)}, None)
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            "a request is a prompt or a mapping of the parameters of generations.create, "
            f"not {type(given).__name__}"
        )
    params = {name: value for name, value in given.items() if value is not None}
    for name in params:
        if not isinstance(name, str):
            raise ConfigurationError(f"a parameter's name is a string, not {shown(name)}")
    key = params.pop("key", None)
    if key is not None:
        check_key(key)
    check_prompt(params.get("prompt"))
    return Request(params, key)


def check_key(key: object) -> str:
    """Return a key that names a request for people and for good.

    Raises:
        ConfigurationError: It cannot be one.
    """
    if not isinstance(key, str) or not key.strip():
        raise ConfigurationError(f"a key is a string that is not blank, not {shown(key)}")
    if len(key) > MAX_KEY_LENGTH:
        raise ConfigurationError(f"a key has at most {MAX_KEY_LENGTH} characters, not {len(key)}")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"a key is text, not {shown(key)}") from None
    if "\0" in key:
        raise ConfigurationError(f"a key is text, not {shown(key)}")
    return key
