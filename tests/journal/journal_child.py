"""A process that submits and waits with a journal, until it ends or is killed."""

import json
import multiprocessing
import signal
import sys
from typing import Any

import anyio
from tenacity import wait_fixed

from luma_poll import Journal, LumaClient, Poller, Runner


async def cancel_at_signals(scope: anyio.CancelScope) -> None:
    """As docs/submitting.md shows it."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
        async for _ in signals:
            scope.cancel()


async def fork_again_and_again(journal: Journal) -> None:
    """Let children end that believe to have the journal."""
    while True:
        for target in (journal.close, sys.exit):
            child = multiprocessing.get_context("fork").Process(target=target)
            child.start()
            child.join()
            await anyio.sleep(0.05)


async def main(base_url: str, path: str, number: int, forks: bool) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_at_signals, tasks.cancel_scope)
        with Journal(path) as journal:
            if forks:
                tasks.start_soon(fork_again_and_again, journal)
            await run_all(base_url, journal, number)
        tasks.cancel_scope.cancel()


async def run_all(base_url: str, journal: Journal, number: int) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": f"number {each} sandbox:duration=0.3", "key": f"k{each}"}
        for each in range(number)
    ]
    async with LumaClient("luma-api-child-secret", base_url=base_url) as client:
        poller = Poller(client, wait=wait_fixed(0.05), max_rate=None)
        runner = Runner(client, poller, max_running=8, journal=journal)
        print("ready", flush=True)
        async with runner.as_completed(requests) as results:
            async for result in results:
                assert isinstance(result.request, dict)
                error = type(result.error).__name__ if result.error else None
                ids = list(result.submitted)
                print(json.dumps([result.request["key"], error, ids]), flush=True)


if __name__ == "__main__":
    _, base_url, path, number, backend, forks = sys.argv
    anyio.run(main, base_url, path, int(number), forks == "forks", backend=backend)
