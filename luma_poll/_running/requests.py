"""Requests, as callers give them and as they are submitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from luma_poll._api.media_reference import PIECE, LocalMedia, in_thread
from luma_poll._api.request_body import local_media, read_params, takes_time_to_read
from luma_poll._arguments import shown
from luma_poll._running.account import Kind
from luma_poll.errors import ConfigurationError

MAX_KEY_LENGTH = 1000
"""Characters; a key is a name, which messages show."""

AnyRequest: TypeAlias = str | Mapping[str, Any]
"""A prompt, or a mapping of the parameters of `generations.create`, with or without a `key`."""


class Keys:
    """Keys for the requests of a batch that have none; equal requests are numbered."""

    def __init__(self) -> None:
        self._digests = Counter[str]()

    def of(self, digest: str) -> str:
        """Return the key of the next request with this digest."""
        self._digests[digest] += 1
        number = self._digests[digest]
        return digest[:32] if number == 1 else f"{digest[:32]}-{number}"


@dataclass(frozen=True)
class Request:
    """A request that can be submitted.

    Attributes:
        params: The parameters of `generations.create`, with the prompt; none of them is None.
        key: The caller's name for it, or None.
    """

    params: Mapping[str, Any] = field(repr=False)
    key: str | None

    @property
    def is_large(self) -> bool:
        """True if its files are large enough to be read in a thread."""
        return any(found.size > PIECE for found in self.local_media)

    @property
    def local_media(self) -> list[LocalMedia]:
        """The files, bytes and images among its parameters."""
        return local_media(self.params)

    @property
    def kind(self) -> Kind:
        """The parameters that its weight depends on, as far as we know."""
        return shown(self.params.get("model")), shown(self.params.get("type"))


def read_request(given: object) -> Request:
    """Check a request of a batch.

    Raises:
        ConfigurationError: The request is unusable; the message names the parameter.
    """
    if isinstance(given, str):
        return Request(read_params({"prompt": given}), None)
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            "a request is a prompt or a mapping of the parameters of generations.create, "
            f"not {type(given).__name__}"
        )
    params = dict(given)
    key = params.pop("key", None)
    if key is not None:
        check_key(key)
    return Request(read_params(params), key)


async def read_request_async(given: object) -> Request:
    """Check a request of a batch, in a thread if there are files to look at."""
    slow = isinstance(given, Mapping) and takes_time_to_read(given)
    return await in_thread(slow, read_request, given)


def check_key(key: object) -> str:
    """Return the key, which is stored and shown as it is.

    Raises:
        ConfigurationError: It is not text, is blank, or is too long.
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
