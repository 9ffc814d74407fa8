"""The requests of one batch: taken as there is room, and ended by one refusal."""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import anyio.to_thread

from luma_poll._api.outcomes import ends_all
from luma_poll._api.request_body import holds_media
from luma_poll._journal.recorder import Record, Recorder, identify
from luma_poll._running.requests import AnyRequest, Keys, Request, read_request
from luma_poll._running.run_result import RunResult
from luma_poll._tasks.alarm import Alarm
from luma_poll._tasks.each import iterate
from luma_poll._tasks.threads import own_threads
from luma_poll.errors import ConfigurationError, LumaError


@dataclass(frozen=True)
class Taken:
    """A request that a batch has taken, with what is already known about it.

    Attributes:
        given: The request, as it was given.
        request: The request, checked, if it has been read: what is sent is what was looked up.
        record: Its identity in the journal, if the request has been read.
    """

    given: AnyRequest
    request: Request | None = None
    record: Record | None = None


class Batch:
    """The requests of one `as_completed`.

    Args:
        run: Runs a request; calls `take_next` once, as soon as the next one may be taken.
        seconds: The timeout of each, in seconds; None for no limit.
        recorder: Knows which requests the journal has; None for a batch of one.

    Attributes:
        refusal: The 401, 402 or 403 that ends this batch, once one has arrived.
        order: The index of each request in what was given, in the order in which they are taken;
            empty if they are taken as given.
    """

    def __init__(
        self,
        run: Callable[[Taken, Batch], Awaitable[RunResult]],
        seconds: float | None,
        recorder: Recorder | None = None,
    ) -> None:
        self.seconds = math.inf if seconds is None else seconds
        self._run = run
        self._next = Alarm()
        self.refusal: LumaError | None = None
        self.order: Sequence[int] = ()
        self._recorder = recorder
        self._has_found = False
        self._keys = Keys()

    async def take(self, requests: object) -> AsyncGenerator[Taken]:
        """Yield the requests, each when the one before has had its turn.

        Requests of a list that the journal knows come first. They need no turn, and are delivered
        whatever happens to the new ones.
        """
        if isinstance(requests, Sequence) and self._recorder is not None and self._recorder.is_on:
            ahead = await anyio.to_thread.run_sync(
                self._look_ahead, requests, limiter=own_threads()
            )
            known = await self._recorder.known([each.record for each in ahead if each.record])
            found = [each.record is not None and each.record.key in known for each in ahead]
            self._has_found = any(found)
            self.order = sorted(range(len(ahead)), key=lambda place: not found[place])
            taken: object = (ahead[place] for place in self.order)
        else:
            taken = requests
        async with aclosing(iterate(taken)) as iterator:
            async for request in iterator:
                yield request if isinstance(request, Taken) else Taken(request)
                await self._next.sleep(math.inf)

    def _look_ahead(self, requests: Sequence[AnyRequest]) -> list[Taken]:
        """Read the requests, except those with files, which are read when they are run."""
        return [self._read(given) for given in requests]

    def _read(self, given: AnyRequest) -> Taken:
        if holds_media(given):
            return Taken(given)
        try:
            request = read_request(given)
        except ConfigurationError:  # raised again when it is run, and then it is its result
            return Taken(given)
        return Taken(given, request, identify(request.params, request.key, self.key_of))

    def note_found(self) -> None:
        """Note that the journal has one of the requests."""
        self._has_found = True

    def note_new(self, record: Record | None) -> None:
        """Note that a request is new to the journal; warn if none of the batch was found so far.

        Only a key made from the parameters can miss its entry by a mistake, a changed parameter.
        """
        if self._recorder is not None and record is not None and not record.is_named:
            if not self._has_found:
                self._recorder.warn_of_strangers()
            self._has_found = True

    def take_next(self) -> None:
        """Take the next request."""
        self._next.wake()

    async def run(self, taken: Taken) -> RunResult:
        """Run one request. After a refusal that all others would get, nothing more is sent."""
        result = await self._run(taken, self)
        # The submitter sets this for its own batch. Another batch of the same Runner, whose turns
        # ended with the same refusal, learns it here.
        if self.refusal is None and ends_all(result.error):
            self.refusal = result.error
        return result

    def check(self) -> None:
        """Raise the refusal that every submission would get, if there was one."""
        if self.refusal is not None:
            raise copy.copy(self.refusal)  # a copy: each result gets a traceback of its own

    def key_of(self, digest: str) -> str:
        """Return a key for a request without one; equal requests are numbered."""
        return self._keys.of(digest)
