"""Standard input and output as the wire of a server: every wait for them can be cancelled."""

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
"""Bytes of one message."""
PIECE = 4096 if sys.platform == "linux" else 512
"""Bytes that a pipe takes without a wait once it is writable: PIPE_BUF."""


@contextmanager
def standard_pipes() -> Iterator[tuple[Lines, Writer]]:
    """Take standard input and output for the protocol alone.

    What a library prints meanwhile goes to standard error: on the wire it would be a broken
    message.

    Raises:
        ConfigurationError: One of them is closed.
    """
    if sys.stdin is None or sys.stdout is None:
        raise ConfigurationError("standard input and output must be open: they are the wire")
    try:
        output = sys.stdout.fileno()
    except OSError:  # something that is not a file stands in its place
        output = 1
    reads, writes = os.dup(sys.stdin.fileno()), os.dup(output)
    try:
        _divert(output)
        yield Lines(reads), Writer(writes)
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()  # what was printed, before it could reach the wire
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
    """The lines of a descriptor.

    Not in a thread: one that is left behind keeps the process from ending.
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
            if not found or searched > LONGEST_LINE:  # nobody who speaks the protocol sends that
                raise StopAsyncIteration
            self._rest += found
        line = self._rest[:end].decode(errors="replace")
        del self._rest[: end + 1]
        return line

    async def _read(self) -> bytes:
        if os.name == "posix":
            with suppress(PermissionError):  # a file is always readable, and cannot be waited for
                await anyio.wait_readable(self._descriptor)
            return os.read(self._descriptor, 65536)
        read = partial(os.read, self._descriptor, 65536)
        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)


class Writer:
    """Writes text to a descriptor. A client that does not read holds up nothing but its answers."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def write(self, text: str) -> None:
        """Write all of it."""
        rest = memoryview(text.encode(errors="backslashreplace"))
        while rest:
            rest = rest[await self._write(rest[:PIECE]) :]

    async def flush(self) -> None:
        """Do nothing: nothing is kept."""

    async def _write(self, piece: memoryview) -> int:
        if os.name == "posix":
            with suppress(PermissionError):  # a file
                await anyio.wait_writable(self._descriptor)
            return os.write(self._descriptor, piece)
        write = partial(os.write, self._descriptor, piece)
        return await anyio.to_thread.run_sync(write, abandon_on_cancel=True)
