"""The Runner: prompts in, generations out."""

from __future__ import annotations

import math
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import count
from operator import attrgetter
from typing import Any, Unpack

import anyio

from luma_poll._api.media_reference import in_thread
from luma_poll._api.parameters import CreateParams, explicit
from luma_poll._api.request_body import recalled
from luma_poll._arguments import (
    USE_DEFAULT,
    UseDefault,
    check_count,
    check_timeout,
    check_whole,
    shown,
)
from luma_poll._journal.journal import Journal
from luma_poll._journal.recorder import Recorder, identify
from luma_poll._journal.steps import Raise, Submit, may_submit_again
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.observers import Observers, is_async, only, outcome_of
from luma_poll._polling.poller import Poller, last_of, without_retries
from luma_poll._running.account import LONGEST_RUN, Account
from luma_poll._running.batch import Batch, Taken
from luma_poll._running.fetching import Fetching
from luma_poll._running.outstanding import Outstanding
from luma_poll._running.requests import AnyRequest, Request, check_key, read_request_async
from luma_poll._running.resubmission import pause_before_next
from luma_poll._running.run import Run
from luma_poll._running.run_result import RunResult
from luma_poll._running.submitter import Submitter, SupportsCreate
from luma_poll._tasks.each import run_each, run_in_order
from luma_poll._tasks.event_loops import LoopGuard
from luma_poll.errors import (
    APIError,
    ConfigurationError,
    GenerationError,
    NotFoundError,
    PollTimeoutError,
)
from luma_poll.events import (
    Observer,
    RunBegan,
    RunEnded,
    RunFailed,
    RunFound,
    RunStateChanged,
    RunSubmitted,
)
from luma_poll.events import Run as RunInfo
from luma_poll.models import Generation

REQUEST_COST = 0.05
"""Seconds of delay that one poll is worth: while the account is full, a delay is an idle slot."""

MAX_FETCHES = 8
"""The most completed generations of a journal that are fetched again at the same time."""


