"""Connections that do to an answer what its header `X-Sandbox-Fault` says, down to the socket."""

import asyncio
import re
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from luma_poll.sandbox.faults import HEADER

TRICKLE = 0.1  # seconds from byte to byte
GARBAGE = b"\x15\x03\x01\x00\x02\x02\x28 this is not HTTP\r\n\r\n"

_MARK = re.compile(rb"(?i)" + HEADER.encode() + rb": ([\w-]+)\r\n")


class BadTransport:
    """A transport that passes everything on, until an answer is marked; then it misbehaves."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._fault: str | None = None
        self._trickling = bytearray()
        self._left = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send it, or what the fault makes of it."""
        if self._fault is None:
            mark = _MARK.search(data)
            if mark is None:
                self._transport.write(data)
                return
            self._fault = mark[1].decode()
            data = data.replace(mark[0], b"")
            self._begin(data)
        elif self._fault == "trickle":
            self._trickling += data
        elif self._fault.startswith("cut-"):
            self._pass_on(data)

    def _begin(self, head: bytes) -> None:
        kind, _, left = (self._fault or "").partition("_")
        match kind:
            case "cut-reset" | "cut-truncated":
                self._left = int(left) + head.index(b"\r\n\r\n") + 4
                self._pass_on(head)
            case "reset":
                self._reset()
            case "reset-body":
                self._transport.write(head + b'{"id": "')
                # After the bytes are out: a reset takes back what is still in the buffers.
                asyncio.get_running_loop().call_later(0.02, self._reset)
            case "truncated":
                self._transport.write(head + b'{"id": "')
                self._transport.close()
            case "garbage":
                self._transport.write(GARBAGE)
                self._transport.close()
            case "trickle":
                self._trickling += head
                self._drip()
            case _:  # hang: nothing at all, until the client has had enough
                pass

    def _pass_on(self, data: bytes) -> None:
        """Send what is left to send, and then break off."""
        if not self._left:
            return
        self._transport.write(data[: self._left])
        self._left = max(self._left - len(data), 0)
        if self._left:
            return
        if (self._fault or "").startswith("cut-truncated"):
            self._transport.close()
        else:
            asyncio.get_running_loop().call_later(0.02, self._reset)

    def _reset(self) -> None:
        """Close with RST in place of FIN."""
        sock = self._transport.get_extra_info("socket")
        if not self._transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _drip(self) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(bytes(self._trickling[:1]))
        del self._trickling[:1]
        asyncio.get_running_loop().call_later(TRICKLE, self._drip)


class BadProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 over a `BadTransport`."""

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        super().connection_made(BadTransport(transport))  # type: ignore[arg-type]
