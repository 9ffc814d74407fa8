"""The generations of the API: their snapshots and submissions, and the retries of both."""

from __future__ import annotations

import copy
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Self, TypeVar, Unpack
from urllib.parse import quote
from uuid import UUID

import anyio

from luma_poll._api.outcomes import Accepted, submit_once
from luma_poll._api.parameters import CreateParams, explicit
from luma_poll._api.request_body import Upload, encoded, read_params_async, uploaded
from luma_poll._arguments import check_generation_id
from luma_poll._client.exchange import Session
from luma_poll._tasks.backoff import backoff
from luma_poll.errors import APIError, APIStatusError
from luma_poll.models import Generation

T = TypeVar("T")

LONGEST_RETRY_SLEEP = 60.0
"""The most seconds that `get` and `create` sleep between two attempts (as in the official SDK)."""


class Generations:
    """The generations of the API: `client.generations`."""

    def __init__(self, session: Session, max_retries: int, upload: Upload) -> None:
        self._session = session
        self._max_retries = max_retries
        self._upload = upload

    def with_options(self, timeout: float | None, max_retries: int) -> Self:
        """Return a view with other options, and with any method that a test has replaced."""
        view = copy.copy(self)
        view._session = self._session.with_timeout(timeout)
        view._max_retries = max_retries
        return view

    async def get(self, generation_id: str | UUID) -> Generation:
        """Fetch one snapshot of a generation; that of a failed one is returned like any other.

        Transient failures are retried `max_retries` times.
        https://docs.agents.lumalabs.ai/api/resources/generations/methods/get

        Args:
            generation_id: The id that `create` returned.

        Returns:
            The snapshot.

        Raises:
            ConfigurationError: The id is invalid; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        generation_id = check_generation_id(generation_id)
        path = f"/generations/{quote(generation_id, safe='')}"
        request = partial(self._session.request, "GET", path, generation_id=generation_id)
        return await retried(request, _may_be_retried, self._max_retries)

    @explicit
    async def create(
        self, /, prompt: str | None = None, **params: Unpack[CreateParams]
    ) -> Generation:
        """Submit a generation, and return its first snapshot, which has its id.

        It is submitted again only if the API cannot have accepted it: no connection, or 429. After
        any other failure the generation may be running, and a second one would be billed, too.
        https://docs.agents.lumalabs.ai/api/resources/generations/methods/create

            await client.generations.create("at night", type="image_edit", source=Path("in.png"))

        Args:
            prompt: A description of the image or video; only the type `layering` needs none.
            params: The API's other parameters, as listed in `luma_poll.typing.CreateParams`; None
                means "not given". An image or video may be a `Path`, bytes, a binary file or a
                generation; one of more than 50 MB is uploaded first. Unknown parameters are sent,
                too. For type checkers, pass them as `**newer`, with
                `newer: dict[str, Any] = {...}`.

        Returns:
            The first snapshot, usually `queued`.

        Raises:
            ConfigurationError: The prompt is empty, a parameter is not JSON, or a file is
                unusable; nothing was sent.
            UploadError: A file could not be uploaded; nothing was submitted.
            APIError: The API could not be reached, or refused.
        """
        checked = await read_params_async({"prompt": prompt, **params})
        fields = await encoded(await uploaded(checked, self._upload))
        body = json.dumps(fields).encode()
        request = partial(self._session.request, "POST", "/generations", body=body)

        async def submit() -> Generation:
            outcome = await submit_once(request)
            if isinstance(outcome, Accepted):
                return outcome.generation
            raise outcome.error

        return await retried(submit, _may_be_submitted_again, self._max_retries)


async def retried(
    request: Callable[[], Awaitable[T]], retryable: Callable[[APIError], bool], max_retries: int
) -> T:
    """Send a request, and repeat it after transient failures."""
    attempt = 0
    while True:
        attempt += 1
        try:
            return await request()
        except APIError as error:
            wanted = error.retry_after if isinstance(error, APIStatusError) else None
            if attempt > max_retries or not retryable(error):
                raise
            if (wanted or 0.0) > LONGEST_RETRY_SLEEP:
                raise
        await anyio.sleep(max(wanted or 0.0, backoff(attempt)))


def _may_be_retried(error: APIError) -> bool:
    return error.retryable


def _may_be_submitted_again(error: APIError) -> bool:
    return error.retryable and not error.may_have_been_accepted
