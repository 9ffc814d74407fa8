"""Submissions of a worker, each made at most once, even if workers die or come back."""

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
"""Submissions at once in one worker: a kill, or an outage that begins, can lose as many."""
AFTER_TROUBLE = 2.0
"""Seconds until the next look after an error of the database."""
LOOK = 0.5
"""Seconds between two looks for something to submit."""
MOST_ODD_REFUSALS = 5
"""Refusals by something that is not the API, after which a submission ends with the last one."""


class Sender:
    """The part of a worker that submits: it takes turns from the ledger, and sends one for each.

    Args:
        client: A client whose `generations.create` sends once, without retries.
        ledger: Gives the turns and keeps the ids.
        worker: The id of this worker.
        share: The most submissions and waits at once in this worker.
        patience: Seconds without a heartbeat after which the others take a worker for dead.
        wait_for: Begins a wait.
        waits: Counts the waits of this worker.
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
        self._permit: str | None = None  # the one asked for, while there is no answer
        self._news = anyio.Event()
        self._leaving = False
        self._scope = anyio.CancelScope()
        self.trouble = Trouble()
        self.sending: set[str] = set()
        """The permits that are in use."""
        self.why: str = ""
        """The reason why nothing is submitted now, for people."""

    def wake(self) -> None:
        """Look again: there is something to submit, or room for it."""
        self._news.set()

    def leave(self) -> None:
        """Take no more turns."""
        self._leaving = True
        self.wake()

    def abandon(self) -> None:
        """Let a cancellation reach the submissions still under way: they had time enough."""
        if self.sending:
            logger.error(
                "the worker stops with %d submissions without an answer on record",
                len(self.sending),
                extra=fields(),
            )
        self._scope.shield = False

    async def send_forever(self) -> None:
        """Submit until `leave`, then finish what is under way.

        No cancellation reaches it before `abandon`: a request that was sent gets an id that is
        billed, whether anybody records it or not.
        """
        with anyio.CancelScope(shield=True) as self._scope:
            async with anyio.create_task_group() as tasks:
                while not self._leaving:
                    try:
                        pause = await self._step(tasks)
                    except Exception as error:  # of any kind: trying again loses nothing
                        logger.warning("nothing is submitted: %s", error, extra=fields(error=error))
                        pause = AFTER_TROUBLE
                    await self._sleep(pause)
            # The database may have given it although its answer was lost: nobody will use it now.
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
        """Begin one submission, or return the seconds until another look is worth it."""
        most = 1 if self.trouble.is_on else MOST_AT_ONCE
        if len(self.sending) >= most or self._waits() + len(self.sending) >= self._share:
            return LOOK
        database = self._ledger.database
        if self.trouble.is_on:
            if pause := self.trouble.pause(anyio.current_time()):
                return min(pause, LOOK)
            if not await self._is_served():
                return LOOK
        # Without a lock: idle workers must not queue for the fleet's row twice a second.
        if self._permit is None and not await database.call(self._ledger.is_waiting):
            self.why = ""
            return LOOK
        # After a call whose answer was lost, the same permit again: the ledger may have given it,
        # and then returns that turn once more.
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
        """Return False if the API refuses a GET as well, which is free, unlike a submission."""
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
        # If this process was stopped since it asked, the others may have taken it for dead and
        # called this submission unknown. Then it must not be sent.
        is_late = anyio.current_time() - asked > self._patience / 2
        if is_late and not await insist(f"the turn of {turn.key!r}", ledger.holds, turn):
            await insist(f"{turn.key!r} was not sent", ledger.hand_back, turn)
            return
        outcome = await submit_once(partial(self._client.generations.create, **turn.request))
        match outcome:
            case Accepted():
                await self._accepted(turn, outcome)
            case NotAccepted(RateLimitError() as error):
                # False if the request is too heavy for the account: waiting would never help.
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
                # Before the record, which may take time: the next turn must already see the pause.
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
                "generation %s of %r runs, but nothing waits for it: it was settled otherwise",
                generation_id,
                turn.key,
                extra=fields(generation_id, attempt=turn.attempt),
            )
            return
        self._wait_for(wait)
        await self._learn(turn, outcome)

    async def _not_accepted(self, turn: Turn, error: Exception) -> None:
        """End it if the API refused this request; else hand it back, as the fault is elsewhere."""
        if _is_of_the_request(error):
            await self._end(turn, error)
            return
        self._begin_trouble(error)
        # Odd: a refusal that neither the API nor a passing fault explains, such as a gateway's 403.
        # It does not count against the request at once, but it must end at some time.
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
        """Let the account learn from an outcome; if that fails, it learns from the next one."""
        try:
            await self._ledger.database.call(self._ledger.learn, turn, outcome)
        except Exception as error:
            logger.info("the account did not learn from it: %s", error, extra=fields(error=error))

    def _begin_trouble(self, error: BaseException) -> None:
        why = f"{type(error).__name__}: {error}"
        if self.trouble.begin(anyio.current_time(), why):
            logger.warning(
                "the API does not serve this worker, which pauses and asks again: %s",
                why,
                extra=fields(error=error),
            )

    def note_refusal(self, error: LumaError) -> None:
        """Note the refusal of a poll that submissions would get, too."""
        self._begin_trouble(error)


def _is_of_the_request(error: Exception) -> bool:
    """Return True for a refusal of this one request, in the API's own words."""
    return isinstance(error, ConfigurationError) or (
        isinstance(error, APIStatusError)
        and not error.retryable
        and not ends_all(error)
        and (error.in_api_words or error.status_code == 413)
    )
