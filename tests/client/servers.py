"""Servers on this machine that do with a connection what a test wants."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from tenacity import wait_fixed

from luma_poll import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    InvalidResponseError,
    LumaClient,
    ServerError,
)
from tests.fakes import ID, OUTPUT

TOKEN = "luma-api-test"
SOON = wait_fixed(0.02)

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Does with each connection what is written down for it; the last one stands for all others."""

    def __init__(self, *connections: Connection) -> None:
        self.port = 0
        self.accepted = 0
        self.open: set[asyncio.Task[Any]] = set()
        self._connections = connections

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.open.add(task)
        number = min(self.accepted, len(self._connections) - 1)
        self.accepted += 1
        try:
            await self._connections[number](reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the test is over
        finally:
            self.open.discard(task)
            writer.close()


@asynccontextmanager
async def serve(
    *connections: Connection, port: int = 0, ssl: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """A server on this machine that handles its connections so."""
    server = Server(*connections)
    listening = await asyncio.start_server(server.connected, "127.0.0.1", port, ssl=ssl)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        # Not `async with listening`: since Python 3.12 that waits for connections to end.
        listening.close()
        for task in server.open:
            task.cancel()
        await eventually(lambda: not server.open)


async def eventually(holds: Callable[[], bool]) -> None:
    """What happens on another task, or at the other end of a connection, takes a moment."""
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.002)
    pytest.fail("it does not happen within two seconds")


def client_of(base_url: str, **options: Any) -> LumaClient:
    return LumaClient(TOKEN, base_url=base_url, **{"timeout": 5, "max_retries": 0, **options})


def short_if_it_hangs(error_class: type[APIError]) -> float:
    """Seconds: a request that hangs is waited for only as long as it must be."""
    return 0.4 if error_class is APITimeoutError else 5


def http(
    body: bytes, *, status: str = "200 OK", length: int | None = None, more: str = ""
) -> bytes:
    """An answer, which may promise another length than it has."""
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n"
    return (head + more + "\r\n").encode() + body


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length: ")
    return head + await reader.readexactly(int(length.split(b"\r\n")[0] or 0))


def answer(data: bytes, *, then: Connection | None = None) -> Connection:
    """Answer a request with these bytes, then close the connection or do something else."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        if then is not None:
            await then(reader, writer)

    return connection


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    pass


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    linger = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # until the client goes


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await asyncio.sleep(0.02)
        writer.write(b" ")
        await writer.drain()


COMPLETED = json.dumps({"id": ID, "state": "completed", "output": OUTPUT}).encode()
QUEUED = json.dumps({"id": ID, "state": "queued", "output": []}).encode()
PAGE = b"<html>We are busy.</html>"
completed = answer(http(COMPLETED, more="Content-Type: application/json\r\nConnection: close\r\n"))

FAULTS: dict[str, tuple[Connection, type[APIError]]] = {
    "closed at once": (hang_up, APIConnectionError),
    "closed after the request": (answer(b""), APIConnectionError),
    "reset at once": (reset, APIConnectionError),
    "reset before an answer": (answer(b"", then=reset), APIConnectionError),
    "reset inside the head": (answer(b"HTTP/1.1 200 OK\r\nA:", then=reset), APIConnectionError),
    "reset inside the body": (answer(http(b"{", length=99), then=reset), APIConnectionError),
    "truncated body": (answer(http(COMPLETED[:20], length=99)), APIConnectionError),
    "truncated chunks": (
        answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"),
        APIConnectionError,
    ),
    "garbage": (answer(b"\x00\x01SSH-2.0-OpenSSH_9.6\r\n\r\n"), APIConnectionError),
    "page with status 200": (answer(http(PAGE)), InvalidResponseError),
    "empty body with status 200": (answer(http(b"")), InvalidResponseError),
    "no gzip": (answer(http(PAGE, more="Content-Encoding: gzip\r\n")), InvalidResponseError),
    "page with status 502": (answer(http(PAGE, status="502 Bad Gateway")), ServerError),
    "hang": (hang, APITimeoutError),
    "hang inside the body": (answer(http(b"{", length=99), then=hang), APITimeoutError),
    "trickle": (answer(http(b"{", length=9_999), then=trickle), APITimeoutError),
}


def patiently(latency: float = 0.0) -> Connection:
    """Answer request after request, as long as the client likes."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(latency)
            writer.write(http(QUEUED))
            await writer.drain()

    return connection
