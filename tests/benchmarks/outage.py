"""What an outage of the API costs a batch: the submissions of which nobody knows what became.

Five hundred prompts of 30 s on an account that runs ten at once. Two minutes after the first
submission the API answers 502 for a while, each time after `answer` seconds. In virtual time.
"left open" are the submissions that met the outage; "idle" is the time from its end to the next
accepted submission.

    python -m tests.benchmarks.outage
    python -m tests.benchmarks.outage --json
"""

import argparse
import asyncio
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

from luma_poll import Runner, ServerError
from tests.running.fakes import FakeAccount
from tests.virtual_time import VirtualTimeLoop

PROMPTS = 500
BEGINS = 120.0  # seconds after the first submission
OUTAGES = (30.0, 120.0, 600.0)  # seconds
ANSWERS = (0.02, 0.2)  # seconds


@dataclass(frozen=True)
class Cost:
    """What one outage cost; times in seconds."""

    outage: float
    answer: float
    left_open: int
    completed: int
    idle: float


class Outage(FakeAccount):
    """An account whose API answers 502 for a while."""

    def __init__(self, lasts: float, answer: float) -> None:
        super().__init__(latency=answer)
        self.lasts = lasts
        self.began: float | None = None
        self.asked = 0

    @property
    def ends(self) -> float:
        """When it is over."""
        assert self.began is not None, "a submission was made"
        return self.began + BEGINS + self.lasts

    def _answer(self, params: dict[str, Any], now: float) -> dict[str, Any]:
        self.began = now if self.began is None else self.began
        if self.began + BEGINS <= now < self.ends:
            self.asked += 1
            raise ServerError("HTTP 502", status_code=502, in_api_words=False)
        return super()._answer(params, now)


async def measure(lasts: float, answer: float) -> Cost:
    """Run the batch through one outage."""
    api = Outage(lasts, answer)
    results = await Runner(api).run_all(f"prompt {number}" for number in range(PROMPTS))
    completed = sum(result.ok for result in results)
    first = min(at for at, _, _ in api.accepted if at >= api.ends)
    return Cost(lasts, answer, api.asked, completed, round(first - api.ends, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    costs = []
    for lasts in OUTAGES:
        for answer in ANSWERS:
            with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
                costs.append(runner.run(measure(lasts, answer)))
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs]))
        return
    print("outage   answer   left open   completed   idle")
    for cost in costs:
        print(
            f"{cost.outage:4.0f} s   {cost.answer:4.2f} s   {cost.left_open:9}   "
            f"{cost.completed:9}   {cost.idle:4.1f} s"
        )


if __name__ == "__main__":
    main()
