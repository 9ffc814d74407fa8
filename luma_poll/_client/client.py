"""A small client of the Luma Agents API: submit a generation, fetch a snapshot of one."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote
from uuid import UUID

import anyio
import httpx
import tenacity

from luma_poll._arguments import (
    check_base_url,
    check_generation_id,
    check_positive,
    check_retries,
    check_token,
)
from luma_poll._client.session import Session
from luma_poll._downloads.download import download
from luma_poll._downloads.job import MAX_BYTES, DownloadProgress
from luma_poll._translation import retry_after, status_error, translate_error
from luma_poll._version import __version__
from luma_poll.errors import (
    APIError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
)
from luma_poll.models import Generation, GenerationLike, parse

if TYPE_CHECKING:
    import httpx2

LONGEST_RETRY_SLEEP = 60.0
"""Seconds that `get` and `create` sleep at the most between two tries (as in the official SDK)."""


class LumaClient:
    """An async client of the Luma Agents API.

    Use it as an async context manager, or call `aclose` at the end. One client serves any number
    of concurrent tasks of one event loop, and may be used in another one when that has ended.

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
        self._token = check_token(auth_token)
        # Not a dict: httpx leaves the key out of the repr of these.
        self._headers = httpx.Headers(
            {
                "Authorization": f"Bearer {self._token}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": f"luma-poll/{__version__}",
            }
        )
        self.base_url = check_base_url(base_url)
        self.timeout = check_positive("timeout", timeout)
        self.max_retries = check_retries(max_retries)
        self._session = Session(self.base_url, http_client)
        self._is_view = False
        self.generations = Generations(self)

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
            await self._session.aclose()

    def with_options(
        self, *, timeout: float | EllipsisType | None = ..., max_retries: int | None = None
    ) -> LumaClient:
        """A view of this client with other options, which never closes the shared connections.

        Args:
            timeout: Seconds that one whole request may take; None for no limit.
            max_retries: How often a request is repeated after a transient failure.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        view = copy.copy(self)
        view._is_view = True
        if isinstance(self.generations, Generations):
            view.generations = copy.copy(self.generations)  # with what a test has put in its place
            view.generations._client = view
        if timeout is not ...:
            view.timeout = check_positive("timeout", timeout)
        if max_retries is not None:
            view.max_retries = check_retries(max_retries)
        return view

    async def download(
        self,
        generation: GenerationLike | str | UUID,
        directory: str | os.PathLike[str],
        *,
        timeout: float | None = None,
        max_bytes: int | None = MAX_BYTES,
        overwrite: bool = False,
        on_progress: Callable[[DownloadProgress], object] | None = None,
    ) -> list[Path]:
        """Fetch the outputs of a completed generation into files.

        The files are `{id}.png`, `{id}-2.png` and so on, with the extension of the media that
        arrive. Each has its final name only when it is whole. After a fault or a cancellation
        the next call goes on where this one ended. The API key is not sent to the storage.

        Args:
            generation: A completed generation, or the id of one.
            directory: Where to; it is made if it is not there.
            timeout: Seconds for all of it; None for no limit.
            max_bytes: How large one file may be; None for no limit.
            overwrite: Fetch a file again even if one of the right size is there.
            on_progress: Called with a `DownloadProgress` after each piece that arrives. What it
                raises is logged and dropped.

        Returns:
            The files, in the order of the outputs; layers in the order of their index.

        Raises:
            ConfigurationError: The generation has not ended, or an argument is unusable.
            GenerationError: It failed, or completed without output.
            DownloadError: A file could not be fetched or written, or not in time. The other
                files of the generation were fetched all the same.
            APIError: The API refused a GET of the generation, or was out of reach.
        """
        self._session.enter()
        return await download(
            generation,
            directory,
            http=self._session.http,
            get=self.generations.get,
            slots=self._session.downloads,
            timeout=timeout,
            max_bytes=max_bytes,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    async def _request(
        self, method: str, path: str, *, body: bytes | None = None, generation_id: str | None = None
    ) -> Generation:
        """Send one request, and read the generation in the answer."""
        headers = self._headers
        if body is not None:
            headers = httpx.Headers(headers)
            headers["Content-Type"] = "application/json"
        answer, sent = None, False
        try:
            with anyio.move_on_after(self.timeout):
                async with self._session.turn(method):
                    sent = True
                    answer = await self._session.send(
                        method,
                        self.base_url + path,
                        headers=headers,
                        body=body,
                        generation_id=generation_id,
                    )
        except Exception as error:
            translated = translate_error(error, generation_id, secret=self._token)
            if translated is None or translated is error:
                raise
            raise translated from error
        if answer is None:
            missing = "complete answer" if sent else "free connection"
            raise APITimeoutError(
                f"no {missing} within {self.timeout:g} s",
                generation_id=generation_id,
                request_sent=sent,
            )
        if not 200 <= answer.status_code < 300:
            raise status_error(answer, generation_id, secrets=[self._token], base_url=self.base_url)
        snapshot = parse(Generation.model_validate_json, answer.content, generation_id)
        return snapshot.answered_at(answer.headers.get("Date"), retry_after(answer.headers))


class Generations:
    """The generations of the API: `client.generations`."""

    def __init__(self, client: LumaClient) -> None:
        self._client = client

    async def get(self, generation_id: str | UUID) -> Generation:
        """Fetch one snapshot of a generation. A failed generation is a snapshot like any other.

        Transient failures are retried `max_retries` times.
        https://docs.agents.lumalabs.ai/api/resources/generations/methods/get

        Args:
            generation_id: The id that `create` gave.

        Raises:
            ConfigurationError: The id cannot be one; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        generation_id = check_generation_id(generation_id)
        path = f"/generations/{quote(generation_id, safe='')}"
        request = partial(self._client._request, "GET", path, generation_id=generation_id)
        return await self._retried(request, lambda error: error.retryable)

    async def create(self, /, prompt: str, **params: Any) -> Generation:
        """Submit a generation; the answer is its first snapshot, with its id.

        It is repeated only where the API cannot have accepted it: no connection, or 429. After
        any other failure it may be running, and a second one would be billed too.
        https://docs.agents.lumalabs.ai/api/resources/generations/methods/create

        Args:
            prompt: What to make.
            params: The API's other parameters, such as `model`, `type`, `aspect_ratio`, `source`
                and `video`, sent as they are. None means "not given".

        Raises:
            ConfigurationError: The prompt is empty, or a parameter is not JSON; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigurationError(f"prompt must be a text that is not blank, not {prompt!r}")
        fields = {"prompt": prompt} | {k: v for k, v in params.items() if v is not None}
        try:
            body = json.dumps(fields, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"the parameters are not JSON: {error}") from None
        request = partial(self._client._request, "POST", "/generations", body=body)

        def may_be_repeated(error: APIError) -> bool:
            return error.retryable and not error.may_have_been_accepted

        try:
            return await self._retried(request, may_be_repeated)
        except APIError as error:
            if error.may_have_been_accepted:
                error.add_note(
                    "It is not known whether the generation was accepted: it may be running and "
                    "be billed. Look at the usage of the account before you submit it again."
                )
            raise

    async def _retried(
        self,
        request: Callable[[], Awaitable[Generation]],
        retryable: Callable[[APIError], bool],
    ) -> Generation:
        """Send a request, again after failures that may pass."""

        def again(error: BaseException) -> bool:
            if not isinstance(error, APIError) or not retryable(error):
                return False
            return (_retry_after(error) or 0.0) <= LONGEST_RETRY_SLEEP

        # Most requests succeed, and polls are never repeated here: tenacity begins with a failure.
        try:
            return await request()
        except APIError as error:
            if not self._client.max_retries or not again(error):
                raise
            failures = [error]

        async def next_try() -> Generation:
            if failures:
                raise failures.pop()
            return await request()

        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self._client.max_retries + 1),
            retry=tenacity.retry_if_exception(again),
            wait=_retry_wait,
            sleep=anyio.sleep,
            reraise=True,
        )
        return await retrying(next_try)


def _retry_after(error: BaseException | None) -> float | None:
    return error.retry_after if isinstance(error, APIStatusError) else None


def _retry_wait(state: tenacity.RetryCallState) -> float:
    wanted = _retry_after(state.outcome.exception() if state.outcome else None)
    backoff: float = min(0.5 * 2 ** (state.attempt_number - 1), 8.0) * random.uniform(0.75, 1.0)
    return backoff if wanted is None else max(wanted, backoff)
