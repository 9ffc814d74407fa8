"""One request to the API, within its timeout, and with its failure translated."""

from __future__ import annotations

import copy
from typing import Self

import anyio
import httpx

from luma_poll._api.answers import note_answer, read_generation
from luma_poll._api.headers import rate_limit, request_id, retry_after, submission_id
from luma_poll._api.translation import status_error, translate_error
from luma_poll._client.connections import Answer, Connections
from luma_poll._version import __version__
from luma_poll.errors import APITimeoutError
from luma_poll.models import Generation


class Session:
    """The requests of a client, with its API key.

    Args:
        connections: The connections of the client.
        base_url: The base URL, checked, without a trailing slash.
        token: The API key.
        timeout: Seconds that one whole request may take; None for no limit.
    """

    def __init__(
        self, connections: Connections, base_url: str, token: str, timeout: float | None
    ) -> None:
        self._connections = connections
        self._base_url = base_url
        self._token = token
        self._timeout = timeout
        # Not a dict: the repr of httpx.Headers leaves out the key.
        self._headers = httpx.Headers(
            {
                "Authorization": f"Bearer {token}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                "User-Agent": f"luma-poll/{__version__}",
            }
        )

    def with_timeout(self, timeout: float | None) -> Self:
        """Return the same session with another timeout."""
        view = copy.copy(self)
        view._timeout = timeout
        return view

    @property
    def connections(self) -> Connections:
        """The connections of the client."""
        return self._connections

    async def request(
        self, method: str, path: str, *, body: bytes | None = None, generation_id: str | None = None
    ) -> Generation:
        """Send one request, and read the generation in the answer.

        Raises:
            APIError: There was no usable answer, or it was an error.
            ConfigurationError: The connections are in use in another event loop.
        """
        answer = await self.answer(method, path, body=body, generation_id=generation_id)
        snapshot = read_generation(answer.content, generation_id)
        return note_answer(
            snapshot,
            date=answer.headers.get("Date"),
            retry_after=retry_after(answer.headers),
            rate_limit=rate_limit(answer.headers),
            request_id=request_id(answer.headers),
        )

    async def answer(
        self, method: str, path: str, *, body: bytes | None = None, generation_id: str | None = None
    ) -> Answer:
        """Send one request, and return its successful answer.

        Raises:
            APIError: There was no answer, or it was an error.
            ConfigurationError: The connections are in use in another event loop.
        """
        to_send = self._headers
        if body is not None:
            to_send = httpx.Headers(to_send)
            to_send["Content-Type"] = "application/json"
            if (handle := submission_id.get()) is not None:
                to_send["X-Request-Id"] = handle
        answer, sent = None, False
        try:
            with anyio.move_on_after(self._timeout):
                async with self._connections.turn(method):
                    sent = True
                    answer = await self._connections.send(
                        method,
                        self._base_url + path,
                        headers=to_send,
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
                f"no {missing} within {self._timeout:g} s",
                generation_id=generation_id,
                request_sent=sent,
            )
        if not 200 <= answer.status_code < 300:
            raise status_error(
                answer, generation_id, secrets=[self._token], base_url=self._base_url
            )
        return answer
