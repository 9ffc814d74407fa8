"""Writes that are cut short, interrupts, and names that change hands."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st

from luma_poll import DownloadError
from luma_poll._downloads import files
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.object_store import Blob
from tests.downloads.support import GET, PNG, Storage, generation, names, opened, serve
from tests.fakes import ID

pytestmark = pytest.mark.usefixtures("soon")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["whole", "short", "full", "full after half"]), max_size=12))
def test_whatever_the_disk_writes(outcomes: list[str]) -> None:
    """A disk that takes less, or is full for a while: the bytes written are right, and continued.

    No byte is ever written twice, and there is never a gap.
    """
    write_at = files._write_at

    def write(descriptor: int, data: memoryview, place: int) -> int:
        outcome = outcomes.pop(0) if outcomes else "whole"
        half = data[: max(1, len(data) // 2)]
        if outcome == "short":
            return write_at(descriptor, half, place)
        if outcome == "full after half":
            write_at(descriptor, half, place)
        if outcome.startswith("full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_at(descriptor, data, place)

    async def run(directory: Path) -> None:
        async with opened(Storage(serve())) as client:
            while True:
                with contextlib.suppress(DownloadError):
                    (path,) = await client.download(generation(), directory)
                    break
                (part,) = names(directory)
                assert PNG.startswith((directory / part).read_bytes())
        assert path.read_bytes() == PNG
        assert names(directory) == [path.name]

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr("luma_poll._downloads.files.BUFFER", 2500)
        patch.setattr(files, "_write_at", write)
        anyio.run(run, Path(directory))


@pytest.mark.asyncio
async def test_a_loop_that_ends_in_the_middle_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled by asyncio again and again: the write ends first, and no other runs beside it."""
    write_at, at_work, go_on = files._write_at, threading.Semaphore(0), threading.Event()
    under_way: list[int] = []

    def write(descriptor: int, data: memoryview, place: int) -> int:
        under_way.append(descriptor)
        assert under_way == [descriptor]
        written = write_at(descriptor, data[:1500], place)
        at_work.release()
        assert go_on.wait(20)
        os.fstat(descriptor)  # nobody has closed it
        under_way.remove(descriptor)
        return written

    monkeypatch.setattr("luma_poll._downloads.files.BUFFER", 2500)
    monkeypatch.setattr(files, "_write_at", write)
    async with opened(Storage(serve())) as client:
        task = asyncio.create_task(client.download(generation(), tmp_path))
        await asyncio.to_thread(at_work.acquire)
        for _ in range(3):
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        (part,) = names(tmp_path)
        assert (tmp_path / part).read_bytes() == PNG[:3000]
        monkeypatch.undo()
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_storm_of_cancellations_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Asyncio's own cancellations interrupt clean-ups, too; the bytes on disk are right."""
    open_files, begin, end = set[int](), os.open, os.close

    def opening(path: str | Path, *rest: int) -> int:
        descriptor = begin(path, *rest)
        if str(path).endswith(".part"):
            open_files.add(descriptor)
        return descriptor

    def closing(descriptor: int) -> None:
        open_files.discard(descriptor)
        end(descriptor)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "close", closing)
    monkeypatch.setattr("luma_poll._downloads.files.BUFFER", 2500)
    begun = asyncio.Event()
    async with opened(Storage(serve())) as client:
        task = asyncio.create_task(
            client.download(generation(), tmp_path, on_progress=lambda _: begun.set())
        )
        await begun.wait()
        assert open_files
        while not task.done():
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
        assert task.cancelled()
        assert not open_files
        for name in names(tmp_path):
            assert PNG.startswith((tmp_path / name).read_bytes())
        assert await client.download(generation(), tmp_path)


DOWNLOAD = """
import asyncio, sys
from luma_poll import LumaClient

async def main():
    async with LumaClient("key", base_url=sys.argv[1]) as client:
        await client.download(sys.argv[2], sys.argv[3])

asyncio.run(main())
"""


