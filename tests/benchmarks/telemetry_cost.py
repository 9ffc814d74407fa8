"""The cost of telemetry for each wait: with nobody observing, with metrics, with spans.

A wait is one request that is answered at once, so that nearly all of the time is the library's own.
Run it with the extra `opentelemetry` and OpenTelemetry's SDK:

    python -m tests.benchmarks.telemetry_cost
"""

import gc
import time
from collections.abc import Callable
from typing import Any

import anyio
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider

from luma_poll import Poller
from luma_poll._polling.observers import tell
from luma_poll.opentelemetry import instrument
from tests.fakes import ID, snapshot

WAITS = 2000
ROUNDS = 15


class Instant:
    """A client that answers at once, always with the same end."""

    def __init__(self) -> None:
        self.generations = self
        self._end = snapshot()

    async def get(self, generation_id: str) -> Any:
        return self._end


def poller() -> Poller:
    return Poller(Instant(), max_rate=None, max_in_flight=None)


async def cost(made: Poller) -> float:
    """Seconds of the processor for each wait."""
    gc.collect()
    began = time.process_time()
    for _ in range(WAITS):
        await made.wait(ID)
    return (time.process_time() - began) / WAITS


def instrumented(**providers: Any) -> Poller:
    made = poller()
    instrument(made, **providers)
    return made


def observed() -> Poller:
    made = poller()
    made.observe(lambda event: None)
    return made


KINDS: dict[str, Callable[[], Poller]] = {
    "nobody observes": poller,
    "an observer that does nothing": observed,
    "instrumented, no SDK": lambda: instrumented(
        tracer_provider=NoOpTracerProvider(), meter_provider=NoOpMeterProvider()
    ),
    "SDK: metrics, nothing sampled": lambda: instrumented(
        tracer_provider=TracerProvider(sampler=ALWAYS_OFF),
        meter_provider=MeterProvider([InMemoryMetricReader()]),
    ),
    "SDK: spans": lambda: instrumented(
        tracer_provider=TracerProvider(), meter_provider=NoOpMeterProvider()
    ),
    "SDK: spans and metrics": lambda: instrumented(
        tracer_provider=TracerProvider(), meter_provider=MeterProvider([InMemoryMetricReader()])
    ),
}


async def main() -> None:
    pollers = {name: make() for name, make in KINDS.items()}
    found: dict[str, list[float]] = {name: [] for name in pollers}
    for _ in range(ROUNDS):  # in turns: a busy machine slows them all
        for name, made in pollers.items():
            found[name].append(await cost(made))
    base = min(found["nobody observes"])
    for name, seconds in found.items():  # the least: all that others take only adds to it
        print(f"{name:32} {min(seconds) * 1e6:7.1f} us a wait  {(min(seconds) - base) * 1e6:+6.1f}")
    print(f"{'the checks that find nobody':32} {checks() * 1e6:7.2f} us a wait")


def checks() -> float:
    """Seconds for what a wait of one poll does where nobody observes: five looks."""

    class Nobody:
        wait = None

    nobody, rounds = Nobody(), 200_000
    began = time.process_time()
    for _ in range(rounds):
        for _ in range(5):
            if nobody.wait is not None:
                tell(nobody.wait)
    return (time.process_time() - began) / rounds


if __name__ == "__main__":
    anyio.run(main)
