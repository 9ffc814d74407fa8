"""How far did a request come? Read in the exceptions of the libraries that were to send it.

Of a submission that failed, only this tells if it may be made again. What says nothing counts as
sent: a second submission could be billed as well.
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

# An exception that has passed through one of these was raised while the request was made or its
# connection was: also one whose class says nothing, such as a reset, or a proxy that hangs up.
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
    """True if no byte of the request can have reached the API.

    Args:
        error: Of any library. Its whole chain counts: causes, contexts, and the members of groups.
    """
    return _was_sent(error, set()) is False


def is_closed_client(error: BaseException) -> bool:
    """True for what clients say that have been closed."""
    return isinstance(error, RuntimeError) and _CLOSED.search(str(error)) is not None


def at_the_proxy(error: BaseException) -> bool:
    """True if a proxy was to connect, and did not."""
    return any(
        isinstance(found, proxy_classes()) or any(map(_is_unfinished_tunnel, _frames(found)))
        for found in chain(error)
    )


def proxy_classes() -> tuple[type[Any], ...]:
    """The exceptions for a proxy that refuses."""
    return classes_in(_HTTP, "ProxyError", "ClientHttpProxyError", "ClientProxyConnectionError")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error with its causes, contexts and members, except errors of ours."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if isinstance(found, LumaError):
            continue  # it belongs to an earlier request, while handling which this one was sent
        if found is not None and id(found) not in seen:  # chains can be circular
            seen.add(id(found))
            left += [found.__context__, found.__cause__]
            if isinstance(found, BaseExceptionGroup):
                left += found.exceptions
            yield found


def classes_in(modules: tuple[str, ...], *names: str) -> tuple[type[Any], ...]:
    """The classes with these names in these modules, as far as the user has imported them."""
    imported = [sys.modules[name] for name in modules if name in sys.modules]
    return tuple(
        vars(module)[name] for module in imported for name in names if name in vars(module)
    )


def _was_sent(error: BaseException | None, seen: set[int]) -> bool | None:
    """True if it may have been, False if it was not, None if this error says nothing of it."""
    if error is None or id(error) in seen:
        return None
    seen.add(id(error))
    if isinstance(error, APIError):
        return error.may_have_been_accepted
    # A cause is more precise than its wrapper: httpx-aiohttp calls any lost connection a
    # ConnectTimeout. A context may be of an earlier request, so it comes last.
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
    # A plain TimeoutError may be that of a scope around another request than its context's.
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
    """True inside a connection through a proxy that is not made yet."""
    module, function = _module(frame), frame.f_code.co_name
    if module not in _TUNNELS or function != "handle_async_request":
        return (module, function) == _TUNNEL_OF_AIOHTTP
    connection = frame.f_locals.get("self")
    is_open: object = getattr(connection, "_connected", getattr(connection, "_connection", 0))
    return is_open is False or is_open is None


def _module(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__"))
    return name.replace("httpcore2.", "httpcore.").replace("httpx2.", "httpx.")
