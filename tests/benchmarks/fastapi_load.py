"""Hundreds of requests at once to a FastAPI app whose handlers wait: what does the app hold?

The app is one uvicorn process with the defaults of luma-poll; the sandbox and the load are another.
Every generation takes ten seconds. Processor time and memory are those of the app, its start
included.

    python -m tests.benchmarks.fastapi_load
"""

import asyncio
import os
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from uuid import UUID

import aiohttp
from fastapi import FastAPI

from luma_poll import LumaClient
from luma_poll.fastapi import PollerDep, add_error_handlers, luma_lifespan
from luma_poll.sandbox import Sandbox

app = FastAPI(lifespan=luma_lifespan())
add_error_handlers(app)


@app.get("/generations/{generation_id}/url")
async def url(generation_id: UUID, poller: PollerDep) -> str:
    return (await poller.wait(generation_id, timeout=60))[0].url


@app.get("/streams")
async def streams(poller: PollerDep) -> str:
    return repr(poller)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@asynccontextmanager
async def serving(base_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    """The app, as a process of its own; gives a session that knows its address."""
    port = free_port()
    environment = os.environ | {"LUMA_BASE_URL": base_url, "LUMA_AGENTS_API_KEY": "key"}
    arguments = f"-m uvicorn {__spec__.name}:app --port {port} --log-level error".split()
    server = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment)
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as http:
            while not await streams_left(http):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
            yield http
    finally:
        server.terminate()
        await server.wait()


async def streams_left(http: aiohttp.ClientSession) -> str:
    """What the poller of the app says of itself; nothing while the app is not there yet."""
    try:
        async with http.get("/streams") as answer:
            return await answer.text()
    except aiohttp.ClientConnectorError:
        return ""


@asynccontextmanager
async def asking(
    http: aiohttp.ClientSession, base_url: str, handlers: int, ids: int
) -> AsyncIterator[list[asyncio.Task[tuple[int, float]]]]:
    """So many requests under way, for so many generations: the status and seconds of each."""

    async def ask(generation_id: str) -> tuple[int, float]:
        began = time.perf_counter()
        async with http.get(f"/generations/{generation_id}/url") as answer:
            await answer.read()
            return answer.status, time.perf_counter() - began

    async with LumaClient("key", base_url=base_url) as client:
        made = [
            (await client.generations.create("a fox sandbox:duration=10")).id for _ in range(ids)
        ]
    yield [asyncio.create_task(ask(made[number % ids])) for number in range(handlers)]


async def wait(handlers: int, ids: int) -> None:
    """Print a row of the table."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    sandbox = Sandbox()
    async with (
        sandbox.serve() as base_url,
        serving(base_url) as http,
        asking(http, base_url, handlers, ids) as tasks,
    ):
        statuses, took = zip(*await asyncio.gather(*tasks), strict=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"| {handlers}, {ids} | {statuses.count(200)} | {median(took):.1f} s, {max(took):.1f} s | "
        f"{sandbox.calls['GET /generations/{id}']} | {cpu:.1f} s | "
        f"{used.ru_maxrss / 1024:.0f} MiB |",
        flush=True,
    )


async def hang_up(handlers: int) -> None:
    """Print how long it takes until nothing is left of waits whose clients have gone."""
    async with (
        Sandbox().serve() as base_url,
        serving(base_url) as http,
        asking(http, base_url, handlers, handlers) as tasks,
    ):
        await asyncio.sleep(4)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        began = time.perf_counter()
        while "=0)" not in await streams_left(http):
            pass
        print(f"{handlers} hang up: no wait left after {time.perf_counter() - began:.2f} s")


async def flood(handlers: int) -> None:
    """Print what the app holds of bodies without end that come while its handlers wait."""
    sent = 0

    async def without_end() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            yield bytes(65536)
            sent += 65536

    async with Sandbox().serve() as base_url, serving(base_url) as http:
        async with LumaClient("key", base_url=base_url) as client:
            made = await client.generations.create("a fox sandbox:duration=10")
        path = f"/generations/{made.id}/url"
        tasks = [asyncio.create_task(http.get(path, data=without_end())) for _ in range(handlers)]
        await asyncio.wait(tasks, timeout=20)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{handlers} bodies without end: {sent / 1e6:.0f} MB sent, most memory {most:.0f} MiB")


async def main() -> None:
    print("| handlers, ids | answered 200 | median, slowest | polls | processor | most memory |")
    print("|---|---|---|---|---|---|")
    for handlers, ids in ((50, 1), (500, 10), (500, 500)):
        await wait(handlers, ids)
    await hang_up(500)
    await flood(100)


if __name__ == "__main__":
    asyncio.run(main())
