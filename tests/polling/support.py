"""Waits that are timed, alone and together."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from luma_poll import RateLimitError, ServerError
from tests.fakes import timed

OTHER_ID = "9b2f6a8e-0000-4000-8000-000000000000"
BUSY = ServerError("HTTP 503", status_code=503)


def throttled(retry_after: float | None) -> RateLimitError:
    return RateLimitError("HTTP 429", status_code=429, retry_after=retry_after)


async def together(*calls: Callable[[], Awaitable[Any]]) -> list[tuple[float, Any]]:
    results: dict[int, tuple[float, Any]] = {}

    async def run(number: int, call: Callable[[], Awaitable[Any]]) -> None:
        results[number] = await timed(call())

    async with anyio.create_task_group() as tasks:
        for number, call in enumerate(calls):
            tasks.start_soon(run, number, call)
    return [results[number] for number in range(len(calls))]
