"""The Session: a client, a poller and a Runner for threads."""

from __future__ import annotations

import os
import weakref
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack
from uuid import UUID

from luma_poll._api.parameters import CreateParams, SupportsRead, SupportsSave, explicit
from luma_poll._arguments import USE_DEFAULT, UseDefault
from luma_poll._client.client import LumaClient
from luma_poll._client.uploads import UploadProgress
from luma_poll._downloads.download import Downloadable
from luma_poll._downloads.output import DownloadProgress
from luma_poll._downloads.saving import Overwrite
from luma_poll._journal.journal import Journal
from luma_poll._polling.poll_result import PollResult
from luma_poll._polling.poller import AnyGeneration, Poller
from luma_poll._polling.schedules import Schedule
from luma_poll._running.requests import AnyRequest
from luma_poll._running.run_result import RunResult
from luma_poll._running.runner import Runner
from luma_poll._sync.call import Call, SyncIterator
from luma_poll._sync.portal import Portal, refuse_in_event_loop
from luma_poll.events import Observer, PollEvent, RunStateChanged, RunSubmitted
from luma_poll.models import Generation, GenerationOutput

A = TypeVar("A")
T = TypeVar("T")


class Session:
    """A `LumaClient`, a `Poller` and a `Runner` for threads. Make one per process.

    All threads share its limits, and what it learns about the account:

        with Session(max_submissions=100) as session:
            for result in session.run_as_completed(["a red fox", "a grey owl"]):
                print(result.request, result.error or result.outputs[0].url)

    Its event loop runs in a thread of its own, from the first call to `close`. A forked process
    does not have that thread: make a session in each process. Callbacks and observers are called
    in that thread, and hold up all waits while they run.

    Args:
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL, including `/v1`; by default the environment variable LUMA_BASE_URL,
            else https://agents.lumalabs.ai/v1.
        request_timeout: Seconds that one request may take; None for no limit.
        max_retries: How often a request is repeated after a transient failure.
        wait: The schedule, as a tenacity wait strategy; by default `DEFAULT_WAIT`.
        timeout: Seconds that a wait may take by default; None for no limit.
        max_in_flight: The most polls under way at the same time; None for no limit.
        max_rate: The most polls started per second; None for no limit.
        max_running: The most generations under way at once; None for as many as the account allows.
        max_attempts: How often one request may be submitted in all, if its generation failed with
            a retryable error; each attempt is billed.
        max_submissions: The most submissions in all; None for no limit.
        journal: A file that records the submissions; see `Journal`. Close the session before it.
        on_poll: A function, called with a `PollEvent` after every poll.
        on_submit: A function, called with a `RunSubmitted` as soon as a run has an id.
        on_state: A function, called with a `RunStateChanged` at each change of a run's state.

    Raises:
        ConfigurationError: There is no API key, or an argument is unusable. Each method raises it
            if an event loop runs in the thread, after `close`, and after a fork of the process.
    """

    def __init__(
        self,
        auth_token: str | None = None,
        *,
        base_url: str | None = None,
        request_timeout: float | None = 30.0,
        max_retries: int = 2,
        wait: Schedule | None = None,
        timeout: float | None = 600.0,
        max_in_flight: int | None = 64,
        max_rate: float | None = 30.0,
        max_running: int | None = None,
        max_attempts: int = 1,
        max_submissions: int | None = None,
        journal: Journal | None = None,
        on_poll: Callable[[PollEvent], None] | None = None,
        on_submit: Callable[[RunSubmitted], object] | None = None,
        on_state: Callable[[RunStateChanged], object] | None = None,
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
        self._runner = Runner(
            self._client,
            self._poller,
            max_running=max_running,
            max_attempts=max_attempts,
            max_submissions=max_submissions,
            journal=journal,
            on_submit=on_submit,
            on_state=on_state,
        )
        self._portal = Portal(type(self).__name__, self._client)
        weakref.finalize(self, self._portal.close_soon).atexit = False

    def __repr__(self) -> str:
        return self._portal.read(lambda: repr(self._poller).replace("Poller", "Session", 1))

    def __enter__(self) -> Self:
        refuse_in_event_loop("async with LumaClient() as client")
        self._portal.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all calls that are under way, in other threads, too, with a `ConfigurationError`.

        A submission under way is finished first, within `request_timeout`. `outstanding` has the
        ids of what still runs. A second call does nothing.
        """
        self._portal.close()

    @property
    def outstanding(self) -> dict[str, AnyRequest]:
        """The ids whose end has not been seen, with their requests: `Runner.outstanding`."""
        return self._portal.read(lambda: self._runner.outstanding)

    @property
    def runner(self) -> Runner:
        """The `Runner` behind it, for `luma_poll.opentelemetry.instrument` and for its poller."""
        return self._runner

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Call a function with every event of the waits and runs: `Runner.observe`."""
        return self._runner.observe(observer)

    def get(self, generation_id: str | UUID) -> Generation:
        """Fetch one snapshot of a generation: `client.generations.get`.

        Raises:
            ConfigurationError: The id is invalid; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        return self._call(
            "await client.generations.get(...)",
            lambda _: self._client.generations.get(generation_id),
        )

    @explicit
    def create(self, /, prompt: str | None = None, **params: Unpack[CreateParams]) -> Generation:
        """Submit a generation, and return its first snapshot: `client.generations.create`.

        Returns:
            The first snapshot, usually `queued`. An interruption, such as Ctrl-C, loses the id,
            with a warning in the log; `run` does not lose it.

        Raises:
            ConfigurationError: A parameter is unusable; nothing was sent.
            APIError: The API could not be reached, or refused.
        """
        return self._call(
            "await client.generations.create(...)",
            lambda _: self._client.generations.create(prompt, **params),
        )

    def wait(
        self, generation: AnyGeneration, *, timeout: float | UseDefault | None = USE_DEFAULT
    ) -> list[GenerationOutput]:
        """Poll until the generation has ended, and return its outputs: `Poller.wait`.

        Raises:
            GenerationError: The generation failed; the class says why.
            PollTimeoutError: The timeout came first; the generation keeps running: wait again.
            APIError: The API refuses for good.
            ConfigurationError: An argument is unusable, or the session was closed meanwhile.
        """
        return self._call(
            "await poller.wait(...)", lambda _: self._poller.wait(generation, timeout=timeout)
        )

    def watch(
        self, generation: AnyGeneration, *, timeout: float | UseDefault | None = USE_DEFAULT
    ) -> SyncIterator[Generation]:
        """Yield the first snapshot and every change of state until the end: `Poller.watch`.

            for generation in session.watch(generation_id):
                print(generation.state)

        Raises:
            ConfigurationError: An argument is unusable. The iterator raises what `wait` does,
                except for a failed generation, which it yields.
        """
        snapshots = self._poller.watch(generation, timeout=timeout)
        return self._iterate(
            "async for generation in poller.watch(...)", lambda _: aclosing(snapshots)
        )

    def wait_all(
        self,
        generations: Iterable[AnyGeneration],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        limit: int | None = 1000,
    ) -> list[PollResult]:
        """Wait for many generations, and return a result for each: `Poller.wait_all`.

        The iterable is read in this thread, item by item, and may itself call this session.

        Raises:
            ConfigurationError: An argument is unusable, or the session was closed meanwhile.
        """
        self._poller.as_completed(generations, timeout=timeout, limit=limit)  # checks them
        source = _source_of(generations)
        return self._call(
            "await poller.wait_all(...)",
            lambda call: self._poller.wait_all(source(call), timeout=timeout, limit=limit),
        )

    def as_completed(
        self,
        generations: Iterable[AnyGeneration],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        limit: int | None = 1000,
    ) -> SyncIterator[PollResult]:
        """Wait for many generations, and yield a result for each as it ends: `Poller.as_completed`.

        Leaving the loop cancels the waits that are under way. If you keep the iterator, use
        `with session.as_completed(ids) as results`. The iterable is read in this thread, item by
        item, as there is room, but not while you process a result.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        results = partial(self._poller.as_completed, timeout=timeout, limit=limit)
        return self._each("async with poller.as_completed(...) as results", generations, results)

    @explicit
    def run(
        self,
        prompt: str | None = None,
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        key: str | None = None,
        **params: Unpack[CreateParams],
    ) -> Generation:
        """Submit a generation as soon as there is room, and wait for its end: `Runner.run`.

            generation = session.run("a red fox", model="uni-1", timeout=300)
            print(generation.outputs[0].url)

        After Ctrl-C, a submission under way is finished first, so that `outstanding` has its id.

        Raises:
            GenerationError: The generation failed; the class says why.
            PollTimeoutError: The timeout came first; the generation keeps running: wait by its id.
            SubmissionLimitError: `max_submissions` is reached; nothing was sent.
            SubmissionUnknownError: An earlier submission of this key may have been accepted;
                nothing was sent.
            JournalError: The journal cannot be written; nothing was sent.
            APIError: The submission or the wait failed.
            ConfigurationError: An argument is unusable, or the session was closed meanwhile.
        """
        return self._call(
            "await runner.run(...)",
            lambda _: self._runner.run(prompt, timeout=timeout, key=key, **params),
        )

    def run_all(
        self,
        requests: Iterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        download: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> list[RunResult]:
        """Run many requests, and return a result for each, in the order given: `Runner.run_all`.

        Raises:
            ConfigurationError: An argument is unusable, or the session was closed meanwhile.
        """
        options: Any = {"timeout": timeout, "download": download, "name": name}
        self._runner.as_completed(requests, **options)  # checks them
        source = _source_of(requests)
        return self._call(
            "await runner.run_all(...)", lambda call: self._runner.run_all(source(call), **options)
        )

    def run_as_completed(
        self,
        requests: Iterable[AnyRequest],
        *,
        timeout: float | UseDefault | None = USE_DEFAULT,
        download: str | os.PathLike[str] | None = None,
        name: str | None = None,
    ) -> SyncIterator[RunResult]:
        """Run many requests, and yield a result for each as it ends: `Runner.as_completed`.

        Leaving the loop stops submitting and cancels the waits. What was submitted keeps running;
        `outstanding` has the ids.

        Raises:
            ConfigurationError: An argument is unusable.
        """
        results = partial(self._runner.as_completed, timeout=timeout, download=download, name=name)
        return self._each("async with runner.as_completed(...) as results", requests, results)

    def upload(
        self,
        path_or_file: str | os.PathLike[str] | bytes | SupportsRead | SupportsSave,
        *,
        progress: Callable[[UploadProgress], object] | None = None,
        timeout: float | None = 3600.0,
    ) -> str:
        """Upload an image or a video, and wait until it can be used: `client.files.upload`.

        Returns:
            The `file_id`.

        Raises:
            ConfigurationError: The file cannot be read, is empty, or of no known type.
            UploadError: The file was not accepted, or not in time. Uploads cost nothing.
            APIError: The API refused it, or could not be reached.
        """
        return self._call(
            "await client.files.upload(...)",
            lambda _: self._client.files.upload(path_or_file, progress=progress, timeout=timeout),
        )

    def download(
        self,
        generation: Downloadable,
        directory_or_file: str | os.PathLike[str],
        *,
        name: str | None = None,
        key: str | None = None,
        overwrite: Overwrite = False,
        timeout: float | None = 600.0,
        max_bytes: int | None = 2 * 1024**3,
        on_progress: Callable[[DownloadProgress], object] | None = None,
    ) -> list[Path]:
        """Fetch the outputs of a completed generation into files: `LumaClient.download`.

        Raises:
            ConfigurationError: An argument is unusable, or the session was closed meanwhile.
            GenerationError: The generation failed, or completed without output.
            DownloadError: A file could not be written, or was not fetched in time.
            APIError: The API says that the generation is gone, or refuses the key.
        """
        return self._call(
            "await client.download(...)",
            lambda _: self._client.download(
                generation,
                directory_or_file,
                name=name,
                key=key,
                overwrite=overwrite,
                timeout=timeout,
                max_bytes=max_bytes,
                on_progress=on_progress,
            ),
        )

    def read(
        self,
        generation: Downloadable,
        *,
        timeout: float | None = 600.0,
        max_bytes: int | None = 256 * 1024**2,
    ) -> list[bytes]:
        """Fetch the outputs of a completed generation into memory: `LumaClient.read`.

        Raises:
            DownloadError: An output is larger than `max_bytes`, or was not fetched in time.
            ConfigurationError: An argument is unusable, or the session was closed meanwhile.
        """
        return self._call(
            "await client.read(...)",
            lambda _: self._client.read(generation, timeout=timeout, max_bytes=max_bytes),
        )

    def _call(self, instead: str, function: Callable[[Call[T]], Awaitable[T]]) -> T:
        refuse_in_event_loop(instead)
        return Call(self._portal, function).result()

    def _each(
        self,
        instead: str,
        items: Iterable[A],
        results: Callable[[Any], AbstractAsyncContextManager[AsyncIterator[T]]],
    ) -> SyncIterator[T]:
        results(items)  # checks the arguments
        source = _source_of(items)
        return self._iterate(instead, lambda call: results(source(call)))

    def _iterate(
        self,
        instead: str,
        open_items: Callable[[Call[None]], AbstractAsyncContextManager[AsyncIterator[T]]],
    ) -> SyncIterator[T]:
        refuse_in_event_loop(instead)
        self._portal.check()
        return SyncIterator(self._portal, open_items, owner=self)


def _source_of(items: Iterable[A]) -> Callable[[Call[Any]], Iterable[A] | AsyncIterable[A]]:
    """Return the items for the loop: a list as it is, because a Runner looks through it first.

    Any other iterable is read in the thread of the call, item by item.
    """
    if not isinstance(items, Sequence):
        return lambda call: call.pull(items)
    given = list(items)
    return lambda _: given
