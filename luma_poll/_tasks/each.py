"""Many waits at once: items are taken one by one, results come in the order they end."""

from __future__ import annotations

import math
import sys
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from luma_poll._tasks.beside import tasks_beside

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

T = TypeVar("T")
R = TypeVar("R")


class _Results(AsyncIterator[R]):
    """An iterator over the results, which then raises the exception of the items, if any."""

    def __init__(self, stream: MemoryObjectReceiveStream[R], slots: anyio.Semaphore) -> None:
        self._stream = stream
        self._slots = slots
        self.failure: Exception | None = None

    async def __anext__(self) -> R:
        try:
            result = await self._stream.receive()
        except anyio.EndOfStream:
            failure = self.failure or StopAsyncIteration()
        except anyio.ClosedResourceError:
            raise RuntimeError("results can be read only inside the `async with` block") from None
        else:
            self._slots.release()
            return result
        raise failure  # outside of the `except`: with the cause and the context that it has


@asynccontextmanager
async def run_each(
    work: Callable[[T], Awaitable[R]], items: object, limit: int | None
) -> AsyncGenerator[AsyncIterator[R]]:
    """Run `work(item)` for each item; yield the results in the order they end.

    An item is taken when there is room for it: at most `limit` are under way or have a result that
    has not been read yet. Leaving the block cancels those under way.

    Args:
        work: Must not raise.
        items: An iterable or async iterable. An exception that it raises comes after the results of
            the items before. An async generator is closed at the end.
        limit: The most at once; None for no limit.
    """
    send, receive = anyio.create_memory_object_stream[R](math.inf)
    slots = anyio.Semaphore(sys.maxsize if limit is None else limit)
    results = _Results(receive, slots)

    async def run(item: T) -> None:
        send.send_nowait(await work(item))

    async def run_all() -> None:
        with send:
            async with anyio.create_task_group() as tasks, aclosing(iterate(items)) as iterator:
                while True:
                    await slots.acquire()
                    try:
                        item = await anext(iterator)
                    except StopAsyncIteration:
                        break
                    except Exception as error:
                        results.failure = error
                        break
                    tasks.start_soon(run, item)

    with receive:
        async with tasks_beside() as beside:
            beside.start_soon(run_all)
            yield results


MAX_IDS = 50
"""Ids that the note of an exception names."""


async def run_in_order(
    work: Callable[[T], Awaitable[R]],
    items: object,
    limit: int | None,
    ids: Callable[[R], Sequence[str]],
) -> list[R]:
    """Run `work(item)` for each item, and return the results in the order of the items.

    The arguments are those of `run_each`. If the iteration over `items` raises, the exception gets
    an attribute `results`, because earlier items may have cost money, and a note with their `ids`.
    """
    by_number: dict[int, R] = {}

    async def run(numbered: tuple[int, T]) -> tuple[int, R]:
        number, item = numbered
        return number, await work(item)

    async with run_each(run, _numbered(items), limit) as results:
        try:
            async for number, result in results:
                by_number[number] = result
        except Exception as error:
            _keep_results(error, [result for _, result in sorted(by_number.items())], ids)
            raise
    return [by_number[number] for number in range(len(by_number))]


def _keep_results(error: Exception, results: list[R], ids: Callable[[R], Sequence[str]]) -> None:
    with suppress(AttributeError):  # its class has slots
        vars(error)["results"] = results
    found = [each for result in results for each in ids(result)]
    named = ", ".join(found[:MAX_IDS]) or "none"
    more = f" and {len(found) - MAX_IDS} more" if len(found) > MAX_IDS else ""
    error.add_note(
        f"The iterable of the items raised this. The {len(results)} items before have ended: their "
        f"results are the attribute `results` of this exception. Generations: {named}{more}."
    )


async def _numbered(items: object) -> AsyncGenerator[tuple[int, Any]]:
    number = 0
    async with aclosing(iterate(items)) as iterator:
        async for item in iterator:
            yield number, item
            number += 1


async def iterate(items: Any) -> AsyncGenerator[Any]:
    """Yield the items of an iterable or async iterable; an async generator is closed at the end."""
    if isinstance(items, AsyncGenerator):
        async with aclosing(items):
            async for item in items:
                yield item
    elif isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
