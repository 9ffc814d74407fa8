"""Files at the API: upload one, and wait until a generation may use it."""

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
"""Headers of a PUT that an answer does not decide on."""
READY_SCHEDULE = wait_exponential(multiplier=0.5, exp_base=1.5, max=5) + wait_random(-0.1, 0.1)
"""When to ask if a file is ready: an image is within a second or two, a long video is not."""
STATES = {"pending": "processing", "ready": "completed", "failed": "failed", "deleted": "failed"}
"""A file's states in the words of a generation's; another one is no end."""


@dataclass(frozen=True)
class UploadProgress:
    """How far an upload has come.

    Attributes:
        name: The name of the file; empty if it has none.
        sent: Bytes; fewer than before where an upload begins again.
        total: Bytes of the file.
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
        """Return a view with other options, and with what a test has put in place of a method."""
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

        `create` does this by itself with files of more than 50 MB. By hand it is worth it for an
        input of many generations, which is sent once.

            file_id = await client.files.upload("holiday.mp4")
            await client.generations.create("in winter", model="ray-3.2", type="video_edit",
                                            source={"file_id": file_id})

        It is streamed, so a file may be larger than the memory, up to 5 GiB. A connection that
        breaks is replaced, and the upload begins again. The API key is not sent to the storage.
        https://docs.agents.lumalabs.ai/api/resources/files/methods/create

        Args:
            path_or_file: A path, bytes, a binary file, or an image of Pillow.
            progress: Called with an `UploadProgress` after each piece that was sent. An exception
                in it is logged and dropped.
            media_type: For example `video/mp4`; by default it follows from the first bytes.
            purpose: `input` (to be edited) or `reference` (for style); by default the API's.
            expires_at: When Luma may delete it; aware. By default never.
            user_id: A stable and opaque id of your user.
            timeout: Seconds for the whole call; None for no limit.

        Returns:
            The `file_id`.

        Raises:
            ConfigurationError: It cannot be read, is empty, of no known type, or has more than
                5 GiB; nothing was sent.
            UploadError: It was not taken, or not in time. Uploads cost nothing.
            APIError: The API refused it, or could not be reached.
        """
        check_positive("timeout", timeout)
        source = Path(path_or_file) if isinstance(path_or_file, str) else path_or_file
        read = partial(read_local, "upload", media_type=media_type)
        found = await in_thread(takes_time(source), read, source)
        if not isinstance(found, LocalMedia):
            raise ConfigurationError("a generation is not uploaded: give {'generation_id': …}")
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
        """Upload a file that parameters refer to; one of the disk only the first time."""
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
            ConfigurationError: The id cannot be one; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        path = f"/files/{quote(check_generation_id(file_id), safe='')}"
        request = partial(self._session.answer, "DELETE", path)
        await retried(request, _is_retryable, self._max_retries)

    async def _send(self, upload: _Upload, fields: Mapping[str, Any]) -> None:
        """Bring all bytes to the storage, from the first one on after each failure."""
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
            # Something on the way has answered in place of the storage.
            raise InterruptedTry("the API has not received it") from None

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> Mapping[str, Any]:
        """Send a request that may be repeated: none of them costs anything."""
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
                status = await put(connections.http, target["url"], headers, pieces)
        if not 200 <= status < 300:
            raise upload.error(f"the storage answered HTTP {status}")

    async def _until_ready(self, upload: _Upload) -> None:
        try:
            await self._poller.wait(upload.file_id, timeout=None)
        except GenerationError as error:
            raise upload.error(error.failure_reason or "it was not accepted") from None

    async def _state(self, file_id: str) -> Generation:
        """Return the state of a file, in the words of a generation: a poller knows those."""
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

    def begin(self, created: Mapping[str, Any]) -> None:
        """Take the id; a second try has another one."""
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
            logger.exception("progress raised; the upload goes on", extra=fields(error=error))

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
    """A client whose generations are files: what a poller asks is the same of both."""

    def __init__(self, get: Callable[[str], Awaitable[Generation]]) -> None:
        self.get = get

    @property
    def generations(self) -> Self:
        """Itself."""
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
