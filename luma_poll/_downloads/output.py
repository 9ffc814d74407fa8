"""One output, fetched in as many requests as it takes, and resumed after each fault."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Generic, TypeVar

import anyio
import httpx

from luma_poll._api.media_types import HEAD_SIZE, looks_like_text, media_type_of
from luma_poll._downloads.storage import (
    InterruptedTry,
    RefusedError,
    Storage,
    Version,
    body,
    check_continues,
    close,
    read,
    read_version,
    request,
)
from luma_poll._logging import fields, logger
from luma_poll._tasks.backoff import backoff
from luma_poll.errors import APIError, APIStatusError, DownloadError

NOWHERE: Final = Path("memory")
"""The path, in messages, of an output that is not in a file."""

FreshURL = Callable[[], Awaitable[str]]
"""A function that asks the API for a freshly signed URL."""

R = TypeVar("R")


@dataclass(frozen=True)
class DownloadProgress:
    """The progress of one file, passed to `on_progress`.

    Attributes:
        generation_id: The id of the generation.
        index: The position of this output among those of the generation, from 0.
        count: How many outputs the generation has.
        received: Bytes on disk so far, including those of an earlier call. It falls back to 0 if
            the storage cannot resume.
        total: Bytes of the whole file; None until the storage announces them.
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
        """True once the file is complete and has its final name."""
        return self.path is not None


class OutOfTimeError(Exception):
    """The error for a deadline that came first."""


