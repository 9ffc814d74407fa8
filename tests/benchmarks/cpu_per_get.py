"""What one `get` costs the client: processor time per request, ours beside what others offer.

    python tests/benchmarks/cpu_per_get.py
    python tests/benchmarks/cpu_per_get.py --requests 500 --under-way 1 256

The server is another process on loopback. Every figure is the best of several rounds, which take
turns, so that a busy machine disturbs all alike. `httpx` only fetches; all others read the
generation too. Needs the `dev` extra; `aiohttp` is the client with httpx-aiohttp's transport.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import luma_agents
from httpx_aiohttp import HttpxAiohttpClient

from luma_poll import LumaClient

ID = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"
SERVER = Path(__file__).with_name("loopback_server.py")

Get = Callable[[], Awaitable[object]]


@asynccontextmanager
async def raw_httpx(base_url: str) -> AsyncIterator[Get]:
    async with httpx.AsyncClient(base_url=base_url, headers={"Authorization": "Bearer x"}) as http:
        yield lambda: http.get(f"/generations/{ID}")


@asynccontextmanager
async def official_sdk(base_url: str) -> AsyncIterator[Get]:
    async with luma_agents.AsyncLuma(auth_token="x", base_url=base_url) as client:
        yield lambda: client.generations.get(ID)


@asynccontextmanager
async def luma_poll(base_url: str) -> AsyncIterator[Get]:
    async with LumaClient("x", base_url=base_url) as client:
        yield lambda: client.generations.get(ID)


@asynccontextmanager
async def luma_poll_on_aiohttp(base_url: str) -> AsyncIterator[Get]:
    async with (
        HttpxAiohttpClient() as http,
        LumaClient("x", base_url=base_url, http_client=http) as client,
    ):
        yield lambda: client.generations.get(ID)


PEERS = {
    "httpx": raw_httpx,
    "official SDK": official_sdk,
    "luma-poll": luma_poll,
    "luma-poll, aiohttp": luma_poll_on_aiohttp,
}


async def run(get: Get, requests: int, under_way: int) -> float:
    """Processor milliseconds per request."""
    numbers = iter(range(requests))

    async def work() -> None:
        for _ in numbers:
            await get()

    began = time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(under_way):
            tasks.create_task(work())
    return (time.process_time() - began) / requests * 1000


async def measure(base_url: str, requests: int, under_way: int, rounds: int) -> dict[str, float]:
    """The best round of each."""
    best: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        gets = {
            name: await stack.enter_async_context(peer(base_url)) for name, peer in PEERS.items()
        }
        for get in gets.values():  # connect, and warm up
            await run(get, max(50, 2 * under_way), under_way)
        for _ in range(rounds):
            for name, get in gets.items():
                cost = await run(get, requests, under_way)
                best[name] = min(cost, best.get(name, cost))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--under-way", type=int, nargs="+", default=[1, 4, 64])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for under_way in options.under_way:
        latency = "0" if under_way == 1 else "0.02"
        with subprocess.Popen(
            [sys.executable, SERVER, latency, "inf"], stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            base_url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            try:
                cost = asyncio.run(measure(base_url, options.requests, under_way, options.rounds))
            finally:
                server.kill()
        to_httpx = cost["luma-poll"] / cost["httpx"]
        to_sdk = cost["luma-poll"] / cost["official SDK"]
        rows.append({"under_way": under_way, **cost, "to_httpx": to_httpx, "to_sdk": to_sdk})
    if options.json:
        print(json.dumps(rows))
        return
    print("| under way |" + "".join(f" {name} |" for name in PEERS) + " / httpx | / SDK |")
    print("|---|" + "---|" * (len(PEERS) + 2))
    for row in rows:
        cells = "".join(f" {row[name]:.2f} ms |" for name in PEERS)
        print(f"| {row['under_way']} |{cells} {row['to_httpx']:.2f} | {row['to_sdk']:.2f} |")


if __name__ == "__main__":
    main()
