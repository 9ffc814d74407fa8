"""The outputs of a generation as files: resumed after a fault, and whole or not there at all."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit
from uuid import UUID

import anyio
import anyio.to_thread
import tenacity

from luma_poll._version import __version__
from luma_poll.arguments import check_count, check_generation_id, check_positive, is_loopback
from luma_poll.errors import (
    ConfigurationError,
    DownloadError,
    InvalidResponseError,
    OutputNotFoundError,
)
from luma_poll.files import (
    open_at,
    publish,
    read_head,
    remove_parts,
    size_of,
    stem_of,
    write,
    write_and_close,
)
from luma_poll.media import EXTENSIONS, HEAD_SIZE, extension_of, is_media
from luma_poll.models import Generation, GenerationOutput, as_generation
from luma_poll.translation import classes, retry_after

logger = logging.getLogger("luma_poll")

MAX_BYTES: Final = 2 * 1024**3
"""Bytes of one file, unless the caller says otherwise."""
MAX_TRIES = 5
"""Requests in a row that may bring not one byte more."""
MAX_REDIRECTS = 3
STALL = 30.0
"""Seconds without a byte after which the connection is taken for dead."""
WAIT = tenacity.wait_exponential(multiplier=0.5, max=8) + tenacity.wait_random(0, 0.5)
"""Between two tries."""
LONGEST_RETRY_AFTER = 60.0
BUFFER = 1024**2
"""Bytes that are written at once: each write is a visit to a thread."""

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


class _InterruptedError(Exception):
    """One try has failed, and another may not."""

    def __init__(self, why: str, *, expired: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(why)
        self.expired = expired
        self.retry_after = retry_after


@dataclass(frozen=True)
class _Version:
    """What the storage says of a file: the same version has the same bytes."""

    etag: str | None
    total: int | None
    content_type: str = field(default="", compare=False)

    @property
    def resumable(self) -> bool:
        return self.etag is not None and self.total is not None

    @property
    def key(self) -> str:
        return sha256(f"{self.etag} {self.total}".encode()).hexdigest()[:16]


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
    _version: _Version | None = None
    _most: int = 0
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    async def run(self) -> Path:
        """Try until the file is there, or the tries bring nothing more."""
        fruitless = 0
        try:
            while True:
                most = self._most
                try:
                    return await self._try()
                except _InterruptedError as error:
                    trouble = error
                fruitless = 1 if self._most > most else fruitless + 1
                if fruitless >= MAX_TRIES:
                    raise self._error(f"{trouble}, {fruitless} times in a row", retryable=True)
                logger.info("generation %s: download: %s", self.generation_id, trouble)
                await anyio.sleep(max(_pause(fruitless), trouble.retry_after))
                if trouble.expired:
                    await self._renew_url()
        finally:
            with anyio.CancelScope(shield=True):
                await self._disk(self._part(None).unlink, missing_ok=True)

    async def _try(self) -> Path:
        start = await self._bytes_of(self._version)
        if self._version is not None and start and start == self._version.total:
            return await self._finish(self._version)
        async with self._request(start) as response:
            if response.status_code == 206 and start and self._version is not None:
                await self._check_continues(response, self._version, start)
                version = self._version
            else:
                version, start = self._read_version(response), 0
                if (kept := await self._kept(version)) is not None:
                    return kept
                known, self._version = self._version, version
                if known is None and await self._bytes_of(version):
                    start = -1  # an earlier call left some of it
            if start >= 0:
                await self._receive(response, version, start)
        return await self._try() if start < 0 else await self._finish(version)

    @asynccontextmanager
    async def _request(self, start: int) -> AsyncIterator[Any]:
        """The storage's answer, good or not at all."""
        headers = {
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "User-Agent": f"luma-poll/{__version__}",
        }
        if start and self._version is not None:
            headers |= {"Range": f"bytes={start}-", "If-Range": self._version.etag or ""}
        response = await self._follow(headers)
        try:
            await self._check_status(response)
            yield response
        finally:
            await _close(response)

    async def _follow(self, headers: dict[str, str]) -> Any:
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            self._check_url(url)
            with self._network():
                response = await _send(self.http, url, headers)
            if response.status_code not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("Location", "")
            await _close(response)
            try:
                url = urljoin(url, location)
            except ValueError:
                raise self._error("the storage redirects to something that is no URL") from None
        raise self._error(f"more than {MAX_REDIRECTS} redirects")

    def _check_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            parts, host = urlsplit(""), ""
        if not host or any(character.isspace() for character in url):
            raise self._error("the URL of the output is not valid")
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
            raise self._error(f"the URL on {host} is not https")
        if parts.username is not None or parts.password is not None:
            raise self._error(f"the URL on {host} has a user name or password")

    async def _check_status(self, response: Any) -> None:
        status = response.status_code
        if status == 416:
            await self._start_over("the storage has no such range (HTTP 416)")
        if status == 403:
            raise _InterruptedError("the storage refuses the URL (HTTP 403)", expired=True)
        if status in (408, 425, 429) or status >= 500:
            wait = min(retry_after(response.headers) or 0.0, LONGEST_RETRY_AFTER)
            raise _InterruptedError(f"the storage answers HTTP {status}", retry_after=wait)
        if status not in (200, 206):
            raise self._error(f"the storage answers HTTP {status}")

    def _read_version(self, response: Any) -> _Version:
        headers = response.headers
        if response.status_code != 200:
            raise _InterruptedError("the storage sends a part that was not asked for")
        content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if not is_media(content_type):
            raise self._error(f"the storage sends {content_type}, not an image or video")
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise self._error(f"the storage sends the file encoded ({encoding[:20]})")
        length = headers.get("Content-Length", "")
        total = int(length) if length.isascii() and length.isdigit() else None
        if total is None and not _is_framed(response):
            raise self._error("the storage does not say how long the file is")
        self._check_size(total or 0)
        etag = headers.get("ETag", "")
        return _Version(etag if re.fullmatch(r'"[!-~]+"', etag) else None, total, content_type)

    def _check_size(self, size: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            raise self._error(f"the file is larger than max_bytes ({self.max_bytes:,} bytes)")

    async def _check_continues(self, response: Any, version: _Version, start: int) -> None:
        said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
        etag = response.headers.get("ETag", version.etag)
        same = said and (int(said[1]), int(said[3]), etag) == (start, version.total, version.etag)
        if not same:
            await self._start_over("the file has changed on the storage")

    async def _start_over(self, why: str) -> None:
        if self._version is not None:
            await self._disk(self._part(self._version).unlink, missing_ok=True)
        self._version = None
        raise _InterruptedError(why)

    async def _receive(self, response: Any, version: _Version, start: int) -> None:
        """Write the body from `start` on. What has arrived is kept, however it ends."""
        position, buffer = start, bytearray()
        file = await self._disk(open_at, self._part(version), start, version.resumable)
        try:
            self._report(position, version)
            chunks = aiter(response.aiter_raw())
            while (chunk := await self._next(chunks)) is not None:
                position += len(chunk)
                if position > (position if version.total is None else version.total):
                    raise self._error("the file is longer than announced")
                self._check_size(position)
                buffer += chunk
                self._most = max(self._most, position)
                self._report(position, version)
                if len(buffer) >= BUFFER:
                    await self._disk(write, file, bytes(buffer))
                    buffer.clear()
        finally:
            with anyio.CancelScope(shield=True):
                await self._disk(write_and_close, file, bytes(buffer))
        if version.total is not None and position < version.total:
            raise _InterruptedError("the file is shorter than announced")

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        with self._network():
            with anyio.fail_after(STALL):
                return await anext(chunks, None)
        return None

    @contextlib.contextmanager
    def _network(self) -> Iterator[None]:
        """What goes wrong on the wire is worth another try."""
        try:
            yield
            return
        except (OSError, anyio.BrokenResourceError) as error:
            why = type(error).__name__
        except classes("RequestError") as error:
            why = type(error).__name__
        # Outside the `except`: their errors keep the request, and with it the signed URL.
        raise _InterruptedError(f"the connection to the storage failed ({why})")

    async def _renew_url(self) -> None:
        snapshot = _checked(await self.get(self.generation_id))
        outputs = _numbered(snapshot.output)
        if self.number not in outputs:
            raise self._error("the generation does not have this output any more")
        self.url = outputs[self.number].url

    async def _kept(self, version: _Version) -> Path | None:
        """The file, where a download has brought it before."""
        if self.overwrite or version.total is None:
            return None
        for extension in EXTENSIONS:
            path = self.base.with_name(f"{self.base.name}.{extension}")
            if await self._disk(size_of, path) == version.total:
                self._report(version.total, version, path)
                return path
        return None

    async def _bytes_of(self, version: _Version | None) -> int:
        if version is None or not version.resumable:
            return 0
        size = await self._disk(size_of, self._part(version)) or 0
        return size if size <= (version.total or 0) else 0

    def _part(self, version: _Version | None) -> Path:
        # The version is in the name, and its bytes are always the same: whoever else is writing
        # it, now or earlier, writes the same bytes to the same places.
        key = version.key if version is not None and version.resumable else self._nonce
        return self.base.with_name(f".{self.base.name}.{key}.part")

    async def _finish(self, version: _Version) -> Path:
        part = self._part(version)
        head = await self._disk(read_head, part, HEAD_SIZE)
        try:
            extension = self._extension(head, version)
        except DownloadError:
            await self._disk(part.unlink, missing_ok=True)
            raise
        path = self.base.with_name(f"{self.base.name}.{extension}")
        await self._disk(publish, part, path)
        await self._disk(remove_parts, self.base)
        size = version.total if version.total is not None else self._most
        self._report(size, version, path)
        return path

    def _extension(self, head: bytes, version: _Version) -> str:
        if not head:
            raise self._error("the file is empty")
        extension = extension_of(head, version.content_type)
        if extension is None:
            wanted = version.content_type or "an image or video"
            raise self._error(f"what the storage sends is not {wanted}")
        return extension

    def _report(self, received: int, version: _Version, path: Path | None = None) -> None:
        if self.on_progress is None:
            return
        progress = DownloadProgress(
            self.generation_id, self.number - 1, self.count, received, version.total, path
        )
        try:
            self.on_progress(progress)
        except Exception:
            logger.exception("on_progress raised; generation %s goes on", self.generation_id)

    def _error(self, message: str, *, retryable: bool = False) -> DownloadError:
        return DownloadError(
            message, generation_id=self.generation_id, path=self.base, retryable=retryable
        )

    async def _disk(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        return await _on_disk(self.base, self.generation_id, partial(function, *args, **options))


async def _on_disk(path: Path, generation_id: str, function: Callable[[], T]) -> T:
    try:
        return await anyio.to_thread.run_sync(function)
    except OSError as error:
        raise DownloadError(
            f"cannot write ({error.strerror or type(error).__name__})",
            generation_id=generation_id,
            path=Path(error.filename) if isinstance(error.filename, str) else path,
        ) from error


async def _send(http: Any, url: str, headers: dict[str, str]) -> Any:
    """Send through the transport of the client alone.

    The client itself would add its own headers, cookies, parameters and authentication, which
    are for the API, and would log the whole URL.
    """
    request_class = type(http.build_request("GET", "https://localhost"))
    seconds = dict.fromkeys(("connect", "read", "write", "pool"), STALL)
    request = request_class("GET", url, headers=headers, extensions={"timeout": seconds})
    with anyio.fail_after(STALL):
        return await http._transport_for_url(request.url).handle_async_request(request)


async def _close(response: Any) -> None:
    with anyio.move_on_after(1, shield=True), contextlib.suppress(Exception):
        await response.aclose()


def _is_framed(response: Any) -> bool:
    """Whether the end of a body without a length can be told from a broken connection."""
    version = response.extensions.get("http_version", b"")
    return version not in (b"HTTP/1.0", b"HTTP/1.1") or "Transfer-Encoding" in response.headers


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
    if not isinstance(directory, (str, os.PathLike)) or "\0" in str(directory):
        raise ConfigurationError("directory must be a path")
    return Path(directory)


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
