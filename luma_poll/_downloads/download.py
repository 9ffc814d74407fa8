"""All outputs of one generation: into files, into memory, or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar
from uuid import UUID

import anyio

from luma_poll._api.answers import as_generation
from luma_poll._arguments import check_count, check_generation_id, check_positive, shown
from luma_poll._downloads.files import check_directory, on_disk
from luma_poll._downloads.memory import Channel, Memory
from luma_poll._downloads.names import Naming, naming_of, tells_generations_apart
from luma_poll._downloads.output import (
    NOWHERE,
    Deadline,
    DownloadProgress,
    OutOfTimeError,
    Sink,
    Transfer,
    is_final,
    too_late,
)
from luma_poll._downloads.ownership import Owner
from luma_poll._downloads.saving import Overwrite, Saving
from luma_poll._downloads.storage import InterruptedTry, Storage
from luma_poll._downloads.viewing import Files
from luma_poll._tasks.backoff import backoff
from luma_poll._tasks.beside import tasks_beside
from luma_poll.errors import (
    APIError,
    ConfigurationError,
    DownloadError,
    InvalidResponseError,
    OutputNotFoundError,
)
from luma_poll.models import Generation, GenerationLike, GenerationOutput, numbers_of

Get: TypeAlias = Callable[[str], Awaitable[Generation]]
"""`generations.get`."""
Downloadable: TypeAlias = (
    GenerationLike | GenerationOutput | Sequence[GenerationOutput] | str | UUID
)
"""A generation, its id, or outputs of it."""

R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """The API and the storage of a client.

    Attributes:
        get: `generations.get`.
        storage: The way to the storage.
        turns: Limits the requests to the storage.
    """

    get: Get
    storage: Storage
    turns: anyio.Semaphore


@dataclass(frozen=True)
class _Chosen:
    """The outputs to fetch, by number from 1, and how many there are."""

    generation_id: str
    outputs: dict[int, GenerationOutput]
    count: int


async def download(
    source: Source,
    generation: object,
    target: object,
    *,
    name: str | None,
    key: str | None,
    overwrite: Overwrite,
    timeout: float | None,
    max_bytes: int | None,
    on_progress: Callable[[DownloadProgress], object] | None,
) -> list[Path]:
    """Do what `LumaClient.download` documents."""
    deadline = Deadline(check_positive("timeout", timeout))
    max_bytes = check_count("max_bytes", max_bytes)
    naming = naming_of(target, name, key)
    if overwrite not in (True, False, "number"):
        raise ConfigurationError(f'overwrite is False, True or "number", not {shown(overwrite)}')
    chosen = await _choose(source.get, generation, deadline, naming.folder)
    await on_disk(naming.folder, chosen.generation_id, _make(naming))

    def sink(number: int) -> Sink[Path]:
        stem, extension = naming.stem(chosen.generation_id, number)
        owner = Owner(chosen.generation_id, number)
        return Saving(owner, naming.folder, stem, extension, overwrite)

    transfers = _transfers(source, chosen, sink, deadline, max_bytes, on_progress)
    return Files(await _run_all(transfers))


async def read(
    source: Source, generation: object, *, timeout: float | None, max_bytes: int | None
) -> list[bytes]:
    """Do what `LumaClient.read` documents."""
    deadline = Deadline(check_positive("timeout", timeout))
    max_bytes = check_count("max_bytes", max_bytes)
    chosen = await _choose(source.get, generation, deadline, NOWHERE)

    def sink(number: int) -> Sink[bytes]:
        return Memory()

    return await _run_all(_transfers(source, chosen, sink, deadline, max_bytes, None))


@asynccontextmanager
async def stream(
    source: Source, generation: object, *, timeout: float | None, max_bytes: int | None
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Do what `LumaClient.stream` documents."""
    deadline = Deadline(check_positive("timeout", timeout))
    max_bytes = check_count("max_bytes", max_bytes)
    chosen = await _choose(source.get, generation, deadline, NOWHERE)
    if len(chosen.outputs) > 1:
        raise ConfigurationError(
            f"generation {chosen.generation_id} has {len(chosen.outputs)} outputs: pass one of them"
        )
    incoming, outgoing = anyio.create_memory_object_stream[bytes](0)
    failures: list[Exception] = []

    def sink(number: int) -> Sink[None]:
        return Channel(chosen.generation_id, incoming)

    (transfer,) = _transfers(source, chosen, sink, deadline, max_bytes, None)
    transfer.turns = None  # a slow reader would keep its turn from the others

    async def run() -> None:
        with incoming:
            try:
                await transfer.run()
            except Exception as error:
                failures.append(error)

    async def chunks() -> AsyncGenerator[bytes]:
        with outgoing:
            async for chunk in outgoing:
                yield chunk
        for error in failures:
            raise error

    with outgoing:
        async with tasks_beside() as tasks:
            tasks.start_soon(run)
            # Closed here, because a reader may leave in the middle.
            async with aclosing(chunks()) as reader:
                yield reader


def _make(naming: Naming) -> Callable[[], None]:
    return partial(naming.folder.mkdir, parents=True, exist_ok=True)


