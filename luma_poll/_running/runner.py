"""The public Runner: prompts in, generations out."""

from __future__ import annotations

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
from luma_poll._running.queue import SubmissionQueue
from luma_poll._running.requests import AnyRequest, Request, read_request
from luma_poll._running.resubmission import (
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
    """One request on its way."""

    number: int
    given: AnyRequest
    place: float
    seconds: float | None
    on_turn: Callable[[], None]
    submitted: list[str] = field(default_factory=list)
    latest: Generation | None = None
    deadline: float | None = None


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
            whose generation failed with a retryable error is submitted again, and billed anew.
        max_submissions: Submissions of this runner in all; None for no limit.
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
        on_submit: Callable[[AnyRequest, Generation], object] | None = None,
    ) -> None:
        if not callable(getattr(getattr(client, "generations", None), "create", None)):
            raise ConfigurationError(f"{type(client).__name__} has no generations.create")
        if poller is not None and not isinstance(poller, Poller):
            raise ConfigurationError(f"poller must be a Poller, not {shown(poller)}")
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
        self._numbers = count()
        self._unfinished: dict[str, tuple[float, AnyRequest]] = {}

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
            key: A name of yours for the request; it is not sent.
            params: The API's other parameters, as for `generations.create`.

        Returns:
            The completed generation.

        Raises:
            GenerationError: It failed; the class says why.
            PollTimeoutError: The deadline came first. It may still finish: wait again by id.
            SubmissionLimitError: `max_submissions` is reached; nothing was sent.
            APIError: It could not be submitted, or waited for. `may_have_been_accepted` is true of
                a failed submission that may be running; it is not repeated.
            ConfigurationError: An argument is unusable; nothing was sent.
        """
        seconds = check_timeout(timeout, self._poller.timeout)
        extras: dict[str, Any] = {**params} if key is None else {**params, "key": key}
        result = await self._result({"prompt": prompt, **extras} if extras else prompt, seconds)
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
        return _Batch(lambda given, on_turn: self._result(given, seconds, on_turn))

    async def _result(
        self, given: AnyRequest, seconds: float | None, on_turn: Callable[[], None] = lambda: None
    ) -> RunResult:
        """Run one; any failure is part of the result."""
        number = next(self._numbers)
        run = _Run(number, given, number, seconds, on_turn)
        error: Exception | None = None
        self._report(run, "begun")
        try:
            run.latest = await self._perform(run, read_request(run.given))
        except Exception as raised:
            error = raised
        except BaseException:
            self._report(run, "ended", cancelled=True)
            raise
        self._report(run, "ended", error)
        return RunResult(run.given, run.latest, error, run.submitted)

    async def _perform(self, run: _Run, request: Request) -> Generation:
        """Submit and wait, again as often as `max_attempts` allows."""
        if self._loop.enter():
            self._account.forget_running()
            self._queue = SubmissionQueue(self._account)
        failure: GenerationError | None = None
        for attempt in count(1):
            generation = await self._submit(run, request)
            if generation is None:
                break
            try:
                return await self._wait(run, request, generation)
            except GenerationError as error:
                pause = pause_before_next(error, attempt)
                late = anyio.current_time() + pause >= _or_inf(run.deadline)
                if late or not may_submit_again(error, attempt, self._max_attempts):
                    raise
                failure = error
            self._report(run, "failed", failure)
            await anyio.sleep(pause)
        assert failure is not None, "there is no deadline before the first submission"
        raise failure

    async def _submit(self, run: _Run, request: Request) -> Generation | None:
        """Submit it in its turn, and where it was refused, in its next one.

        Returns:
            Its first snapshot; None if the deadline, which is over all attempts, came before.
        """
        give_up_at: float | None = None
        while True:
            with anyio.CancelScope(deadline=_or_inf(run.deadline)) as waiting:
                await self._queue.acquire(run.place, request.kind)
            if waiting.cancelled_caught:
                return None
            run.on_turn()
            if give_up_at is None:
                give_up_at = anyio.current_time() + _or_inf(run.seconds)
            self._report(run, "submitting")
            answer = await self._post(run, request)
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

    async def _post(self, run: _Run, request: Request) -> Generation | APIError:
        """Send one submission to its end, whoever cancels it: the answer has an id, or a bill.

        In a task of its own, as only that is out of the reach of asyncio's own cancellation.
        """
        answers: list[Generation | APIError] = []
        failures: list[Exception] = []

        async def post() -> None:
            with anyio.CancelScope(shield=True):
                try:
                    answers.append(await self._create(request))
                except Exception as error:  # not of the API: raised below, outside of the group
                    failures.append(error)
                self._take(run, request, answers[0] if answers else None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(post)
        if failures:
            raise failures[0]
        return answers[0]

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

    def _take(self, run: _Run, request: Request, answer: Generation | APIError | None) -> None:
        """Note what became of a submission."""
        account, kind, now = self._account, request.kind, anyio.current_time()
        if isinstance(answer, Generation):
            account.accept(kind, now, snapshot_rate_limit(answer))
            run.latest = answer
            run.submitted.append(answer.id)
            if run.deadline is None and run.seconds is not None:
                run.deadline = now + run.seconds
            self._note_unfinished(answer.id, run.given, now)
            self._report(run, "submitted")
        elif isinstance(answer, RateLimitError):
            account.refuse(kind, now, answer)
        elif answer is None or not answer.may_have_been_accepted:
            account.fail(kind, now, unreachable=answer is not None and may_try_again(answer))
        else:
            account.lose(kind)

    async def _wait(self, run: _Run, request: Request, generation: Generation) -> Generation:
        """Wait for its end; returns the completed generation."""
        left = None if run.deadline is None else max(run.deadline - anyio.current_time(), 1e-3)
        ended = False
        try:
            async with aclosing(self._poller.watch(generation, timeout=left)) as snapshots:
                async for snapshot in snapshots:
                    run.latest = snapshot
            assert run.latest is not None, "watch ends with a terminal snapshot"
            ended = True
            return run.latest.raise_for_failure()
        except GenerationError as error:
            ended, run.latest = True, error.generation
            raise
        finally:
            if ended:
                self._account.end(request.kind)
                self._unfinished.pop(generation.id, None)
            else:
                self._account.abandon(request.kind)
            self._queue.wake()

    def _note_unfinished(self, generation_id: str, given: AnyRequest, now: float) -> None:
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
        run: Runs a request; calls back when it has had its first turn.
    """

    def __init__(
        self, run: Callable[[AnyRequest, Callable[[], None]], Awaitable[RunResult]]
    ) -> None:
        self._run = run
        self._next = Alarm()
        self._refusal: Exception | None = None

    async def take(self, requests: object) -> AsyncGenerator[AnyRequest]:
        """The requests, each when the one before has had its turn."""
        async with aclosing(iterate(requests)) as iterator:
            async for request in iterator:
                yield request
                await self._next.sleep(float("inf"))

    async def run(self, given: AnyRequest) -> RunResult:
        """Run one; it is not sent after a refusal that every submission would meet."""
        take_next = _Once(self._next.wake)
        if self._refusal is None:
            result = await self._run(given, take_next)
            if ends_all(result.error):
                self._refusal = result.error
        else:
            result = RunResult(given, None, self._refusal)
        take_next()
        return result


class _Once:
    """Calls a function the first time that it is called."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function: Callable[[], None] | None = function

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            function()


def _or_inf(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
