"""The LumaClient: the API, its files and the downloads."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Self

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
from luma_poll._downloads.download import Downloadable, Source, check_target, download, read, stream
from luma_poll._downloads.output import DownloadProgress
from luma_poll._downloads.saving import Overwrite
from luma_poll._downloads.storage import Storage

if TYPE_CHECKING:
    import httpx2


class LumaClient:
    """An async client of the Luma Agents API.

    Use it as an async context manager, or call `aclose` at the end. One client serves any number
    of concurrent tasks in one event loop. After that loop has ended, another one may use it.

        async with LumaClient() as client:
            generation = await client.generations.create("a red fox in fresh snow")

    Args:
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY. White
            space around it is removed.
        base_url: The base URL, including `/v1`; by default the environment variable LUMA_BASE_URL,
            else https://agents.lumalabs.ai/v1.
        timeout: Seconds that one whole request may take, from waiting for a free connection to
            the last byte; None for no limit.
        max_retries: How often a request is repeated after a transient failure: no connection,
            no answer in time, 408, 409, 425, 429, 5xx, an unreadable body.
        http_client: Your own `httpx.AsyncClient` (or `httpx2.AsyncClient`) to send with. You close
            it yourself. Redirects are never followed, so that the key stays with the API.

    Attributes:
        generations: The generations of the API: `get` returns a snapshot, `create` submits one.
        files: The files of the API: `upload` one as the input of generations.

    Raises:
        ConfigurationError: There is no API key, or an argument is unusable. Requests raise it if
            another event loop that still runs is using the client.
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
        """The base URL of the API, without a trailing slash."""
        return self._base_url

    @property
    def timeout(self) -> float | None:
        """The seconds that one whole request may take; None for no limit."""
        return self._timeout

    @property
    def max_retries(self) -> int:
        """The number of times that a request is repeated after a transient failure."""
        return self._max_retries

    def __repr__(self) -> str:
        return f"LumaClient(base_url={self.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections, except those of an `http_client` of your own.

        Raises:
            ConfigurationError: Another event loop that still runs is using them.
        """
        if not self._is_view:
            await self._connections.aclose()

    def with_options(
        self,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        max_retries: int | None = None,
    ) -> LumaClient:
        """Return a view of this client with other options and the same connections.

            patient = client.with_options(timeout=120)

        Args:
            timeout: Seconds that one whole request may take; None for no limit; by default as in
                this client.
            max_retries: How often a request is repeated after a transient failure; by default as
                in this client.

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
        if isinstance(self.generations, Generations):  # unless a test has replaced it
            view.generations = self.generations.with_options(view._timeout, view._max_retries)
        return view

    async def download(
        self,
        generation: Downloadable,
        directory_or_file: str | os.PathLike[str],
        *,
        name: str | None = None,
        key: str | None = None,
        overwrite: Overwrite = False,
        timeout: float | None = 600.0,
        max_bytes: int | None = 2 * 1024**3,
        on_progress: Callable[[DownloadProgress], object] | None = None,
    ) -> list[Path]:
        """Fetch the outputs of a completed generation into files.

        The files are called `{id}.png`, `{id}-2.png` and so on, with the extension of the bytes
        that arrive. A file gets its final name when it is complete. Transient failures are retried,
        with fresh URLs. After a failure or a cancellation, the next call continues where this one
        ended. The API key is not sent to the storage.

            paths = await client.download(generation, "outputs")
            paths = await client.download(generation, "fox.png")

        Args:
            generation: A completed generation, its id, or outputs of it. For a snapshot that has
                not ended, the API is asked again.
            directory_or_file: The directory to write to, or the path of a file, which ends in a
                known extension. If the bytes are of another type, their extension replaces it. A
                directory is created if missing.
            name: The name of the files instead of the id: `{name}.png`, `{name}~2.png`. It may
                contain `{id}`, `{key}` and `{n}` (the number of the output), as in `"{key}-{n}"`.
                Characters that some file system refuses are replaced.
            key: The value of `{key}`, and the name if `name` is None.
            overwrite: The rule for a file of that name that holds something else. False: leave it
                as it is, and raise `DownloadError`. "number": save the output beside it, as
                `{name} (2).png`. True: replace it, and fetch the output again if it is there.
            timeout: Seconds for the whole call; None for no limit.
            max_bytes: The most bytes of one file; None for no limit.
            on_progress: A function (not async), called with a `DownloadProgress` after each piece
                that arrives. If it raises, the exception is logged and dropped.

        Returns:
            The paths of the files, in the order of the outputs; layers in the order of their index.
            A notebook shows the files themselves.

        Raises:
            ConfigurationError: The generation has not ended, or an argument is unusable.
            GenerationError: The generation failed, or completed without output.
            DownloadError: A file could not be written, or was not fetched in time. The other files
                of the generation were fetched regardless.
            APIError: The API says that the generation is gone, or refuses the key.
        """
        return await download(
            self._source(),
            generation,
            directory_or_file,
            name=name,
            key=key,
            overwrite=overwrite,
            timeout=timeout,
            max_bytes=max_bytes,
            on_progress=on_progress,
        )

    async def check_download(
        self, directory: str | os.PathLike[str], *, name: str | None = None
    ) -> None:
        """Check that the files of a batch can be written, before any of it is paid for.

        Args:
            directory: The directory to write to; created if missing.
            name: The name of the files, which contains `{id}` or `{key}`; None for the default.

        Raises:
            ConfigurationError: The directory or the name is unusable.
        """
        await check_target(directory, name)

    async def read(
        self,
        generation: Downloadable,
        *,
        timeout: float | None = 600.0,
        max_bytes: int | None = 256 * 1024**2,
    ) -> list[bytes]:
        """Fetch the outputs of a completed generation into memory.

        It retries and checks like `download`, for programs without a directory.

            (picture,) = await client.read(generation)

        Args:
            generation: A completed generation, its id, or outputs of it.
            timeout: Seconds for the whole call; None for no limit.
            max_bytes: The most bytes of one output; None for no limit.

        Returns:
            The bytes of each output, in the order of the outputs.

        Raises:
            ConfigurationError: The generation has not ended, or an argument is unusable.
            GenerationError: The generation failed, or completed without output.
            DownloadError: An output is too large, or was not fetched in time.
            APIError: The API says that the generation is gone, or refuses the key.
        """
        return await read(self._source(), generation, timeout=timeout, max_bytes=max_bytes)

    def stream(
        self,
        generation: Downloadable,
        *,
        timeout: float | None = 600.0,
        max_bytes: int | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Stream the bytes of one output as they arrive, and resume after each fault.

            async with client.stream(outputs[0]) as chunks:
                async for chunk in chunks:
                    await upload.write(chunk)

        Args:
            generation: A completed generation with one output, its id, or an output.
            timeout: Seconds for everything, including your own work between the chunks; None for
                no limit.
            max_bytes: The most bytes of the output; None for no limit.

        Returns:
            An async context manager with an async iterator over the chunks.

        Raises:
            ConfigurationError: There are several outputs, or an argument is unusable.
            GenerationError: The generation failed, or completed without output.
            DownloadError: The output was not fetched in time, or the connection broke and the
                storage cannot resume.
            APIError: The API says that the generation is gone, or refuses the key.
        """
        return stream(self._source(), generation, timeout=timeout, max_bytes=max_bytes)

    def _source(self) -> Source:
        turns = self._connections.enter()
        storage = Storage(self._connections.http, self._base_url)
        return Source(self.generations.get, storage, turns.downloads)
