"""Waits for generations: the loop behind every entry point."""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from types import EllipsisType
from typing import Any, Protocol, TypeAlias, cast
from uuid import UUID

import anyio
from pydantic import BaseModel

from luma_poll.arguments import MAX_ID_LENGTH, check_count, check_generation_id, check_positive
from luma_poll.batch import PollResult, run_each
from luma_poll.client import LumaClient
from luma_poll.decisions import Deadline, Poll, Progress, Quiet, Raise, Return, Sleep, decide
from luma_poll.errors import (
    APIError,
    APIStatusError,
    ConfigurationError,
    GenerationError,
    InvalidResponseError,
    PollTimeoutError,
)
from luma_poll.limits import RequestLimits
from luma_poll.models import Generation, GenerationLike, GenerationOutput, as_generation
from luma_poll.schedules import DEFAULT_WAIT, Schedule
from luma_poll.translation import translate_error

logger = logging.getLogger("luma_poll")

AnyGeneration: TypeAlias = str | UUID | GenerationLike
"""What a wait takes: an id, or a snapshot such as that from `create`, ours or the SDK's."""

KNOWN_STATES = frozenset({"queued", "processing", "completed", "failed"})


class SupportsGet(Protocol):
    """`client.generations`: fetches one snapshot."""

    def get(self, generation_id: str, /) -> Awaitable[Any]:
        """Fetch one snapshot of a generation."""
        ...


class SupportsGenerations(Protocol):
    """What a `Poller` needs of a client: `LumaClient` and the official `AsyncLuma` have it."""

    @property
    def generations(self) -> SupportsGet:
        """The generations of the API."""
        ...


@dataclass(frozen=True)
class PollEvent:
    """What one poll brought, for metrics and progress.

    Attributes:
        generation_id: The generation.
        attempt: How many requests have been sent for it, from 1.
        generation: The snapshot, or None if there was an error.
        error: The error in its place, or None.
        elapsed: Seconds since the generation was first seen by the poller.
        next_delay: Seconds until the next poll; None if there will be none.
    """

    generation_id: str
    attempt: int
    generation: Generation | None
    error: APIError | None
    elapsed: float
    next_delay: float | None


class _Stream:
    """The one stream of requests for a generation, shared by all waits for it."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.waits = 0
        self.request: anyio.CancelScope | None = None  # of the wait that asks
        self._changed = anyio.Event()

    def notify(self) -> None:
        """Wake all waits for it, to look again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_for_change(self, until: float) -> None:
        """Sleep until this time on anyio's clock, or until `notify`."""
        with anyio.CancelScope(deadline=until):
            await self._changed.wait()


