"""The Poller: the wait behind every entry point."""

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
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Protocol, TypeAlias
from uuid import UUID

from pydantic import BaseModel

from luma_poll._api.answers import as_generation
from luma_poll._arguments import (
    MAX_ID_LENGTH,
    USE_DEFAULT,
    UseDefault,
    check_count,
    check_generation_id,
    check_positive,
    check_timeout,
    shown,
)
from luma_poll._polling.decisions import Poll, Raise, Return, Sleep
from luma_poll._polling.observers import is_async, on_each_poll
from luma_poll._polling.poll_result import PollResult
from luma_poll._polling.schedules import DEFAULT_WAIT, Schedule, scaled_by_environment
from luma_poll._polling.streams import Streams
from luma_poll._tasks.each import run_each, run_in_order
from luma_poll._texts import encodable
from luma_poll.errors import (
    ConfigurationError,
    GenerationError,
    InvalidResponseError,
    PollTimeoutError,
)
from luma_poll.events import Observer, PollEvent
from luma_poll.models import Generation, GenerationLike, GenerationOutput, field_of

AnyGeneration: TypeAlias = str | UUID | GenerationLike | Mapping[str, Any]
"""An id, or a snapshot of a generation, such as `create` returns (ours or the SDK's).

A mapping is a snapshot as JSON, such as a line of the command line's `--json`.
"""


class SupportsGet(Protocol):
    """The `generations` of a client that can get them by id."""

    def get(self, generation_id: str, /) -> Awaitable[Any]:
        """Fetch one snapshot of a generation."""
        ...


class SupportsGenerations(Protocol):
    """A client that a `Poller` can use: `LumaClient`, the official `AsyncLuma`, or your own."""

    @property
    def generations(self) -> SupportsGet:
        """The generations of the API."""
        ...


