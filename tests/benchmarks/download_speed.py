"""The speed of a download, ours beside plain httpx streaming to a file, with the same syncs.

    python tests/benchmarks/download_speed.py
    python tests/benchmarks/download_speed.py --megabytes 100 --rounds 1 --directory /var/tmp

The server is another process on loopback. Every figure is the best of several rounds, which take
turns, so that a busy machine disturbs both alike. The files are deleted.
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx

from luma_poll import Generation, LumaClient

MEGABYTE = 1_000_000
PIECE = b"\x89PNG\r\n\x1a\n" + os.urandom(MEGABYTE - 8)


def serve(pipe: Connection, megabytes: int) -> None:
    """Answer one request after the other with a file, until the process is ended."""
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\n"
        f'ETag: "{megabytes}"\r\nContent-Length: {megabytes * MEGABYTE}\r\n\r\n'
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head.encode())
                for _ in range(megabytes):
                    connection.sendall(PIECE)


async def plain_httpx(url: str, directory: Path) -> Path:
    """As a program without luma-poll would do it, if it took care of power failures."""
    part, path = directory / "a.part", directory / "a.png"
    async with httpx.AsyncClient() as http, http.stream("GET", url) as response:
        with part.open("wb") as file:
            async for chunk in response.aiter_raw():
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    return path


async def luma_poll(url: str, directory: Path) -> Path:
    output = [{"type": "image", "url": url}]
    fields = {"id": "benchmark", "state": "completed", "output": output}
    async with LumaClient("luma-api-benchmark") as client:
        (path,) = await client.download(Generation.model_validate(fields), directory)
    return path


PEERS = {"plain httpx": plain_httpx, "luma-poll": luma_poll}


def measure(
    fetch: Callable[[str, Path], Awaitable[Path]], url: str, size: int, place: str | None
) -> float:
    """Seconds for one file."""
    with tempfile.TemporaryDirectory(dir=place) as directory:
        began = time.perf_counter()
        path = asyncio.run(_awaited(fetch(url, Path(directory))))
        seconds = time.perf_counter() - began
        assert path.stat().st_size == size
    return seconds


async def _awaited(path: Awaitable[Path]) -> Path:
    return await path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", help="where the files are written")
    options = parser.parse_args()
    size = options.megabytes * MEGABYTE
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there, options.megabytes), daemon=True)
    server.start()
    best: dict[str, float] = {}
    try:
        url = f"http://127.0.0.1:{here.recv()}/a.png"
        for _ in range(options.rounds):
            for name, fetch in PEERS.items():
                seconds = measure(fetch, url, size, options.directory)
                best[name] = min(seconds, best.get(name, seconds))
    finally:
        server.terminate()
    for name, seconds in best.items():
        print(f"{name:<12} {seconds:6.2f} s {size / seconds / MEGABYTE:7.0f} MB/s")
    print(f"luma-poll reaches {best['plain httpx'] / best['luma-poll']:.2f} of plain httpx")


if __name__ == "__main__":
    main()