def _transfers(
    source: Source,
    chosen: _Chosen,
    sink: Callable[[int], Sink[R]],
    deadline: Deadline,
    max_bytes: int | None,
    on_progress: Callable[[DownloadProgress], object] | None,
) -> list[Transfer[R]]:
    def renewing(number: int) -> Callable[[], Awaitable[str]]:
        async def renew() -> str:
            outputs = outputs_of(await source.get(chosen.generation_id))
            if number not in outputs:
                raise InterruptedTry("the API does not list this output", expired=True)
            return outputs[number].url

        return renew

    return [
        Transfer(
            generation_id=chosen.generation_id,
            number=number,
            count=chosen.count,
            url=output.url,
            storage=source.storage,
            renew=renewing(number),
            deadline=deadline,
            turns=source.turns,
            sink=sink(number),
            max_bytes=max_bytes,
            on_progress=on_progress,
        )
        for number, output in chosen.outputs.items()
    ]


async def _run_all(transfers: list[Transfer[R]]) -> list[R]:
    """Run every transfer to its end, then raise the first error if there was one."""
    results: dict[int, R] = {}
    errors: dict[int, Exception] = {}

    async def run(index: int, transfer: Transfer[R]) -> None:
        try:
            results[index] = await transfer.run()
        except Exception as error:
            errors[index] = error

    async with anyio.create_task_group() as tasks:
        for index, transfer in enumerate(transfers):
            tasks.start_soon(run, index, transfer)
    for index in sorted(errors):
        raise errors[index]
    return [results[index] for index in range(len(transfers))]


async def _choose(get: Get, given: object, deadline: Deadline, place: Path) -> _Chosen:
    """Return the outputs of what was given; for an id, or a snapshot without them, ask the API.

    Raises:
        ConfigurationError: `given` is something else, or the generation has not ended.
        GenerationError: The generation failed, or completed without output.
        DownloadError: The API could not be reached before the deadline.
        APIError: The API refuses.
    """
    if isinstance(given, GenerationOutput):
        return _chosen_from([given])
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        return _chosen_from(given)
    snapshot = None
    if isinstance(given, (str, UUID)):
        generation_id = check_generation_id(given)
    else:
        snapshot = _as_snapshot(given)
        generation_id = snapshot.id
    if snapshot is None or not (snapshot.state == "failed" or _is_complete(snapshot)):
        snapshot = await _persistently(get, generation_id, deadline, place)
    outputs = outputs_of(snapshot)
    return _Chosen(generation_id, outputs, len(outputs))


def _as_snapshot(given: object) -> Generation:
    try:
        return as_generation(given)
    except InvalidResponseError:
        raise ConfigurationError(
            f"download takes a generation, its id or its outputs, not {type(given).__name__}"
        ) from None


def _chosen_from(outputs: Sequence[object]) -> _Chosen:
    found: dict[int, GenerationOutput] = {}
    ids: list[str] = []
    for output in outputs:
        known = output.generation_id if isinstance(output, GenerationOutput) else None
        if not isinstance(output, GenerationOutput) or known is None:
            raise ConfigurationError(
                "download takes outputs of a generation, as a wait returns them; or pass the "
                "generation, or its id"
            )
        ids.append(known)
        found[output.number] = output
    if len(set(ids)) != 1:
        raise ConfigurationError("download takes outputs of one generation, at least one")
    return _Chosen(ids[0], dict(sorted(found.items())), max(found))


def _is_complete(snapshot: Generation) -> bool:
    return snapshot.is_terminal and bool(snapshot.output)


async def _persistently(
    get: Get, generation_id: str, deadline: Deadline, place: Path
) -> Generation:
    """Ask the API for a snapshot, again after every error that may pass."""
    tries = 0
    trouble: APIError | None = None
    late = False
    while not late:
        try:
            with deadline.bounds():
                try:
                    return await get(generation_id)
                except APIError as error:
                    if is_final(error):
                        raise
                    trouble = error
                tries += 1
                await anyio.sleep(backoff(tries))
        except OutOfTimeError:
            late = True
    raise too_late(generation_id, place, deadline, trouble) from trouble


def outputs_of(generation: Generation) -> dict[int, GenerationOutput]:
    """Return the outputs by number, from 1: layers by their index, others in the API's order.

    Raises:
        ConfigurationError: The generation has not ended.
        GenerationError: The generation failed, or completed without output.
    """
    generation.raise_for_failure()
    if not generation.is_terminal:
        raise ConfigurationError(
            f"generation {generation.id} is {generation.state!r}: wait for it before you "
            "download it, for example with Poller.wait"
        )
    outputs = generation.output
    if not outputs:
        raise OutputNotFoundError(generation)
    return dict(sorted(zip(numbers_of(outputs), outputs, strict=True)))


async def check_target(target: object, name: str | None) -> None:
    """Check that the files of many generations can be written, before any is paid for.

    Raises:
        ConfigurationError: The directory or the name is unusable.
    """
    naming = naming_of(target, name, "key")
    if not tells_generations_apart(naming.name):
        raise ConfigurationError(
            f"the files of several generations cannot all be called {naming.name!r}: pass a "
            "directory, and a name with {id} or {key} in it"
        )
    try:
        await on_disk(naming.folder, "", partial(check_directory, naming.folder))
    except DownloadError as error:
        cause = error.__cause__
    else:
        return
    why = cause.strerror if isinstance(cause, OSError) else cause
    raise ConfigurationError(f"cannot write to {naming.folder}: {why}") from cause
