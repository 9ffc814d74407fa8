"""luma-poll in programs without an event loop: scripts, threads, Celery, Django, Flask.

The functions make one call each. A process that makes many should use one `Session`, which keeps
the connections, and whose limits all threads share:

    from luma_poll import sync

    outputs = sync.wait("182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e", timeout=300)

These run the async `Poller`, `Runner` and `LumaClient`, with an event loop in a thread of its own,
and raise the same errors. In a thread with an event loop of its own they refuse: use those three.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from luma_poll._api.parameters import CreateParams, SupportsRead, SupportsSave, explicit
from luma_poll._client.uploads import UploadProgress
from luma_poll._downloads.download import Downloadable
from luma_poll._downloads.output import DownloadProgress
from luma_poll._downloads.saving import Overwrite
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.poll_result import PollResult
from luma_poll._polling.poller import AnyGeneration
from luma_poll._polling.schedules import Schedule
from luma_poll._running.requests import AnyRequest
from luma_poll._running.run_result import RunResult
from luma_poll._running.runner import REQUEST_COST
from luma_poll._sync.call import SyncIterator
from luma_poll._sync.portal import refuse_in_event_loop
from luma_poll._sync.session import Session
from luma_poll.errors import LumaError
from luma_poll.events import PollEvent, RunSubmitted
from luma_poll.models import Generation, GenerationOutput

__all__ = [
    "Session",
    "SyncIterator",
    "download",
    "read",
    "run",
    "run_all",
    "upload",
    "wait",
    "wait_all",
]


def wait(
    generation: AnyGeneration,
    *,
    timeout: float | None = 600.0,
    wait: Schedule | None = None,
    on_poll: Callable[[PollEvent], None] | None = None,
    auth_token: str | None = None,
    base_url: str | None = None,
) -> list[GenerationOutput]:
    """Poll until the generation has ended, and return its outputs.

        outputs = sync.wait("182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e", timeout=300)

    Args:
        generation: The id, or a snapshot, such as the official SDK's.
        timeout: Seconds that the wait may take; None for no limit.
        wait: The schedule, as a tenacity wait strategy; by default `DEFAULT_WAIT`.
        on_poll: A function, called with a `PollEvent` after every poll, in another thread.
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL; by default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1.

    Returns:
        The outputs, at least one. Their URLs work for an hour.

    Raises:
        GenerationError: The generation failed; the class says why.
        PollTimeoutError: The timeout came first; the generation keeps running: wait by its id.
        APIError: The API refuses for good (400, 401, 402, 403, 404, ...).
        ConfigurationError: An argument is unusable, or an event loop runs in this thread.
    """
    refuse_in_event_loop("await poller.wait(...)")
    with Session(auth_token, base_url=base_url, wait=wait, on_poll=on_poll) as session:
        return session.wait(generation, timeout=timeout)


def wait_all(
    generations: Iterable[AnyGeneration],
    *,
    timeout: float | None = 600.0,
    limit: int | None = 1000,
    wait: Schedule | None = None,
    on_poll: Callable[[PollEvent], None] | None = None,
    auth_token: str | None = None,
    base_url: str | None = None,
) -> list[PollResult]:
    """Wait for many generations, and return a result for each, in the order given.

        for result in sync.wait_all(ids):
            print(result.generation_id, result.error or result.outputs[0].url)

    Args:
        generations: An iterable of ids or snapshots.
        timeout: Seconds for each wait; None for no limit.
        limit: The most waits under way at the same time; None for no limit.
        wait: The schedule, as a tenacity wait strategy; by default `DEFAULT_WAIT`.
        on_poll: A function, called with a `PollEvent` after every poll, in another thread.
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL; by default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1.

    Returns:
        The results, in the order of `generations`. A failure affects only its own result.

    Raises:
        ConfigurationError: An argument is unusable, or an event loop runs in this thread.
    """
    refuse_in_event_loop("await poller.wait_all(...)")
    with Session(auth_token, base_url=base_url, wait=wait, on_poll=on_poll) as session:
        return session.wait_all(generations, timeout=timeout, limit=limit)


@explicit
def run(
    prompt: str,
    *,
    timeout: float | None = 600.0,
    key: str | None = None,
    max_attempts: int = 1,
    on_submit: Callable[[RunSubmitted], object] | None = None,
    auth_token: str | None = None,
    base_url: str | None = None,
    **params: Unpack[CreateParams],
) -> Generation:
    """Submit a generation, wait for its end, and return it.

        generation = sync.run("a red fox in fresh snow", model="uni-1")
        print(generation.outputs[0].url)

    Args:
        prompt: The prompt.
        timeout: Seconds from the first accepted submission, for all attempts together; None for no
            limit.
        key: Your own name for the request, which `on_submit` gets as `event.run.key`; it is not
            sent.
        max_attempts: How often it may be submitted in all. With 2 or more, it is submitted again,
            and billed again, after a retryable failure.
        on_submit: A function, called with a `RunSubmitted` as soon as there is an id, in another
            thread.
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL; by default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1.
        params: The API's other parameters, as listed in `luma_poll.typing.CreateParams`.

    Returns:
        The completed generation.

    Raises:
        GenerationError: The generation failed; the class says why.
        PollTimeoutError: The timeout came first; the generation keeps running: wait by its id.
        APIError: The submission or the wait failed. If `may_have_been_accepted`, the generation may
            be running, and it is not submitted again.
        ConfigurationError: An argument is unusable, or an event loop runs in this thread.
    """
    refuse_in_event_loop("await runner.run(...)")
    with (
        Session(
            auth_token,
            base_url=base_url,
            wait=AdaptiveWait(request_cost=REQUEST_COST),
            max_attempts=max_attempts,
            on_submit=on_submit,
        ) as session,
        _noting_what_runs(session),
    ):
        return session.run(prompt, timeout=timeout, key=key, **params)


def run_all(
    requests: Iterable[AnyRequest],
    *,
    timeout: float | None = 600.0,
    download: str | os.PathLike[str] | None = None,
    name: str | None = None,
    max_running: int | None = None,
    max_attempts: int = 1,
    max_submissions: int | None = None,
    on_submit: Callable[[RunSubmitted], object] | None = None,
    auth_token: str | None = None,
    base_url: str | None = None,
) -> list[RunResult]:
    """Submit many requests, as many at once as the account allows; return a result for each.

        for result in sync.run_all(["a red fox", {"prompt": "a grey owl", "model": "uni-1"}]):
            print(result.request, result.error or result.outputs[0].url)

    Args:
        requests: An iterable of prompts, or of mappings of the parameters of `create`.
        timeout: Seconds for each request, from its first accepted submission; None for no limit.
        download: A directory for the files of completed generations; see `RunResult.paths`.
        name: The name of the files, as for `Runner.run_all`.
        max_running: The most generations under way at once; None for as many as the account allows.
        max_attempts: How often each request may be submitted in all.
        max_submissions: The most submissions in all; None for no limit.
        on_submit: A function, called with a `RunSubmitted` as soon as there is an id, in another
            thread.
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL; by default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1.

    Returns:
        The results, in the order of `requests`. A failure affects only its own result.

    Raises:
        ConfigurationError: An argument is unusable, or an event loop runs in this thread.
    """
    refuse_in_event_loop("await runner.run_all(...)")
    with (
        Session(
            auth_token,
            base_url=base_url,
            wait=AdaptiveWait(request_cost=REQUEST_COST),
            max_running=max_running,
            max_attempts=max_attempts,
            max_submissions=max_submissions,
            on_submit=on_submit,
        ) as session,
        _noting_what_runs(session),
    ):
        return session.run_all(requests, timeout=timeout, download=download, name=name)


def download(
    generation: Downloadable,
    directory_or_file: str | os.PathLike[str],
    *,
    name: str | None = None,
    key: str | None = None,
    overwrite: Overwrite = False,
    timeout: float | None = 600.0,
    max_bytes: int | None = 2 * 1024**3,
    on_progress: Callable[[DownloadProgress], object] | None = None,
    auth_token: str | None = None,
    base_url: str | None = None,
) -> list[Path]:
    """Fetch the outputs of a completed generation into files.

        (path,) = sync.download(sync.run("a red fox"), "fox.png")

    Args:
        generation: A completed generation, its id, or outputs of it.
        directory_or_file: The directory to write to, created if missing, or the path of a file.
            `LumaClient.download` describes this and the next three in full.
        name: The name of the files, instead of the id.
        key: The value of `{key}` in the name.
        overwrite: False, True or "number", for a file of that name which holds something else.
        timeout: Seconds for the whole call; None for no limit.
        max_bytes: The most bytes of one file; None for no limit.
        on_progress: A function, called with a `DownloadProgress` after each piece, in another
            thread.
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL; by default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1.

    Returns:
        The paths of the files, in the order of the outputs.

    Raises:
        ConfigurationError: An argument is unusable, or an event loop runs in this thread.
        GenerationError: The generation failed, or completed without output.
        DownloadError: A file could not be written, or was not fetched in time.
        APIError: The API says that the generation is gone, or refuses the key.
    """
    refuse_in_event_loop("await client.download(...)")
    with Session(auth_token, base_url=base_url) as session:
        return session.download(
            generation,
            directory_or_file,
            name=name,
            key=key,
            overwrite=overwrite,
            timeout=timeout,
            max_bytes=max_bytes,
            on_progress=on_progress,
        )


def read(
    generation: Downloadable,
    *,
    timeout: float | None = 600.0,
    max_bytes: int | None = 256 * 1024**2,
    auth_token: str | None = None,
    base_url: str | None = None,
) -> list[bytes]:
    """Fetch the outputs of a completed generation into memory.

        (picture,) = sync.read(sync.run("a red fox"))

    Args:
        generation: A completed generation, its id, or outputs of it.
        timeout: Seconds for the whole call; None for no limit.
        max_bytes: The most bytes of one output; None for no limit.
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL; by default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1.

    Returns:
        The bytes, in the order of the outputs.

    Raises:
        ConfigurationError: An argument is unusable, or an event loop runs in this thread.
        DownloadError: An output is too large, or was not fetched in time.
    """
    refuse_in_event_loop("await client.read(...)")
    with Session(auth_token, base_url=base_url) as session:
        return session.read(generation, timeout=timeout, max_bytes=max_bytes)


def upload(
    path_or_file: str | os.PathLike[str] | bytes | SupportsRead | SupportsSave,
    *,
    progress: Callable[[UploadProgress], object] | None = None,
    timeout: float | None = 3600.0,
    auth_token: str | None = None,
    base_url: str | None = None,
) -> str:
    """Upload an image or a video, and wait until it can be used.

        source = {"file_id": sync.upload("holiday.mp4")}

    Args:
        path_or_file: A path, bytes or a binary file.
        progress: A function, called with an `UploadProgress` after each piece, in another thread.
        timeout: Seconds for the whole call; None for no limit.
        auth_token: The API key; by default the environment variable LUMA_AGENTS_API_KEY.
        base_url: The base URL; by default LUMA_BASE_URL, else https://agents.lumalabs.ai/v1.

    Returns:
        The `file_id`.

    Raises:
        ConfigurationError: The file is unusable, or an event loop runs in this thread.
        UploadError: The file was not accepted, or not in time. Uploads cost nothing.
    """
    refuse_in_event_loop("await client.files.upload(...)")
    with Session(auth_token, base_url=base_url) as session:
        return session.upload(path_or_file, progress=progress, timeout=timeout)


@contextmanager
def _noting_what_runs(session: Session) -> Iterator[None]:
    """Add a note to an interruption, such as Ctrl-C, with the ids, which are lost otherwise."""
    try:
        yield
    except LumaError:  # these name the ids themselves
        raise
    except BaseException as error:
        if ids := ", ".join(session.outstanding):
            error.add_note(f"submitted, and perhaps running: {ids}. Wait for them by id")
        raise