class Poller:
    """A poller that waits for generations. Make one and share it: its limits cover all its waits.

        outputs = await Poller(client).wait(generation_id, timeout=300)

    Args:
        client: A `LumaClient`, the official SDK's `AsyncLuma`, or any object whose
            `generations.get(id)` can be awaited for an object with `id` and `state`. The Poller
            turns off the retries of the first two, because its schedule retries.
        wait: The schedule, as a tenacity wait strategy; by default `DEFAULT_WAIT`.
        timeout: Seconds that a wait may take by default; None for no limit.
        max_in_flight: The most requests under way at the same time; None for no limit.
        max_rate: The most requests started per second; None for no limit. The API refuses
            "thousands per minute"; the default of 30 per second is 1,800 per minute.
        on_poll: A function (not async), called with a `PollEvent` after every poll. If it raises,
            the exception is logged and dropped.

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
        on_poll: Callable[[PollEvent], None] | None = None,
    ) -> None:
        if not callable(getattr(getattr(client, "generations", None), "get", None)):
            raise ConfigurationError(f"{type(client).__name__} has no generations.get")
        if wait is not None and not callable(wait):
            raise ConfigurationError(f"wait must be a tenacity wait strategy, not {shown(wait)}")
        if on_poll is not None and (not callable(on_poll) or is_async(on_poll)):
            raise ConfigurationError(
                f"on_poll must be a function (not async), not {shown(on_poll)}"
            )
        client = without_retries(client)

        async def get(generation_id: str) -> Any:
            return await client.generations.get(generation_id)

        self._timeout = check_positive("timeout", timeout)
        self._streams = Streams(
            get,
            scaled_by_environment(DEFAULT_WAIT if wait is None else wait),
            check_count("max_in_flight", max_in_flight),
            check_positive("max_rate", max_rate),
        )
        if on_poll is not None:
            self.observe(on_each_poll(on_poll))

    @property
    def timeout(self) -> float | None:
        """The seconds that a wait may take by default; None for no limit."""
        return self._timeout

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call a function with every event of the waits that begin from now on.

            stop = poller.observe(print)

        Args:
            observer: A function (not async), called with the events of `luma_poll.events`. If it
                raises, the exception is logged and dropped.

        Returns:
            A function that stops observing. Waits that are under way are observed to their end.

        Raises:
            ConfigurationError: `observer` is not a function, or is async.
        """
        return self._streams.observers.add(observer)

    async def wait(
        self,
        generation: AnyGeneration,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
    ) -> list[GenerationOutput]:
        """Poll until the generation has ended, and return its outputs.

            outputs = await poller.wait(generation_id, timeout=300)
            print(outputs[0].url)

        Args:
            generation: The id, or a snapshot (from `create`, ours or the official SDK's), which
                then counts as the first answer.
            timeout: Seconds that the wait may take; None for no limit; by default the poller's
                timeout.

        Returns:
            The outputs, at least one. Their URLs work for an hour.

        Raises:
            GenerationError: The generation failed; the class says why.
            PollTimeoutError: The timeout came first; the generation keeps running: wait again.
            APIError: The API refuses for good (400, 401, 402, 403, 404, ...).
            ConfigurationError: An argument is unusable; nothing was sent.
        """
        return (await self._result(generation, check_timeout(timeout, self._timeout))).outputs

    def as_completed(
        self,
        generations: Iterable[AnyGeneration] | AsyncIterable[AnyGeneration],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        limit: int | None = 1000,
    ) -> AbstractAsyncContextManager[AsyncIterator[PollResult]]:
        """Wait for many generations, and yield a result for each as it ends.

            async with poller.as_completed(ids) as results:
                async for result in results:
                    ...

        Leaving the block cancels the waits that are under way. A failure affects only its own
        result. If the iterable itself raises, its exception comes after the results of the items
        before.

        Args:
            generations: An iterable or async iterable of ids or snapshots, as for `wait`. They are
                taken one by one, as there is room, so there may be more than fit into memory. An
                id that is given twice has two results. An async generator is closed at the end.
            timeout: Seconds for each wait, from its beginning; None for no limit; by default the
                poller's timeout.
            limit: The most waits that are under way, or whose result you have not read yet; None
                for no limit.

        Returns:
            An async context manager with an async iterator over the results.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        return run_each(self._waiter(generations, timeout, limit), generations, limit)

    async def wait_all(
        self,
        generations: Iterable[AnyGeneration] | AsyncIterable[AnyGeneration],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        limit: int | None = 1000,
    ) -> list[PollResult]:
        """Wait for many generations, and return a result for each, in the order given.

        A failure affects only its own result. Use `as_completed` if an interruption must not lose
        the results so far.

            for result in await poller.wait_all(ids):
                print(result.generation_id, result.error or result.outputs[0].url)

        Args:
            generations: Ids or snapshots, as for `as_completed`.
            timeout: Seconds for each wait, from its beginning; None for no limit; by default the
                poller's timeout.
            limit: The most waits under way at the same time; None for no limit.

        Returns:
            The results, in the order of `generations`.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        wait = self._waiter(generations, timeout, limit)
        return await run_in_order(wait, generations, limit, lambda result: (result.generation_id,))

    def _waiter(
        self, generations: object, timeout: float | UseDefault | None, limit: object
    ) -> Callable[[AnyGeneration], Awaitable[PollResult]]:
        """Check the arguments of a batch; return the function that waits for one generation."""
        is_one = isinstance(generations, (str, bytes, BaseModel)) or _is_snapshot(generations)
        if is_one or not isinstance(generations, (Iterable, AsyncIterable)):
            raise ConfigurationError(
                "generations must be an iterable of ids or snapshots, "
                f"not {type(generations).__name__}"
            )
        check_count("limit", limit)
        return partial(self._result, timeout=check_timeout(timeout, self._timeout))

    async def _result(self, generation: AnyGeneration, timeout: float | None) -> PollResult:
        """Wait for one generation; any failure is part of the result."""
        name = _name_of(generation)
        seen: list[Generation] = []
        try:
            last = await last_of(self.watch(generation, timeout=timeout), seen.append)
            last.raise_for_failure()
        except PollTimeoutError as error:
            return PollResult(name, error.last_generation, error)
        except GenerationError as error:
            return PollResult(name, error.generation, error)
        except Exception as error:
            return PollResult(name, seen[-1] if seen else None, error)
        return PollResult(name, last)

    def watch(
        self,
        generation: AnyGeneration,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
    ) -> AsyncGenerator[Generation]:
        """Poll until the generation has ended; yield the first snapshot and every change of state.

        The last snapshot is terminal; one that failed is yielded, not raised.

            async for generation in poller.watch(generation_id):
                print(generation.state)

        Args:
            generation: The id, or a snapshot, which then counts as the first answer.
            timeout: Seconds that the wait may take; None for no limit; by default the poller's
                timeout.

        Yields:
            Snapshots. This wait sends no requests while you process one.

        Raises:
            OutputNotFoundError: The generation completed without any output.
            PollTimeoutError: The timeout came first; the generation keeps running: wait again.
            APIError: The API refuses for good (400, 401, 402, 403, 404, ...).
            ConfigurationError: An argument is unusable; nothing was sent.
        """
        seconds = check_timeout(timeout, self._timeout)
        generation_id, snapshot = _resolved(generation)
        return self._watch(generation_id, snapshot, seconds)

    async def _watch(
        self, generation_id: str, snapshot: Generation | None, timeout: float | None
    ) -> AsyncGenerator[Generation]:
        streams = self._streams
        state: str | None = None
        with streams.join(generation_id, snapshot, timeout) as waiter:
            while True:
                latest = waiter.stream.progress.latest
                if latest is not None and not latest.is_terminal and latest.state != state:
                    state = latest.state
                    # The caller may take an hour for this snapshot. Meanwhile another wait asks, so
                    # that the others do not have to wait for this one's caller.
                    with waiter.away():
                        yield latest
                    continue  # there may be news by now
                match waiter.decide(streams.quiet):
                    case Sleep(until):
                        # If another wait asks, until the deadline: news wakes this one.
                        await waiter.sleep(until)
                    case Poll(due):
                        # It asks for all waits of the stream, and may end without an answer.
                        await streams.poll(waiter, due)
                    case Raise(error):
                        raise error
                    case Return(last):
                        break
        # Outside the `with`: inside, a wait that has ended would stay in the stream for as long as
        # the caller takes for this last snapshot.
        yield last

    def _set_max_rate(self, max_rate: float | None) -> None:
        """Change the rate, for a fleet that divides its own among the workers that are alive."""
        self._streams.set_max_rate(max_rate)

    def __repr__(self) -> str:
        return f"Poller({self._streams.summary()})"