@pytest.mark.posix
def test_two_interrupts_in_a_row(tmp_path: Path) -> None:
    """The second one closes the loop in the middle of everything; no byte is wrong."""
    size = 30_000_000
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Sandbox(speed=1000).serve()) as base_url,
    ):
        prompt = {"prompt": f"a fox sandbox:duration=0 sandbox:size={size}"}
        headers = {"Authorization": "Bearer key"}
        made = httpx.post(f"{base_url}/generations", json=prompt, headers=headers).json()["id"]
        blob = Blob(f"/storage/{made}/0", size)
        command = [sys.executable, "-c", DOWNLOAD, base_url, made, str(tmp_path)]
        for least in (1e6, 15e6):
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                while not any(part.stat().st_size > least for part in tmp_path.glob(".*.part")):
                    assert process.poll() is None
                process.send_signal(signal.SIGINT)
                time.sleep(0.03)
                process.send_signal(signal.SIGINT)
                assert process.wait(50) != 0
            (part,) = tmp_path.iterdir()
            there = part.read_bytes()
            assert there == blob.read(0, len(there))
        subprocess.run(command, check=True, timeout=40)
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == blob.read(0, size)


@pytest.mark.anyio
async def test_a_file_that_another_one_finishes_leaves_nothing_behind(tmp_path: Path) -> None:
    """Even at the moment at which this download wants to continue it."""

    def finish_it(request: httpx.Request) -> httpx.Response:
        (part,) = tmp_path.glob(".*.part")
        part.unlink()
        (tmp_path / f"{ID}.png").write_bytes(PNG)
        return serve()(request)

    storage = Storage(serve(cut=3000), finish_it, serve())
    async with opened(storage) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert names(tmp_path) == [path.name]
    assert len(storage.requests) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [0, 3000])
async def test_a_name_that_changes_hands_while_its_file_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """One download finishes while a third starts: the part of the third gets no final name."""
    path = tmp_path / f"{ID}.png"

    def sync(descriptor: int) -> None:
        if not path.exists():
            (part,) = tmp_path.glob(".*.part")
            part.rename(path)
            part.write_bytes(PNG[:begun])

    monkeypatch.setattr(os, "fsync", sync)
    async with opened(Storage(serve())) as client:
        assert await client.download(generation(), tmp_path) == [path]
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]


@pytest.mark.anyio
async def test_a_version_for_each_request_leaves_one_part(tmp_path: Path) -> None:
    """Parts that cannot be resumed are removed, in the same call or a later one."""
    count = iter(range(10_000))

    def changing(request: httpx.Request) -> httpx.Response:
        return serve(cut=3000, ETag=f'"{next(count)}"')(request)

    storage = Storage(changing)
    async with opened(storage) as client:
        for _ in range(2):
            with pytest.raises(DownloadError, match="not complete within"):
                await client.download(generation(), tmp_path)
            assert len(names(tmp_path)) == 1
        storage.answers = [serve()]
        assert await client.download(generation(), tmp_path)
    assert names(tmp_path) == [f"{ID}.png"]


@pytest.mark.asyncio
async def test_the_part_of_another_version_is_left_to_who_writes_it(tmp_path: Path) -> None:
    """A download that ends first does not remove it, and the slower one starts only once."""
    held, other_ended = anyio.Event(), anyio.Event()

    class Held(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield PNG
            held.set()
            await other_ended.wait()
            yield PNG

    def slow(request: httpx.Request) -> httpx.Response:
        headers = GET | {"ETag": '"other"', "Content-Length": str(2 * len(PNG))}
        return httpx.Response(200, headers=headers, stream=Held())

    storage = Storage(slow, serve())
    async with opened(storage) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.download, generation(), tmp_path)
        await held.wait()
        (path,) = await client.download(generation(), tmp_path)
        assert path.read_bytes() == PNG
        other_ended.set()
    assert len(storage.requests) == 2
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]


@pytest.mark.anyio
async def test_a_system_without_locks_and_positioned_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like Windows: files are complete, and nothing else is left."""
    monkeypatch.delattr(os, "pwrite", raising=False)
    monkeypatch.setattr("luma_poll._downloads.files.fcntl", None)
    monkeypatch.setattr("luma_poll._downloads.files.BUFFER", 2500)
    storage = Storage(serve(cut=3000), serve(cut=3000, ETag='"two"'), serve(ETag='"two"'))
    async with opened(storage) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]
