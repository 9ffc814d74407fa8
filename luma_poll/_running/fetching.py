"""The files of a batch: fetched by the client as its generations end."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from luma_poll._running.batch import Batch, Taken
from luma_poll._running.requests import AnyRequest
from luma_poll._running.run_result import RunResult
from luma_poll.errors import ConfigurationError


class Fetching:
    """Runs the requests of a batch, and fetches the files of those that complete.

    Args:
        client: The client, of which `download` is used.
        batch: The batch.
        directory: The directory of the files.
        name: Their name, a template; None for the keys and ids.
    """

    def __init__(
        self, client: object, batch: Batch, directory: str | os.PathLike[str], name: str | None
    ) -> None:
        self._client: Any = client
        self._batch = batch
        self._directory = directory
        self._name = name
        self._seen: dict[str, str] = {}

    async def check(self, requests: object) -> None:
        """Find out what can be known before anything is submitted.

        Raises:
            ConfigurationError: The client cannot download, the directory or the name is
                unusable, or two of a list of requests would have one name.
        """
        if not hasattr(self._client, "check_download"):
            raise ConfigurationError("download= needs a LumaClient: this client cannot download")
        await self._client.check_download(self._directory, name=self._name)
        if isinstance(requests, Sequence):
            for given in requests:
                self._note_key(given)
            self._seen.clear()

    async def run(self, taken: Taken) -> RunResult:
        """Run one, then fetch its files; a failure of that is part of the result."""
        try:
            key = self._note_key(taken.given)
        except ConfigurationError as error:  # of requests that are taken one by one
            self._batch.take_next()
            return RunResult(taken.given, None, error)
        result = await self._batch.run(taken)
        if not result.ok:
            return result
        download: Callable[..., Awaitable[Any]] = self._client.download
        try:
            paths = await download(result.generation, self._directory, name=self._name, key=key)
        except Exception as error:
            return replace(result, download_error=error)
        return replace(result, paths=paths)

    def _note_key(self, given: AnyRequest) -> str | None:
        """Return the key that names the files of a request.

        Raises:
            ConfigurationError: There must be one and is none, or another request has it.
        """
        key = given.get("key") if isinstance(given, Mapping) else None
        if not isinstance(key, str):
            if self._name is not None and "{key}" in self._name:
                raise ConfigurationError("name has a {key}, and a request has none: give it one")
            return None
        # On macOS and Windows names that differ in case or composition are one file.
        composed = unicodedata.normalize("NFC", key).casefold()
        identity = unicodedata.normalize("NFC", composed)
        if identity in self._seen:
            raise ConfigurationError(
                f"the keys {self._seen[identity]!r} and {key!r} are one name for two files: "
                "give each request a key of its own"
            )
        self._seen[identity] = key
        return key
