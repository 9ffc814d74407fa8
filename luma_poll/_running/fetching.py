"""The files of a batch, downloaded by the client as its generations end."""

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
    """A batch with downloads: runs each request, then fetches the files of what completes.

    Args:
        client: The client whose `download` is used.
        batch: The batch.
        directory: The directory for the files.
        name: The template of their names; None for the keys and ids.
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
        """Check everything that can be checked before anything is submitted.

        Raises:
            ConfigurationError: The client cannot download, the directory or the name is
                unusable, or two requests of a list would write the same files.
        """
        if not hasattr(self._client, "check_download"):
            raise ConfigurationError("download= needs a LumaClient; this client cannot download")
        await self._client.check_download(self._directory, name=self._name)
        if isinstance(requests, Sequence):
            for given in requests:
                self._note_key(given)
            self._seen.clear()

    async def run(self, taken: Taken) -> RunResult:
        """Run one request, then fetch its files; a failed download is part of the result."""
        try:
            key = self._note_key(taken.given)
        except ConfigurationError as error:  # an iterator's requests cannot be checked earlier
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
            ConfigurationError: The name needs a key and the request has none, or another request
                has the same key.
        """
        key = given.get("key") if isinstance(given, Mapping) else None
        if not isinstance(key, str):
            if self._name is not None and "{key}" in self._name:
                raise ConfigurationError("name contains {key}, but a request has no key")
            return None
        # On macOS and Windows, names that differ only in case or composition are the same file.
        composed = unicodedata.normalize("NFC", key).casefold()
        identity = unicodedata.normalize("NFC", composed)
        if identity in self._seen:
            raise ConfigurationError(
                f"the keys {self._seen[identity]!r} and {key!r} would name the same file: "
                "give each request a key of its own"
            )
        self._seen[identity] = key
        return key
