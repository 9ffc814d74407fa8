"""An account that runs so many generations at once: the API's limits, without HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from luma_poll import Generation, RateLimitError, Runner
from luma_poll._api.answers import note_answer
from luma_poll._api.headers import RateLimit
from luma_poll.events import Event
from tests.fakes import OUTPUT


class FakeAccount:
    """A client whose account has limits; generations end by anyio's clock.

    Args:
        capacity: Units that may run at once.
        per_minute: Units that may be submitted in a minute.
        duration: Seconds that a generation takes.
        latency: Seconds that an answer takes.
        weigh: The units of a submission.
        text: The detail of the 429 of a full account; `{limit}` and `{needs}` are filled in.
        headers: True if the answers tell what is left of the minute.
        clock: By which generations end; trio's begins anew with each run.
    """

    def __init__(
        self,
        capacity: int = 10,
        *,
        per_minute: int = 10_000,
        duration: float = 30.0,
        latency: float = 0.1,
        text: str = "Concurrent generation capacity reached (limit={limit} weight units; "
        "this request needs {needs}). Wait for existing jobs to complete.",
        headers: bool = True,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.generations = self
        self.capacity = capacity
        self.per_minute = per_minute
        self.duration = duration
        self.latency = latency
        self.text = text
        self.headers = headers
        self.clock = clock
        self.accepted: list[tuple[float, str, dict[str, Any]]] = []
        self.refusals: list[tuple[float, str]] = []
        self.most_running = 0
        self.answers: list[Any] = []
        """What the next submissions meet instead: an exception, or the fields of a generation."""
        self._jobs: dict[str, tuple[float, float, int, dict[str, Any]]] = {}
        self._endings: dict[str, dict[str, Any]] = {}

    def weigh(self, params: dict[str, Any]) -> int:
        return 3 if params.get("model") == "uni-1-max" else 1

    def running(self, now: float) -> int:
        return sum(weight for _, end, weight, _ in self._jobs.values() if end > now)

    def last_minute(self, now: float) -> int:
        return sum(weight for begin, _, weight, _ in self._jobs.values() if begin > now - 60)

    def occupy(self, units: int, seconds: float) -> None:
        """Somebody else runs a generation on the same account."""
        now = self.clock()
        self._jobs[str(uuid.uuid4())] = (now - 60, now + seconds, units, {})

    def forget_all(self) -> None:
        """Begin anew with nothing running, as the clock does."""
        self._jobs.clear()

    def end_in(self, seconds: float) -> None:
        """Let each that runs end so long after now."""
        end = self.clock() + seconds
        for generation_id, (begin, _, weight, params) in self._jobs.items():
            self._jobs[generation_id] = (begin, end, weight, params)

    def end_otherwise(self, generation_id: str, fields: dict[str, Any]) -> None:
        """Answer with another end from now on."""
        self._endings[generation_id] = fields

    async def create(self, **params: Any) -> Generation:
        await anyio.sleep(self.latency / 2)
        now = self.clock()
        fields = self._answer(params, now)
        await anyio.sleep(self.latency / 2)
        generation = Generation.model_validate(fields)
        if not self.headers:
            return generation
        left = self.per_minute - self.last_minute(now)
        return note_answer(generation, rate_limit=RateLimit(self.per_minute, left))

    def _answer(self, params: dict[str, Any], now: float) -> dict[str, Any]:
        ending = self.answers.pop(0) if self.answers else {}
        if isinstance(ending, BaseException):
            raise ending
        weight = self.weigh(params)
        if self.last_minute(now) + weight > self.per_minute:
            oldest = min(begin for begin, _, _, _ in self._jobs.values() if begin > now - 60)
            raise self._refusal(now, "Rate limit exceeded", oldest + 60 - now)
        if self.running(now) + weight > self.capacity:
            raise self._refusal(now, self.text.format(limit=self.capacity, needs=weight), 60.0)
        generation_id = str(uuid.uuid4())
        self._jobs[generation_id] = (now, now + self.duration, weight, params)
        self._endings[generation_id] = ending
        self.accepted.append((now, generation_id, params))
        self.most_running = max(self.most_running, self.running(now))
        return {"id": generation_id, "state": "queued"}

    def _refusal(self, now: float, detail: str, retry_after: float) -> RateLimitError:
        self.refusals.append((now, detail))
        return RateLimitError(detail, status_code=429, detail=detail, retry_after=retry_after)

    async def get(self, generation_id: str) -> Generation:
        await anyio.sleep(self.latency)
        _, end, _, _ = self._jobs[generation_id]
        if self.clock() < end:
            return Generation.model_validate({"id": generation_id, "state": "processing"})
        fields = {"id": generation_id, "state": "completed", "output": OUTPUT}
        return Generation.model_validate(fields | self._endings[generation_id])


class HeldAccount(FakeAccount):
    """An account whose answers to submissions wait until they are let go."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked, self.let_go = anyio.Event(), anyio.Event()

    async def create(self, **params: Any) -> Generation:
        self.asked.set()
        await self.let_go.wait()
        return await super().create(**params)


@contextmanager
def leave_after(runner: Runner, kind: type[Event], number: int = 1) -> Iterator[None]:
    """Cancel the block at the event of that kind with this number."""
    seen = 0

    def count(event: Event) -> None:
        nonlocal seen
        seen += isinstance(event, kind)
        if seen == number:
            scope.cancel()

    with anyio.CancelScope() as scope:
        end = runner.observe(count)
        try:
            yield
        finally:
            end()
