"""One output, one file: fetched in as many requests as it takes, resumed after each fault."""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import anyio

from luma_poll._downloads.files import PartFile, on_disk, publish, remove_parts, size_of
from luma_poll._downloads.media import EXTENSIONS, extension_of
from luma_poll._downloads.storage import (
    HTTPClient,
    InterruptedTry,
    RefusedError,
    Response,
    Version,
    body,
    check_continues,
    read,
    read_version,
    requested,
)
from luma_poll._logging import fields, logger
from luma_poll.errors import ConfigurationError, DownloadError, OutputNotFoundError
from luma_poll.models import Generation, GenerationOutput

MAX_BYTES: Final = 2 * 1024**3
"""Bytes of one file, unless the caller says otherwise."""
MAX_TRIES = 5
"""Consecutive requests without progress after which a job gives up."""
MAX_PAUSE = 8.0
"""Seconds between two requests, before jitter; `Retry-After` may ask for more."""

Get = Callable[[str], Awaitable[Generation]]
"""`generations.get`."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class DownloadProgress:
    """How far one file is: passed to `on_progress`.

    Attributes:
        generation_id: The generation.
        index: The position of this output among those of the generation, from 0.
        count: How many outputs the generation has.
        received: Bytes on disk so far, those of an earlier call included. It falls back to 0
            where the storage cannot resume.
        total: Bytes of the whole file; None until the storage has announced it.
        path: The finished file; None until it is finished.
    """

    generation_id: str
    index: int
    count: int
    received: int
    total: int | None
    path: Path | None = None

    @property
    def done(self) -> bool:
        """True once the file is complete, under its final name."""
        return self.path is not None


def backoff(tries: int) -> float:
    """Seconds to wait after so many tries without progress: exponential, with jitter."""
    return min(2.0 ** (tries - 2), MAX_PAUSE) + random.uniform(0, 0.5)


def outputs_of(generation: Generation) -> dict[int, GenerationOutput]:
    """The outputs by number, from 1: layers by their index, others in the API's order.

    Raises:
        ConfigurationError: The generation has not ended.
        GenerationError: It failed, or completed without output.
    """
    generation.raise_for_failure()
    if not generation.is_terminal:
        raise ConfigurationError(
            f"generation {generation.id} is {generation.state!r}: wait for it before you "
            "download it, for example with Poller.wait"
        )
    outputs = generation.output
    if not outputs:
        raise OutputNotFoundError(generation)
    indexes = [output.layer.index if output.layer else None for output in outputs]
    numbers = [index + 1 for index in indexes if index is not None and index >= 0]
    if len(set(numbers)) != len(outputs):
        numbers = list(range(1, len(outputs) + 1))
    return dict(sorted(zip(numbers, outputs, strict=True)))


@dataclass
class Job:
    """The download of one output into one file.

    Attributes:
        generation_id: The generation.
        number: The number of the output, from 1.
        count: How many outputs the generation has.
        url: Where the output is stored; renewed when it has expired.
        base: The path of the file, without the extension.
        http: The client whose transport is used.
        get: `generations.get`, for a fresh URL.
        max_bytes: The largest file that is accepted; None for no limit.
        overwrite: Fetch the file even if one of the right size exists.
        on_progress: Called after each piece that arrives.
    """

    generation_id: str
    number: int
    count: int
    url: str = field(repr=False)
    base: Path
    http: HTTPClient
    get: Get
    max_bytes: int | None
    overwrite: bool
    on_progress: Callable[[DownloadProgress], object] | None
    _version: Version | None = None
    _may_resume: bool = True
    _most: int = 0
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    async def run(self) -> Path:
        """Request the file until it is complete, or several tries in a row made no progress.

        Raises:
            DownloadError: The storage refused, the tries made no progress, or the disk failed.
        """
        fruitless, finished = 0, False
        try:
            while True:
                most = self._most
                try:
                    path = await self._try()
                    finished = True
                    return path
                except (InterruptedTry, RefusedError) as error:
                    trouble = error
                # Outside the `except`: the error's context may hold the signed URL.
                if isinstance(trouble, RefusedError):
                    raise self._error(str(trouble))
                if trouble.changed:
                    self._version, self._may_resume = None, False
                fruitless = 1 if self._most > most else fruitless + 1
                if fruitless >= MAX_TRIES:
                    raise self._error(f"{trouble}, {fruitless} times in a row", retryable=True)
                extra = fields(self.generation_id, error=trouble)
                logger.info("generation %s: download: %s", self.generation_id, trouble, extra=extra)
                await anyio.sleep(max(backoff(fruitless), trouble.retry_after))
                if trouble.expired:
                    await self._renew_url()
        finally:
            with anyio.CancelScope(shield=True):
                await self._tidy_up(finished)

    async def _try(self) -> Path:
        known, start = self._version, await self._bytes_of(self._version)
        if known is not None and start and start == known.total:
            return await self._finish(known)
        async with requested(self.http, self.url, known, start) as response:
            if known is not None and start and response.status_code == 206:
                stop = check_continues(response, known, start)
                await self._receive(response, known, start, stop)
                return await self._finish(known)
            version = read_version(response)
            if not self._may_resume:
                version = replace(version, etag=None)
            self._check_size(version.total or 0)
            if not self.overwrite and (path := await self._existing(version)) is not None:
                return path
            self._version = version
            if known not in (None, version):
                await self._tidy_up()
            if known is not None or not await self._bytes_of(version):
                await self._receive(response, version, 0, version.total)
                return await self._finish(version)
        return await self._try()  # an earlier call left some of it

    def _check_size(self, size: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            raise self._error(f"the file is larger than max_bytes ({self.max_bytes:,} bytes)")

    async def _receive(
        self, response: Response, version: Version, start: int, stop: int | None
    ) -> None:
        """Write the body, the bytes from `start` to `stop`; keep what arrives in any case."""
        file = PartFile(self._part(version), start)

        def take(chunk: bytes) -> bool:
            position = file.position + len(chunk)
            if stop is not None and position > stop:
                raise self._error("the file is longer than announced")
            self._check_size(position)
            file.put(chunk)
            self._most = max(self._most, position)
            self._report(position, version)
            return file.is_full

        try:
            if not await self._disk(file.open, version.resumable):
                raise InterruptedTry("the file was taken away while it was written")
            self._report(start, version)
            async with body(response) as chunks:
                while await read(chunks, take):
                    await self._disk(file.flush)
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await self._disk(file.close)
            finally:  # asyncio's own cancellation can come before the thread has started
                with suppress(OSError):
                    file.close()
        if version.total is not None and file.position < version.total:
            raise InterruptedTry("the file is shorter than announced")

    async def _renew_url(self) -> None:
        outputs = outputs_of(await self.get(self.generation_id))
        if self.number not in outputs:
            raise self._error("the generation does not have this output any more")
        self.url = outputs[self.number].url

    async def _existing(self, version: Version) -> Path | None:
        """The finished file of an earlier download, recognised by its size."""
        for extension in EXTENSIONS if version.total is not None else ():
            path = self.base.with_name(f"{self.base.name}.{extension}")
            if await self._disk(size_of, path) == version.total:
                self._report(version.total or 0, version, path)
                return path
        return None

    async def _bytes_of(self, version: Version | None) -> int:
        if version is None or not version.resumable:
            return 0
        size = await self._disk(size_of, self._part(version)) or 0
        return size if size <= (version.total or 0) else 0

    async def _tidy_up(self, finished: bool = False) -> None:
        """Remove all parts but the one that can be resumed."""
        version = None if finished else self._version
        keep = self._part(version) if version is not None and version.resumable else None
        if finished or version is not None:
            await self._disk(remove_parts, self.base, keep)

    def _part(self, version: Version | None) -> Path:
        # The version is in the name, and its bytes are always the same: whoever else is writing
        # it, now or earlier, writes the same bytes to the same places.
        key = version.key if version is not None and version.resumable else self._nonce
        return self.base.with_name(f".{self.base.name}.{key}.part")

    async def _finish(self, version: Version) -> Path:
        try:
            path = await self._publish(version)
        except DownloadError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            of_another = await self._existing(version)
            if of_another is None:
                raise InterruptedTry("the file was taken away while it was written") from None
            return of_another
        self._report(self._most if version.total is None else version.total, version, path)
        return path

    async def _publish(self, version: Version) -> Path:
        def named(head: bytes) -> Path:
            return self.base.with_name(f"{self.base.name}.{self._extension(head, version)}")

        part, private = self._part(version), self._part(None)
        return await self._disk(publish, part, private, version.total, named)

    def _extension(self, head: bytes, version: Version) -> str:
        if not head:
            raise self._error("the file is empty")
        extension = extension_of(head, version.content_type)
        if extension is None:
            wanted = version.content_type or "an image or video"
            raise self._error(f"the storage sent something that is not {wanted}")
        return extension

    def _report(self, received: int, version: Version, path: Path | None = None) -> None:
        if self.on_progress is None:
            return
        progress = DownloadProgress(
            self.generation_id, self.number - 1, self.count, received, version.total, path
        )
        try:
            self.on_progress(progress)
        except Exception as error:
            extra = fields(self.generation_id, error=error)
            logger.exception(
                "on_progress raised; the download of generation %s continues",
                self.generation_id,
                extra=extra,
            )

    def _error(self, message: str, *, retryable: bool = False) -> DownloadError:
        return DownloadError(
            message, generation_id=self.generation_id, path=self.base, retryable=retryable
        )

    async def _disk(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        return await on_disk(self.base, self.generation_id, partial(function, *args, **options))
