"""The evidence of how far a request came, in the exception of the library that was to send it.

Whether a failed submission may be made again depends on this alone. An exception that gives no
evidence counts as sent, because a second submission could be billed as well.
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from luma_poll.errors import APIError, LumaError

_HTTP = ("httpx", "httpx2", "httpcore", "httpcore2", "aiohttp")
_BEFORE_SENDING = (
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "ProxyError",
    "UnsupportedProtocol",
    "InvalidURL",
    "ClientConnectorError",  # from here on aiohttp's: DNS, TLS and certificates are kinds of it
    "ClientProxyConnectionError",
    "ClientHttpProxyError",
    "ConnectionTimeoutError",
)
_OF_A_REQUEST = (
    "RequestError",
    "NetworkError",
    "ProtocolError",
    "TimeoutException",
    "ClientError",
    "HTTPStatusError",
)
_CLOSED = re.compile(r"\b(?:client|session|connector) (?:has been|is|was) closed\b", re.IGNORECASE)

# An exception that passed through one of these was raised while the request was being built or the
# connection was being opened. This catches errors whose class says nothing, such as a reset, or a
# proxy that hangs up.
_MAKES_A_CONNECTION = {
    ("httpcore._async.connection", "_connect"),
    ("httpcore._async.socks_proxy", "_init_socks5_connection"),
    ("aiohttp.connector", "connect"),
    ("anyio._core._sockets", "connect_tcp"),
    ("asyncio.base_events", "create_connection"),
    ("trio._highlevel_open_tcp_stream", "open_tcp_stream"),
    ("socket", "create_connection"),
    ("urllib3.connection", "_new_conn"),
    ("httpx._client", "build_request"),
    ("luma_agents._base_client", "_build_request"),
}
_TUNNELS = ("httpcore._async.http_proxy", "httpcore._async.socks_proxy")
_TUNNEL_OF_AIOHTTP = ("aiohttp.connector", "_create_proxy_connection")


def nothing_was_sent(error: BaseException) -> bool:
    """Return True if no byte of the request can have reached the API.

    Args:
        error: An exception from any library. Its whole chain counts: causes, contexts, and the
            members of groups.
    """
    return _was_sent(error, set()) is False


def is_closed_client(error: BaseException) -> bool:
    """Return True for what a client raises after it has been closed."""
    return isinstance(error, RuntimeError) and _CLOSED.search(str(error)) is not None


def at_the_proxy(error: BaseException) -> bool:
    """Return True if a proxy was asked to connect, and did not."""
    return any(
        isinstance(found, proxy_classes()) or any(map(_is_unfinished_tunnel, _frames(found)))
        for found in chain(error)
    )


def proxy_classes() -> tuple[type[Any], ...]:
    """Return the exceptions for a proxy that refuses."""
    return classes_in(_HTTP, "ProxyError", "ClientHttpProxyError", "ClientProxyConnectionError")


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error with its causes, contexts and members, except our own errors."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if isinstance(found, LumaError):
            continue  # it is from an earlier request: this one was sent while handling it
        if found is not None and id(found) not in seen:  # chains can be circular
            seen.add(id(found))
            left += [found.__context__, found.__cause__]
            if isinstance(found, BaseExceptionGroup):
                left += found.exceptions
            yield found


def classes_in(modules: tuple[str, ...], *names: str) -> tuple[type[Any], ...]:
    """Return the classes with these names in these modules, if the user has imported them."""
    imported = [sys.modules[name] for name in modules if name in sys.modules]
    return tuple(
        vars(module)[name] for module in imported for name in names if name in vars(module)
    )


def _was_sent(error: BaseException | None, seen: set[int]) -> bool | None:
    """Return True if it may have been, False if not, None if this error does not tell."""
    if error is None or id(error) in seen:
        return None
    seen.add(id(error))
    if isinstance(error, APIError):
        return error.may_have_been_accepted
    # A cause is more precise than its wrapper: httpx-aiohttp calls any lost connection a
    # ConnectTimeout. A context may belong to an earlier request, so it comes last.
    found = _was_sent(error.__cause__, seen)
    if found is None:
        found = _says(error, seen)
    if found is None and not isinstance(error.__context__, LumaError):
        found = _was_sent(error.__context__, seen)
    return found


def _says(error: BaseException, seen: set[int]) -> bool | None:
    """Judge one error by itself."""
    if isinstance(error, BaseExceptionGroup):
        said = [_was_sent(member, set(seen)) for member in error.exceptions]
        return None if None in said and True not in said else any(said)
    if not isinstance(error, Exception):
        return True  # a cancellation may come at any time
    if isinstance(error, classes_in(_HTTP, *_BEFORE_SENDING)):
        return False
    if isinstance(error, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)):
        return False
    if is_closed_client(error) or any(map(_is_before_sending, _frames(error))):
        return False
    # A plain TimeoutError counts as sent, whatever its context says: the context may belong to
    # another request than the one that timed out.
    if isinstance(error, (TimeoutError, *classes_in(_HTTP, *_OF_A_REQUEST))):
        return True
    return None


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _is_before_sending(frame: FrameType) -> bool:
    return (_module(frame), frame.f_code.co_name) in _MAKES_A_CONNECTION or _is_unfinished_tunnel(
        frame
    )


def _is_unfinished_tunnel(frame: FrameType) -> bool:
    """Return True for a frame in a connection through a proxy that is not complete yet."""
    module, function = _module(frame), frame.f_code.co_name
    if module not in _TUNNELS or function != "handle_async_request":
        return (module, function) == _TUNNEL_OF_AIOHTTP
    connection = frame.f_locals.get("self")
    is_open: object = getattr(connection, "_connected", getattr(connection, "_connection", 0))
    return is_open is False or is_open is None


def _module(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__"))
    return name.replace("httpcore2.", "httpcore.").replace("httpx2.", "httpx.")
