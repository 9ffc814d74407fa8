"""One submission: in its turn, sent to its end, and noted whatever becomes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from inspect import signature
from itertools import count
from typing import Any

import anyio
import anyio.lowlevel

from luma_poll._api.answers import as_generation, snapshot_rate_limit
from luma_poll._api.request_body import encoded, uploaded
from luma_poll._api.translation import translate_error, warn_if_accepted
from luma_poll._arguments import check_generation_id
from luma_poll._journal.recorder import Recorder
from luma_poll._running.account import Account
from luma_poll._running.outstanding import Outstanding
from luma_poll._running.requests import Request
from luma_poll._running.resubmission import ends_all, is_refusal, may_try_again
from luma_poll._running.room import SubmissionQueue
from luma_poll._running.run import Run
from luma_poll._running.run_events import RunReporter
from luma_poll.errors import APIError, ConfigurationError, InvalidResponseError, RateLimitError
from luma_poll.models import Generation


class Submitter:
    """Submits requests, each in its turn, and never twice where the API may have accepted it.

    Args:
        client: Whose `generations.create` submits.
        account: What may be submitted now.
        outstanding: Hears of each id.
        recorder: Of the journal.
        reporter: Hears of each step.
        numbers: The next place in the queue.
    """

    def __init__(
        self,
        client: Any,
        account: Account,
        outstanding: Outstanding,
        recorder: Recorder,
        reporter: RunReporter,
        numbers: count[int],
    ) -> None:
        self._client = client
        self._account = account
        self._outstanding = outstanding
        self._recorder = recorder
        self._reporter = reporter
        self._numbers = numbers
        self.begin_loop()

    def begin_loop(self) -> None:
        """Begin again in another event loop."""
        self.queue = SubmissionQueue(self._account)

    async def submit(self, run: Run, attempt: int) -> Generation:
        """Submit it in its turn, and where it was refused, in its next one."""
        self._check(run.request)
        upload = getattr(getattr(self._client, "files", None), "upload_once", None)
        params = await uploaded(run.request.params, upload)  # it may take long: before its turn
        run.request = replace(run.request, params=params)
        kind, give_up_at = run.request.kind, math.inf
        while True:
            run.batch.check()
            with anyio.CancelScope(deadline=run.deadline) as waiting:
                await self.queue.acquire(run.place, kind)
            if waiting.cancelled_caught:
                # The deadline is over all attempts: the last failure is the result.
                assert run.failure is not None, "no deadline comes before the first submission"
                raise run.failure
            run.take_next()
            give_up_at = min(give_up_at, anyio.current_time() + run.batch.seconds)
            self._reporter.report(run.event("submitting"))
            answer = await self._post(run, attempt)
            if isinstance(answer, Generation):
                return answer
            if is_refusal(answer) and not self._account.cannot_fit(kind):
                self._reporter.report(run.event("refused", answer))
            elif may_try_again(answer) and anyio.current_time() < give_up_at:
                run.place = next(self._numbers)  # behind the others: each of them may as well try
                self._reporter.report(run.event("unreachable", answer))
            else:
                raise answer

    def _check(self, request: Request) -> None:
        """Find parameters that this client does not take before anything is recorded or sent."""
        try:
            signature(self._client.generations.create).bind(**request.params)
        except TypeError as error:
            raise ConfigurationError(f"generations.create: {error}; nothing was sent") from None

    async def _post(self, run: Run, attempt: int) -> Generation | APIError:
        """Send one submission to its end, whoever cancels it: the answer has an id, or a bill.

        In a task of its own, as only that is out of the reach of asyncio's own cancellation.
        """
        answers: list[Generation | APIError] = []
        failures: list[Exception] = []

        async def post() -> None:
            try:
                await self._post_once(run, attempt, answers)
            except Exception as error:  # raised below: the task group would wrap it
                failures.append(error)

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(post)
            if failures:
                raise failures[0]
        except BaseException:
            for answer in answers:
                if isinstance(answer, Generation):  # nobody will wait for it
                    self._outstanding.leave(answer.id, ended=answer.is_terminal)
            raise
        finally:
            self.queue.wake()
        return answers[0]

    async def _post_once(
        self, run: Run, attempt: int, answers: list[Generation | APIError]
    ) -> None:
        record, recorder, request = run.record, self._recorder, run.request
        begun = sent = False
        try:
            with anyio.CancelScope(shield=True):
                await recorder.begin(record, attempt)
                begun = True
            await anyio.lowlevel.checkpoint_if_cancelled()  # the last moment not to send it
            with anyio.CancelScope(shield=True):
                sent = True
                answers.append(await self._create(request))
        except BaseException as error:  # not of the API
            if sent and not isinstance(error, ConfigurationError):
                self._account.lose(request.kind)
                await recorder.lose(record, attempt)
            else:
                self._account.fail(request.kind, anyio.current_time())
                if begun:
                    await recorder.retract(record, attempt)
            raise
        answer = answers[0]
        self._count(run, answer)
        saved = await self._note(run, attempt, answer)
        if isinstance(answer, Generation) and not saved:
            await recorder.insist(record, attempt, answer.id)

    async def _create(self, request: Request) -> Generation | APIError:
        try:
            params = await encoded(request.params)
            return _checked(as_generation(await self._client.generations.create(**params)))
        except Exception as error:
            translated = translate_error(error)
            if translated is None:
                raise
            if isinstance(translated, InvalidResponseError) and translated.generation_id:
                # Accepted, in an answer of which nothing else was readable: polls tell the rest.
                return _checked(Generation(id=translated.generation_id, state="queued"))
            if translated is not error:
                translated.__cause__ = error.with_traceback(None)
            warn_if_accepted(translated)
            return translated.with_traceback(None)

    def _count(self, run: Run, answer: Generation | APIError) -> None:
        """Note what a submission's answer says of the account."""
        if ends_all(answer):
            # In one step, so that nobody has a turn between: neither those that wait for one, nor
            # those of the batch that are about to.
            self.queue.stop(answer)
            run.batch.refusal = answer
        account, kind, now = self._account, run.request.kind, anyio.current_time()
        if isinstance(answer, Generation):
            account.accept(kind, now, snapshot_rate_limit(answer))
            if not self._outstanding.add(answer.id, run.given, kind, now):
                account.end(kind)  # the API has answered with an id that it gave before
        elif isinstance(answer, RateLimitError):
            account.refuse(kind, now, answer)
        elif answer.may_have_been_accepted:
            account.lose(kind)
        else:
            account.fail(kind, now, unreachable=may_try_again(answer))

    async def _note(self, run: Run, attempt: int, answer: Generation | APIError) -> bool:
        """Note what became of a submission; False if its id could not be recorded yet."""
        if not isinstance(answer, Generation):
            if answer.may_have_been_accepted:
                return await self._recorder.lose(run.record, attempt)
            return await self._recorder.retract(run.record, attempt)
        run.latest = answer
        run.submitted.append(answer.id)
        run.begin_timeout(anyio.current_time())
        saved = await self._recorder.accept(run.record, attempt, answer.id)
        self._reporter.report(run.event("submitted"))
        return saved


def _checked(generation: Generation) -> Generation | APIError:
    """The generation, if its id is one that can be waited for."""
    try:
        check_generation_id(generation.id)
    except ConfigurationError as error:
        unusable = InvalidResponseError(f"the answer has an id that cannot be one: {error}")
        warn_if_accepted(unusable)
        return unusable
    return generation
