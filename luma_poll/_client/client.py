"""The public client of the Luma Agents API."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

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

    async def __aexit__(self, *_: object) -> None:
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

        The files are `{id}.png`, `{id}-2.png` and so on, with the extension of the bytes that
        arrive. A file gets its final name when it is complete. Whatever may pass is waited out,
        with fresh URLs; after a fault or a cancellation the next call continues where this one
        ended. The API key is not sent to the storage.

            paths = await client.download(generation, "outputs")
            paths = await client.download(generation, "fox.png")

        Args:
            generation: A completed generation, the id of one, or outputs of it. A snapshot that
                has not ended is asked for again.
            directory_or_file: The directory to write to, or the path of a file: one that ends in
                a known extension, which that of the bytes replaces if they are of another type.
                Directories are created.
            name: The name of the files in place of the id: `{name}.png`, `{name}~2.png`. It may
                have `{id}`, `{key}` and `{n}` (the number of the output) in it, as in
                `"{key}-{n}"`. What no file system takes in it is replaced.
            key: The value of `{key}`, and the name if none is given.
            overwrite: What happens to a file of that name which does not hold this output. False:
                it is left as it is, and a `DownloadError` says so. "number": the output is saved
                beside it, as `{name} (2).png`. True: it is replaced, and a file that holds this
                output is fetched again.
            timeout: Seconds for the whole call; None for no limit.
            max_bytes: The largest size of one file; None for no limit.
            on_progress: Called with a `DownloadProgress` after each piece that arrives. An
                exception in it is logged and dropped.

        Returns:
            The files, in the order of the outputs; layers in the order of their index. A notebook
            shows what is in them.

        Raises:
            ConfigurationError: The generation has not ended, or an argument is unusable.
            GenerationError: It failed, or completed without output.
            DownloadError: A file could not be written, or not be fetched in time. The other
                files of the generation were fetched all the same.
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
        """Find out that the files of a batch can be written, before any of it is paid for.

        Args:
            directory: The directory to write to; it is created.
            name: The name of the files, with `{id}` or `{key}` in it.

        Raises:
            ConfigurationError: One of them is unusable.
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

        With the patience and the checks of `download`, for programs without a directory.

            (picture,) = await client.read(generation)

        Args:
            generation: A completed generation, the id of one, or outputs of it.
            timeout: Seconds for the whole call; None for no limit.
            max_bytes: The largest size of one output; None for no limit.

        Returns:
            The bytes of each output, in the order of the outputs.

        Raises:
            ConfigurationError: The generation has not ended, or an argument is unusable.
            GenerationError: It failed, or completed without output.
            DownloadError: An output is too large, or could not be fetched in time.
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
        """Pass on the bytes of one output as they arrive, and resume them after each fault.

            async with client.stream(outputs[0]) as chunks:
                async for chunk in chunks:
                    await upload.write(chunk)

        Args:
            generation: A completed generation with one output, the id of one, or an output.
            timeout: Seconds for all of it, your own work between the chunks included; None for
                no limit.
            max_bytes: The largest size; None for no limit.

        Returns:
            A context manager, which yields the chunks.

        Raises:
            ConfigurationError: There are several outputs, or an argument is unusable.
            GenerationError: It failed, or completed without output.
            DownloadError: It could not be fetched in time, or a storage without ranges broke off.
            APIError: The API says that the generation is gone, or refuses the key.
        """
        return stream(self._source(), generation, timeout=timeout, max_bytes=max_bytes)

    def _source(self) -> Source:
        turns = self._connections.enter()
        parts = urlsplit(self._base_url)
        plain_host = parts.hostname if parts.scheme == "http" else None
        storage = Storage(self._connections.http, plain_host)
        return Source(self.generations.get, storage, turns.downloads)
