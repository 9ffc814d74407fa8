"""The requests of one batch: taken as there is room, and ended by one refusal."""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from luma_poll._api.outcomes import ends_all
from luma_poll._running.requests import AnyRequest, Keys
from luma_poll._running.run_result import RunResult
from luma_poll._tasks.alarm import Alarm
from luma_poll._tasks.each import iterate
from luma_poll.errors import LumaError


class Batch:
    """The requests of one `as_completed`.

    Args:
        run: Runs a request; calls `take_next` once, as soon as the next one may be taken.
        seconds: The timeout of each; None for no limit.

    Attributes:
        refusal: Of one that every other submission would meet, too; None as long as there is none.
    """

    def __init__(
        self,
        run: Callable[[AnyRequest, Batch], Awaitable[RunResult]],
        seconds: float | None,
    ) -> None:
        self.seconds = math.inf if seconds is None else seconds
        self._run = run
        self._next = Alarm()
        self.refusal: LumaError | None = None
        self._keys = Keys()

    async def take(self, requests: object) -> AsyncGenerator[AnyRequest]:
        """The requests, each when the one before has had its turn."""
        async with aclosing(iterate(requests)) as iterator:
            async for request in iterator:
                yield request
                await self._next.sleep(math.inf)

    def take_next(self) -> None:
        """Take the next request."""
        self._next.wake()

    async def run(self, given: AnyRequest) -> RunResult:
        """Run one. After a refusal that every submission would meet, nothing more is sent."""
        result = await self._run(given, self)
        if self.refusal is None and ends_all(result.error):  # of another batch of the runner
            self.refusal = result.error
        return result

    def check(self) -> None:
        """Raise the refusal that every submission would meet."""
        if self.refusal is not None:
            raise copy.copy(self.refusal)

    def key_of(self, digest: str) -> str:
        """Return a key for a request without one; requests that are alike are numbered."""
        return self._keys.of(digest)
