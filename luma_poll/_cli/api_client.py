"""The client of the command line, from the environment."""

from __future__ import annotations

import os

from luma_poll._client.client import LumaClient
from luma_poll.errors import ConfigurationError


def open_client() -> LumaClient:
    """A client with the key and the address of the environment.

    Raises:
        ConfigurationError: The key is missing, or one of them is unusable.
    """
    if not os.environ.get("LUMA_AGENTS_API_KEY", "").strip():
        raise ConfigurationError(
            "no API key: set the environment variable LUMA_AGENTS_API_KEY. Keys are made at "
            "https://platform.lumalabs.ai. Without a key, try: luma-poll demo"
        )
    return LumaClient()
