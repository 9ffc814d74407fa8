"""Record the database of a fleet whose worker was killed, for the tests of later releases.

    python -m tests.fleet.record > tests/fleet/begun-1.sql

One generation is waited for, one is still queued, and a callback pauses.
"""

import asyncio
import sqlite3
import sys
import tempfile

from luma_poll.sandbox import Sandbox
from tests.fleet.processes import Api, Processes, until


async def record(path: str) -> None:
    api = Api(Sandbox(seed=1))
    fleet = {"max_running": 1, "callback_secrets": ["c2VjcmV0"], "allow_private_callbacks": True}
    worker_config = {"executor_id": "worker-of-release-1"}
    async with (
        api.serve() as base_url,
        Processes(f"sqlite:///{path}", base_url, fleet=fleet) as processes,
    ):
        caller = await processes.start(worker=False)
        worker = await processes.start(config=worker_config)
        hook = "http://127.0.0.1:1/hook"
        prompt = "sandbox:duration=0.1"
        await caller.call("submit", prompt=prompt, key="ended", callback=hook, timeout=60)
        await caller.call("result", key="ended")
        await caller.call("submit", prompt="a fox", key="waits", max_attempts=2, timeout=60)
        await until(lambda: len(api.accepted) == 2)
        await caller.call("submit", prompt="another fox", key="queued", timeout=60)
        await asyncio.sleep(2)
        await worker.kill()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(record(f"{folder}/fleet.db"))
        with sqlite3.connect(f"{folder}/fleet.db") as connection:
            sys.stdout.writelines(f"{line}\n" for line in connection.iterdump())


if __name__ == "__main__":
    main()
