"""Downloads of generations' files, with progress bars."""

from __future__ import annotations

from collections.abc import Sequence

from luma_poll._cli.bars import DownloadBars, download_bars
from luma_poll._cli.results import Put, Result
from luma_poll._cli.terminal import err
from luma_poll._client.client import LumaClient
from luma_poll._tasks.each import run_each
from luma_poll.errors import ConfigurationError
from luma_poll.models import Generation


async def fetch_all(
    client: LumaClient, ids: Sequence[str], directory: str, put: Put, *, overwrite: bool = False
) -> list[Result]:
    """Download the files of generations that have ended, and `put` each result as it ends.

    Returns:
        The results, in the order of their ends.
    """
    done: list[Result] = []
    with download_bars(err) as bars:

        async def fetch_one(generation_id: str) -> Result:
            return await fetch(client, generation_id, directory, bars, overwrite=overwrite)

        async with run_each(fetch_one, ids, limit=None) as results:
            async for result in results:
                put(result)
                done.append(result)
    return done


async def fetch(
    client: LumaClient,
    generation: Generation | str,
    directory: str,
    bars: DownloadBars,
    *,
    overwrite: bool = False,
    name: str | None = None,
) -> Result:
    """Download the files of one generation, under their ids or this name.

    Returns:
        The result; an error is part of it.
    """
    generation_id = generation if isinstance(generation, str) else generation.id
    snapshot = generation if isinstance(generation, Generation) else None
    try:
        if snapshot is None:
            snapshot = await client.generations.get(generation_id)
        if not snapshot.is_terminal:
            raise ConfigurationError(
                f"generation {generation_id} is {snapshot.state!r}, and has no files yet"
            )
        paths = await client.download(
            snapshot, directory, name=name, overwrite=overwrite, on_progress=bars.on_progress
        )
    except Exception as error:
        return Result(generation_id, snapshot, error, [])
    finally:
        bars.forget(generation_id)
    return Result(generation_id, snapshot, paths=paths)
