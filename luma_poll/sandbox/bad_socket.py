"""Connections that misbehave on demand, down to the socket."""

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from luma_poll.sandbox.faults import MISBEHAVE, Fault

TRICKLE = 0.1  # seconds from byte to byte
GARBAGE = b"\x15\x03\x01\x00\x02\x02\x28 this is not HTTP\r\n\r\n"


class BadTransport:
    """A transport that passes everything through until `misbehave` is called."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._fault: Fault | None = None
        self._begun = False
        self._trickling = bytearray()
        self._left = 0  # bytes that are sent before the connection ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def misbehave(self, fault: Fault) -> None:
        """Apply a fault to the next answer."""
        self._fault = fault

    def write(self, data: bytes) -> None:
        """Send the data, or spoil it as the fault says."""
        if self._fault is None:
            self._transport.write(data)
        elif not self._begun:
            self._begun = True
            self._begin(self._fault, data)
        elif self._fault.kind == "trickle":
            self._trickling += data
        else:
            self._pass_on(data)

    def _begin(self, fault: Fault, head: bytes) -> None:
        if fault.after is not None:
            self._left = head.index(b"\r\n\r\n") + 4 + fault.after
            self._pass_on(head)
            return
        match fault.kind:
            case "reset":
                self._reset()
            case "garbage":
                self._transport.write(GARBAGE)
                self._transport.close()
            case "trickle":
                self._trickling += head
                self._drip()
            case _:  # hang: send nothing until the client gives up
                pass

    def _pass_on(self, data: bytes) -> None:
        """Send as much as may be sent, then end the connection."""
        if not self._left or self._fault is None:
            return
        self._transport.write(data[: self._left])
        self._left = max(self._left - len(data), 0)
        if self._left:
            return
        if self._fault.ending == "close":
            self._transport.close()
        else:
            # Only once the bytes are out: a reset discards what is still in the buffers.
            asyncio.get_running_loop().call_later(0.02, self._reset)

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
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
        """Begin a connection whose requests can break it."""
        bad: Any = BadTransport(transport)
        self.app_state = {**self.app_state, MISBEHAVE: bad.misbehave}
        super().connection_made(bad)
