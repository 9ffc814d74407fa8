"""The public SyncPoller: a poller and its client for threads."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack
from uuid import UUID

import anyio

from luma_poll._api.parameters import CreateParams
from luma_poll._arguments import USE_DEFAULT, UseDefault
from luma_poll._client.client import LumaClient
from luma_poll._downloads.output import MAX_BYTES, DownloadProgress
from luma_poll._logging import fields, logger
from luma_poll._polling.poll_result import PollResult
from luma_poll._polling.poller import MAX_RATE, TIMEOUT, AnyGeneration, Poller
from luma_poll._polling.schedules import Schedule
from luma_poll._sync.call import Call, SyncIterator
from luma_poll._sync.portal import Portal, refuse_in_event_loop
from luma_poll.events import PollEvent
from luma_poll.models import Generation, GenerationLike, GenerationOutput

T = TypeVar("T")


class SyncPoller:
    """A `Poller` and its `LumaClient`, for threads. Make one for each process and share it.

    Its limits hold over all threads, and waits for the same id share one stream of requests:

        with SyncPoller() as poller:
            generation = poller.create("a red fox in fresh snow", model="uni-1")
            print(poller.wait(generation)[0].url)

    Its event loop runs in a thread of its own, from the first call to `close`. After a fork that
    thread is missing: make a poller in each process. Callbacks such as `on_poll` are called in
    that thread, and hold up all waits while they run.

    Args:
        auth_token: The API key; by default that of the environment, LUMA_AGENTS_API_KEY.
        base_url: By default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1. Includes `/v1`.
        request_timeout: Seconds that one request may take; None for no limit.
        max_retries: How often `get`, `create` and `download` repeat a request after a transient
            failure. During a wait the schedule is the only retry.
        wait: The schedule: a tenacity wait strategy; by default `DEFAULT_WAIT`.
        timeout: Seconds that a wait may take, unless it says otherwise; None for no limit.
        max_in_flight: Polls under way at the same time; None for no limit.
        max_rate: Polls started per second; None for no limit.
        on_poll: Called with a `PollEvent` after every poll.

    Raises:
        ConfigurationError: There is no API key, or an argument is unusable. Each method raises it
            where an event loop runs in the thread, after `close`, and after a fork of the process.
    """

    def __init__(
        self,
        auth_token: str | None = None,
        *,
        base_url: str | None = None,
        request_timeout: float | None = 30.0,
        max_retries: int = 2,
        wait: Schedule | None = None,
        timeout: float | None = TIMEOUT,
        max_in_flight: int | None = 64,
        max_rate: float | None = MAX_RATE,
        on_poll: Callable[[PollEvent], None] | None = None,
    ) -> None:
        self._client = LumaClient(
            auth_token, base_url=base_url, timeout=request_timeout, max_retries=max_retries
        )
        self._poller = Poller(
            self._client,
            wait=wait,
            timeout=timeout,
            max_in_flight=max_in_flight,
            max_rate=max_rate,
            on_poll=on_poll,
        )
        self._portal = Portal(type(self).__name__, self._client)
        weakref.finalize(self, self._portal.close_soon).atexit = False

    def __repr__(self) -> str:
        return f"Sync{self._portal.read(lambda: repr(self._poller))}"

    def __enter__(self) -> Self:
        refuse_in_event_loop("async with LumaClient() as client")
        self._portal.check()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the waits that are under way, in other threads too, with a `ConfigurationError`.

        Then the connections, the event loop and its thread end. Harmless if it is closed.
        """
        self._portal.close()

    def wait(
        self, generation: AnyGeneration, *, timeout: float | UseDefault | None = USE_DEFAULT
    ) -> list[GenerationOutput]:
        """Poll until the generation has ended, and return its outputs: `Poller.wait`.

        Args:
            generation: Its id, or a snapshot of it (from `create`, ours or the official SDK's).
            timeout: Seconds; None for no limit; by default that of the poller.

        Returns:
            The outputs, at least one. Their URLs work for an hour.

        Raises:
            GenerationError: It failed; the class says why.
            PollTimeoutError: The deadline came first. It may still finish: wait again by id.
            APIError: The API refuses for good (400, 401, 402, 403, 404, ...).
            ConfigurationError: An argument is unusable, or the poller was closed meanwhile.
        """
        return self._call(
            "await poller.wait(...)", lambda _: self._poller.wait(generation, timeout=timeout)
        )

    def wait_all(
        self,
        generations: Iterable[AnyGeneration],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        limit: int | None = 1000,
    ) -> list[PollResult]:
        """Wait for many generations, and return a result for each: `Poller.wait_all`.

            for result in poller.wait_all(ids):
                print(result.generation_id, result.error or result.outputs[0].url)

        Args:
            generations: Ids or snapshots: any iterable. It is read in this thread, one by one.
            timeout: Seconds for each wait, from when it begins; None for no limit; by default
                that of the poller.
            limit: Waits that are under way at the same time; None for no limit.

        Returns:
            The results, in the order of `generations`. A failure is the result of its own.

        Raises:
            ConfigurationError: An argument is unusable, or the poller was closed meanwhile.
        """
        self._poller.as_completed(generations, timeout=timeout, limit=limit)  # checks them
        return self._call(
            "await poller.wait_all(...)",
            lambda call: self._poller.wait_all(
                call.pull(generations), timeout=timeout, limit=limit
            ),
        )

    def as_completed(
        self,
        generations: Iterable[AnyGeneration],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        limit: int | None = 1000,
    ) -> SyncIterator[PollResult]:
        """Wait for many generations, and yield a result for each as it ends.

            for result in poller.as_completed(ids):
                print(result.generation_id, result.ok)

        Leaving the loop cancels the waits that are under way; so does leaving a block
        `with poller.as_completed(ids) as results`, also where `results` is kept.

        Args:
            generations: Ids or snapshots: any iterable, which may itself call this poller. It is
                read in this thread, one by one, as there is room; not while a result is processed.
            timeout: Seconds for each wait, from when it begins; None for no limit; by default
                that of the poller.
            limit: Waits that are under way, or that have ended but whose result has not been
                taken; None for no limit.

        Returns:
            An iterator over the results. The waits begin when the first one is asked for.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        self._poller.as_completed(generations, timeout=timeout, limit=limit)  # checks them
        return self._iterate(
            "async with poller.as_completed(...) as results",
            lambda call: self._poller.as_completed(
                call.pull(generations), timeout=timeout, limit=limit
            ),
        )

    def watch(
        self, generation: AnyGeneration, *, timeout: float | UseDefault | None = USE_DEFAULT
    ) -> SyncIterator[Generation]:
        """Poll until the generation has ended; yield the first snapshot and every change of state.

        The last one is terminal; a failed one is yielded, not raised.

            for generation in poller.watch(generation_id):
                print(generation.state)

        Args:
            generation: Its id, or a snapshot of it, which then counts as the first answer.
            timeout: Seconds; None for no limit; by default that of the poller.

        Returns:
            An iterator over snapshots. Nobody asks on its behalf while you process one.

        Raises:
            ConfigurationError: An argument is unusable. The iterator raises what `wait` does,
                but for the failure of the generation.
        """
        snapshots = self._poller.watch(generation, timeout=timeout)
        return self._iterate(
            "async for generation in poller.watch(...)", lambda _: aclosing(snapshots)
        )

    def get(self, generation_id: str | UUID) -> Generation:
        """Fetch one snapshot of a generation: `client.generations.get`.

        Args:
            generation_id: The id that `create` gave.

        Raises:
            ConfigurationError: The id cannot be one; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        return self._call(
            "await client.generations.get(...)",
            lambda _: self._client.generations.get(generation_id),
        )

    def create(self, /, prompt: str, **params: Unpack[CreateParams]) -> Generation:
        """Submit a generation; the answer is its first snapshot: `client.generations.create`.

        Args:
            prompt: What to make.
            params: The API's other parameters: `luma_poll.typing.CreateParams`.

        Returns:
            The first snapshot, usually `queued`. If it is interrupted, for example by Ctrl-C, the
            id is lost, and that is logged. `SyncRunner.run` does not lose it.

        Raises:
            ConfigurationError: The prompt is empty, or a parameter is not JSON; nothing was sent.
            APIError: The API could not be reached, or refused.
        """

        async def create(call: Call[Generation]) -> Generation:
            try:
                return await self._client.generations.create(prompt, **params)
            except anyio.get_cancelled_exc_class():
                logger.warning(
                    "a submission was interrupted: it may be running, and be billed. Look at the "
                    "usage of the account before you submit it again",
                    extra=fields(),
                )
                raise

        return self._call("await client.generations.create(...)", create)

    def download(
        self,
        generation: GenerationLike | str | UUID,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout: float | None = None,
        max_bytes: int | None = MAX_BYTES,
        overwrite: bool = False,
        on_progress: Callable[[DownloadProgress], object] | None = None,
    ) -> list[Path]:
        """Fetch the outputs of a completed generation into files: `LumaClient.download`.

        Args:
            generation: A completed generation, or the id of one.
            directory: Where to; it is made if it does not exist.
            name: The name of the files in place of the id: `{name}.png`, `{name}~2.png`. What is
                unsafe in it is replaced.
            timeout: Seconds for all of it; None for no limit.
            max_bytes: How large one file may be; None for no limit.
            overwrite: Fetch a file again even if one of the right size exists.
            on_progress: Called with a `DownloadProgress` after each piece that arrives.

        Returns:
            The files, in the order of the outputs.

        Raises:
            ConfigurationError: The generation has not ended, or an argument is unusable.
            GenerationError: It failed, or completed without output.
            DownloadError: A file could not be fetched or written, or not in time.
            APIError: The API refused a GET of the generation, or was out of reach.
        """
        return self._call(
            "await client.download(...)",
            lambda _: self._client.download(
                generation,
                directory,
                name=name,
                timeout=timeout,
                max_bytes=max_bytes,
                overwrite=overwrite,
                on_progress=on_progress,
            ),
        )

    def _call(self, instead: str, function: Callable[[Call[T]], Awaitable[T]]) -> T:
        refuse_in_event_loop(instead)
        return Call(self._portal, function).result()

    def _iterate(
        self,
        instead: str,
        open_items: Callable[[Call[None]], AbstractAsyncContextManager[AsyncIterator[T]]],
    ) -> SyncIterator[T]:
        refuse_in_event_loop(instead)
        self._portal.check()
        return SyncIterator(self._portal, open_items, owner=self)
