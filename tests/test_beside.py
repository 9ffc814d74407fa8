"""Tasks beside a block: they live as long as it does, and its end is its own."""

import anyio
import pytest

from luma_poll._tasks.beside import tasks_beside

pytestmark = pytest.mark.anyio


async def test_tasks_end_with_the_block() -> None:
    """Also one that would never end by itself; the block returns what it returns."""
    ended = []

    async def wait() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("task")

    async def block() -> str:
        async with tasks_beside() as tasks:
            tasks.start_soon(wait)
            await anyio.sleep(1)
            return "block"

    assert await block() == "block"
    assert ended == ["task"]


@pytest.mark.parametrize("error_class", [ValueError, KeyboardInterrupt, StopAsyncIteration])
async def test_an_exception_of_the_block_is_not_wrapped(error_class: type[BaseException]) -> None:
    """It is the same object, while a task runs beside it."""
    given = error_class("of the block")

    async def block() -> None:
        async with tasks_beside() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            raise given

    with pytest.raises(error_class) as caught:
        await block()
    assert caught.value is given


async def test_a_task_can_end_the_block() -> None:
    """By cancelling the scope of the tasks: the code after the block goes on."""

    async def end(scope: anyio.CancelScope) -> None:
        scope.cancel()

    async with tasks_beside() as tasks:
        tasks.start_soon(end, tasks.cancel_scope)
        await anyio.sleep_forever()
    assert tasks.cancel_scope.cancel_called


async def test_a_cancellation_from_outside_ends_both() -> None:
    """It goes on to the scope that it is of."""
    with anyio.move_on_after(1) as scope:
        async with tasks_beside() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await anyio.sleep_forever()
    assert scope.cancelled_caught
