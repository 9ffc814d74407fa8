"""Tasks beside a block of code, for as long as it runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def tasks_beside() -> AsyncGenerator[TaskGroup]:
    """Open a task group for the length of a block: its tasks are cancelled at the end.

    An exception of the block comes out as it is. The task group would wrap it in an
    `ExceptionGroup`, which nobody who calls the block expects.
    """
    error: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as raised:
            error = raised
        tasks.cancel_scope.cancel()
    if error is not None:
        raise error
