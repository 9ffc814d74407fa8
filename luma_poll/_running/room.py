"""The queue of what is to be submitted: the first submits when the account allows it."""

from __future__ import annotations

import copy
import math

import anyio
import anyio.lowlevel

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


class SubmissionQueue:
    """Gives requests their turns in their order, as the account allows.

    Strictly in order: a heavy request is not passed by light ones, which would starve it.

    Args:
        account: Must be told about each turn: `begin` is, the rest is up to the caller, who then
            calls `wake`.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._waiting = Heap[_Ticket]()

    def __len__(self) -> int:
        return len(self._waiting)

    async def acquire(self, place: float, kind: Kind) -> None:
        """Wait for a turn to submit; the account notes that it has begun.

        Args:
            place: The lower, the sooner.
            kind: Of the request.

        Raises:
            SubmissionLimitError: There will be no turn.
            LumaError: That of `stop`.
        """
        ticket = _Ticket(kind)
        entry = self._waiting.push(place, ticket)
        try:
            await anyio.lowlevel.checkpoint()
            while (turn := self._turn_of(ticket)) > anyio.current_time():
                await ticket.sleep(turn)
            self._account.begin(kind)
        finally:
            self._waiting.remove(entry)
            self.wake()

    def wake(self) -> None:
        """Let the first one look again, after something has changed."""
        first = self._waiting.first()
        if first is not None:
            first.wake()

    def stop(self, error: LumaError) -> None:
        """End the waits of all with this error; none of them is sent."""
        for ticket in self._waiting:
            ticket.refusal = copy.copy(error)
            ticket.wake()

    def _turn_of(self, ticket: _Ticket) -> float:
        if ticket.refusal is not None:
            raise ticket.refusal
        if self._account.is_exhausted:
            raise SubmissionLimitError(
                "max_submissions of this Runner is reached; nothing was sent."
            )
        if self._waiting.first() is not ticket:
            return math.inf
        return self._account.may_submit_at(ticket.kind)
