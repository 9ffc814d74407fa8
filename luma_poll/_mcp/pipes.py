"""Standard input and output as the wire of a server, with waits that can be cancelled."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import anyio
import anyio.to_thread

from luma_poll.errors import ConfigurationError

LONGEST_LINE = 64 * 1024 * 1024
"""The most bytes of one message."""
PIECE = 4096 if sys.platform == "linux" else 512
"""Bytes that a writable pipe takes without blocking: PIPE_BUF."""


@contextmanager
def standard_pipes() -> Iterator[tuple[Lines, Writer]]:
    """Reserve standard input and output for the protocol.

    What a library prints meanwhile goes to standard error: on the wire it would be a broken
    message.

    Raises:
        ConfigurationError: Standard input or output is closed.
    """
    if sys.stdin is None or sys.stdout is None:
        raise ConfigurationError("standard input and output must be open: they are the wire")
    try:
        output = sys.stdout.fileno()
    except OSError:  # it was replaced by something that is not a file
        output = 1
    reads, writes = os.dup(sys.stdin.fileno()), os.dup(output)
    try:
        _divert(output)
        yield Lines(reads), Writer(writes)
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()  # so that what was printed before does not reach the wire
        os.dup2(writes, output)
        if os.name == "posix":  # elsewhere a thread may still read
            os.close(reads)
            os.close(writes)


def _divert(output: int) -> None:
    try:
        os.dup2(2, output)
    except OSError:  # standard error is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        os.close(nowhere)


class Lines:
    """The lines that come from a descriptor.

    They are not read in a thread, which would keep the process from ending if it is left behind.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = bytearray()

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> str:
        searched = 0
        while (end := self._rest.find(b"\n", searched)) < 0:
            searched = len(self._rest)
            found = await self._read()
            if not found or searched > LONGEST_LINE:  # no client of the protocol sends that
                raise StopAsyncIteration
            self._rest += found
        line = self._rest[:end].decode(errors="replace")
        del self._rest[: end + 1]
        return line

    async def _read(self) -> bytes:
        if os.name == "posix":
            with suppress(PermissionError):  # a file, which is always readable and has no wait
                await anyio.wait_readable(self._descriptor)
            return os.read(self._descriptor, 65536)
        read = partial(os.read, self._descriptor, 65536)
        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)


class Writer:
    """A writer of text to a descriptor. A client that does not read holds up only its answers."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, text: str) -> None:
        """Write the whole text."""
        rest = memoryview(text.encode(errors="backslashreplace"))
        while rest:
            rest = rest[await self._write(rest[:PIECE]) :]

    async def flush(self) -> None:
        """Do nothing: there is no buffer."""

    async def _write(self, piece: memoryview) -> int:
        if os.name == "posix":
            with suppress(PermissionError):  # a file
                await anyio.wait_writable(self._descriptor)
            return os.write(self._descriptor, piece)
        write = partial(os.write, self._descriptor, piece)
        return await anyio.to_thread.run_sync(write, abandon_on_cancel=True)
