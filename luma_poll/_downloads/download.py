"""The outputs of a generation as files: resumed after a fault, and whole or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import anyio
import tenacity

from luma_poll._arguments import check_count, check_generation_id, check_positive
from luma_poll._downloads.files import (
    PartFile,
    in_thread,
    publish,
    remove_parts,
    size_of,
    stem_of,
)
from luma_poll._downloads.media import EXTENSIONS, extension_of
from luma_poll._downloads.storage import (
    InterruptedTry,
    RefusedError,
    Version,
    body,
    check_continues,
    read,
    read_version,
    requested,
)
from luma_poll._logging import fields, logger
from luma_poll.errors import (
    ConfigurationError,
    DownloadError,
    InvalidResponseError,
    OutputNotFoundError,
)
from luma_poll.models import Generation, GenerationOutput, as_generation

MAX_BYTES: Final = 2 * 1024**3
"""Bytes of one file, unless the caller says otherwise."""
MAX_TRIES = 5
"""Requests in a row that may bring not one byte more."""
WAIT = tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 0.5)
"""Between two tries."""

T = TypeVar("T")


@dataclass(frozen=True)
class DownloadProgress:
    """How far one file is: what `on_progress` gets.

    Attributes:
        generation_id: The generation.
        index: Which of its outputs this is, from 0 on.
        count: How many outputs it has.
        received: Bytes that are there, those of an earlier call included. It falls back to 0
            where the storage cannot resume.
        total: Bytes of the whole file; None until the storage has said so.
        path: The finished file; None until it is.
    """

    generation_id: str
    index: int
    count: int
    received: int
    total: int | None
    path: Path | None = None

    @property
    def done(self) -> bool:
        """Whether the file is there under its final name."""
        return self.path is not None


async def download(
    generation: object,
    directory: str | os.PathLike[str],
    *,
    http: Any,
    get: Callable[[str], Awaitable[Generation]],
    slots: anyio.Semaphore,
    timeout: float | None,
    max_bytes: int | None,
    overwrite: bool,
    on_progress: Callable[[DownloadProgress], object] | None,
) -> list[Path]:
    """`LumaClient.download`, with the HTTP client, `generations.get` and the turns to use."""
    timeout = check_positive("timeout", timeout)
    max_bytes = check_count("max_bytes", max_bytes)
    folder = _checked_directory(directory)
    with anyio.move_on_after(timeout):
        snapshot = _checked(await _snapshot(generation, get))
        outputs = _numbered(snapshot.output)
        jobs = [
            _Job(
                generation_id=snapshot.id,
                number=number,
                count=len(outputs),
                url=output.url,
                base=folder / stem_of(snapshot.id, number),
                http=http,
                get=get,
                max_bytes=max_bytes,
                overwrite=overwrite,
                on_progress=on_progress,
            )
            for number, output in outputs.items()
        ]
        await _on_disk(folder, snapshot.id, partial(folder.mkdir, parents=True, exist_ok=True))
        return await _run_all(jobs, slots)
    raise DownloadError(
        f"not complete within {timeout:g} s. Call download again: it goes on from there",
        generation_id=_id_of(generation),
        path=folder,
        retryable=True,
    )


async def _run_all(jobs: list[_Job], slots: anyio.Semaphore) -> list[Path]:
    """Run the jobs to their end, and then raise the first error if there is any."""
    results: dict[int, Path | Exception] = {}

    async def run(index: int, job: _Job) -> None:
        try:
            async with slots:
                results[index] = await job.run()
        except Exception as error:
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, job in enumerate(jobs):
            tasks.start_soon(run, index, job)
    paths = []
    for index in range(len(jobs)):
        result = results[index]
        if isinstance(result, Exception):
            raise result
        paths.append(result)
    return paths


@dataclass
class _Job:
    """One output on its way to one file."""

    generation_id: str
    number: int
    count: int
    url: str = field(repr=False)
    base: Path
    http: Any
    get: Callable[[str], Awaitable[Generation]]
    max_bytes: int | None
    overwrite: bool
    on_progress: Callable[[DownloadProgress], object] | None
    _version: Version | None = None
    _may_resume: bool = True
    _most: int = 0
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    async def run(self) -> Path:
        """Try until the file is there, or the tries bring nothing more."""
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
                # Outside the `except`: what went wrong may know the signed URL.
                if isinstance(trouble, RefusedError):
                    raise self._error(str(trouble))
                if trouble.changed:
                    self._version, self._may_resume = None, False
                fruitless = 1 if self._most > most else fruitless + 1
                if fruitless >= MAX_TRIES:
                    raise self._error(f"{trouble}, {fruitless} times in a row", retryable=True)
                extra = fields(self.generation_id, error=trouble)
                logger.info("generation %s: download: %s", self.generation_id, trouble, extra=extra)
                await anyio.sleep(max(_pause(fruitless), trouble.retry_after))
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

    async def _receive(self, response: Any, version: Version, start: int, stop: int | None) -> None:
        """Write the body, which goes from `start` to `stop`. What arrives is kept, in any case."""
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
            finally:  # asyncio's own cancellation can come before the visit has begun
                with suppress(OSError):
                    file.close()
        if version.total is not None and file.position < version.total:
            raise InterruptedTry("the file is shorter than announced")

    async def _renew_url(self) -> None:
        snapshot = _checked(await self.get(self.generation_id))
        outputs = _numbered(snapshot.output)
        if self.number not in outputs:
            raise self._error("the generation does not have this output any more")
        self.url = outputs[self.number].url

    async def _existing(self, version: Version) -> Path | None:
        """The file of this size, where a download has brought it before."""
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
        """Leave of the parts the one that can be gone on with."""
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
            raise self._error(f"what the storage sends is not {wanted}")
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
                "on_progress raised; generation %s goes on", self.generation_id, extra=extra
            )

    def _error(self, message: str, *, retryable: bool = False) -> DownloadError:
        return DownloadError(
            message, generation_id=self.generation_id, path=self.base, retryable=retryable
        )

    async def _disk(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        return await _on_disk(self.base, self.generation_id, partial(function, *args, **options))


async def _on_disk(path: Path, generation_id: str, function: Callable[[], T]) -> T:
    try:
        return await in_thread(function)
    except OSError as error:
        raise DownloadError(
            f"cannot write ({error.strerror or type(error).__name__})",
            generation_id=generation_id,
            path=Path(error.filename) if isinstance(error.filename, str) else path,
        ) from error


def _pause(tries: int) -> float:
    state = tenacity.RetryCallState(None, None, (), {})  # type: ignore[arg-type]
    state.attempt_number = tries
    return WAIT(state)


async def _snapshot(generation: object, get: Callable[[str], Awaitable[Generation]]) -> Generation:
    if isinstance(generation, (str, UUID)):
        return await get(check_generation_id(generation))
    try:
        return as_generation(generation)
    except InvalidResponseError:
        raise ConfigurationError(
            f"download takes a generation or its id, not {type(generation).__name__}"
        ) from None


def _checked(generation: Generation) -> Generation:
    generation.raise_for_failure()
    if not generation.is_terminal:
        raise ConfigurationError(
            f"generation {generation.id} is {generation.state!r}: wait for it before you "
            "download it, for example with Poller.wait"
        )
    if not generation.output:
        raise OutputNotFoundError(generation)
    return generation


def _checked_directory(directory: object) -> Path:
    try:
        path = Path(cast(str, directory))
        if b"\0" in os.fsencode(path):
            raise ValueError
    except (TypeError, ValueError):  # a UnicodeEncodeError is one
        raise ConfigurationError("directory must be a path") from None
    return path


def _id_of(generation: object) -> str:
    given = generation if isinstance(generation, (str, UUID)) else getattr(generation, "id", "")
    return str(given)


def _numbered(outputs: list[GenerationOutput]) -> dict[int, GenerationOutput]:
    """The outputs by their number, from 1 on: layers by their index, others as they come."""
    indexes = [output.layer.index if output.layer else None for output in outputs]
    numbers = [index + 1 for index in indexes if index is not None and index >= 0]
    if len(set(numbers)) != len(outputs):
        numbers = list(range(1, len(outputs) + 1))
    return dict(sorted(zip(numbers, outputs, strict=True)))
