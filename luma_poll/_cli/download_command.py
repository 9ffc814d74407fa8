"""`luma-poll download`: the files of generations that have completed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated

import anyio
import typer

from luma_poll._arguments import check_generation_id
from luma_poll._cli.bars import download_bars, fetch
from luma_poll._cli.exit_codes import exit_code
from luma_poll._cli.hints import command, options_given
from luma_poll._cli.options import JsonOption, NameOption, open_client
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import Result, writing
from luma_poll._cli.terminal import err, say_lines
from luma_poll._downloads.names import tells_generations_apart
from luma_poll._downloads.saving import Overwrite
from luma_poll._tasks.each import run_each
from luma_poll.errors import ConfigurationError


def download(
    ctx: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of generations.")],
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A directory, or the path of a file.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Fetch files again, and replace those there.")
    ] = False,
    number: Annotated[
        bool, typer.Option("--number", help="Add a number if another file has the name.")
    ] = False,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Download the outputs of generations that have ended, and print the paths of the files.

    The same command again fetches what is missing, and costs nothing.

    Example: luma-poll download 182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e outputs
    """
    missing: list[str] = []
    ended: list[Result] = []

    async def download_all() -> None:
        wanted = list(dict.fromkeys(map(check_generation_id, ids)))
        if len(wanted) > 1 and not tells_generations_apart(name):
            raise ConfigurationError("--name must contain {id} for several generations")
        async with open_client() as client:
            missing.extend(wanted)
            with writing(as_json=as_json, alone=True) as put, download_bars(err) as bars:
                mode: Overwrite = "number" if number else overwrite
                fetch_one = partial(
                    fetch, client, directory=directory, bars=bars, overwrite=mode, name=name
                )
                async with run_each(fetch_one, wanted, limit=None) as results:
                    async for result in results:
                        put(result)
                        ended.append(result)
                        if not result.is_open:
                            missing.remove(result.generation_id)

    def hints() -> Iterator[str]:
        if missing:
            yield "To fetch what is missing:"
            yield command("download", *missing, directory, *options_given(ctx))

    with orderly_exit(hints):
        anyio.run(download_all)
        say_lines(hints())
        if running := [each.generation_id for each in ended if each.is_running]:
            options = options_given(ctx, "as_json")
            say_lines(
                [
                    "To wait for those still running:",
                    command("wait", *running, "--download", directory, *options),
                ]
            )
        raise typer.Exit(max(exit_code(each.error) for each in ended))
