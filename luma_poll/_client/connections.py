"""The connections of a client: turns to use one, and a limit on what is read of an answer."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from functools import partial
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
"""Seconds; the client's own `timeout` limits the request as a whole."""
MAX_CONNECTIONS = 100
"""The most connections, and so requests under way, of one client."""
MAX_GETS = 90
"""The most GETs under way, so that polls leave some connections for submissions."""
MAX_DOWNLOADS = 4
"""The most files that one client fetches at once; the others wait for their turn."""
PATIENCE = 10.0
"""Seconds without a whole answer after which a GET is sent again; more if answers are slow."""
MAX_ANSWER = 2 * 1024**2
"""The most bytes of one answer, encoded and decoded; ten outputs take about 10,000."""


class Answer(NamedTuple):
    """An answer of the API, read to its end."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes


class Turns:
    """The turns in one event loop: of all requests, of GETs, and of downloads."""

    def __init__(self) -> None:
        # httpcore loses requests that are cancelled while they queue in its pool (encode/httpcore
        # 1099, 1111), and is slow at queueing many. So they queue here, and its pool has no limit.
        self.requests: anyio.Semaphore = anyio.Semaphore(MAX_CONNECTIONS, fast_acquire=True)
        self.gets: anyio.Semaphore = anyio.Semaphore(MAX_GETS, fast_acquire=True)
        self.downloads: anyio.Semaphore = anyio.Semaphore(MAX_DOWNLOADS)


class Connections:
    """The connections that a client shares with its views, and the turns to use one."""

    def __init__(self, base_url: str, http_client: object = None) -> None:
        self.http: Any
        self.base_url = base_url
        self._usual = 0.0  # seconds that a GET takes, the slow ones of late
        self._transport: PooledTransport | None = None
        if http_client is None:
            self.http, self._transport = default_http_client(base_url)
        else:
            self.http = checked_http_client(http_client)
        self._turns = PerLoop("LumaClient", self._begin_loop)

    async def aclose(self) -> None:
        """Close the connections, unless the user's `http_client` has them."""
        if self._transport is not None:
            self.enter()
            await self.http.aclose()
            await self._transport.aclose()

    def enter(self) -> Turns:
        """Return the turns of this event loop; start over if it is another one than the last time.

        Raises:
            ConfigurationError: The other event loop still runs.
        """
        return self._turns.enter()

    def _begin_loop(self) -> Turns:
        if self._transport is not None:
            self._transport.forget_idle()
        return Turns()

    @asynccontextmanager
    async def turn(self, method: str) -> AsyncIterator[None]:
        """Wait until there is a free connection for a request."""
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
        """Send a request, and read the answer. The caller must have a `turn`.

        A GET without a whole answer after some seconds is sent once more, on another connection,
        and then has all the time there is: something on the way held it, or passed on byte by byte.

        Raises:
            InvalidResponseError: The answer is too large, or cannot be decoded.
        """
        exchange = partial(self._exchange, method, url, headers, body, generation_id)
        if method != "GET":
            return await exchange()
        usual, patience = self._usual, max(PATIENCE, 2 * self._usual)
        with anyio.move_on_after(patience):
            return await self._timed(exchange, usual)
        self._usual = patience  # where nothing is answered, not all is sent twice
        return await self._timed(exchange, usual)

    async def _timed(self, exchange: Callable[[], Awaitable[Answer]], usual: float) -> Answer:
        began = anyio.current_time()
        answer = await exchange()
        self._usual = max(anyio.current_time() - began, 0.9 * usual)
        return answer

    async def _exchange(
        self,
        method: str,
        url: str,
        headers: httpx.Headers,
        body: bytes | None,
        generation_id: str | None,
    ) -> Answer:
        if self._transport is None:
            response = await self._begin_through_client(method, url, headers, body)
        else:
            # Past the client's layers (cookies, redirects, authentication, hooks), which we do not
            # use: that makes a request a quarter cheaper.
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
            content = b""  # the status is enough to make an error of
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
    """The error for an answer whose content cannot be used."""


async def _read(response: object, generation_id: str | None) -> bytes:
    try:
        return await _content(response)
    except (zlib.error, _UnreadableError) as error:
        raise InvalidResponseError(
            f"the answer is unreadable ({error})", generation_id=generation_id
        ) from None


async def _content(response: Any) -> bytes:
    if response.is_stream_consumed:  # a hook of the client has read it, or it is a mock's
        content: bytes = await response.aread()
        _check_size(len(content))
        return content
    decode = _decoder(content_encoding(response.headers))
    decoded, received, trouble = bytearray(), 0, None
    # A `break` would leave the generators of httpx and httpcore to the garbage collector, so a
    # cancellation ends them from the inside.
    with anyio.CancelScope() as scope:
        async for chunk in response.aiter_raw():
            received += len(chunk)
            if received > 2 * MAX_ANSWER:
                break  # if data is always ready, asyncio may never deliver the cancellation
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
