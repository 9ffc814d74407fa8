"""Submissions that are made at most once, whoever dies and whoever comes back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup

from luma_poll._api.answers import as_generation, snapshot_rate_limit
from luma_poll._api.translation import translate_error
from luma_poll._arguments import check_generation_id
from luma_poll._fleet.ends import end_of
from luma_poll._fleet.ledger import Later, Ledger, Turn, Wait
from luma_poll._fleet.trouble import Trouble
from luma_poll._logging import fields, logger
from luma_poll._running.account import Account, Kind
from luma_poll._running.resubmission import ends_all, may_try_again
from luma_poll.errors import (
    APIError,
    APIStatusError,
    ConfigurationError,
    InvalidResponseError,
    LumaError,
    NotFoundError,
    RateLimitError,
)
from luma_poll.models import Generation

MOST_AT_ONCE = 4
"""Submissions under way in one worker: what a kill, or the first moment of an outage, can cost."""
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
                        pause = 2.0
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
        outcome = await self._outcome(turn)
        if isinstance(outcome, Generation):
            await self._accepted(turn, outcome)
        elif isinstance(outcome, RateLimitError):
            await self._refused(turn, outcome)
        elif isinstance(outcome, LumaError) and _is_of_the_request(outcome):
            await insist(f"{turn.key!r} is refused", ledger.end_unsent, turn, *end_of(outcome))
            await self._learn(turn, _fail)
        elif isinstance(outcome, APIError) and not outcome.may_have_been_accepted:
            await self._not_served(turn, outcome)
        else:
            logger.warning(
                "it is not known whether the API accepted %r: %s",
                turn.key,
                outcome,
                extra=fields(attempt=turn.attempt, error=outcome),
            )
            self._begin_trouble(outcome)
            await insist(f"{turn.key!r} is unknown", ledger.lose, turn)
            await self._learn(turn, _lose)

    async def _outcome(self, turn: Turn) -> Generation | Exception:
        """Send it, once. Only a failure of which it is certain is one that says so."""
        try:
            found = as_generation(await self._client.generations.create(**turn.request))
        except Exception as error:
            failure = translate_error(error)
            if isinstance(failure, InvalidResponseError) and failure.generation_id is not None:
                found = Generation(id=failure.generation_id, state="queued")
            elif failure is None:
                return error
            else:
                return failure
        try:
            check_generation_id(found.id)
        except ConfigurationError as error:
            return InvalidResponseError(f"the answer has an id that cannot be one: {error}")
        return found

    async def _accepted(self, turn: Turn, generation: Generation) -> None:
        if self.trouble.end():
            logger.warning("the API serves this worker again", extra=fields())
        wait = await self._ledger.database.insist(
            f"{turn.key!r} is {generation.id}",
            self._ledger.accept,
            turn,
            self._worker,
            generation.id,
        )
        if wait is None:
            logger.error(
                "generation %s of %r runs, but is not waited for: it was resolved otherwise",
                generation.id,
                turn.key,
                extra=fields(generation.id, attempt=turn.attempt),
            )
            return
        self._wait_for(wait)
        limit = snapshot_rate_limit(generation)

        def accept(account: Account, kind: Kind, now: float) -> None:
            account.accept(kind, now, limit)

        await self._learn(turn, accept, accepted=True)

    async def _refused(self, turn: Turn, error: RateLimitError) -> None:
        insist, ledger = self._ledger.database.insist, self._ledger
        if not await insist(f"{turn.key!r} waits again", ledger.refuse, turn, error):
            await insist(f"{turn.key!r} is refused", ledger.end_unsent, turn, *end_of(error))

    async def _not_served(self, turn: Turn, error: APIError) -> None:
        self._begin_trouble(error)
        insist, ledger = self._ledger.database.insist, self._ledger
        is_odd = not (ends_all(error) or may_try_again(error))
        if is_odd and turn.refused + 1 >= MOST_ODD_REFUSALS:
            await insist(f"{turn.key!r} is refused", ledger.end_unsent, turn, *end_of(error))
        else:
            await insist(
                f"{turn.key!r} waits again",
                partial(ledger.hand_back, turn, pause=5.0 if is_odd else 0.0, refused=is_odd),
            )
        await self._learn(turn, _fail)

    async def _learn(self, turn: Turn, what: Any, **outcome: bool) -> None:
        """Tell the account, which can learn without this one, too."""
        try:
            await self._ledger.database.call(partial(self._ledger.learn, turn, what, **outcome))
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


def _is_of_the_request(error: LumaError) -> bool:
    """True for a refusal of this request alone, in the API's own words."""
    return isinstance(error, ConfigurationError) or (
        isinstance(error, APIStatusError)
        and not error.may_have_been_accepted
        and not error.retryable
        and not ends_all(error)
        and (error.in_api_words or error.status_code == 413)
    )


def _fail(account: Account, kind: Kind, now: float) -> None:
    account.fail(kind, now)


def _lose(account: Account, kind: Kind, now: float) -> None:
    account.lose(kind)
