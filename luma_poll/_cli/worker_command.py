"""`luma-poll worker`: a process that submits and waits for a fleet."""

from __future__ import annotations

import logging
import os
import signal
from typing import Annotated

import anyio
import typer

from luma_poll._cli.fleet_command import open_fleet
from luma_poll._cli.health import serve_health
from luma_poll._cli.options import open_client
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.terminal import LogHandler

SECRETS = "LUMA_CALLBACK_SECRETS"


def worker(
    database: Annotated[
        str,
        typer.Option(
            envvar="LUMA_DATABASE_URL",
            show_envvar=True,
            metavar="URL",
            help="postgresql://..., or sqlite:///... to try it out.",
        ),
    ],
    queue: Annotated[str, typer.Option(help="The name of the fleet.")] = "luma",
    schema: Annotated[str, typer.Option(help="The schema of the fleet's tables.")] = "dbos",
    max_running: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Generations at once, for all workers."),
    ] = None,
    submissions_per_minute: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Submissions in any 60 seconds, for all workers."),
    ] = None,
    max_rate: Annotated[
        float | None, typer.Option(metavar="N", help="Polls per second, for all workers.")
    ] = None,
    share: Annotated[
        int, typer.Option(min=1, metavar="N", help="The most waits of this worker.")
    ] = 500,
    name: Annotated[
        str | None, typer.Option(help="The name of this worker; by default the host's name.")
    ] = None,
    allow_private_callbacks: Annotated[
        bool,
        typer.Option("--allow-private-callbacks", help="Also call local addresses, and http."),
    ] = False,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, metavar="PORT", help="Answer GET / with 200 while it is well."
        ),
    ] = None,
) -> None:
    """Run a fleet worker until Ctrl-C or SIGTERM; other workers continue what it started.

    Limits that you do not give stay as they are in the fleet. Callbacks are signed with the secrets
    in LUMA_CALLBACK_SECRETS, separated by spaces.
    """
    log = logging.getLogger("luma_poll")
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)  # for the line at the start, and workers that join or leave
    for handler in log.handlers:
        if isinstance(handler, LogHandler):
            handler.setLevel(logging.INFO)
    with orderly_exit():
        fleet = open_fleet(
            database,
            queue,
            schema,
            open_client=open_client,
            max_running=max_running,
            submissions_per_minute=submissions_per_minute,
            max_rate=max_rate,
            share=share,
            worker=name,
            callback_secrets=os.environ.get(SECRETS, "").split(),
            allow_private_callbacks=allow_private_callbacks,
        )
        if anyio.run(_work, fleet, health_port) == signal.SIGINT:
            raise KeyboardInterrupt


async def _work(fleet: object, health_port: int | None) -> int | None:
    """Work until a signal, and return it; return None once the fleet is drained."""
    from luma_poll.dbos import Fleet

    assert isinstance(fleet, Fleet)
    ended: list[int] = []
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with fleet, anyio.create_task_group() as tasks:

            async def heed() -> None:
                async for number in signals:
                    ended.append(number)
                    tasks.cancel_scope.cancel()

            tasks.start_soon(heed)
            if health_port is not None:
                tasks.start_soon(serve_health, fleet, health_port)
            await fleet.drained()
            tasks.cancel_scope.cancel()
    return ended[0] if ended else None