def _name_of(generation: object) -> str:
    """Return the id, or a text for what was given if that is not a valid id."""
    if isinstance(generation, Mapping):  # only its id: the rest may have signed URLs
        name = generation.get("id")
    else:
        name = getattr(generation, "id", generation)
    return encodable(shown(name, str).strip()[:MAX_ID_LENGTH])


def _is_snapshot(value: object) -> bool:
    return isinstance(value, Mapping) and "id" in value and "state" in value


def _resolved(generation: AnyGeneration) -> tuple[str, Generation | None]:
    """Return the id, and the snapshot if one was given."""
    if isinstance(generation, (str, UUID)):
        return check_generation_id(generation), None
    try:
        snapshot = as_generation(generation)
    except InvalidResponseError:
        if isinstance(field_of(generation, "state"), str):  # a snapshot with a damaged field: ask
            return check_generation_id(field_of(generation, "id")), None
        raise ConfigurationError(
            "a generation is given by its id or by a snapshot with id and state, "
            f"not by {type(generation).__name__}"
        ) from None
    return check_generation_id(snapshot.id), snapshot


async def last_of(
    snapshots: AsyncGenerator[Generation], see: Callable[[Generation], object] | None = None
) -> Generation:
    """Return the last of the snapshots of a `watch`, which is terminal, after `see` for each."""
    last = None
    async with aclosing(snapshots):
        async for last in snapshots:
            if see is not None:
                see(last)
    assert last is not None, "watch ends with a terminal snapshot"
    return last


def without_retries(client: SupportsGenerations) -> SupportsGenerations:
    """Turn off the retries of the clients that are known to have some: the schedule retries.

    They are recognised by the packages of their classes, because a poller imports no client.
    """
    packages = {base.__module__.partition(".")[0] for base in type(client).__mro__}
    if "luma_agents" in packages and not iscoroutinefunction(client.generations.get):
        raise ConfigurationError("this client is synchronous: use luma_agents.AsyncLuma")
    with_options: Any = getattr(client, "with_options", None)
    if with_options is None or packages.isdisjoint(("luma_agents", "luma_poll")):
        return client
    view: SupportsGenerations = with_options(max_retries=0)
    return view
