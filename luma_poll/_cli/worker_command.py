"""`luma-poll worker`: a process that submits and waits for a fleet."""

from __future__ import annotations

import os
from typing import Annotated

import anyio
import typer

from luma_poll._cli.options import open_client
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.terminal import say
from luma_poll._polling.poller import MAX_RATE
from luma_poll.errors import ConfigurationError

SECRETS = "LUMA_CALLBACK_SECRETS"


def worker(
    database: Annotated[
        str,
        typer.Option(
            envvar="LUMA_DATABASE_URL",
            show_envvar=True,
            metavar="URL",
            help="postgresql://..., or sqlite:///... for a try.",
        ),
    ],
    queue: Annotated[str, typer.Option(help="The name of the fleet.")] = "luma",
    max_running: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Generations at once, over all workers."),
    ] = None,
    submissions_per_minute: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Generations begun per minute, over all workers."),
    ] = None,
    max_rate: Annotated[
        float, typer.Option(metavar="N", help="Polls per second, over all workers.")
    ] = MAX_RATE,
) -> None:
    """Be a worker of a fleet until Ctrl-C or SIGTERM; what it has begun, the others continue.

    Callbacks are signed with the secrets in LUMA_CALLBACK_SECRETS, separated by spaces.
    """
    with orderly_exit():
        anyio.run(_work, database, queue, max_running, submissions_per_minute, max_rate)


async def _work(
    database: str,
    queue: str,
    max_running: int | None,
    submissions_per_minute: int | None,
    max_rate: float,
) -> None:
    try:
        from dbos import DBOS
        from sqlalchemy.exc import SQLAlchemyError

        from luma_poll.dbos import Fleet, fleet_config
    except ModuleNotFoundError:
        raise ConfigurationError(
            "a worker needs the extra dbos: pip install 'luma-poll[cli,dbos]'"
        ) from None
    fleet = Fleet(
        open_client,
        queue=queue,
        max_running=max_running,
        submissions_per_minute=submissions_per_minute,
        max_rate=max_rate,
        callback_secrets=os.environ.get(SECRETS, "").split(),
    )
    # DBOS logs tracebacks, with what the API said in them, as it is.
    DBOS(config=fleet_config(database, console_log_level="CRITICAL"))
    try:
        DBOS.launch()
        async with fleet:
            say(f"Worker {DBOS.executor_id} of the fleet {queue!r} is ready; Ctrl-C stops it.")
            await anyio.sleep_forever()
    except SQLAlchemyError as error:
        raise ConfigurationError(f"the database cannot be used: {_reason(error)}") from None
    finally:
        DBOS.destroy()


def _reason(error: Exception) -> str:
    """The first line, without the statement and the URL that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
