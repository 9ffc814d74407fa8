"""The public client of the Luma Agents API."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from uuid import UUID

import httpx

from luma_poll._arguments import (
    USE_DEFAULT,
    UseDefault,
    check_base_url,
    check_positive,
    check_retries,
    check_token,
)
from luma_poll._client.connections import Connections
from luma_poll._client.exchange import Session
from luma_poll._client.generations import Generations
from luma_poll._client.uploads import Files
from luma_poll._downloads.download import download
from luma_poll._downloads.output import MAX_BYTES, DownloadProgress
from luma_poll.models import GenerationLike

if TYPE_CHECKING:
    import httpx2


class LumaClient:
    """An async client of the Luma Agents API.

    Use it as an async context manager, or call `aclose` at the end. One client serves any number
    of concurrent tasks of one event loop, and may be used in another one when that has ended.

        async with LumaClient() as client:
            generation = await client.generations.create("a red fox in fresh snow")

    Args:
        auth_token: The API key; by default that of the environment, LUMA_AGENTS_API_KEY.
            White space around it is removed.
        base_url: By default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1. Includes `/v1`.
        timeout: Seconds that one whole request may take, from waiting for a free connection to
            the last byte; None for no limit.
        max_retries: How often a request is repeated after a transient failure: no connection,
            no answer in time, 408, 409, 425, 429, 5xx, an unreadable body.
        http_client: The `httpx.AsyncClient` (or `httpx2.AsyncClient`) to send with. It is not
            closed by this client. Redirects are never followed, so the key stays with the API.

    Attributes:
        generations: The generations of the API: `get` a snapshot of one, `create` a new one.
        files: The files of the API: `upload` one as the input of generations.

    Raises:
        ConfigurationError: There is no API key, or an argument is unusable; or, at a request, the
            client is in use in another event loop, which still runs.
    """

    def __init__(
        self,
        auth_token: str | None = None,
        *,
        base_url: str | httpx.URL | None = None,
        timeout: float | None = 30.0,
        max_retries: int = 2,
        http_client: httpx.AsyncClient | httpx2.AsyncClient | None = None,
    ) -> None:
        token = check_token(auth_token)
        self._base_url = check_base_url(base_url)
        self._timeout = check_positive("timeout", timeout)
        self._max_retries = check_retries(max_retries)
        self._connections = Connections(self._base_url, http_client)
        self._is_view = False
        session = Session(self._connections, self._base_url, token, self._timeout)
        self.files: Files = Files(session, self._max_retries)
        self.generations: Generations = Generations(
            session, self._max_retries, self.files.upload_once
        )

    @property
    def base_url(self) -> str:
        """The address of the API, without a slash at its end."""
        return self._base_url

    @property
    def timeout(self) -> float | None:
        """Seconds that one whole request may take; None: no limit."""
        return self._timeout

    @property
    def max_retries(self) -> int:
        """How often a request is repeated after a transient failure."""
        return self._max_retries

    def __repr__(self) -> str:
        return f"LumaClient(base_url={self.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, except those of an `http_client` that was handed in.

        Raises:
            ConfigurationError: They are in use in another event loop.
        """
        if not self._is_view:
            await self._connections.aclose()

    def with_options(
        self,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        max_retries: int | None = None,
    ) -> LumaClient:
        """A view of this client with other options, which never closes the shared connections.

        Args:
            timeout: Seconds that one whole request may take; None for no limit; by default that
                of this client.
            max_retries: How often a request is repeated after a transient failure; by default as
                often as by this client.

        Returns:
            The view. Closing it, or leaving it as a context manager, closes nothing.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        view = copy.copy(self)
        view._is_view = True
        if timeout is not USE_DEFAULT:
            view._timeout = check_positive("timeout", timeout)
        if max_retries is not None:
            view._max_retries = check_retries(max_retries)
        view.files = self.files.with_options(view._timeout, view._max_retries)
        if isinstance(self.generations, Generations):  # not what a test has put in its place
            view.generations = self.generations.with_options(view._timeout, view._max_retries)
        return view

    async def download(
        self,
        generation: GenerationLike | str | UUID,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout: float | None = None,
        max_bytes: int | None = MAX_BYTES,
        overwrite: bool = False,
        on_progress: Callable[[DownloadProgress], object] | None = None,
    ) -> list[Path]:
        """Fetch the outputs of a completed generation into files.

        The files are `{id}.png`, `{id}-2.png` and so on, with the extension of the media that
        arrive. A file gets its final name when it is complete. After a fault or a cancellation
        the next call continues where this one ended. The API key is not sent to the storage.

            paths = await client.download(generation, "outputs")

        Args:
            generation: A completed generation, or the id of one.
            directory: The directory to write to; it is created if it does not exist.
            name: The name of the files in place of the id: `{name}.png`, `{name}~2.png`. What is
                unsafe in it is replaced.
            timeout: Seconds for the whole call; None for no limit.
            max_bytes: The largest size of one file; None for no limit.
            overwrite: Fetch a file again even if one of the right size exists.
            on_progress: Called with a `DownloadProgress` after each piece that arrives. An
                exception in it is logged and dropped.

        Returns:
            The files, in the order of the outputs; layers in the order of their index.

        Raises:
            ConfigurationError: The generation has not ended, or an argument is unusable.
            GenerationError: It failed, or completed without output.
            DownloadError: A file could not be fetched or written, or not in time. The other
                files of the generation were fetched all the same.
            APIError: The API refused a GET of the generation, or could not be reached.
        """
        self._connections.enter()
        return await download(
            generation,
            directory,
            http=self._connections.http,
            get=self.generations.get,
            slots=self._connections.downloads,
            name=name,
            timeout=timeout,
            max_bytes=max_bytes,
            overwrite=overwrite,
            on_progress=on_progress,
        )