class Runner:
    """A runner that submits generations, as many as the account allows, and waits for them.

    Make one and share it: what it learns about the account serves all its runs. Nothing is
    submitted twice unless you allow it with `max_attempts`.

        async with LumaClient() as client:
            for result in await Runner(client).run_all(["a red fox", "a grey owl"]):
                print(result.request, result.error or result.outputs[0].url)

    Args:
        client: A `LumaClient`, or the official SDK's `AsyncLuma`. The Runner turns off the retries
            of either: the SDK's can submit, and bill, twice.
        poller: The poller that waits for the generations. The default polls a little more often
            than a plain `Poller`, because an end that is seen late delays the next submission.
        max_running: The most generations under way at once; None for as many as the account
            allows, which the Runner learns from the API's answers. One that has timed out, or
            whose run was cancelled, counts until it ends, or for an hour.
        max_attempts: How often one request may be submitted in all. With 2 or more, a request
            whose generation failed with a retryable error is submitted again, and billed again.
        max_submissions: The most submissions of this Runner in all; None for no limit.
        journal: A file that records the submissions, so that the next process with the same file
            continues where this one stopped, and submits nothing twice.
        on_submit: A function (not async), called with a `RunSubmitted` as soon as there is an id.
        on_state: A function (not async), called with a `RunStateChanged` for the first state of a
            generation and for each change. If one of these two raises, the exception is logged and
            dropped.

    Raises:
        ConfigurationError: An argument is unusable.
    """

    def __init__(
        self,
        client: SupportsCreate,
        poller: Poller | None = None,
        *,
        max_running: int | None = None,
        max_attempts: int = 1,
        max_submissions: int | None = None,
        journal: Journal | None = None,
        on_submit: Callable[[RunSubmitted], object] | None = None,
        on_state: Callable[[RunStateChanged], object] | None = None,
    ) -> None:
        if not callable(getattr(getattr(client, "generations", None), "create", None)):
            raise ConfigurationError(f"{type(client).__name__} has no generations.create")
        if poller is not None and not isinstance(poller, Poller):
            raise ConfigurationError(f"poller must be a Poller, not {shown(poller)}")
        if journal is not None and not isinstance(journal, Journal):
            raise ConfigurationError(f"journal must be a Journal, not {shown(journal)}")
        for name, function in (("on_submit", on_submit), ("on_state", on_state)):
            if function is not None and (not callable(function) or is_async(function)):
                raise ConfigurationError(
                    f"{name} must be a function (not async), not {shown(function)}"
                )
        self._max_attempts = check_whole("max_attempts", max_attempts)
        self._client = client
        self._poller = poller or Poller(client, wait=AdaptiveWait(request_cost=REQUEST_COST))
        self._account = Account(
            check_count("max_running", max_running), check_count("max_submissions", max_submissions)
        )
        self._observers = Observers()
        if on_submit is not None:
            self._observers.add(only(RunSubmitted, on_submit))
        if on_state is not None:
            self._observers.add(only(RunStateChanged, on_state))
        self._loop = LoopGuard("Runner")
        self._journal = journal
        self._recorder = Recorder(
            None if journal is None else journal._store, getattr(client, "base_url", None)
        )
        self._numbers = count()
        self._outstanding = Outstanding(self._account)
        self._submitter = Submitter(
            without_retries(client),
            self._account,
            self._outstanding,
            self._recorder,
            self._numbers,
            self._look_for_ends,
        )

    @property
    def poller(self) -> Poller:
        """The poller that waits for the generations."""
        return self._poller

    @property
    def journal(self) -> Journal | None:
        """The journal, or None."""
        return self._journal

    @property
    def outstanding(self) -> dict[str, AnyRequest]:
        """The ids whose end has not been seen, with their requests; each for at most an hour.

        After an interruption these may still be running, and be billed: wait for them by id.
        """
        return self._outstanding.requests

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call a function with every event of the runs, and of the waits of the poller.

            stop = runner.observe(print)

        Args:
            observer: A function (not async), called with the events of `luma_poll.events`. If it
                raises, the exception is logged and dropped.

        Returns:
            A function that stops observing. Runs that are under way are observed to their end.

        Raises:
            ConfigurationError: `observer` is not a function, or is async.
        """
        stop_runs = self._observers.add(observer)
        stop_waits = self._poller.observe(observer)

        def stop() -> None:
            stop_runs()
            stop_waits()

        return stop

    @explicit
    async def run(
        self,
        prompt: str | None = None,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        key: str | None = None,
        **params: Unpack[CreateParams],
    ) -> Generation:
        """Submit a generation as soon as there is room for it, and wait for its end.

            generation = await runner.run("a red fox", model="uni-1", timeout=300)
            print(generation.outputs[0].url)

        Args:
            prompt: The prompt.
            timeout: Seconds from the first accepted submission, for all attempts together; None for
                no limit; by default the poller's timeout. Waiting for room does not count: put
                `anyio.fail_after` around the call to limit that too.
            key: Your own name for the request, such as an order number; it is not sent. A journal
                submits a key once: later calls with this key continue that submission, or return
                its result. By default the key is made from the parameters.
            params: The API's other parameters, as for `generations.create`.

        Returns:
            The completed generation.

        Raises:
            GenerationError: The generation failed; the class says why.
            PollTimeoutError: The timeout came first; the generation keeps running: wait by its id.
            SubmissionLimitError: `max_submissions` is reached; nothing was sent.
            SubmissionUnknownError: An earlier submission of this key may have been accepted;
                nothing was sent.
            JournalError: The journal cannot be written; nothing was sent.
            APIError: The submission or the wait failed. If `may_have_been_accepted`, the generation
                may be running, and the Runner does not submit it again.
            ConfigurationError: An argument is unusable; nothing was sent.
        """
        seconds = check_timeout(timeout, self._poller.timeout)
        extras: dict[str, Any] = {**params} if key is None else {**params, "key": key}
        given: AnyRequest = {"prompt": prompt, **extras} if extras or prompt is None else prompt
        result = await Batch(self._result, seconds).run(Taken(given))
        if result.error is not None:
            raise result.error
        assert result.generation is not None, "a run without an error has its generation"
        return result.generation

    def as_completed(
        self,
        requests: Iterable[AnyRequest] | AsyncIterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        download: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[RunResult]]:
        """Run many requests, and yield a result for each as it ends.

            async with runner.as_completed(prompts) as results:
                async for result in results:
                    ...

        Leaving the block stops submitting at once and cancels the waits. What was submitted keeps
        running; `outstanding` has the ids. A failure affects only its own result, with one
        exception: after a 401, 402 or 403 nothing more is sent, and the rest get that error.

        Args:
            requests: An iterable or async iterable of prompts, or of mappings of the parameters of
                `generations.create`. They are taken one by one, as there is room to submit them.
            timeout: Seconds for each request, as for `run`.
            download: A directory for the files of completed generations; `RunResult.paths` has
                their paths. None to download nothing.
            name: The name of the files, such as `"{key}-{n}"`; by default the key if a request
                has one, else the id. See `LumaClient.download`.

        Returns:
            An async context manager with an async iterator over the results.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        batch = self._batch(requests, timeout)
        if download is None:
            return run_each(batch.run, batch.take(requests), limit=None)
        fetching = Fetching(self._client, batch, download, name)
        return _fetched(fetching, batch, requests)

    async def run_all(
        self,
        requests: Iterable[AnyRequest] | AsyncIterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        download: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> list[RunResult]:
        """Run many requests, and return a result for each, in the order given.

        Use `as_completed` if an interruption must not lose the results so far.

            for result in await runner.run_all(["a red fox", "a grey owl"]):
                print(result.request, result.error or result.outputs[0].url)

        Args:
            requests: The requests, as for `as_completed`.
            timeout: Seconds for each request, as for `run`.
            download: A directory for the files, as for `as_completed`.
            name: The name of the files, as for `as_completed`.

        Returns:
            The results, in the order of `requests`.

        Raises:
            ConfigurationError: An argument is unusable.
            Exception: Whatever iterating over `requests` raises, after the earlier requests have
                ended: its attribute `results` has their results, and a note names their ids.
        """
        batch = self._batch(requests, timeout)
        run = batch.run
        if download is not None:
            fetching = Fetching(self._client, batch, download, name)
            await fetching.check(requests)
            run = fetching.run
        results = await run_in_order(
            run, batch.take(requests), limit=None, ids=attrgetter("submitted")
        )
        # The requests that the journal knew were taken first: back to the order given.
        places = sorted(range(len(batch.order)), key=batch.order.__getitem__)
        return [results[place] for place in places] if places else results

    def _batch(self, requests: object, timeout: float | UseDefault | None) -> Batch:
        if isinstance(requests, (str, bytes, Mapping)) or not isinstance(
            requests, (Iterable, AsyncIterable)
        ):
            raise ConfigurationError(
                f"requests must be an iterable of prompts or mappings, not {shown(requests)}"
            )
        seconds = check_timeout(timeout, self._poller.timeout)
        return Batch(self._result, seconds, self._recorder)

    async def _result(self, taken: Taken, batch: Batch) -> RunResult:
        """Run one request; any failure is part of the result."""
        given, number = taken.given, next(self._numbers)
        key = given.get("key") if isinstance(given, Mapping) else None
        info = RunInfo(number, given, key, self._observers.present)
        run = Run(info, batch, place=number, record=taken.record)
        if taken.request is not None:
            run.request = taken.request
        error: Exception | None = None
        run.tell(RunBegan)
        try:
            run.latest = await self._perform(run)
        except Exception as raised:
            error = raised
            if isinstance(error, GenerationError) and error.generation is not None:
                run.see(error.generation)
        except BaseException:
            run.tell(RunEnded, "cancelled", None)
            raise
        finally:
            run.take_next()
        run.tell(RunEnded, outcome_of(run.latest, error), error)
        return RunResult(given, run.latest, error, tuple(run.submitted), run.key)

    async def _perform(self, run: Run) -> Generation:
        """Submit and wait, again as often as `max_attempts` allows."""
        if self._loop.enter():
            self._begin_loop()
        if run.record is None:
            run.request = await self._read(run.given)
        if self._recorder.is_on and run.record is None:
            asked = partial(identify, key=run.request.key, key_of=run.batch.key_of)
            run.record = await in_thread(run.request.is_large, asked, run.request.params)
        while True:
            async with self._recorder.hold(run.record):
                generation = await self._start(run)
            try:
                return await self._wait(run, generation)
            except GenerationError as error:
                attempt = len(run.submitted)
                pause = pause_before_next(error, attempt)
                late = anyio.current_time() + pause >= run.deadline
                if late or not may_submit_again(error, attempt, self._max_attempts):
                    raise
                run.failure = error
            run.tell(RunFailed, run.failure)
            await anyio.sleep(pause)

    async def _read(self, given: AnyRequest) -> Request:
        """Check a request; its files may be gone if its key was submitted before."""
        try:
            return await read_request_async(given)
        except ConfigurationError:
            if not isinstance(given, Mapping) or given.get("key") is None:
                raise
            recorded = await self._recorder.recorded(check_key(given["key"]))
            if recorded is None:
                raise
        return await read_request_async(recalled(given, recorded))

    def _begin_loop(self) -> None:
        """Start over in another event loop."""
        self._account.begin_loop()
        self._outstanding.begin_loop(anyio.current_time())
        self._recorder.begin_loop()
        self._submitter.begin_loop()
        self._fetches = anyio.Semaphore(MAX_FETCHES)

    async def _start(self, run: Run) -> Generation | str:
        """Submit it, unless the journal has it; return its first snapshot, or its id."""
        step = await self._recorder.next_step(run.record, run.submitted, self._max_attempts)
        run.submitted[:] = step.submitted
        if isinstance(step, Submit):
            if step.attempt == 1:
                run.batch.note_new(run.record)
            return await self._submitter.submit(run, step.attempt)
        run.take_next()
        if isinstance(step, Raise):
            raise step.error
        if run.failure is not None and run.failure.generation_id == step.generation_id:
            # The journal does not have this end as a failure (it completed without outputs, or
            # could not be written), so it names no next attempt: waiting again would never end.
            raise run.failure
        run.found = step
        run.batch.note_found()
        if step.running:
            kind, now = run.request.kind, anyio.current_time()
            run.begin_timeout(now)
            if self._outstanding.add(step.generation_id, run.given, kind, now):
                self._account.adopt(kind)
        run.tell(RunFound, step.generation_id, step.running)
        return step.generation_id

    async def _wait(self, run: Run, generation: Generation | str) -> Generation:
        """Wait for its end, and record it; return the completed generation."""
        generation_id = generation if isinstance(generation, str) else generation.id
        try:
            latest = await self._recorder.writing_beside(self._fetch(run, generation))
        except GenerationError as error:
            self._leave(generation_id, ended=True)
            run.latest = error.generation or run.latest
            await self._recorder.finish(run.record, generation_id, error)
            raise
        except BaseException:
            self._leave(generation_id, ended=False)
            raise
        self._leave(generation_id, ended=True)
        await self._recorder.finish(run.record, generation_id, None)
        return latest

    async def _fetch(self, run: Run, generation: Generation | str) -> Generation:
        """Wait for its end; what has already completed is fetched in its turn."""
        found, record = run.found, run.record
        if found is None or record is None or generation != found.generation_id:
            return await self._watch(run, generation)
        try:
            if found.running:
                return await self._watch(run, generation)
            # A few at a time: thousands of fetches would hold up the polls of what still runs.
            async with self._fetches:
                run.begin_timeout(anyio.current_time())
                return await self._watch(run, generation)
        except (APIError, PollTimeoutError) as error:
            if isinstance(error, NotFoundError):
                await self._recorder.miss(record, found.generation_id)
            raise found.told(error, record.key) from error.__cause__

    async def _watch(self, run: Run, generation: Generation | str) -> Generation:
        left = max(run.deadline - anyio.current_time(), 1e-3)
        timeout = None if left == math.inf else left
        last = await last_of(self._poller.watch(generation, timeout=timeout), run.see)
        return last.raise_for_failure()

    async def _look_for_ends(self) -> None:
        """Poll the generations for which no run waits, because they count for `max_running`."""
        left = self._outstanding.left
        async with self._poller.as_completed(left, timeout=LONGEST_RUN, limit=None) as results:
            async for result in results:
                ended = result.generation is not None and result.generation.is_terminal
                if ended or isinstance(result.error, NotFoundError):
                    self._leave(result.generation_id, ended=True)
                elif not isinstance(result.error, PollTimeoutError):
                    # Such as a revoked key. The next submission will say so; waiting would not.
                    self._outstanding.stop_counting(result.generation_id)
                    self._submitter.queue.wake()

    def _leave(self, generation_id: str, *, ended: bool) -> None:
        self._outstanding.leave(generation_id, ended=ended)
        self._submitter.queue.wake()

    def __repr__(self) -> str:
        return (
            f"Runner(running={self._account.running}, in_flight={self._account.in_flight}, "
            f"waiting={len(self._submitter.queue)})"
        )


@asynccontextmanager
async def _fetched(
    fetching: Fetching, batch: Batch, requests: object
) -> AsyncGenerator[AsyncIterator[RunResult]]:
    await fetching.check(requests)
    async with run_each(fetching.run, batch.take(requests), limit=None) as results:
        yield results
