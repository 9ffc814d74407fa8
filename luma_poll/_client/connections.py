"""The connections of a client: who may use one, and how much of an answer is read."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any, NamedTuple

import anyio
import httpx

from luma_poll._api.headers import content_encoding
from luma_poll._client.http_client import (
    checked_http_client,
    close_orphans,
    default_http_client,
    transport_for,
)
from luma_poll._client.transport import PooledTransport
from luma_poll._tasks.event_loops import PerLoop
from luma_poll.errors import InvalidResponseError

TIMEOUTS = {"connect": 10.0, "read": None, "write": None, "pool": None}
"""Seconds, within the client's `timeout`, which bounds the whole request."""
MAX_CONNECTIONS = 100
"""Connections, and so requests under way, of one client."""
MAX_GETS = 90
"""GETs under way: so many polls that they fill the connections leave some for submissions."""
MAX_DOWNLOADS = 4
"""Files that one client fetches at once; the others wait for their turn."""
MAX_ANSWER = 2 * 1024**2
"""Bytes of one answer, as sent and decoded; a generation with ten outputs has about 10,000."""


class Answer(NamedTuple):
    """An answer of the API, read to its end."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class Turns:
    """The turns of one event loop: those of all requests, of the GETs and of the downloads."""

    def __init__(self) -> None:
        # httpcore loses requests that are cancelled while they queue in its pool (encode/httpcore
        # 1099, 1111), and is slow at queueing many. So its pool has no limit, and they queue here.
        self.requests = anyio.Semaphore(MAX_CONNECTIONS, fast_acquire=True)
        self.gets = anyio.Semaphore(MAX_GETS, fast_acquire=True)
        self.downloads = anyio.Semaphore(MAX_DOWNLOADS)


class Connections:
    """The connections that a client shares with its views, and whose turn it is to use one."""

    def __init__(self, base_url: str, http_client: object = None) -> None:
        self.http: Any
        self._transport: PooledTransport | None = None
        if http_client is None:
            self.http, self._transport = default_http_client(base_url)
        else:
            self.http = checked_http_client(http_client)
        self._turns = PerLoop("LumaClient", self._begin_loop)

    async def aclose(self) -> None:
        """Close the connections that are our own."""
        if self._transport is not None:
            self.enter()
            await self.http.aclose()
            await self._transport.aclose()

    def enter(self) -> Turns:
        """Return the turns of this event loop; start afresh if it is not that of the last time.

        Raises:
            ConfigurationError: That one still runs.
        """
        return self._turns.enter()

    def _begin_loop(self) -> Turns:
        if self._transport is not None:
            self._transport.forget_idle()
        return Turns()

    @asynccontextmanager
    async def turn(self, method: str) -> AsyncIterator[None]:
        """Wait until there is a connection for a request."""
        turns = self.enter()
        async with turns.gets if method == "GET" else nullcontext(), turns.requests:
            yield

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: httpx.Headers,
        body: bytes | None,
        generation_id: str | None,
    ) -> Answer:
        """Send a request, and read the answer. There must be a turn for it.

        Raises:
            InvalidResponseError: The answer is too large, or cannot be decoded.
        """
        if self._transport is None:
            response = await self._begin_through_client(method, url, headers, body)
        else:
            # Without the client's layers (cookies, redirects, authentication, hooks), none of
            # which is in use here, a request costs a quarter less.
            request = httpx.Request(
                method, url, headers=headers, content=body, extensions={"timeout": TIMEOUTS}
            )
            transport = transport_for(request.url, self.http, self._transport)
            response = await transport.handle_async_request(request)
        try:
            content = await _read(response, generation_id)
        except Exception:
            if response.is_success:
                raise
            content = b""  # the status says enough
        finally:
            await response.aclose()
        return Answer(response.status_code, response.headers, content)

    async def _begin_through_client(
        self, method: str, url: str, headers: httpx.Headers, body: bytes | None
    ) -> Any:
        request = self.http.build_request(
            method, url, headers=headers, content=body, timeout=tuple(TIMEOUTS.values())
        )
        try:
            return await self.http.send(request, follow_redirects=False, stream=True)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await close_orphans(self.http)
            raise


class _UnreadableError(Exception):
    """Why the content of an answer is of no use."""


async def _read(response: Any, generation_id: str | None) -> bytes:
    try:
        return await _content(response)
    except (zlib.error, _UnreadableError) as error:
        raise InvalidResponseError(
            f"the answer is unreadable ({error})", generation_id=generation_id
        ) from None


async def _content(response: Any) -> bytes:
    if response.is_stream_consumed:  # by a hook of the client; or it is a mock, without a stream
        content: bytes = await response.aread()
        _check_size(len(content))
        return content
    decode = _decoder(content_encoding(response.headers))
    decoded, received, trouble = bytearray(), 0, None
    # Left in the middle, the generators of httpx and httpcore would be left to the collector; a
    # cancellation ends them from the inside.
    with anyio.CancelScope() as scope:
        async for chunk in response.aiter_raw():
            received += len(chunk)
            if received > 2 * MAX_ANSWER:
                break  # where data is always ready, asyncio may never get round to it
            if scope.cancel_called:
                continue
            try:
                _check_size(received)
                decoded += decode(chunk, MAX_ANSWER + 1 - len(decoded))
                _check_size(len(decoded))
            except (zlib.error, _UnreadableError) as error:
                trouble = error
                scope.cancel()
    if trouble is not None:
        raise trouble
    return bytes(decoded)


def _check_size(size: int) -> None:
    if size > MAX_ANSWER:
        raise _UnreadableError(f"it is larger than {MAX_ANSWER:,} bytes")


def _decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    if not encoding:
        return lambda chunk, room: chunk
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress
    raise _UnreadableError("it is encoded in a way that was not asked for")
