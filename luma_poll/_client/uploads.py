"""The files of the API: uploads, and the wait until a generation may use one."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import quote

import anyio
from tenacity import wait_exponential, wait_random

from luma_poll._api.answers import note_answer
from luma_poll._api.headers import retry_after
from luma_poll._api.media_reference import LocalMedia, in_thread, read_local, takes_time
from luma_poll._api.parameters import SupportsRead, SupportsSave
from luma_poll._arguments import check_generation_id, check_positive
from luma_poll._client.exchange import Session
from luma_poll._client.generations import retried
from luma_poll._downloads.put import Pieces, put
from luma_poll._downloads.storage import InterruptedTry, RefusedError
from luma_poll._logging import fields, logger
from luma_poll._polling.poller import Poller
from luma_poll._tasks.backoff import backoff
from luma_poll._version import __version__
from luma_poll.errors import (
    APIError,
    APIStatusError,
    ConfigurationError,
    GenerationError,
    InvalidResponseError,
    UploadError,
)
from luma_poll.models import Generation, GenerationOutput

OURS = ("authorization", "content-length", "cookie", "host", "transfer-encoding")
"""Headers of a PUT that the API's answer must not set."""
READY_SCHEDULE = wait_exponential(multiplier=0.5, exp_base=1.5, max=5) + wait_random(-0.1, 0.1)
"""The schedule of asking if a file is ready: an image takes a second or two, a video longer."""
STATES = {"pending": "processing", "ready": "completed", "failed": "failed", "deleted": "failed"}
"""The states of a file, as those of a generation; any other counts as not ended."""


@dataclass(frozen=True)
class UploadProgress:
    """The progress of an upload.

    Attributes:
        name: The name of the file; empty if it has none.
        sent: The bytes sent so far; they start over if the upload does.
        total: The bytes of the file.
    """

    name: str
    sent: int
    total: int


