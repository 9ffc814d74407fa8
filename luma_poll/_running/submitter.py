"""One submission: made in its turn, sent to its end, and recorded whatever its outcome."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import count
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from luma_poll._api.outcomes import (
    CUT_OFF,
    NOT_SENT,
    Accepted,
    NotAccepted,
    Outcome,
    Unknown,
    ends_all,
    new_submission_id,
    submit_once,
)
from luma_poll._api.request_body import encoded, uploaded
from luma_poll._journal.recorder import Recorder
from luma_poll._logging import fields, logger
from luma_poll._polling.poller import SupportsGet
from luma_poll._running.account import Account
from luma_poll._running.outstanding import Outstanding
from luma_poll._running.requests import Request
from luma_poll._running.room import SubmissionQueue, Turn
from luma_poll._running.run import Run
from luma_poll._running.standstill import Standstill
from luma_poll.errors import ConfigurationError, LumaError
from luma_poll.events import (
    RunRefused,
    RunStateChanged,
    RunSubmitted,
    RunSubmitting,
    RunUnreachable,
)
from luma_poll.models import Generation


class SupportsGetAndCreate(SupportsGet, Protocol):
    """The `generations` of a client that can submit them, and get them by id."""

    @property
    def create(self) -> Callable[..., Awaitable[Any]]:
        """An async function that submits one; takes the parameters and the prompt by name."""
        ...


class SupportsCreate(Protocol):
    """A client that a `Runner` can use: `LumaClient`, the official `AsyncLuma`, or your own."""

    @property
    def generations(self) -> SupportsGetAndCreate:
        """The generations of the API."""
        ...


LONGEST_STAND = 3
"""Refusals with nothing of ours under way after which a request lets the others go first."""


class Submitter:
    """The part of a Runner that submits: each request in its turn, never twice if in doubt.

    Args:
        client: The client whose `generations.create` is called.
        account: Decides when the next may be submitted.
        outstanding: The ids that are waited for; each new id is added.
        recorder: Writes the journal.
        numbers: Gives the next place in the queue.
        look: Polls abandoned generations for their ends.
    """

    def __init__(
        self,
        client: Any,
        account: Account,
        outstanding: Outstanding,
        recorder: Recorder,
        numbers: count[int],
        look: Callable[[], Coroutine[object, object, None]],
    ) -> None:
        self._client = client
        self._account = account
        self._outstanding = outstanding
        self._recorder = recorder
        self._numbers = numbers
        self._look = look
        self._standstill = Standstill(getattr(client, "base_url", None) and str(client.base_url))
        self.begin_loop()

    def begin_loop(self) -> None:
        """Start over in another event loop."""
        self.queue = SubmissionQueue(self._account, self._look)
        self._standstill.begin_loop()

    async def submit(self, run: Run, attempt: int) -> Generation:
        """Submit it in its turn; after a refusal, in its next turn."""
        self._check(run.request)
        upload = getattr(getattr(self._client, "files", None), "upload_once", None)
        # Before its turn: an upload may take minutes, and a turn keeps the others waiting.
        params = await uploaded(run.request.params, upload)
        run.request = replace(run.request, params=params)
        give_up_at = math.inf
        while True:
            run.batch.check()  # each time: another request may have met a 401, 402 or 403
            async with self.queue.turn(run.place, run.request.kind, run.deadline) as turn:
                if turn is None:
                    # A deadline exists only from the first accepted submission on, so this is a
                    # later attempt: the failure of the one before is the result.
                    assert run.failure is not None, "no deadline comes before the first submission"
                    raise run.failure
                run.take_next()
                # From the first turn on: waiting for room is not a failure of the API.
                give_up_at = min(give_up_at, anyio.current_time() + run.batch.seconds)
                run.tell(RunSubmitting)
                outcome = await self._post(run, attempt, turn)
            if isinstance(outcome, Accepted):
                return outcome.generation
            if not self._may_wait_again(run, outcome, give_up_at):
                raise outcome.error

    def _may_wait_again(self, run: Run, outcome: NotAccepted | Unknown, give_up_at: float) -> bool:
        """Return True if it may have another turn: after a 429 always, else until `give_up_at`."""
        if isinstance(outcome, Unknown):
            return False
        if outcome.is_refusal:
            if self._account.running == 0:
                # None of ours is in its way, so it may be too heavy for the account. It keeps its
                # place for a few tries, then lets the others try: they may be lighter.
                run.refusals += 1
                if run.refusals % LONGEST_STAND == 0:
                    run.place = next(self._numbers)
            return not self._account.cannot_fit(run.request.kind)
        run.place = next(self._numbers)  # behind the others, so that one bad request blocks none
        return outcome.may_pass and anyio.current_time() < give_up_at

    def _check(self, request: Request) -> None:
        """Refuse parameters that this client does not take, before anything is recorded or sent."""
        try:
            signature(self._client.generations.create).bind(**request.params)
        except TypeError as error:
            raise ConfigurationError(f"generations.create: {error}; nothing was sent") from None

    async def _post(self, run: Run, attempt: int, turn: Turn) -> Outcome:
        """Send one submission to its end, even if cancelled: the answer has an id that costs money.

        It has a task of its own, because anyio's shield does not stop asyncio's `task.cancel()`:
        that reaches only the task it was called on, which waits here for the answer.
        """
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._post_in_turn, run, attempt, turn)
        except BaseException:
            # Cancelled, yet accepted meanwhile: no run will wait for it, but the account runs it.
            if isinstance(turn.outcome, Accepted):
                generation = turn.outcome.generation
                self._outstanding.leave(generation.id, ended=generation.is_terminal)
            raise
        assert turn.outcome is not None, "a submission ends its turn"
        return turn.outcome

    async def _post_in_turn(self, run: Run, attempt: int, turn: Turn) -> None:
        """Submit once: first the intent on disk, then the request on the wire, then the outcome."""
        record, recorder, handle = run.record, self._recorder, new_submission_id()
        try:
            with anyio.CancelScope(shield=True):
                await recorder.begin(record, attempt, handle)
        except LumaError as error:
            turn.end(NotAccepted(error))
            return
        # The intent is on disk. If the process dies from here on, the next one finds `unknown`.
        outcome: Outcome = NOT_SENT
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()  # the last chance not to send it
            with anyio.CancelScope(shield=True):
                # On the wire until the answer comes. An exception that no shield stops, such as a
                # KeyboardInterrupt, leaves CUT_OFF as the outcome.
                outcome = CUT_OFF
                outcome = await submit_once(partial(self._create, run.request, handle), handle)
        finally:
            # First the account, the batch and the observers, in one step without an await, so that
            # no other turn begins between; the disk takes time, and is told after them.
            self._tell(run, turn, outcome)
            await recorder.end(record, attempt, outcome)

    async def _create(self, request: Request, handle: str) -> object:
        params = await encoded(request.params)
        create = self._client.generations.create
        # Our own client reads the handle from a context variable; the official SDK needs it here.
        if "extra_headers" in signature(create).parameters:
            params["extra_headers"] = {"X-Request-Id": handle}
        return await create(**params)

    def _tell(self, run: Run, turn: Turn, outcome: Outcome) -> None:
        """Tell the queue, the account, the log and the observers, before anything else can run."""
        now = anyio.current_time()
        if isinstance(outcome, NotAccepted) and ends_all(outcome.error):
            self._stop(run, outcome.error)
        turn.end(outcome)
        if isinstance(outcome, NotAccepted) and outcome.may_pass and self._account.gives_up(now):
            self._stop(run, outcome.error)
        next_try = self._account.may_submit_at(run.request.kind)
        if next_try == math.inf:  # others are in flight; their answers decide
            next_try = self._account.quiet_until
        self._standstill.note(outcome, now, next_try, running=self._account.running)
        if isinstance(outcome, Accepted):
            self._take(run, outcome.generation)
        elif isinstance(outcome, Unknown):
            error = outcome.error
            logger.warning(
                "a submission may have been accepted, and may be billed: %s (X-Request-Id %s)",
                error,
                getattr(error, "submission_id", None),
                extra=fields(error=error),
            )
        elif isinstance(outcome, NotAccepted) and outcome.may_pass:
            run.tell(RunRefused if outcome.is_refusal else RunUnreachable, outcome.error)

    def _stop(self, run: Run, error: Exception) -> None:
        """End the waits for a turn, and refuse the rest of the batch, so that nothing is sent."""
        assert isinstance(error, LumaError), "what ends all is an error of ours"
        self.queue.stop(error)
        run.batch.refusal = error

    def _take(self, run: Run, generation: Generation) -> None:
        """Note the id of an accepted submission."""
        kind, now = run.request.kind, anyio.current_time()
        if not self._outstanding.add(generation.id, run.given, kind, now):
            # The API answered with an id that we already wait for: the account counts it twice.
            self._account.finish(kind)
        run.latest = generation
        run.submitted.append(generation.id)
        run.begin_timeout(now)
        run.tell(RunSubmitted)
        run.tell(RunStateChanged)
