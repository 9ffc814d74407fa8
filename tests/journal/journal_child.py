"""A process that submits and waits with a journal, until it ends or is killed."""

import json
import signal
import sys
from typing import Any

import anyio
from tenacity import wait_fixed

from luma_poll import Journal, LumaClient, Poller, Runner


async def cancel_at_sigterm(scope: anyio.CancelScope) -> None:
    """As docs/running.md shows it."""
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


async def main(base_url: str, path: str, number: int) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_at_sigterm, tasks.cancel_scope)
        await run_all(base_url, path, number)
        tasks.cancel_scope.cancel()


async def run_all(base_url: str, path: str, number: int) -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": f"number {each} sandbox:duration=0.3", "key": f"k{each}"}
        for each in range(number)
    ]
    async with LumaClient("luma-api-child-secret", base_url=base_url) as client:
        with Journal(path) as journal:
            poller = Poller(client, wait=wait_fixed(0.05), max_rate=None)
            runner = Runner(client, poller, max_running=8, journal=journal)
            print("ready", flush=True)
            async with runner.as_completed(requests) as results:
                async for result in results:
                    assert isinstance(result.request, dict)
                    error = type(result.error).__name__ if result.error else None
                    print(json.dumps([result.request["key"], error, result.submitted]), flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), backend=sys.argv[4])
