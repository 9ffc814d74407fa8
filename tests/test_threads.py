"""Threads: those of an app that waits in them, and schedules that several of them share."""

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from fastapi import FastAPI

from luma_poll import AdaptiveWait, Generation, Journal, LumaClient, Poller, Runner
from luma_poll.sandbox import Sandbox
from tests.downloads.support import PNG, Storage, generation, opened, serve
from tests.fakes import FakeClient, snapshot
from tests.virtual_time import VirtualTimeLoop

THREADS = 40  # those of anyio, in which Starlette runs handlers that are written with `def`


@pytest.mark.asyncio
async def test_forty_handlers_written_with_def_end(tmp_path: Path) -> None:
    """All threads of the app wait for downloads, which need one more each."""
    app, all_are_here = FastAPI(), threading.Barrier(THREADS)
    async with (
        opened(Storage(serve())) as client,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://app", timeout=None
        ) as browser,
    ):

        @app.get("/{number}")
        def picture(number: int) -> int:
            all_are_here.wait(20)
            fetch = partial(client.download, generation(), tmp_path / f"{number}")
            (path,) = anyio.from_thread.run(fetch)
            return path.stat().st_size

        sizes: list[int] = []

        async def look(number: int) -> None:
            sizes.append((await browser.get(f"/{number}")).json())

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for number in range(THREADS):
                    tasks.start_soon(look, number)
    assert sizes == [len(PNG)] * THREADS


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:the API key will be sent")
async def test_nothing_needs_a_thread_of_the_app(tmp_path: Path) -> None:
    """A batch with a journal, an upload and a download, while none is free."""
    threads = anyio.to_thread.current_default_thread_limiter()
    for number in range(int(threads.total_tokens)):
        threads.acquire_on_behalf_of_nowait(number)
    picture = tmp_path / "source.png"
    picture.write_bytes(PNG + bytes(2**21))
    transport = httpx.ASGITransport(app=Sandbox(speed=1000).app)
    try:
        async with httpx.AsyncClient(transport=transport) as http:
            client = LumaClient("luma-api-key", base_url="http://sandbox/v1", http_client=http)
            with anyio.fail_after(30), Journal(tmp_path / "runs.db") as journal:
                runner = Runner(client, journal=journal)
                requests: list[Any] = ["a fox", {"prompt": "an owl", "type": "image"}]
                (_, owl) = await runner.run_all(requests)
                assert await client.download(owl.generation, tmp_path / "owl")
                assert await client.files.upload(picture)
    finally:
        for number in range(int(threads.total_tokens)):
            threads.release_on_behalf_of(number)


def test_one_adaptive_schedule_serves_the_pollers_of_many_threads() -> None:
    """Each has an event loop and a poller; they learn at the same time, of more models than fit."""
    wait = AdaptiveWait()

    def answer(model: int, now: float) -> Generation:
        state = "completed" if now > 1000 + model % 7 else "processing"
        return snapshot(state, id="g", model=f"model-{model}", type="image")

    async def work(thread: int) -> int:
        ended = 0
        for number in range(60):
            model = 97 * thread + number
            client = FakeClient(at=partial(answer, model))
            ended += bool(await Poller(client, wait=wait).wait("g"))
            assert AdaptiveWait.from_json(wait.to_json()).to_json()
        return ended

    def run(thread: int) -> int:
        options = {"loop_factory": VirtualTimeLoop}
        return anyio.run(work, thread, backend_options=options)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(run, range(4))) == [60] * 4
    finally:
        sys.setswitchinterval(interval)
        gc.collect()
