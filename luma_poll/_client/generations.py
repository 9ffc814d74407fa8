"""The generations of the API: fetch a snapshot, submit a new one, and when to repeat either."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Self, Unpack
from urllib.parse import quote
from uuid import UUID

import anyio

from luma_poll._api.outcomes import Accepted, submit_once
from luma_poll._api.parameters import CreateParams
from luma_poll._arguments import check_generation_id, check_prompt
from luma_poll._client.exchange import Session
from luma_poll.errors import APIError, APIStatusError, ConfigurationError
from luma_poll.models import Generation

LONGEST_RETRY_SLEEP = 60.0
"""Seconds that `get` and `create` sleep at most between two tries (as in the official SDK)."""


class Generations:
    """The generations of the API: `client.generations`."""

    def __init__(self, session: Session, max_retries: int) -> None:
        self._session = session
        self._max_retries = max_retries

    def with_options(self, timeout: float | None, max_retries: int) -> Self:
        """A view with other options, and with what a test has put in place of a method."""
        view = copy.copy(self)
        view._session = self._session.with_timeout(timeout)
        view._max_retries = max_retries
        return view

    async def get(self, generation_id: str | UUID) -> Generation:
        """Fetch one snapshot of a generation. A failed generation is a snapshot like any other.

        Transient failures are retried `max_retries` times.
        https://docs.agents.lumalabs.ai/api/resources/generations/methods/get

        Args:
            generation_id: The id that `create` returned.

        Returns:
            The snapshot.

        Raises:
            ConfigurationError: The id cannot be one; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        generation_id = check_generation_id(generation_id)
        path = f"/generations/{quote(generation_id, safe='')}"
        request = partial(self._session.request, "GET", path, generation_id=generation_id)
        return await self._retried(request, _may_be_retried)

    async def create(self, /, prompt: str, **params: Unpack[CreateParams]) -> Generation:
        """Submit a generation; the answer is its first snapshot, with its id.

        It is repeated only where the API cannot have accepted it: no connection, or 429. After
        any other failure it may be running, and a second one would be billed too.
        https://docs.agents.lumalabs.ai/api/resources/generations/methods/create

        Args:
            prompt: A description of the image or video.
            params: The API's other parameters, sent as they are; None means "not given". They are
                listed in `luma_poll.typing.CreateParams`. A newer one is sent too; type checkers
                accept it in `**newer`, where `newer: dict[str, Any] = {...}`.

        Returns:
            The first snapshot, usually `queued`.

        Raises:
            ConfigurationError: The prompt is empty, or a parameter is not JSON; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        fields = {"prompt": check_prompt(prompt)} | {
            k: v for k, v in params.items() if v is not None
        }
        try:
            body = json.dumps(fields, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"the parameters are not JSON: {error}") from None
        request = partial(self._session.request, "POST", "/generations", body=body)

        async def submit() -> Generation:
            outcome = await submit_once(request)
            if isinstance(outcome, Accepted):
                return outcome.generation
            raise outcome.error

        return await self._retried(submit, _may_be_submitted_again)

    async def _retried(
        self,
        request: Callable[[], Awaitable[Generation]],
        retryable: Callable[[APIError], bool],
    ) -> Generation:
        """Send a request, and repeat it after failures that may pass."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await request()
            except APIError as error:
                wanted = error.retry_after if isinstance(error, APIStatusError) else None
                if attempt > self._max_retries or not retryable(error):
                    raise
                if (wanted or 0.0) > LONGEST_RETRY_SLEEP:
                    raise
            await anyio.sleep(max(wanted or 0.0, _backoff(attempt)))


def _may_be_retried(error: APIError) -> bool:
    return error.retryable


def _may_be_submitted_again(error: APIError) -> bool:
    return error.retryable and not error.may_have_been_accepted


def _backoff(attempt: int) -> float:
    """Seconds, as in the official SDK: doubled from 0.5 up to 8, less up to a quarter."""
    return min(0.5 * 2.0 ** (attempt - 1), 8.0) * random.uniform(0.75, 1.0)
