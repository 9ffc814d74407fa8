"""The memory that downloads of 100 MB and 1 GB take, over a real socket on this machine.

    python tests/benchmarks/download_memory.py

The server is a process of its own, so that only the client is measured. The files are deleted.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection

import anyio

from luma_poll import LumaClient
from luma_poll.sandbox import Sandbox

SIZES = (1_000, 100_000_000, 1_000_000_000)  # the first one is the cost of being there


def serve(pipe: Connection) -> None:
    """Run the sandbox until the other end of the pipe closes."""

    async def run() -> None:
        async with Sandbox(seed=1).serve() as base_url:
            pipe.send(base_url)
            await anyio.to_thread.run_sync(pipe.poll, None)

    anyio.run(run)


async def fetch(base_url: str, size: int) -> None:
    """Download one file of this size, and print what it took."""
    async with LumaClient("luma-api-benchmark", base_url=base_url, timeout=60) as client:
        prompt = f"a benchmark sandbox:duration=0 sandbox:size={size}"
        generation = await client.generations.create(prompt)
        with tempfile.TemporaryDirectory() as directory:
            began = time.perf_counter()
            (path,) = await client.download(generation.id, directory)
            seconds = time.perf_counter() - began
            assert path.stat().st_size == size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{size / 1e6:8,.1f} MB: {seconds:6.2f} s, peak RSS {peak:6.1f} MB")


def main() -> None:
    """Measure each size in turn; the peak is that of the process so far."""
    if sys.platform == "win32":
        sys.exit("needs getrusage")
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        base_url = here.recv()
        for size in SIZES:
            anyio.run(fetch, base_url, size)
    finally:
        here.send(None)
        server.join(5)
        server.terminate()


if __name__ == "__main__":
    main()