class Files:
    """The files of the API: `client.files`."""

    def __init__(self, session: Session, max_retries: int) -> None:
        self._session = session
        self._max_retries = max_retries
        self._poller = Poller(_FilesAsGenerations(self._state), wait=READY_SCHEDULE)
        self._uploaded: dict[tuple[object, object], str] = {}

    def with_options(self, timeout: float | None, max_retries: int) -> Self:
        """Return a view with other options, and with any method that a test has replaced."""
        view = copy.copy(self)
        view._session = self._session.with_timeout(timeout)
        view._max_retries = max_retries
        return view

    async def upload(
        self,
        path_or_file: str | os.PathLike[str] | bytes | SupportsRead | SupportsSave,
        *,
        progress: Callable[[UploadProgress], object] | None = None,
        media_type: str | None = None,
        purpose: str | None = None,
        expires_at: datetime | None = None,
        user_id: str | None = None,
        timeout: float | None = 3600.0,
    ) -> str:
        """Upload an image or a video, and wait until generations may use it.

        `create` does this itself for files of more than 50 MB. Do it yourself for an input of many
        generations, so that it is sent only once.

            file_id = await client.files.upload("holiday.mp4")
            await client.generations.create("in winter", model="ray-3.2", type="video_edit",
                                            source={"file_id": file_id})

        The file is streamed, so it may be larger than the memory, up to 5 GiB. If the connection
        breaks, the upload starts over. The API key is not sent to the storage.
        https://docs.agents.lumalabs.ai/api/resources/files/methods/create

        Args:
            path_or_file: A path, bytes, a binary file, or a Pillow image.
            progress: A function (not async), called with an `UploadProgress` after each piece that
                was sent. If it raises, the exception is logged and dropped.
            media_type: The media type, such as `video/mp4`; by default the first bytes decide.
            purpose: `input` (to be edited) or `reference` (for style); by default the API decides.
            expires_at: When Luma may delete the file, as an aware datetime; by default never.
            user_id: A stable and opaque id of your user.
            timeout: Seconds for the whole call; None for no limit.

        Returns:
            The `file_id`.

        Raises:
            ConfigurationError: The file cannot be read, is empty, of no known type, or has more
                than 5 GiB; nothing was sent.
            UploadError: The file was not accepted, or not in time. Uploads cost nothing.
            APIError: The API refused it, or could not be reached.
        """
        check_positive("timeout", timeout)
        source = Path(path_or_file) if isinstance(path_or_file, str) else path_or_file
        read = partial(read_local, "upload", media_type=media_type)
        found = await in_thread(takes_time(source), read, source)
        if not isinstance(found, LocalMedia):
            raise ConfigurationError("a generation need not be uploaded: give {'generation_id': …}")
        wanted = {
            "mime_type": found.media_type,
            "size_bytes": found.size,
            "filename": found.name or None,
            "purpose": purpose,
            "expires_at": None if expires_at is None else expires_at.isoformat(),
            "user_id": user_id,
        }
        upload = _Upload(found, progress)
        with anyio.move_on_after(timeout):
            await self._send(upload, {k: v for k, v in wanted.items() if v is not None})
            await self._until_ready(upload)
            return upload.file_id
        raise upload.error(f"it was not ready within {timeout:g} s", retryable=True)

    async def upload_once(self, found: LocalMedia) -> str:
        """Upload a file for a submission; a file on disk is uploaded only the first time."""
        key = (found.content, found.state) if found.state and found.size else None
        if key is not None and key in self._uploaded:
            return self._uploaded[key]
        file_id = await self.upload(cast(Any, found))
        if key is not None:
            self._uploaded[key] = file_id
        return file_id

    async def delete(self, file_id: str) -> None:
        """Delete a file: no further generation can use it.

        Args:
            file_id: The id that `upload` returned.

        Raises:
            ConfigurationError: The id is invalid; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        path = f"/files/{quote(check_generation_id(file_id), safe='')}"
        request = partial(self._session.answer, "DELETE", path)
        await retried(request, _is_retryable, self._max_retries)

    async def _send(self, upload: _Upload, fields: Mapping[str, object]) -> None:
        """Send all bytes to the storage, again from the first one after each failure."""
        body = json.dumps(fields).encode()
        for attempt in range(1, self._max_retries + 2):
            created = await self._ask("POST", "/files", body)
            upload.begin(created)
            try:
                await self._put(upload, created.get("upload"))
                await self._complete(upload)
                return
            except InterruptedTry as error:
                if attempt > self._max_retries:
                    raise upload.error(str(error), retryable=True) from None
                await anyio.sleep(max(error.retry_after, backoff(attempt)))
            except RefusedError as error:
                raise upload.error(str(error)) from None

    async def _complete(self, upload: _Upload) -> None:
        try:
            await self._ask("POST", f"/files/{quote(upload.file_id, safe='')}/complete")
        except APIStatusError as error:
            if error.status_code != 409:
                raise
            # Something on the way has answered instead of the storage.
            raise InterruptedTry("the API has not received it") from None

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Mapping[str, Any]:
        """Send a request with retries, because none of these costs anything."""
        request = partial(self._session.answer, method, path, body=body)
        answer = await retried(request, _is_retryable, self._max_retries)
        return _fields_of(answer.content)

    async def _put(self, upload: _Upload, target: object) -> None:
        if not isinstance(target, Mapping) or not isinstance(target.get("url"), str):
            raise InvalidResponseError("the answer does not say where to upload the file")
        given = target.get("headers")
        headers = {
            name: value
            for name, value in (given.items() if isinstance(given, Mapping) else ())
            if isinstance(value, str) and name.lower() not in OURS
        }
        media = upload.media
        headers |= {"Content-Length": str(media.size), "User-Agent": f"luma-poll/{__version__}"}
        connections = self._session.connections
        async with connections.enter().downloads:
            with media.open() as file:
                pieces = Pieces(file, media.size, upload.tell)
                status = await put(
                    connections.http, connections.base_url, target["url"], headers, pieces
                )
        if not 200 <= status < 300:
            raise upload.error(f"the storage answered HTTP {status}")

    async def _until_ready(self, upload: _Upload) -> None:
        try:
            await self._poller.wait(upload.file_id, timeout=None)
        except GenerationError as error:
            raise upload.error(error.failure_reason or "it was not accepted") from None

    async def _state(self, file_id: str) -> Generation:
        """Return the state of a file as a generation, for the poller."""
        answer = await self._session.answer("GET", f"/files/{quote(file_id, safe='')}")
        found = _fields_of(answer.content)
        state = found.get("state")
        if not isinstance(state, str):
            raise InvalidResponseError("the answer is not a file")
        snapshot = Generation(
            id=file_id,
            state=STATES.get(state, state),
            failure_reason=found.get("failure_reason") if state == "failed" else f"it is {state}",
            output=[GenerationOutput(url=f"/files/{file_id}")] if state == "ready" else [],
        )
        return note_answer(snapshot, retry_after=retry_after(answer.headers))


@dataclass
class _Upload:
    """One upload on its way."""

    media: LocalMedia
    progress: Callable[[UploadProgress], object] | None
    file_id: str = ""

    def begin(self, created: Mapping[str, object]) -> None:
        """Take the id; a second attempt gets another one."""
        file_id = created.get("id")
        if not isinstance(file_id, str) or not file_id:
            raise InvalidResponseError("the answer is not a file: it has no id")
        self.file_id = check_generation_id(file_id)
        self.tell(0)

    def tell(self, sent: int) -> None:
        """Report the progress."""
        if self.progress is None:
            return
        try:
            self.progress(UploadProgress(self.media.name, sent, self.media.size))
        except Exception as error:
            logger.exception("progress raised; the upload continues", extra=fields(error=error))

    def error(self, why: str, *, retryable: bool = False) -> UploadError:
        """Return the error to raise."""
        name = self.media.name or "bytes"
        return UploadError(
            f"upload of {name}: {why.rstrip('.')}. Nothing was submitted, and nothing is billed",
            name=name,
            file_id=self.file_id or None,
            retryable=retryable,
        )


class _FilesAsGenerations:
    """A client whose generations are files, so that a poller can wait for them."""

    def __init__(self, get: Callable[[str], Awaitable[Generation]]) -> None:
        self.get = get

    @property
    def generations(self) -> Self:
        """The object itself."""
        return self


def _is_retryable(error: APIError) -> bool:
    return error.retryable


def _fields_of(content: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidResponseError("the answer is not a file")
    return found