class Poller:
    """Waits for generations. Make one and share it: its limits hold over all its waits.

    Args:
        client: A `LumaClient`, the official SDK's `AsyncLuma`, or anything with
            `generations.get(id)` that gives an awaitable of an object with `id` and `state`.
            During a wait the schedule is the only retry: retries of the first two are off.
        wait: The schedule: a tenacity wait strategy; by default `DEFAULT_WAIT`.
        timeout: Seconds that a wait may take, unless it says otherwise; None for no limit.
        max_in_flight: Requests under way at the same time; None for no limit.
        max_rate: Requests started per second; None for no limit. The API refuses "thousands per
            minute"; the default of 30 per second is 1,800 per minute.
        on_poll: Called with a `PollEvent` after every poll. What it raises is logged and dropped.

    Raises:
        ConfigurationError: An argument is unusable.
    """

    def __init__(
        self,
        client: SupportsGenerations,
        *,
        wait: Schedule | None = None,
        timeout: float | None = 600.0,
        max_in_flight: int | None = 64,
        max_rate: float | None = 30.0,
        on_poll: Callable[[PollEvent], object] | None = None,
    ) -> None:
        if not callable(getattr(getattr(client, "generations", None), "get", None)):
            raise ConfigurationError(f"{type(client).__name__} has no generations.get")
        if wait is not None and not callable(wait):
            raise ConfigurationError(f"wait must be a tenacity wait strategy, not {wait!r}")
        if on_poll is not None and (not callable(on_poll) or _is_async(on_poll)):
            raise ConfigurationError(f"on_poll must be a function (not async), not {on_poll!r}")
        self._client = _without_retries(client)
        self._wait: Schedule = DEFAULT_WAIT if wait is None else wait
        self._timeout = check_positive("timeout", timeout)
        self._limits = RequestLimits(
            check_count("max_in_flight", max_in_flight), check_positive("max_rate", max_rate)
        )
        self._on_poll = on_poll
        self._quiet = Quiet()
        self._streams: dict[str, _Stream] = {}
        self._unknown_states: set[str] = set()

    async def wait(
        self,
        generation: AnyGeneration,
        *,
        timeout: float | EllipsisType | None = ...,
    ) -> list[GenerationOutput]:
        """Poll until the generation has ended, and return its outputs.

        Args:
            generation: Its id, or a snapshot of it (from `create`, ours or the official SDK's),
                which then counts as the first answer.
            timeout: Seconds; None for no limit; by default that of the poller.

        Raises:
            GenerationError: It failed; the class tells why.
            PollTimeoutError: The deadline came first. It may still finish: wait again by id.
            APIError: The API refuses for good (400, 401, 402, 403, 404, ...).
            ConfigurationError: An argument is unusable; nothing was sent.
        """
        last = None
        async with aclosing(self.watch(generation, timeout=timeout)) as snapshots:
            async for snapshot in snapshots:
                last = snapshot
        assert last is not None, "watch ends with a terminal snapshot"
        return last.raise_for_failure().output

    def as_completed(
        self,
        generations: Iterable[AnyGeneration] | AsyncIterable[AnyGeneration],
        *,
        timeout: float | EllipsisType | None = ...,
        limit: int | None = 1000,
    ) -> AbstractAsyncContextManager[AsyncIterator[PollResult]]:
        """Wait for many generations, and give a result for each as it ends.

        ::

            async with poller.as_completed(ids) as results:
                async for result in results:
                    ...

        Leaving the block cancels the waits that are under way. A failure of one is its result, and
        disturbs no other. What the iterable itself raises comes after the results of those before.

        Args:
            generations: What `wait` takes, many of it: any iterable or async iterable. They are
                taken one by one, as there is room, so there may be more than fit into memory. An
                id that is there twice has two results. An async generator is closed at the end.
            timeout: Seconds for each wait, from when it begins; None for no limit; by default
                that of the poller.
            limit: Waits that are under way, or that have ended and whose result has not been
                taken; None for no limit.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        wait = self._waiter(generations, timeout, limit)

        async def wait_for(number: int, generation: AnyGeneration) -> PollResult:
            return await wait(generation)

        return run_each(wait_for, generations, limit)

    async def wait_all(
        self,
        generations: Iterable[AnyGeneration] | AsyncIterable[AnyGeneration],
        *,
        timeout: float | EllipsisType | None = ...,
        limit: int | None = 1000,
    ) -> list[PollResult]:
        """Wait for many generations, and return a result for each, in the order given.

        A failure of one is its result, and disturbs no other. Takes the arguments of
        `as_completed`, which is the better choice where an interruption must not lose results.
        """
        wait = self._waiter(generations, timeout, limit)

        async def wait_for(number: int, generation: AnyGeneration) -> tuple[int, PollResult]:
            return number, await wait(generation)

        async with run_each(wait_for, generations, limit) as results:
            by_number = {number: result async for number, result in results}
        return [by_number[number] for number in range(len(by_number))]

    def _waiter(
        self, generations: object, timeout: float | EllipsisType | None, limit: object
    ) -> Callable[[AnyGeneration], Awaitable[PollResult]]:
        """Check the arguments of a batch; returns what waits for one of it."""
        if isinstance(generations, (str, bytes, BaseModel)) or not isinstance(
            generations, (Iterable, AsyncIterable)
        ):
            raise ConfigurationError(
                "generations must be an iterable of ids or snapshots, "
                f"not {type(generations).__name__}"
            )
        check_count("limit", limit)
        seconds = self._timeout if timeout is ... else check_positive("timeout", timeout)
        return partial(self._result, timeout=seconds)

    async def _result(self, generation: AnyGeneration, timeout: float | None) -> PollResult:
        """Wait for one; what goes wrong is part of the result."""
        name = str(getattr(generation, "id", generation)).strip()[:MAX_ID_LENGTH]
        last = None
        try:
            async with aclosing(self.watch(generation, timeout=timeout)) as snapshots:
                async for snapshot in snapshots:
                    last = snapshot
            assert last is not None, "watch ends with a terminal snapshot"
            last.raise_for_failure()
        except PollTimeoutError as error:
            return PollResult(name, error.last_generation, error)
        except GenerationError as error:
            return PollResult(name, error.generation, error)
        except Exception as error:
            return PollResult(name, last, error)
        return PollResult(name, last)

    def watch(
        self,
        generation: AnyGeneration,
        *,
        timeout: float | EllipsisType | None = ...,
    ) -> AsyncGenerator[Generation]:
        """Poll until the generation has ended; yield the first snapshot and every change of state.

        The last one is terminal; a failed one is yielded, not raised. Takes the arguments of
        `wait` and raises its errors, but for `GenerationError`, of which only
        `OutputNotFoundError` remains: completed without any output.
        """
        limit = self._timeout if timeout is ... else check_positive("timeout", timeout)
        snapshot = None
        if not isinstance(generation, (str, UUID)):
            snapshot = _handed_in(generation)
            generation = snapshot.id
        return self._watch(check_generation_id(generation), snapshot, limit)

    async def _watch(
        self, generation_id: str, snapshot: Generation | None, timeout: float | None
    ) -> AsyncGenerator[Generation]:
        state: str | None = None
        with self._joined(generation_id, snapshot) as stream:
            progress = stream.progress
            deadline = Deadline(anyio.current_time(), timeout)
            earlier_polls = progress.polls
            while True:
                latest = progress.latest
                if latest is not None and not latest.is_terminal and latest.state != state:
                    state = latest.state
                    yield latest
                now = anyio.current_time()
                if stream.request and progress.result is None and now < deadline.at:
                    await stream.wait_for_change(until=deadline.at)
                    continue
                polls = progress.polls - earlier_polls
                decision = decide(progress, deadline, self._quiet, now=now, attempts=polls)
                match decision:
                    case Sleep(until):
                        await stream.wait_for_change(until)
                    case Poll(due):
                        with anyio.CancelScope(deadline=deadline.at) as stream.request:
                            await self._ask(stream, due, deadline)
                    case Raise(error):
                        raise error
                    case Return(last):
                        break
        yield last

    @contextmanager
    def _joined(self, generation_id: str, snapshot: Generation | None) -> Iterator[_Stream]:
        now = anyio.current_time()
        if not self._quiet.holds(now):
            self._quiet = Quiet()
        stream = self._streams.get(generation_id)
        if stream is None:
            stream = _Stream(Progress(generation_id, started=now))
            self._streams[generation_id] = stream
        stream.waits += 1
        try:
            if snapshot is not None:
                stream.progress.hand_in(snapshot, self._wait, now)
                self._settle(stream)
            yield stream
        finally:
            stream.waits -= 1
            if not stream.waits:
                self._forget(stream)

    async def _ask(self, stream: _Stream, due: float, deadline: Deadline) -> None:
        """Send one request, when its turn has come, and take its answer."""
        progress = stream.progress
        try:
            if not await self._limits.acquire(due):
                return
            try:
                now = anyio.current_time()
                if self._quiet.until > now:
                    return
                progress.begin_poll(now)
                answer = await self._get(progress.generation_id)
            finally:
                self._limits.release()
            now = anyio.current_time()
            self._keep_quiet(answer, now)
            progress.record(answer, self._wait, now)
            self._report(progress, answer, deadline, now)
        finally:
            stream.request = None
            self._settle(stream)

    async def _get(self, generation_id: str) -> Generation | APIError:
        try:
            found = await self._client.generations.get(generation_id)
            return as_generation(found, generation_id)
        except Exception as error:
            translated = translate_error(error, generation_id)
            if translated is None:
                raise
            if translated is not error:
                translated.__cause__ = error
            # It is an answer now: without its traceback it keeps no frames alive.
            return translated.with_traceback(None)

    def _keep_quiet(self, answer: Generation | APIError, now: float) -> None:
        """Heed `Retry-After` for all waits; those that it outlasts hear of it at once."""
        if not isinstance(answer, APIStatusError) or not answer.retryable:
            return
        until = now + (answer.retry_after or 0.0)
        longer_by = until - max(now, self._quiet.until)
        if longer_by > 0:
            self._quiet = Quiet(until, answer)
        if longer_by > 1.0:  # a flood of 429s must not wake everybody each time
            self._limits.put_off()
            for stream in self._streams.values():
                stream.notify()

    def _settle(self, stream: _Stream) -> None:
        """After a change: an ended generation is polled anew by the next wait for it."""
        if stream.progress.result is not None:
            self._forget(stream)
            if stream.request is not None:
                stream.request.cancel()  # what it asks is known
        stream.notify()

    def _forget(self, stream: _Stream) -> None:
        generation_id = stream.progress.generation_id
        if self._streams.get(generation_id) is stream:
            del self._streams[generation_id]

    def _report(
        self, progress: Progress, answer: Generation | APIError, deadline: Deadline, now: float
    ) -> None:
        """Log the poll, and call `on_poll`."""
        generation, error = (answer, None) if isinstance(answer, Generation) else (None, answer)
        if generation is not None:
            logger.debug("generation %s: %s", progress.generation_id, generation.state)
            if generation.state not in KNOWN_STATES | self._unknown_states:
                self._unknown_states.add(generation.state)
                logger.warning(
                    "generation %s is in a state that luma-poll does not know, %r: polling on",
                    progress.generation_id,
                    generation.state,
                )
        elif progress.result is None:
            logger.info("polling on after: %s", error)
        if self._on_poll is None:
            return
        next_poll = None if progress.result is not None else progress.poll_at(deadline, self._quiet)
        event = PollEvent(
            generation_id=progress.generation_id,
            attempt=progress.polls,
            generation=generation,
            error=error,
            elapsed=now - progress.started,
            next_delay=None if next_poll is None else max(0.0, next_poll - now),
        )
        try:
            self._on_poll(event)
        except Exception:
            logger.exception("on_poll raised; generation %s is polled on", progress.generation_id)

    def __repr__(self) -> str:
        return f"Poller(generations={len(self._streams)})"


def _handed_in(value: object) -> Generation:
    try:
        return as_generation(value)
    except InvalidResponseError:
        raise ConfigurationError(
            "a generation is given by its id or by a snapshot with id and state, "
            f"not by {type(value).__name__}"
        ) from None


def _is_async(function: Any) -> bool:
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)


def _without_retries(client: SupportsGenerations) -> SupportsGenerations:
    """The schedule is the only retry, for the clients that we know to have their own."""
    libraries = {base.__module__.partition(".")[0] for base in type(client).__mro__}
    official = "luma_agents" in libraries
    if official and not iscoroutinefunction(client.generations.get):
        raise ConfigurationError("this client is synchronous: use luma_agents.AsyncLuma")
    if official or issubclass(type(client), LumaClient):
        without: SupportsGenerations = cast(Any, client).with_options(max_retries=0)
        return without
    return client
