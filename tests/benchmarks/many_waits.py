"""How long many waits take together, ours beside `asyncio.gather` over the official SDK.

All generations end 10 s after the first request; the server answers after 100 ms, and every waiter
polls each one every 2 s. The ideal is the duration plus one answer: 10.1 s. Client and server have
a core each.

    python tests/benchmarks/many_waits.py
    python tests/benchmarks/many_waits.py --waits 100 1000 --peers luma-poll

Every run is a process of its own and is ended after `--limit` seconds. Needs the `dev` extra.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import luma_agents
from tenacity import wait_fixed

from luma_poll import LumaClient, Poller, PollEvent

SERVER = Path(__file__).with_name("loopback_server.py")
LATENCY, DURATION, INTERVAL = 0.1, 10.0, 2.0
IDEAL = DURATION + LATENCY


async def wait_with_luma_poll(base_url: str, ids: list[str]) -> int:
    """The number of polls."""
    polls = 0

    def count(event: PollEvent) -> None:
        nonlocal polls
        polls += 1

    async with LumaClient("key", base_url=base_url) as client:
        poller = Poller(
            client, wait=wait_fixed(INTERVAL), max_rate=None, max_in_flight=None, on_poll=count
        )
        results = await poller.wait_all(ids, limit=None)
    assert all(result.ok for result in results)
    return polls


async def wait_with_the_official_sdk(base_url: str, ids: list[str]) -> int:
    """The number of polls."""
    polls = 0

    async def wait(generation_id: str) -> None:
        nonlocal polls
        while True:
            polls += 1
            generation = await client.generations.get(generation_id)
            if generation.state in ("completed", "failed"):
                return
            await asyncio.sleep(INTERVAL)

    async with luma_agents.AsyncLuma(auth_token="key", base_url=base_url) as client:
        await asyncio.gather(*[wait(generation_id) for generation_id in ids])
    return polls


PEERS = {"luma-poll": wait_with_luma_poll, "official SDK": wait_with_the_official_sdk}


def measure_here(peer: str, waits: int, base_url: str) -> None:
    """What the processes do that `measure` starts."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ids = [str(uuid4()) for _ in range(waits)]
    began, cpu = time.perf_counter(), time.process_time()
    polls = asyncio.run(PEERS[peer](base_url, ids))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "polls": polls}))


def measure(peer: str, waits: int, limit: float) -> dict[str, float] | str:
    """The figures, or why there are none."""
    with subprocess.Popen(
        [sys.executable, SERVER, str(LATENCY), str(DURATION)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        base_url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        command = [sys.executable, __file__, "--here", peer, str(waits), base_url]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"not within {limit:g} s"
        finally:
            server.kill()
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:60]
    found: dict[str, float] = json.loads(done.stdout)
    return {**found, "to_ideal": found["seconds"] / IDEAL}


def as_cells(found: dict[str, float] | str) -> str:
    if isinstance(found, str):
        return f"{found} | | | |"
    return (
        f"{found['seconds']:.1f} s | {found['to_ideal']:.2f} | "
        f"{found['cpu']:.1f} s | {found['polls']:,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--waits", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--limit", type=float, default=180)
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()
    if options.here:
        peer, waits, base_url = options.here
        measure_here(peer, int(waits), base_url)
        return
    rows: list[dict[str, Any]] = []
    if not options.json:
        print("| waits | | took | / ideal | processor | polls |\n|---|---|---|---|---|---|")
    for waits in options.waits:
        for peer in options.peers:
            found = measure(peer, waits, options.limit)
            figures = {"failed": found} if isinstance(found, str) else found
            rows.append({"waits": waits, "peer": peer, **figures})
            if not options.json:
                print(f"| {waits:,} | {peer} | {as_cells(found)}", flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
