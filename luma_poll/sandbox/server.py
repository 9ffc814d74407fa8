"""An ASGI app on a real socket, inside the event loop that is already running."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
from starlette.types import ASGIApp

if TYPE_CHECKING:
    import uvicorn

GRACE = 0.5  # seconds that requests under way get when the server stops


@asynccontextmanager
async def serve_app(app: ASGIApp, host: str, port: int) -> AsyncIterator[str]:
    """Serve `app` until the block ends; yield the origin, such as `http://127.0.0.1:8000`.

    It installs no signal handler and starts no task, so Ctrl-C remains the caller's.

    Raises:
        OSError: The address cannot be bound, for example because the port is in use.
        RuntimeError: The event loop is not asyncio's.
    """
    loop = _require_asyncio()
    listener = _listen(host, port)
    try:
        server = await _start(app, listener)
        try:
            yield _format_origin(listener)
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(server, loop)
    finally:
        listener.close()


def _require_asyncio() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "Sandbox.serve needs asyncio, because uvicorn does. On trio, give Sandbox.app to the "
            "client instead: httpx.AsyncClient(transport=httpx.ASGITransport(app=sandbox.app))"
        ) from None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # Inherited by connections. Without it, the head and the body of an answer arrive 40 ms apart.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _format_origin(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _start(app: ASGIApp, listener: socket.socket) -> "uvicorn.Server":
    import uvicorn

    from luma_poll.sandbox.bad_socket import BadProtocol

    # log_config=None: logging is the caller's to configure. date_header, server_header: the app
    # sends its own headers.
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=BadProtocol,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="warning",
        date_header=False,
        server_header=False,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    # Not serve(): it takes over SIGINT and SIGTERM, then loops until one of them arrives.
    await server.startup(sockets=[listener])
    return server


async def _stop(server: "uvicorn.Server", loop: asyncio.AbstractEventLoop) -> None:
    # shutdown() closes idle connections and waits for the others, which may never end.
    stragglers = loop.call_later(GRACE, _abort_connections, server)
    try:
        await server.shutdown()
    finally:
        stragglers.cancel()
        _abort_connections(server)


def _abort_connections(server: "uvicorn.Server") -> None:
    for connection in list(server.server_state.connections):
        connection.transport.abort()
