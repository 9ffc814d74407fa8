"""The public Runner: prompts in, generations out."""

from __future__ import annotations

from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from itertools import count
from typing import Any, Unpack

import anyio
import anyio.lowlevel

from luma_poll._arguments import USE_DEFAULT, UseDefault, check_count, check_timeout, shown
from luma_poll._event_loops import LoopGuard
from luma_poll._parameters import CreateParams
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.alarm import Alarm
from luma_poll._polling.batch import iterate, run_each, run_in_order
from luma_poll._polling.poller import Poller, SupportsGenerations, without_retries
from luma_poll._running.account import Account
from luma_poll._running.events import RunEvent, RunReporter, Step
from luma_poll._running.fingerprint import fingerprint
from luma_poll._running.journal import Journal
from luma_poll._running.queue import SubmissionQueue
from luma_poll._running.recorder import Record, Recorder
from luma_poll._running.requests import AnyRequest, Request, read_request
from luma_poll._running.resubmission import (
    Raise,
    Submit,
    ends_all,
    is_refusal,
    may_submit_again,
    may_try_again,
    pause_before_next,
)
from luma_poll._running.results import RunResult
from luma_poll._translation import translate_error, warn_if_accepted
from luma_poll.errors import APIError, ConfigurationError, GenerationError, RateLimitError
from luma_poll.models import Generation, as_generation, snapshot_rate_limit

REQUEST_COST = 0.05
"""Seconds of delay that a poll may cost: while the account is full, a delay is an idle slot."""
LONGEST_RUN = 3600.0
"""Seconds: the API ends every job within an hour (https://docs.agents.lumalabs.ai, FAQ)."""


@dataclass(eq=False)
class _Run:
    """One request on its way.

    Attributes:
        number: Of the run, in its runner.
        given: The request, as it was given.
        place: In the queue.
        seconds: The timeout.
        batch: That it is one of.
        record: Its identity in the journal.
        submitted: The ids of its attempts.
        latest: The latest snapshot.
        deadline: Of all its attempts, from the first accepted submission on.
        failure: Of its latest attempt.
        has_had_turn: False as long as it waits for its first turn.
    """

    number: int
    given: AnyRequest
    place: float
    seconds: float | None
    batch: _Batch
    record: Record | None = None
    submitted: list[str] = field(default_factory=list)
    latest: Generation | None = None
    deadline: float | None = None
    failure: GenerationError | None = None
    has_had_turn: bool = False


