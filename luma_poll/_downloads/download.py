"""All outputs of one generation, fetched into files."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast
from uuid import UUID

import anyio

from luma_poll._api.answers import as_generation
from luma_poll._arguments import check_count, check_generation_id, check_positive, shown
from luma_poll._downloads.files import on_disk, stem_of
from luma_poll._downloads.output import DownloadProgress, Get, Job, outputs_of
from luma_poll._downloads.storage import HTTPClient
from luma_poll.errors import ConfigurationError, DownloadError, InvalidResponseError
from luma_poll.models import Generation


async def download(
    generation: object,
    directory: str | os.PathLike[str],
    *,
    http: HTTPClient,
    get: Get,
    slots: anyio.Semaphore,
    name: str | None,
    timeout: float | None,
    max_bytes: int | None,
    overwrite: bool,
    on_progress: Callable[[DownloadProgress], object] | None,
) -> list[Path]:
    """`LumaClient.download`, which documents the other parameters.

    Args:
        generation: A snapshot, or the id of a generation.
        directory: The directory of the files.
        http: The client whose transport is used.
        get: `generations.get`.
        slots: The semaphore that limits concurrent files.
        name: The name of the files, without the extension.
        timeout: Seconds for the whole call.
        max_bytes: The largest file that is accepted.
        overwrite: Fetch files even if they exist.
        on_progress: Called after each piece that arrives.
    """
    timeout = check_positive("timeout", timeout)
    max_bytes = check_count("max_bytes", max_bytes)
    folder = _checked_directory(directory)
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ConfigurationError(f"name must be a string that is not blank, not {shown(name)}")
    with anyio.move_on_after(timeout):
        snapshot = await _snapshot(generation, get)
        outputs = outputs_of(snapshot)
        jobs = [
            Job(
                generation_id=snapshot.id,
                number=number,
                count=len(outputs),
                url=output.url,
                base=folder / stem_of(snapshot.id, number, name),
                http=http,
                get=get,
                max_bytes=max_bytes,
                overwrite=overwrite,
                on_progress=on_progress,
            )
            for number, output in outputs.items()
        ]
        await on_disk(folder, snapshot.id, partial(folder.mkdir, parents=True, exist_ok=True))
        return await _run_all(jobs, slots)
    raise DownloadError(
        f"not complete within {timeout:g} s. Call download again: it continues from there",
        generation_id=_id_of(generation),
        path=folder,
        retryable=True,
    )


async def _run_all(jobs: list[Job], slots: anyio.Semaphore) -> list[Path]:
    """Run every job to its end, then raise the first error if there was one."""
    results: dict[int, Path | Exception] = {}

    async def run(index: int, job: Job) -> None:
        try:
            async with slots:
                results[index] = await job.run()
        except Exception as error:
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, job in enumerate(jobs):
            tasks.start_soon(run, index, job)
    paths = []
    for index in range(len(jobs)):
        result = results[index]
        if isinstance(result, Exception):
            raise result
        paths.append(result)
    return paths


async def _snapshot(generation: object, get: Get) -> Generation:
    if isinstance(generation, (str, UUID)):
        return await get(check_generation_id(generation))
    try:
        return as_generation(generation)
    except InvalidResponseError:
        raise ConfigurationError(
            f"download takes a generation or its id, not {type(generation).__name__}"
        ) from None


def _checked_directory(directory: object) -> Path:
    try:
        path = Path(cast(str, directory))
        if b"\0" in os.fsencode(path):
            raise ValueError
    except (TypeError, ValueError):  # a UnicodeEncodeError is one
        raise ConfigurationError("directory must be a path") from None
    return path


def _id_of(generation: object) -> str:
    given = generation if isinstance(generation, (str, UUID)) else getattr(generation, "id", "")
    return str(given)
