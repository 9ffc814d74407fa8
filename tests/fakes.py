"""A client whose answers are written down: the API as a list."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import anyio

from luma_poll import Generation, LumaError

ID = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"
URL = "https://storage.example.com/a.png?X-Amz-Signature=5ec4e7"
OUTPUT = [{"type": "image", "url": URL}]


def snapshot(state: str = "completed", *, id: str = ID, **fields: Any) -> Generation:
    """A generation in this state; a completed one has an output."""
    output = OUTPUT if state == "completed" else []
    return Generation.model_validate({"id": id, "state": state, "output": output} | fields)


async def timed(pending: Awaitable[Any]) -> tuple[float, Any]:
    """How long it took, and what came out: a result, or one of our errors."""
    began = anyio.current_time()
    try:
        result = await pending
    except LumaError as error:
        result = error
    return round(anyio.current_time() - began, 6), result


Answer = Any
"""A state, a generation, an error to raise, or a list of (seconds it takes, answer)."""


class FakeClient:
    """`get` gives the answers one after the other, and the last one for ever.

    Args:
        answers: What `get` answers, for every id; or a function from id and time to an answer.
        latency: Seconds that each answer takes.
    """

    def __init__(
        self, *answers: Answer, at: Callable[[float], Answer] | None = None, latency: float = 0.0
    ) -> None:
        self.generations = self
        self.latency = latency
        self.calls: list[tuple[float, str]] = []
        self.under_way: dict[str, int] = {}
        self.most_under_way = 0
        self._at = at
        self._answers: Iterator[Answer] = _for_ever(answers)

    @property
    def times(self) -> list[float]:
        """When the requests began, from the first one on."""
        return [round(time - self.calls[0][0], 6) for time, _ in self.calls]

    async def get(self, generation_id: str) -> Any:
        began = anyio.current_time()
        self.calls.append((began, generation_id))
        self.under_way[generation_id] = self.under_way.get(generation_id, 0) + 1
        self.most_under_way = max(self.most_under_way, sum(self.under_way.values()))
        try:
            await anyio.sleep(self.latency)
            answer = self._at(anyio.current_time()) if self._at else next(self._answers)
            if isinstance(answer, tuple):
                seconds, answer = answer
                await anyio.sleep(seconds)
        finally:
            self.under_way[generation_id] -= 1
        if isinstance(answer, BaseException):
            raise answer
        return snapshot(answer, id=generation_id) if isinstance(answer, str) else answer


def _for_ever(answers: Iterable[Answer]) -> Iterator[Answer]:
    answer: Answer = None
    for answer in answers:
        yield answer
    while True:
        yield answer