class Runner:
    """Submits generations, as many at once as the account allows, and waits for them.

    Make one and share it: what it learns of the account holds for all its runs. Nothing is
    submitted twice unless `max_attempts` says so.

    ::

        async with LumaClient() as client:
            for result in await Runner(client).run_all(["a red fox", "a grey owl"]):
                print(result.request, result.error or result.outputs[0].url)

    Args:
        client: A `LumaClient`, or the official SDK's `AsyncLuma`. Their own retries are off: those
            of the SDK can submit, and bill, twice.
        poller: Waits for what was submitted. By default one with an `AdaptiveWait` that polls a
            little more often than usual, since the next submission waits for an end to be seen.
        max_running: Generations under way at once; None for as many as the account allows, which
            is learned from its answers.
        max_attempts: How often one request may be submitted in all. With 2 or more, a request
            whose generation failed with a retryable error is submitted again, and billed again.
        max_submissions: Submissions of this runner in all; None for no limit.
        journal: Keeps track of the submissions, so that the next process with the same file
            continues what this one has begun, and submits nothing twice.
        on_submit: Called with the request and the first snapshot as soon as there is an id.
            An exception in it is logged and dropped.

    Raises:
        ConfigurationError: An argument is unusable.
    """

    def __init__(
        self,
        client: SupportsGenerations,
        poller: Poller | None = None,
        *,
        max_running: int | None = None,
        max_attempts: int = 1,
        max_submissions: int | None = None,
        journal: Journal | None = None,
        on_submit: Callable[[AnyRequest, Generation], object] | None = None,
    ) -> None:
        if not callable(getattr(getattr(client, "generations", None), "create", None)):
            raise ConfigurationError(f"{type(client).__name__} has no generations.create")
        if poller is not None and not isinstance(poller, Poller):
            raise ConfigurationError(f"poller must be a Poller, not {shown(poller)}")
        if journal is not None and not isinstance(journal, Journal):
            raise ConfigurationError(f"journal must be a Journal, not {shown(journal)}")
        if on_submit is not None and (not callable(on_submit) or iscoroutinefunction(on_submit)):
            raise ConfigurationError(
                f"on_submit must be a function (not async), not {shown(on_submit)}"
            )
        attempts = check_count("max_attempts", max_attempts)
        if attempts is None:
            raise ConfigurationError("max_attempts must be a whole number from 1, not None")
        self._max_attempts = attempts
        self._client: Any = without_retries(client)
        self._poller = poller or Poller(client, wait=AdaptiveWait(request_cost=REQUEST_COST))
        self._account = Account(
            check_count("max_running", max_running), check_count("max_submissions", max_submissions)
        )
        self._reporter = RunReporter(on_submit)
        self._loop = LoopGuard("Runner")
        self._queue = SubmissionQueue(self._account)
        self._journal = journal
        self._recorder = Recorder(None if journal is None else journal.store)
        self._numbers = count()
        self._unfinished: dict[str, tuple[float, AnyRequest]] = {}
        self._counted: set[str] = set()  # the generations that the account counts as running

    @property
    def journal(self) -> Journal | None:
        """The journal that it keeps, if there is one."""
        return self._journal

    @property
    def submitted(self) -> dict[str, AnyRequest]:
        """The ids whose end has not been seen, with their requests; each for an hour at most.

        After an interruption these may still be running, and be billed: wait for them by id.
        """
        return {generation_id: request for generation_id, (_, request) in self._unfinished.items()}

    async def run(
        self,
        prompt: str,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        key: str | None = None,
        **params: Unpack[CreateParams],
    ) -> Generation:
        """Submit a generation when there is room for it, and wait for its end.

        ::

            generation = await runner.run("a red fox", model="uni-1", timeout=300)
            print(generation.output[0].url)

        Args:
            prompt: The prompt.
            timeout: Seconds from the first accepted submission, over all attempts; None for no
                limit; by default that of the poller. Waiting for room does not count:
                `anyio.fail_after` around the call bounds that too.
            key: A name of yours for the request, such as an order's number; it is not sent. With a
                journal, a key is submitted once: when it has ended, its end is given again. By
                default it is made from the parameters.
            params: The API's other parameters, as for `generations.create`.

        Returns:
            The completed generation.

        Raises:
            GenerationError: It failed; the class says why.
            PollTimeoutError: The deadline came first. It may still finish: wait again by id.
            SubmissionLimitError: `max_submissions` is reached; nothing was sent.
            SubmissionUnknownError: A process died while it submitted this key; nothing was sent.
            JournalError: The journal cannot be written; nothing was sent.
            APIError: It could not be submitted, or waited for. `may_have_been_accepted` is true of
                a failed submission that may be running; it is not repeated.
            ConfigurationError: An argument is unusable; nothing was sent.
        """
        seconds = check_timeout(timeout, self._poller.timeout)
        extras: dict[str, Any] = {**params} if key is None else {**params, "key": key}
        given: AnyRequest = {"prompt": prompt, **extras} if extras else prompt
        result = await _Batch(self._result, seconds).run(given)
        if result.error is not None:
            raise result.error
        assert result.generation is not None, "a run without an error has its generation"
        return result.generation

    def as_completed(
        self,
        requests: Iterable[AnyRequest] | AsyncIterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
    ) -> AbstractAsyncContextManager[AsyncIterator[RunResult]]:
        """Run many requests, and yield a result for each as it ends.

        ::

            async with runner.as_completed(prompts) as results:
                async for result in results:
                    ...

        Leaving the block stops submitting at once and cancels the waits; what was submitted runs
        on, and `submitted` has the ids. The failure of one is its result, and does not affect the
        others, except that 401, 402 and 403 end all submitting: the rest get that error unsent.

        Args:
            requests: Prompts, or mappings of the parameters of `generations.create`: any iterable
                or async iterable. They are taken one by one, as there is room to submit them.
            timeout: As for `run`, for each.

        Returns:
            An async context manager that gives an async iterator over the results.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        batch = self._batch(requests, timeout)
        return run_each(batch.run, batch.take(requests), limit=None)

    async def run_all(
        self,
        requests: Iterable[AnyRequest] | AsyncIterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
    ) -> list[RunResult]:
        """Run many requests, and return a result for each, in the order given.

        `as_completed` is the better choice where an interruption must not lose the results so far.

        ::

            for result in await runner.run_all(["a red fox", "a grey owl"]):
                print(result.request, result.error or result.outputs[0].url)

        Args:
            requests: As for `as_completed`.
            timeout: As for `run`, for each.

        Returns:
            The results, in the order of `requests`.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        batch = self._batch(requests, timeout)
        return await run_in_order(batch.run, batch.take(requests), limit=None)

    def _batch(self, requests: object, timeout: float | UseDefault | None) -> _Batch:
        if isinstance(requests, (str, bytes, Mapping)) or not isinstance(
            requests, (Iterable, AsyncIterable)
        ):
            raise ConfigurationError(
                f"requests must be an iterable of prompts or mappings, not {shown(requests)}"
            )
        seconds = check_timeout(timeout, self._poller.timeout)
        return _Batch(self._result, seconds)

    async def _result(self, given: AnyRequest, batch: _Batch) -> RunResult:
        """Run one; any failure is part of the result."""
        number = next(self._numbers)
        run = _Run(number, given, number, batch.seconds, batch)
        error: Exception | None = None
        self._report(run, "begun")
        try:
            run.latest = await self._perform(run, read_request(given))
        except Exception as raised:
            error = raised
            if isinstance(error, GenerationError):
                run.latest = error.generation
        except BaseException:
            self._report(run, "ended", cancelled=True)
            raise
        finally:
            batch.take_next(run)
        self._report(run, "ended", error)
        return RunResult(given, run.latest, error, run.submitted)

    async def _perform(self, run: _Run, request: Request) -> Generation:
        """Submit and wait, again as often as `max_attempts` allows."""
        if self._loop.enter():
            self._account.forget_running()
            self._counted.clear()
            self._queue = SubmissionQueue(self._account)
            self._recorder.begin_loop()
        if self._recorder.is_on:
            digest = fingerprint(request.params)
            key = run.batch.key_of(digest) if request.key is None else request.key
            run.record = Record(key, digest, request.params)
        while True:
            async with self._recorder.hold(run.record):
                generation = await self._start(run, request)
            try:
                return await self._wait(run, request, generation)
            except GenerationError as error:
                attempt = len(run.submitted)
                pause = pause_before_next(error, attempt)
                late = anyio.current_time() + pause >= _or_inf(run.deadline)
                if late or not may_submit_again(error, attempt, self._max_attempts):
                    raise
                run.failure = error
            self._report(run, "failed", run.failure)
            await anyio.sleep(pause)

    async def _start(self, run: _Run, request: Request) -> Generation | str:
        """Submit it, or find that it was; returns its first snapshot, or its id."""
        attempts = len(run.submitted)
        step = await self._recorder.next_step(run.record, attempts, self._max_attempts)
        if isinstance(step, Submit):
            return await self._submit(run, request, step.attempt)
        run.batch.take_next(run)
        run.submitted[:] = step.submitted
        if isinstance(step, Raise):
            raise step.error
        now = anyio.current_time()
        if run.deadline is None and run.seconds is not None:
            run.deadline = now + run.seconds
        if step.running and step.generation_id not in self._counted:
            self._account.adopt(request.kind)
            self._note_unfinished(step.generation_id, run.given, now)
        return step.generation_id

    async def _submit(self, run: _Run, request: Request, attempt: int) -> Generation:
        """Submit it in its turn, and where it was refused, in its next one."""
        give_up_at: float | None = None
        while True:
            with anyio.CancelScope(deadline=_or_inf(run.deadline)) as waiting:
                await self._queue.acquire(run.place, request.kind)
            if waiting.cancelled_caught:
                # The deadline is over all attempts: the last failure is the result.
                assert run.failure is not None, "no deadline comes before the first submission"
                raise run.failure
            run.batch.take_next(run)
            if give_up_at is None:
                give_up_at = anyio.current_time() + _or_inf(run.seconds)
            self._report(run, "submitting")
            answer = await self._post(run, request, attempt)
            self._queue.wake()
            if isinstance(answer, Generation):
                return answer
            if is_refusal(answer) and not self._account.cannot_fit(request.kind):
                self._report(run, "refused", answer)
            elif may_try_again(answer) and anyio.current_time() < give_up_at:
                run.place = next(self._numbers)  # behind the others: each of them may as well try
                self._report(run, "unreachable", answer)
            else:
                if ends_all(answer):
                    self._queue.stop(answer)
                raise answer

    async def _post(self, run: _Run, request: Request, attempt: int) -> Generation | APIError:
        """Send one submission to its end, whoever cancels it: the answer has an id, or a bill.

        In a task of its own, as only that is out of the reach of asyncio's own cancellation.
        """
        answers: list[Generation | APIError] = []
        failures: list[Exception] = []

        async def post() -> None:
            try:
                await self._post_once(run, request, attempt, answers)
            except Exception as error:  # raised below: the task group would wrap it
                failures.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post)
        if failures:
            raise failures[0]
        return answers[0]

    async def _post_once(
        self, run: _Run, request: Request, attempt: int, answers: list[Generation | APIError]
    ) -> None:
        record, recorder = run.record, self._recorder
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
        self._count(request, answer)
        saved = await self._note(run, attempt, answer)
        if isinstance(answer, Generation) and not saved:
            await recorder.insist(record, attempt, answer.id)

    async def _create(self, request: Request) -> Generation | APIError:
        try:
            return as_generation(await self._client.generations.create(**request.params))
        except Exception as error:
            translated = translate_error(error)
            if translated is None:
                raise
            if translated is not error:
                translated.__cause__ = error.with_traceback(None)
            warn_if_accepted(translated)
            return translated.with_traceback(None)

    def _count(self, request: Request, answer: Generation | APIError) -> None:
        """Note what a submission's answer says of the account."""
        account, kind, now = self._account, request.kind, anyio.current_time()
        if isinstance(answer, Generation):
            account.accept(kind, now, snapshot_rate_limit(answer))
        elif isinstance(answer, RateLimitError):
            account.refuse(kind, now, answer)
        elif answer.may_have_been_accepted:
            account.lose(kind)
        else:
            account.fail(kind, now, unreachable=may_try_again(answer))

    async def _note(self, run: _Run, attempt: int, answer: Generation | APIError) -> bool:
        """Note what became of a submission; False if its id could not be recorded yet."""
        if not isinstance(answer, Generation):
            if answer.may_have_been_accepted:
                return await self._recorder.lose(run.record, attempt)
            return await self._recorder.retract(run.record, attempt)
        now = anyio.current_time()
        run.latest = answer
        run.submitted.append(answer.id)
        if run.deadline is None and run.seconds is not None:
            run.deadline = now + run.seconds
        self._note_unfinished(answer.id, run.given, now)
        saved = await self._recorder.accept(run.record, attempt, answer.id)
        self._report(run, "submitted")
        return saved

    async def _wait(self, run: _Run, request: Request, generation: Generation | str) -> Generation:
        """Wait for its end; returns the completed generation."""
        left = None if run.deadline is None else max(run.deadline - anyio.current_time(), 1e-3)
        generation_id = generation if isinstance(generation, str) else generation.id
        ended, error = False, None
        try:
            async with aclosing(self._poller.watch(generation, timeout=left)) as snapshots:
                async for snapshot in snapshots:
                    run.latest = snapshot
            assert run.latest is not None, "watch ends with a terminal snapshot"
            ended = True
            return run.latest.raise_for_failure()
        except GenerationError as failure:
            ended, error, run.latest = True, failure, failure.generation
            raise
        finally:
            self._stop_counting(generation_id, request, ended=ended)
            if ended and run.latest is not None:
                await self._recorder.end(run.record, run.latest, error)

    def _stop_counting(self, generation_id: str, request: Request, *, ended: bool) -> None:
        if generation_id in self._counted:
            self._counted.remove(generation_id)
            if ended:
                self._account.end(request.kind)
            else:
                self._account.abandon(request.kind)
        if ended:
            self._unfinished.pop(generation_id, None)
        self._queue.wake()

    def _note_unfinished(self, generation_id: str, given: AnyRequest, now: float) -> None:
        self._counted.add(generation_id)
        for old, (since, _) in list(self._unfinished.items()):
            if now - since < LONGEST_RUN:
                break  # those behind it are younger
            del self._unfinished[old]
        self._unfinished[generation_id] = now, given

    def _report(
        self, run: _Run, step: Step, error: Exception | None = None, *, cancelled: bool = False
    ) -> None:
        attempt = len(run.submitted) + (step not in ("submitted", "failed", "ended"))
        self._reporter.report(
            RunEvent(run.number, step, run.given, attempt, run.latest, error, cancelled)
        )

    def __repr__(self) -> str:
        return (
            f"Runner(running={self._account.running}, in_flight={self._account.in_flight}, "
            f"waiting={len(self._queue)})"
        )


