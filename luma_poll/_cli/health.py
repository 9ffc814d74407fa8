"""The answers to health checks of a worker, such as a kubelet's."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

import anyio
from anyio.abc import SocketStream

WELL_WITHIN = 30.0
"""Seconds within which the event loop of a healthy worker has turned."""
_LONGEST = 5.0


class _Worker(Protocol):
    def is_well(self, within: float) -> bool: ...


async def serve_health(worker: _Worker, port: int) -> None:
    """Answer each request with 200 or 503, on all addresses, until it is cancelled.

    It checks only the process, not the database: restarting workers during an outage of the
    database would lose the answers of submissions under way, and mend nothing.
    """

    async def answer(stream: SocketStream) -> None:
        gone = anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError
        async with stream:
            with anyio.move_on_after(_LONGEST), suppress(*gone):
                await stream.receive(4096)
                well = worker.is_well(WELL_WITHIN)
                status, body = ("200 OK", b"well\n") if well else ("503 Unavailable", b"hangs\n")
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                await stream.send(head.encode() + body)

    async with await anyio.create_tcp_listener(local_port=port) as listener:
        await listener.serve(answer)
