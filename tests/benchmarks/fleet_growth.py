"""What a submission costs when 1,000 are queued, and when 20,000 are: it should be the same.

    python -m tests.benchmarks.fleet_growth
    python -m tests.benchmarks.fleet_growth 1000 5000

Three workers on PostgreSQL, the sandbox at a thousand times its speed. Printed is what the
submissions of the first 60 seconds cost the three together, and the memory of the largest.
"""

import asyncio
import sys
import time

from luma_poll.sandbox import Sandbox
from tests.fleet.processes import Api, Processes, postgres_server, until

SECONDS = 60


async def grow(queued: int) -> None:
    api = Api(Sandbox(speed=1000))
    fleet = {"heartbeat": 2.0, "patience": 6.0, "max_rate": 1000.0}
    with postgres_server() as server:
        async with (
            api.serve() as base_url,
            Processes(server.new_database(), base_url, fleet=fleet, poll_every=1.0) as processes,
        ):
            caller = await processes.start(worker=False)
            began = time.monotonic()
            await caller.call("submit_many", count=queued, prompt="a fox", prefix="k")
            took = (time.monotonic() - began) / queued * 1000
            began = time.monotonic()
            workers = [await processes.start() for _ in range(3)]
            before = [await worker.call("usage") for worker in workers]
            await until(lambda: bool(api.polls))
            first = time.monotonic() - began
            counts = {"completed": 0}
            began = time.monotonic()
            while counts["completed"] < queued and time.monotonic() - began < SECONDS:
                await asyncio.sleep(1)
                counts = await caller.call("counts")
            took_all = time.monotonic() - began
            after = [await worker.call("usage") for worker in workers]
            done = len(api.submissions)
            shares = [each["submissions"] for each in after]
            statements = sum(
                a["statements"] - b["statements"] for a, b in zip(after, before, strict=True)
            )
            cpu = sum(a["cpu"] - b["cpu"] for a, b in zip(after, before, strict=True))
            print(
                f"| {queued:,} | {took:.1f} ms | {first:.1f} s | {done / took_all:.0f} | "
                f"{statements / done:.0f} | {cpu / done * 1000:.0f} ms | "
                f"{max(each['mb'] for each in after):.0f} MB | {shares} |",
                flush=True,
            )


def main() -> None:
    print(
        "| queued | to submit one | first poll after | submissions a second | statements for each "
        "| CPU of the workers for each | most memory | by each worker |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for queued in [int(each) for each in sys.argv[1:]] or [1000, 20_000]:
        asyncio.run(grow(queued))


if __name__ == "__main__":
    main()
