"""The default transport: one of httpx's own for each connection.

httpcore's pool walks through all its connections and requests for each request, so that the cost of
a request grows with their number. A pool that never has more than one is cheap. And when its
request is cancelled, it can be closed as a whole, while a shared one forgets a connection whose
request is cancelled between connecting and sending (encode/httpcore 1099).
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
import httpx

SHORTEST_PATIENCE = 3.0
"""Seconds without an answer after which a used connection counts as dead; the API takes one."""


@dataclass(frozen=True)
class _Idle:
    """A transport whose connection is unused, and since when."""

    transport: httpx.AsyncHTTPTransport
    since: float


class PooledTransport(httpx.AsyncBaseTransport):
    """A transport that sends each request on a connection of its own.

    A GET uses an idle connection if there is one. The server may close it at the same moment, so a
    GET whose connection breaks is sent again on a new one. A NAT, a VPN or a sleep may have ended
    it silently, so a GET without an answer for some seconds leaves it for a new one, too. Any other
    request gets a new connection from the start, because after a failure there would be no way to
    know whether it may be sent again.

    The caller limits the number of connections: each response that is not closed has one.

    Args:
        keepalive: Seconds for which an idle connection is kept.
        proxy: The URL of the proxy, or None.
    """

    def __init__(self, keepalive: float, proxy: str | None = None) -> None:
        self._keepalive = keepalive
        self._proxy = proxy
        self._limits = httpx.Limits(max_connections=1, keepalive_expiry=keepalive)
        self._ssl_context = httpx.create_ssl_context()
        self._idle: deque[_Idle] = deque()  # in the order in which they became idle
        self._usual = 0.0  # the seconds of the slowest recent answers
        self._closed = False
        self._connectable()  # so that an unusable proxy is refused now

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the connection is free again when the response is closed."""
        if self._closed:
            raise RuntimeError("the client has been closed")
        await self._close_idle(until=anyio.current_time() - self._keepalive)
        if self._idle:
            used = self._idle.pop()
            if request.method == "GET":
                # Even if it was used a moment ago: it may have died silently since, and would hang.
                response = await self._send_on_used(request, used.transport)
                if response is not None:
                    return response
            else:
                await _close(used.transport)  # makes room for the new one
        return await self._send(request, self._connectable())

    async def _send_on_used(
        self, request: httpx.Request, used: httpx.AsyncHTTPTransport
    ) -> httpx.Response | None:
        """Send a GET on a connection that may be dead by now; return None if it is."""
        began = anyio.current_time()
        with anyio.CancelScope(deadline=began + self._patience):
            try:
                return await self._send(request, used)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                if _is_answer(error):
                    raise
                return None
        # Whatever ended this connection has probably ended those that were idle with it. If they
        # were kept, each of the next requests would have to wait as well.
        await self._close_idle(until=began)
        return None

    @property
    def _patience(self) -> float:
        """The seconds without an answer after which a used connection counts as dead.

        They are well above what answers take, so that a service that is slow is not asked twice.
        """
        return max(SHORTEST_PATIENCE, 2 * self._usual)

    async def aclose(self) -> None:
        """Close the idle connections at once, and the others when their response is closed."""
        self._closed = True
        await self._close_idle(until=anyio.current_time())

    def forget_idle(self) -> None:
        """Drop the idle connections of an event loop that has ended: they cannot be closed."""
        self._idle = deque()

    async def put_back(self, transport: httpx.AsyncHTTPTransport, idle: deque[_Idle]) -> None:
        """Take back a transport whose response is closed."""
        # Into the deque of the event loop that the connection belongs to, not the present one.
        if self._closed:
            await _close(transport)
        else:
            idle.append(_Idle(transport, anyio.current_time()))

    async def _send(
        self, request: httpx.Request, transport: httpx.AsyncHTTPTransport
    ) -> httpx.Response:
        idle = self._idle  # another event loop may have replaced it when the body is closed
        began = anyio.current_time()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await _close(transport)
            raise
        if request.method == "GET":
            self._usual = max(anyio.current_time() - began, 0.9 * self._usual)
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, transport, self, idle)
        return response

    def _connectable(self) -> httpx.AsyncHTTPTransport:
        return httpx.AsyncHTTPTransport(
            verify=self._ssl_context, limits=self._limits, proxy=self._proxy
        )

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
        idle: deque[_Idle],
    ) -> None:
        self._stream, self._transport, self._home, self._idle = stream, transport, home, idle
        self._open = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            try:
                await self._stream.aclose()
            except BaseException:  # such as asyncio's own cancellation, which passes any shield
                await _close(self._transport)
                raise
            await self._home.put_back(self._transport, self._idle)


def _is_answer(error: httpx.TransportError) -> bool:
    """Return True for an error in bytes that came, and False if no bytes came."""
    # For bytes that it cannot read, h11 raises an error that httpcore's then has as its context.
    # For a connection that was closed without a byte, httpcore raises by itself.
    said_by_h11 = getattr(error.__cause__, "__context__", None) is not None
    return isinstance(error, httpx.RemoteProtocolError) and said_by_h11


async def _close(transport: httpx.AsyncHTTPTransport) -> None:
    with anyio.CancelScope(shield=True):
        await transport.aclose()
