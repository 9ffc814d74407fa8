"""Submissions that are made at most once, whoever dies and whoever comes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup

from luma_poll._api.outcomes import (
    Accepted,
    NotAccepted,
    Outcome,
    Unknown,
    ends_all,
    submit_once,
)
from luma_poll._api.translation import translate_error
from luma_poll._fleet.ends import end_of
from luma_poll._fleet.ledger import Later, Ledger, Turn, Wait
from luma_poll._fleet.trouble import Trouble
from luma_poll._logging import fields, logger
from luma_poll.errors import (
    APIError,
    APIStatusError,
    ConfigurationError,
    LumaError,
    NotFoundError,
    RateLimitError,
)

MOST_AT_ONCE = 4
"""Submissions under way in one worker: what a kill, or the first moment of an outage, can cost."""
AFTER_TROUBLE = 2.0
"""Seconds until the next look after an error of the database."""
LOOK = 0.5
"""Seconds between two looks for something to submit."""
MOST_ODD_REFUSALS = 5
"""So often is a submission refused by what is not the API, until that is its end."""


class Sender:
    """Takes turns from the ledger, and makes the submission that each of them allows.

    Args:
        client: Its `generations.create` sends once.
        ledger: Gives the turns and keeps the ids.
        worker: The id of this worker.
        share: Submissions and waits that this worker has in hand at most.
        patience: Seconds after which the others may take this worker for dead.
        wait_for: Begins a wait.
        waits: Counts the waits in hand.
    """

    def __init__(
        self,
        client: Any,
        ledger: Ledger,
        worker: str,
        *,
        share: int,
        patience: float,
        wait_for: Callable[[Wait], None],
        waits: Callable[[], int],
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._worker = worker
        self._share = share
        self._patience = patience
        self._wait_for = wait_for
        self._waits = waits
        self._permit: str | None = None  # asked for, with no answer yet
        self._news = anyio.Event()
        self._leaving = False
        self._scope = anyio.CancelScope()
        self.trouble = Trouble()
        self.sending: set[str] = set()
        """The permits that are in use."""
        self.why: str = ""
        """Why nothing is submitted now, for people."""

    def wake(self) -> None:
        """Look again: there is something to submit, or room for it."""
        self._news.set()

    def leave(self) -> None:
        """Take no more turns."""
        self._leaving = True
        self.wake()

    def abandon(self) -> None:
        """Let a cancellation reach what is still under way: it takes longer than anything may."""
        if self.sending:
            logger.error(
                "the worker stops with %d submissions without an answer on record",
                len(self.sending),
                extra=fields(),
            )
        self._scope.shield = False

    async def send_forever(self) -> None:
        """Submit whatever may be submitted, until `leave`, and what is under way to its end.

        No cancellation reaches it: a request that was sent has an id, or a bill.
        """
        with anyio.CancelScope(shield=True) as self._scope:
            async with anyio.create_task_group() as tasks:
                while not self._leaving:
                    try:
                        pause = await self._step(tasks)
                    except Exception as error:  # whatever it is: nothing is lost by looking again
                        logger.warning("nothing is submitted: %s", error, extra=fields(error=error))
                        pause = AFTER_TROUBLE
                    await self._sleep(pause)
            if self._permit is not None:
                await self._withdraw(self._permit)

    async def _withdraw(self, permit: str) -> None:
        with anyio.move_on_after(5.0):
            await self._ledger.database.insist(
                "a turn that is handed back", self._ledger.withdraw, [permit]
            )

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0 and not self._leaving:
            self._news = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._news.wait()

    async def _step(self, tasks: TaskGroup) -> float:
        """Submit one, or return the seconds until it is worth another look."""
        most = 1 if self.trouble.is_on else MOST_AT_ONCE
        if len(self.sending) >= most or self._waits() + len(self.sending) >= self._share:
            return LOOK
        database = self._ledger.database
        if self.trouble.is_on:
            if pause := self.trouble.pause(anyio.current_time()):
                return min(pause, LOOK)
            if not await self._is_served():
                return LOOK
        if self._permit is None and not await database.call(self._ledger.is_waiting):
            self.why = ""
            return LOOK
        # The same permit, if the answer to the last call was lost: it may have been given.
        self._permit = self._permit or uuid4().hex
        asked = anyio.current_time()
        turn = await database.call(self._ledger.take_turn, self._worker, self._permit)
        permit, self._permit = self._permit, None
        if isinstance(turn, Later):
            self.why = turn.why
            return min(turn.seconds, LOOK)
        self.why = ""
        self.sending.add(permit)
        tasks.start_soon(self._send, turn, asked)
        return 0.0

    async def _is_served(self) -> bool:
        """Ask the API something that costs nothing, before a submission finds out."""
        known = await self._ledger.database.call(self._ledger.last_id)
        if known is None:
            return True
        try:
            await self._client.generations.get(known)
        except Exception as error:
            failure = translate_error(error)
            if not isinstance(failure, NotFoundError):
                self._begin_trouble(failure or error)
                return False
        return True

    async def _send(self, turn: Turn, asked: float) -> None:
        try:
            await self._send_once(turn, asked)
        finally:
            self.sending.discard(turn.permit)
            self.wake()

    async def _send_once(self, turn: Turn, asked: float) -> None:
        insist, ledger = self._ledger.database.insist, self._ledger
        # Was this process stopped since it asked? Then it may have been taken for dead.
        is_late = anyio.current_time() - asked > self._patience / 2
        if is_late and not await insist(f"the turn of {turn.key!r}", ledger.holds, turn):
            await insist(f"{turn.key!r} was not sent", ledger.hand_back, turn)
            return
        outcome = await submit_once(partial(self._client.generations.create, **turn.request))
        match outcome:
            case Accepted():
                await self._accepted(turn, outcome)
            case NotAccepted(RateLimitError() as error):
                if not await insist(f"{turn.key!r} waits again", ledger.refuse, turn, outcome):
                    await self._end(turn, error)
            case NotAccepted(error):
                await self._not_accepted(turn, error)
            case Unknown(error):
                logger.warning(
                    "it is not known whether the API accepted %r: %s",
                    turn.key,
                    error,
                    extra=fields(attempt=turn.attempt, error=error),
                )
                self._begin_trouble(error)
                await insist(f"{turn.key!r} is unknown", ledger.lose, turn)
                await self._learn(turn, outcome)

    async def _accepted(self, turn: Turn, outcome: Accepted) -> None:
        generation_id = outcome.generation.id
        if self.trouble.end():
            logger.warning("the API serves this worker again", extra=fields())
        wait = await self._ledger.database.insist(
            f"{turn.key!r} is {generation_id}",
            self._ledger.accept,
            turn,
            self._worker,
            generation_id,
        )
        if wait is None:
            logger.error(
                "generation %s of %r runs, but is not waited for: it was resolved otherwise",
                generation_id,
                turn.key,
                extra=fields(generation_id, attempt=turn.attempt),
            )
            return
        self._wait_for(wait)
        await self._learn(turn, outcome)

    async def _not_accepted(self, turn: Turn, error: Exception) -> None:
        """End it where the API has refused this request; else it is the worker's trouble."""
        if _is_of_the_request(error):
            await self._end(turn, error)
            return
        self._begin_trouble(error)
        is_odd = not (ends_all(error) or (isinstance(error, APIError) and error.retryable))
        if is_odd and turn.refused + 1 >= MOST_ODD_REFUSALS:
            await self._end(turn, error)
            return
        ledger = self._ledger
        hand_back = partial(ledger.hand_back, turn, pause=5.0 if is_odd else 0.0, refused=is_odd)
        await ledger.database.insist(f"{turn.key!r} waits again", hand_back)

    async def _end(self, turn: Turn, error: Exception) -> None:
        failure = error if isinstance(error, LumaError) else LumaError(f"it was not sent: {error}")
        ledger = self._ledger
        await ledger.database.insist(
            f"{turn.key!r} is refused", ledger.end_unsent, turn, *end_of(failure)
        )

    async def _learn(self, turn: Turn, outcome: Outcome) -> None:
        """Tell the account, which can learn without this one, too."""
        try:
            await self._ledger.database.call(self._ledger.learn, turn, outcome)
        except Exception as error:
            logger.info("the account has not heard of it: %s", error, extra=fields(error=error))

    def _begin_trouble(self, error: BaseException) -> None:
        why = f"{type(error).__name__}: {error}"
        if self.trouble.begin(anyio.current_time(), why):
            logger.warning(
                "the API does not serve this worker, which pauses and asks again: %s",
                why,
                extra=fields(error=error),
            )

    def note_refusal(self, error: LumaError) -> None:
        """Note a refusal of a poll, which submissions would meet too."""
        self._begin_trouble(error)


def _is_of_the_request(error: Exception) -> bool:
    """True for a refusal of this request alone, in the API's own words."""
    return isinstance(error, ConfigurationError) or (
        isinstance(error, APIStatusError)
        and not error.retryable
        and not ends_all(error)
        and (error.in_api_words or error.status_code == 413)
    )
