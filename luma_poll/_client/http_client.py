"""The httpx client through which a `LumaClient` sends."""

from __future__ import annotations

import contextlib
from typing import Any, Final, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from luma_poll._api.translation import classes_named
from luma_poll._arguments import is_loopback
from luma_poll._client.transport import PooledTransport
from luma_poll._redaction import redact
from luma_poll.errors import ConfigurationError

KEEPALIVE = 30.0
"""Seconds for which an idle connection is kept: longer than usual between two polls."""


_NO_PROXY: Final = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
"""This machine, which no proxy could reach."""


def default_http_client(base_url: str) -> tuple[httpx.AsyncClient, PooledTransport]:
    """Return a client, and its transport for the API.

    Without a proxy in the environment, that transport serves the storage as well.

    Raises:
        ConfigurationError: The environment's settings of proxies or certificates are unusable.
    """
    try:
        proxy = _proxy_for(base_url)
        transport = PooledTransport(KEEPALIVE, proxy)
        if {"http", "https", "all"}.isdisjoint(getproxies()):
            return httpx.AsyncClient(transport=transport), transport
        # The storage may need another proxy, or none: httpx reads that from the environment.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        api = urlsplit(base_url)
        mounts = {f"{api.scheme}://{api.netloc}": transport, **_NO_PROXY}
        return httpx.AsyncClient(limits=limits, mounts=mounts), transport
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise ConfigurationError(
            "the environment's settings of a proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) "
            f"or of certificates (SSL_CERT_FILE, SSL_CERT_DIR) are not usable: {redact(str(error))}"
        ) from None


def transport_for(
    url: httpx.URL, http: httpx.AsyncClient, default: PooledTransport
) -> httpx.AsyncBaseTransport:
    """Return the transport that a client has for a URL, or the one that a test put in its place.

    Mocks of httpx replace this look-up. Going around it would really send the requests of a test,
    and submit for money.
    """
    look_up = getattr(http, "_transport_for_url", None)  # private: httpx may rename it
    transport: httpx.AsyncBaseTransport = default if look_up is None else look_up(url)
    return transport


def _proxy_for(base_url: str) -> str | None:
    parts = urlsplit(base_url)
    host, proxies = parts.hostname or "", getproxies()
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    _ = urlsplit(proxy).port  # raises if it is not a number
    return proxy


def checked_http_client(http_client: object) -> Any:
    """Return the `http_client` that the user gave.

    Raises:
        ConfigurationError: It is not an async client of httpx or httpx2, or is not usable.
    """
    if not isinstance(http_client, classes_named("AsyncClient")):
        raise ConfigurationError(
            f"http_client must be an httpx.AsyncClient, not {type(http_client).__name__}"
        )
    client: Any = http_client
    if _replaces_the_key(client):
        raise ConfigurationError(
            "the auth of this http_client replaces the Authorization header, which holds the API "
            "key: use an auth that sets other headers, or none"
        )
    if type(client).__module__.partition(".")[0] == "httpx2" and _speaks_http2(client):
        raise ConfigurationError(
            "HTTP/2 with httpx2 is not supported: cancelled requests block its connection for "
            "good. Create the client without http2=True"
        )
    return client


def _replaces_the_key(client: Any) -> bool:
    """Let its `auth` handle a request that is never sent, and check if the header survives."""
    if client.auth is None:
        return False
    request = client.build_request(
        "GET", "https://probe.invalid", headers={"Authorization": "ours"}
    )
    try:
        request = next(client.auth.auth_flow(request))
    except Exception:  # it needs the network or an answer, so only its class can tell
        return isinstance(client.auth, classes_named("BasicAuth", "DigestAuth"))
    changed = bool(request.headers.get("Authorization") not in ("ours", None))
    return changed or isinstance(client.auth, classes_named("DigestAuth"))


def _speaks_http2(client: Any) -> bool:
    return bool(getattr(getattr(client._transport, "_pool", None), "_http2", False))


async def close_orphans(http: Any) -> None:
    """Close the connections that httpcore has forgotten.

    A request that is cancelled after its connection is made and before it is sent leaves the
    connection open in the pool, where nothing will ever use or close it (encode/httpcore 1099).
    """
    for transport in (http._transport, *http._mounts.values()):
        if not isinstance(transport, classes_named("AsyncHTTPTransport")):
            continue
        with contextlib.suppress(AttributeError):  # in another version of httpcore
            pool = cast(Any, transport)._pool
            used = {id(request.connection) for request in pool._requests}
            for connection in pool.connections:
                if id(connection) not in used and not connection.is_idle():
                    await connection.aclose()
