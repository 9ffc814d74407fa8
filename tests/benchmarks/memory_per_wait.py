"""What a pending wait takes in memory, beside a task that only sleeps.

    python tests/benchmarks/memory_per_wait.py

Each figure is of a process of its own: what its resident memory grew by, for each wait. The client
answers from memory, so no connection is counted.
"""

import argparse
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
from tenacity import wait_fixed

from luma_poll import Generation, Poller


class Client:
    """Answers "processing" at once."""

    def __init__(self) -> None:
        self.generations = self

    async def get(self, generation_id: str) -> Generation:
        answer = {
            "id": generation_id,
            "created_at": "2026-11-23T08:00:00Z",
            "model": "uni-1",
            "state": "processing",
            "type": "image",
            "output": [],
        }
        return Generation.model_validate(answer)


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def sleeping_tasks(ids: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in ids:
            tasks.start_soon(anyio.sleep, 3600)


async def waits(ids: list[str]) -> None:
    async with anyio.create_task_group() as tasks:
        for generation_id in ids:
            tasks.start_soon(poller().wait, generation_id)


async def batch(ids: list[str]) -> None:
    await poller().wait_all(ids, limit=None)


shared: list[Poller] = []


def poller() -> Poller:
    if not shared:
        shared.append(Poller(Client(), wait=wait_fixed(3600), timeout=None, max_rate=None))
    return shared[0]


KINDS: dict[str, Callable[[list[str]], Coroutine[Any, Any, None]]] = {
    "a task that sleeps": sleeping_tasks,
    "poller.wait in a task": waits,
    "poller.wait_all": batch,
}


async def measure_here(kind: str, count: int) -> None:
    ids = [str(uuid4()) for _ in range(count)]
    gc.collect()
    before = resident()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(KINDS[kind], ids)
        await anyio.sleep(3 + count / 1000)
        gc.collect()
        print((resident() - before) / count)
        tasks.cancel_scope.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--waits", type=int, default=5000)
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()
    if options.here:
        anyio.run(measure_here, options.here, options.waits)
        return
    found = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--here", kind, "--waits", str(options.waits)]
        found[kind] = float(subprocess.check_output(command, text=True))
    task = next(iter(found.values()))
    if options.json:
        rows = [{"kind": k, "bytes": v, "beyond_task": v - task} for k, v in found.items()]
        print(json.dumps(rows))
        return
    print("| each | memory | beyond a task |\n|---|---|---|")
    for kind, taken in found.items():
        print(f"| {kind} | {taken / 1024:.1f} KiB | {(taken - task) / 1024:.1f} KiB |")


if __name__ == "__main__":
    main()