class _Batch:
    """The requests of one `as_completed`: taken as there is room, and ended by one refusal.

    Args:
        run: Runs a request.
        seconds: The timeout of each.
    """

    def __init__(
        self,
        run: Callable[[AnyRequest, _Batch], Awaitable[RunResult]],
        seconds: float | None,
    ) -> None:
        self.seconds = seconds
        self._run = run
        self._next = Alarm()
        self._refusal: Exception | None = None
        self._digests = Counter[str]()

    async def take(self, requests: object) -> AsyncGenerator[AnyRequest]:
        """The requests, each when the one before has had its turn."""
        async with aclosing(iterate(requests)) as iterator:
            async for request in iterator:
                yield request
                await self._next.sleep(float("inf"))

    def take_next(self, run: _Run) -> None:
        """Take the next request, when a run has its first turn."""
        if not run.has_had_turn:
            run.has_had_turn = True
            self._next.wake()

    async def run(self, given: AnyRequest) -> RunResult:
        """Run one; it is not sent after a refusal that every submission would meet."""
        if self._refusal is not None:
            self._next.wake()
            return RunResult(given, None, self._refusal)
        result = await self._run(given, self)
        if ends_all(result.error):
            self._refusal = result.error
        return result

    def key_of(self, digest: str) -> str:
        """A key for a request without one; requests that are alike are numbered."""
        self._digests[digest] += 1
        number = self._digests[digest]
        return digest[:32] if number == 1 else f"{digest[:32]}-{number}"


def _or_inf(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
