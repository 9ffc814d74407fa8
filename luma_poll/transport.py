"""The default transport: httpx's own, one for each connection.

httpcore's pool walks all its connections and all its requests for each request, so a request
costs the more the more of them there are. A pool that never has more than one is cheap, and when
its request is cancelled it can be closed as a whole: a shared one forgets a connection whose
request is cancelled between connecting and sending (encode/httpcore 1099).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import httpx
from anyio.lowlevel import current_token


@dataclass(frozen=True)
class _Idle:
    """A transport whose connection is unused, since when, and the event loop that it lives in."""

    transport: httpx.AsyncHTTPTransport
    since: float
    loop: object


class PooledTransport(httpx.AsyncBaseTransport):
    """Sends each request on a connection of its own, the one that was used last if it is free.

    How many there are is up to the caller: one for each response that is not closed.

    Args:
        keepalive: Seconds that an unused connection is kept.
    """

    def __init__(self, keepalive: float) -> None:
        self._keepalive = keepalive
        self._limits = httpx.Limits(max_connections=1, keepalive_expiry=keepalive)
        self._ssl_context = httpx.create_ssl_context()
        self._idle: deque[_Idle] = deque()  # in the order in which they became so
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the connection is free again when the response is closed."""
        if self._closed:
            raise RuntimeError("the client has been closed")
        if self._idle and self._idle[-1].loop != current_token():
            self._idle.clear()  # those of an event loop that has ended cannot even be closed
        await self._close_idle(until=anyio.current_time() - self._keepalive)
        transport = self._idle.pop().transport if self._idle else self._connectable()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await _close(transport)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, transport, self)
        return response

    async def aclose(self) -> None:
        """Close the unused connections at once, the others when their response is closed."""
        self._closed = True
        await self._close_idle(until=anyio.current_time())

    async def put_back(self, transport: httpx.AsyncHTTPTransport) -> None:
        """Take back a transport whose response is closed."""
        if self._closed:
            await _close(transport)
        else:
            self._idle.append(_Idle(transport, anyio.current_time(), current_token()))

    def _connectable(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(verify=self._ssl_context, limits=self._limits)

    async def _close_idle(self, until: float) -> None:
        while self._idle and self._idle[0].since <= until:
            await _close(self._idle.popleft().transport)


class _Body(httpx.AsyncByteStream):
    """The body of a response, which frees its connection when it is closed."""

    def __init__(
        self,
        stream: httpx.AsyncByteStream,
        transport: httpx.AsyncHTTPTransport,
        home: PooledTransport,
    ) -> None:
        self._stream, self._transport, self._home = stream, transport, home
        self._open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await self._stream.aclose()
            await self._home.put_back(self._transport)


async def _close(transport: httpx.AsyncHTTPTransport) -> None:
    with anyio.CancelScope(shield=True):
        await transport.aclose()