class Deadline:
    """The deadline of a download.

    It limits what may wait for ever: the network, the API, turns and pauses. It never interrupts
    the disk, so a file whose last byte has arrived is finished.

    Args:
        timeout: Seconds from now; None for no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._at = math.inf if timeout is None else anyio.current_time() + timeout

    @contextmanager
    def bounds(self) -> Iterator[None]:
        """Leave the block at the deadline.

        Raises:
            OutOfTimeError: The deadline has come.
        """
        with anyio.CancelScope(deadline=self._at) as scope:
            yield
        if scope.cancelled_caught:
            raise OutOfTimeError


class Sink(ABC, Generic[R]):
    """The place where the bytes of one output go; by default it has nothing from earlier calls."""

    @property
    def path(self) -> Path:
        """The path for messages."""
        return NOWHERE

    async def existing(self) -> R | None:
        """Return the result of an earlier download, or None."""
        return None

    async def expect(self, version: Version) -> None:
        """Refuse a version before its bytes are sent."""

    @abstractmethod
    async def received(self, version: Version) -> int:
        """Return the number of bytes of a version that are there, from its beginning."""

    @abstractmethod
    async def open(self, version: Version, start: int) -> None:
        """Prepare for the bytes from `start` on."""

    @abstractmethod
    def put(self, chunk: bytes) -> bool:
        """Take bytes without delay; return True if `flush` is due."""

    async def flush(self) -> None:
        """Pass on what was put."""

    async def close(self) -> None:
        """Pass on what was put, and keep it for another attempt."""

    def abandon(self) -> None:
        """Close at once, for a task that cannot wait."""

    @abstractmethod
    async def finish(self, version: Version) -> R:
        """Return the result of a version whose bytes are all there."""

    async def tidy_up(self, keep: Version | None) -> None:
        """Remove what is unfinished, except for a version that can be resumed."""


@dataclass
class Transfer(Generic[R]):
    """The way of one output from the storage to a sink.

    Attributes:
        generation_id: The id of the generation.
        number: The number of the output, from 1.
        count: How many outputs the generation has.
        url: The URL of the output; renewed when that may help.
        storage: The way to the storage.
        renew: Asks the API for a fresh URL.
        deadline: The deadline.
        turns: Limits the requests under way; None for no limit.
        sink: The place where the bytes go.
        max_bytes: The largest file that is accepted; None for no limit.
        on_progress: A function that is called after each piece that arrives.
    """

    generation_id: str
    number: int
    count: int
    url: str = field(repr=False)
    storage: Storage
    renew: FreshURL
    deadline: Deadline
    turns: anyio.Semaphore | None
    sink: Sink[R]
    max_bytes: int | None
    on_progress: Callable[[DownloadProgress], object] | None
    _version: Version | None = None
    _may_resume: bool = True
    _most: int = 0

    async def run(self) -> R:
        """Request the output until it is complete, or the deadline has come.

        Raises:
            DownloadError: The deadline came first, one of our rules forbids it, or the disk failed.
            APIError: The API says that the generation is gone, or refuses the key.
        """
        finished = False
        try:
            result = await self.sink.existing()
            if result is None:
                result = await self._persist()
            finished = True
            return result
        finally:
            with anyio.CancelScope(shield=True):
                await self._tidy_up(finished)

    async def _persist(self) -> R:
        """Try again after every error that may pass."""
        tries, renewed = 0, True
        trouble: Exception | None = None
        while True:
            most, problem = self._most, trouble
            try:
                if not renewed:
                    with self.deadline.bounds():
                        self.url = await self.renew()
                    renewed = True
                return await self._in_turn()
            except (InterruptedTry, RefusedError, OutOfTimeError, APIError) as error:
                problem = error
            # Outside the `except`: the error would be a context, which may hold the signed URL.
            if isinstance(problem, OutOfTimeError):
                raise self._too_late(trouble)
            if isinstance(problem, RefusedError):
                raise self._error(str(problem))
            if isinstance(problem, APIError) and is_final(problem):
                raise problem
            trouble = problem
            pause = 0.0
            if isinstance(trouble, InterruptedTry):
                renewed, pause = renewed and not trouble.expired, trouble.retry_after
                if trouble.changed:
                    self._version, self._may_resume = None, False
            tries = 1 if self._most > most else tries + 1
            extra = fields(self.generation_id, error=trouble)
            logger.info("generation %s: download: %s", self.generation_id, trouble, extra=extra)
            late = False
            try:
                with self.deadline.bounds():
                    await anyio.sleep(max(backoff(tries), pause))
            except OutOfTimeError:
                late = True
            if late:
                raise self._too_late(trouble)

    async def _in_turn(self) -> R:
        if self.turns is None:
            return await self._try()
        with self.deadline.bounds():
            await self.turns.acquire()
        try:
            return await self._try()
        finally:
            self.turns.release()  # not kept during a pause: others can use it meanwhile

    async def _try(self) -> R:
        known = self._version
        start = 0 if known is None else await self.sink.received(known)
        if known is not None and start and start == known.total:
            return await self._finish(known)
        with self.deadline.bounds():
            response = await request(self.storage, self.url, known, start)
        try:
            if known is not None and start and response.status_code == 206:
                stop = check_continues(response, known, start)
                await self._receive(response, known, start, stop)
                return await self._finish(known)
            version = read_version(response)
            if not self._may_resume:
                version = replace(version, etag=None)
            self._check_size(version.total or 0)
            if version.total == 0:
                raise InterruptedTry("the file is empty", expired=True)
            await self.sink.expect(version)
            self._version = version
            if known not in (None, version):
                await self._tidy_up()
            if known is not None or not await self.sink.received(version):
                await self._receive(response, version, 0, version.total)
                return await self._finish(version)
        finally:
            await close(response)
        return await self._try()  # again, from the bytes that an earlier call left

    def _check_size(self, size: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            raise self._error(f"the file is larger than max_bytes ({self.max_bytes:,} bytes)")

    async def _receive(
        self, response: httpx.Response, version: Version, start: int, stop: int | None
    ) -> None:
        """Take the body, the bytes from `start` to `stop`; keep what arrives even on a failure."""
        head: bytearray | None = bytearray() if start == 0 else None
        position = start

        def take(chunk: bytes) -> bool:
            nonlocal head, position
            position += len(chunk)
            if stop is not None and position > stop:
                raise InterruptedTry("the file is longer than announced", expired=True)
            self._check_size(position)
            if head is not None:
                head += chunk
                if len(head) < HEAD_SIZE:
                    return False
                chunk, head = bytes(head), None
                check_head(chunk[:HEAD_SIZE], version.content_type)
            full = self.sink.put(chunk)
            self._most = max(self._most, position)
            self._report(position, version)
            return full

        try:
            await self.sink.open(version, start)
            self._report(position, version)
            async with body(response, version.decoder) as chunks:
                more = True
                while more:
                    with self.deadline.bounds():
                        more = await read(chunks, take)
                    if more:
                        await self.sink.flush()
            if head is not None:  # all of it
                if not head:
                    raise InterruptedTry("the file is empty", expired=True)
                check_head(bytes(head), version.content_type)
                self.sink.put(bytes(head))
                self._most = max(self._most, position)
            await self.sink.flush()
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await self.sink.close()
            finally:  # asyncio's own cancellation may come before the thread of `close` has started
                self.sink.abandon()
        if version.total is not None and position < version.total:
            raise InterruptedTry("the file is shorter than announced")

    async def _finish(self, version: Version) -> R:
        result = await self.sink.finish(version)
        received = self._most if version.total is None else version.total
        self._report(received, version, result if isinstance(result, Path) else None)
        return result

    async def _tidy_up(self, finished: bool = False) -> None:
        version = None if finished else self._version
        if finished or version is not None:
            await self.sink.tidy_up(version if version is not None and version.resumable else None)

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

    def _too_late(self, trouble: Exception | None) -> DownloadError:
        return too_late(self.generation_id, self.sink.path, self.deadline, trouble)

    def _error(self, message: str) -> DownloadError:
        return DownloadError(message, generation_id=self.generation_id, path=self.sink.path)


def check_head(head: bytes, content_type: str) -> None:
    """Refuse a web page or a message in place of a file; unknown bytes pass.

    Raises:
        InterruptedTry: The bytes are text.
    """
    if media_type_of(head, content_type) is None and looks_like_text(head):
        said = content_type or "text"
        raise InterruptedTry(f"the storage sent {said}, not an image or video", expired=True)


def is_final(error: APIError) -> bool:
    """Return True if the API itself says that there is nothing to wait for.

    Anything in between, which answers in other words, may be gone at the next request.
    """
    return isinstance(error, APIStatusError) and error.in_api_words and not error.retryable


def too_late(
    generation_id: str, path: Path, deadline: Deadline, trouble: Exception | None
) -> DownloadError:
    """Return the error for a deadline that came first, with the last trouble before it."""
    why = "" if trouble is None else f": {str(trouble).rstrip('.')}"
    return DownloadError(
        f"not complete within {deadline.timeout:g} s{why}. The output is stored and paid for: "
        "download it again, by the same id, and it continues from there",
        generation_id=generation_id,
        path=path,
        retryable=True,
    )
