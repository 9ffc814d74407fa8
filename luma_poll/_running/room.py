"""The queue of requests to be submitted: the first one submits when the account allows it."""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from luma_poll._api.outcomes import NOT_SENT, Outcome
from luma_poll._running.account import Account, Kind
from luma_poll._tasks.alarm import Alarm
from luma_poll._tasks.heap import Heap
from luma_poll.errors import LumaError, SubmissionLimitError


class _Ticket(Alarm):
    """A request that waits for its turn."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.refusal: LumaError | None = None


class Turn:
    """A turn to submit, from its beginning to its outcome.

    Attributes:
        outcome: The outcome of the submission; None while it is under way.
    """

    def __init__(self, account: Account, kind: Kind, wake: Callable[[], object]) -> None:
        self.outcome: Outcome | None = None
        self._account = account
        self._kind = kind
        self._wake = wake
        account.begin(kind)

    def end(self, outcome: Outcome) -> None:
        """Note the outcome of the submission, and wake the next; only the first outcome counts."""
        if self.outcome is None:
            self.outcome = outcome
            self._account.end(self._kind, outcome, anyio.current_time())
            self._wake()


class SubmissionQueue:
    """A queue that gives each request its turn, in order, as the account allows.

    Light requests do not overtake a heavy one: they would keep taking the room that it needs.

    Args:
        account: Decides when the first one may submit; it is told the start and the outcome.
        look: Polls abandoned generations for their ends, while the first one waits for that.
    """

    def __init__(self, account: Account, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._account = account
        self._look = look
        self._waiting = Heap[_Ticket]()

    def __len__(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(
        self, place: float, kind: Kind, deadline: float = math.inf
    ) -> AsyncIterator[Turn | None]:
        """Wait for a turn to submit. The turn ends with the block, whatever happens.

        Args:
            place: The place in the queue; a lower one comes sooner.
            kind: The kind of the request.
            deadline: When to stop waiting, on anyio's clock; inf for never.

        Yields:
            The turn; None if the deadline came first.

        Raises:
            SubmissionLimitError: `max_submissions` is reached, so there will be no turn.
            LumaError: The error that `stop` was called with.
        """
        turn = None
        with anyio.CancelScope(deadline=deadline):
            turn = await self._next_turn(place, kind)
        try:
            yield turn
        finally:
            if turn is not None:
                turn.end(NOT_SENT)  # without effect if it has its outcome

    async def _next_turn(self, place: float, kind: Kind) -> Turn:
        ticket = _Ticket(kind)
        entry = self._waiting.push(place, ticket)
        try:
            await anyio.lowlevel.checkpoint()
            while (at := self._turn_of(ticket)) > anyio.current_time():
                await self._sleep(ticket, at)
            return Turn(self._account, kind, self.wake)
        finally:
            # Also when cancelled: the one behind is first now, and only a wake makes it look.
            self._waiting.remove(entry)
            self.wake()

    async def _sleep(self, ticket: _Ticket, at: float) -> None:
        """Sleep until then, or until something changes; meanwhile look for ends that make room."""
        if self._waiting.first() is not ticket or not self._account.is_held_up:
            await ticket.sleep(at)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._look)
            await ticket.sleep(at)
            tasks.cancel_scope.cancel()

    def wake(self) -> None:
        """Let the first one look again, after something has changed."""
        first = self._waiting.first()
        if first is not None:
            first.wake()

    def stop(self, error: LumaError) -> None:
        """End every wait with this error; nothing of theirs is sent."""
        for ticket in self._waiting:
            ticket.refusal = copy.copy(error)
            ticket.wake()

    def _turn_of(self, ticket: _Ticket) -> float:
        if ticket.refusal is not None:
            raise ticket.refusal
        if self._account.is_exhausted:
            raise SubmissionLimitError(
                "this Runner has reached its max_submissions; nothing was sent."
            )
        if self._waiting.first() is not ticket:
            return math.inf
        return self._account.may_submit_at(ticket.kind)
