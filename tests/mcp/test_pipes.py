"""The wire of a server on standard streams: whole lines in, whole texts out, no endless wait."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from luma_poll._mcp import pipes
from luma_poll._mcp.pipes import Lines, Writer

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="elsewhere a thread waits"),
]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """In real time: pipes know no other."""
    return request.param


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends."""
    reads, writes = os.pipe()
    yield reads, writes
    os.close(reads)
    os.close(writes)


async def test_lines_are_whole() -> None:
    """However they arrive; the rest without an end is no line."""
    reads, writes = os.pipe()
    for part in (b"a", b"bc\nd", b"ef\n\n", b"\xff\n", "\u00fc".encode()[:1]):
        os.write(writes, part)
    os.close(writes)
    try:
        assert [line async for line in Lines(reads)] == ["abc", "def", "", "\ufffd"]
    finally:
        os.close(reads)


async def test_a_long_line_is_whole(pipe: tuple[int, int]) -> None:
    """And what is written is as long as what is read: both go piece by piece."""
    reads, writes = pipe
    text = "\u00e9" * 1_000_000
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Writer(writes).write, f"{text}\n")
        assert await anext(aiter(Lines(reads))) == text


async def test_an_endless_line_is_an_end(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill the memory."""
    monkeypatch.setattr(pipes, "LONGEST_LINE", 10_000)
    reads, writes = pipe
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Writer(writes).write, "x" * 1_000_000)
        assert [line async for line in Lines(reads)] == []
        tasks.cancel_scope.cancel()


async def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    """It cannot be waited for, and need not be."""
    path = tmp_path / "lines"
    await anyio.Path(path).write_bytes(b"a\nb\n")
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert [line async for line in Lines(descriptor)] == ["a", "b"]
        await Writer(descriptor).write("c\n")
    finally:
        os.close(descriptor)
    assert await anyio.Path(path).read_bytes() == b"a\nb\nc\n"


async def test_both_can_be_cancelled(pipe: tuple[int, int]) -> None:
    """A reader to whom nothing comes, and a writer whose reader does not read."""
    reads, writes = pipe
    with anyio.move_on_after(0.05) as reading:
        await anext(aiter(Lines(reads)))
    with anyio.move_on_after(0.05) as writing:
        await Writer(writes).write("x" * 1_000_000)
    assert reading.cancelled_caught
    assert writing.cancelled_caught


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
async def test_a_closed_stream_is_said(closed: str) -> None:
    """By its name, and not by a traceback."""
    code = "import luma_poll._mcp.pipes as p\nwith p.standard_pipes(): pass"
    command = f"exec '{sys.executable}' -c '{code}' {closed}"
    told = await anyio.to_thread.run_sync(
        lambda: subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    )
    assert told.stderr.endswith("standard input and output must be open: they are the wire\n")
