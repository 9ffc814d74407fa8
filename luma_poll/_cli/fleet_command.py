"""`luma-poll fleet`: the commands for operators of a fleet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from luma_poll._cli.options import JsonOption
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import put_entry
from luma_poll._cli.terminal import put_line, say
from luma_poll.errors import ConfigurationError

if TYPE_CHECKING:
    from luma_poll.dbos import Fleet, FleetStatus

fleet = typer.Typer(no_args_is_help=True, help="Operate a fleet of workers.")

DatabaseArgument = Annotated[
    str,
    typer.Argument(
        envvar="LUMA_DATABASE_URL", show_envvar=True, metavar="DATABASE", help="postgresql://..."
    ),
]
DatabaseOption = Annotated[
    str,
    typer.Option(
        "--database",
        envvar="LUMA_DATABASE_URL",
        show_envvar=True,
        metavar="URL",
        help="postgresql://...",
    ),
]
QueueOption = Annotated[str, typer.Option("--queue", help="The name of the fleet.")]
SchemaOption = Annotated[str, typer.Option("--schema", help="The schema of its tables.")]
KeysArgument = Annotated[
    list[str], typer.Argument(metavar="KEY...", help="The keys of the submissions.")
]
WhyOption = Annotated[str | None, typer.Option("--why", help="A reason, shown in the status.")]


def open_fleet(
    database: str, queue: str, schema: str, *, make: bool = False, **options: Any
) -> Fleet:
    """Return a fleet in an existing database: a misspelt name must not create a new one.

    Raises:
        ConfigurationError: There is no such database, or the extra is missing.
    """
    try:
        from luma_poll.dbos import Fleet
    except ModuleNotFoundError:
        raise ConfigurationError(
            "a fleet needs the extra dbos: pip install 'luma-poll[cli,dbos]'"
        ) from None
    if not database.strip():
        raise ConfigurationError("no database: give postgresql://user@host/name")
    path = database.partition(":///")[2].partition("?")[0] if "sqlite" in database[:10] else ""
    if path and not make and not os.path.isfile(path):
        raise ConfigurationError(
            f"there is no database at {path}: create it with luma-poll fleet migrate"
        )
    return Fleet(database=database, queue=queue, schema=schema, **options)


def command(
    name: str | None = None, *, make: bool = False
) -> Callable[[Callable[..., Awaitable[None]]], None]:
    """Return a decorator that makes a command, with the options that select a fleet.

    The database is its first argument, or an option if the command takes `keys`.

    Args:
        name: The name of the command; by default the function's.
        make: True to create a missing database.
    """

    def add(ask: Callable[..., Awaitable[None]]) -> None:
        def run(database: str, queue: str, schema: str, **options: Any) -> None:
            with orderly_exit():
                anyio.run(partial(ask, open_fleet(database, queue, schema, make=make), **options))

        of_fleet, *own = signature(ask, eval_str=True, locals={"Fleet": object}).parameters.values()
        keys = [each for each in own if each.name == "keys"]
        place = DatabaseOption if keys else DatabaseArgument
        every = [
            *keys,
            of_fleet.replace(name="database", annotation=place),
            *(each for each in own if each not in keys),
            of_fleet.replace(name="queue", annotation=QueueOption, default="luma"),
            of_fleet.replace(name="schema", annotation=SchemaOption, default="dbos"),
        ]
        every = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in every]
        # Typer reads both the signature and the annotations.
        vars(run)["__signature__"] = Signature(every)
        run.__annotations__ = {each.name: each.annotation for each in every}
        run.__doc__ = ask.__doc__
        fleet.command(name or ask.__name__)(run)

    return add


@command()
async def status(fleet: Fleet, as_json: JsonOption = False) -> None:
    """Print the workers, the limits, and the number of submissions in each state.

    Example: luma-poll fleet status postgresql://user@host/luma
    """
    found = await fleet.status()
    if as_json:
        put_line(json.dumps(asdict(found)))
    else:
        _put_status(found)


def _put_status(found: FleetStatus) -> None:
    def limit(value: float | None) -> str:
        return "no limit" if value is None or math.isinf(value) else f"{value:g}"

    put_line("fleet", found.fleet)
    put_line("mode", found.mode, *([found.why] if found.why else []))
    put_line("max_running", limit(found.max_running))
    put_line("submissions_per_minute", limit(found.submissions_per_minute))
    put_line("max_rate", limit(found.max_rate))
    put_line("refusals", str(found.refusals))
    for state, number in found.counts.items():
        put_line(state, str(number))
    if found.oldest_queued is not None:
        put_line("oldest_queued", f"{found.oldest_queued:.0f} s")
    for state, number in sorted(found.callbacks.items()):
        put_line(f"callbacks {state}", str(number))
    for each in found.workers:
        put_line(
            "worker",
            str(each["id"]),
            f"version {each.get('version')}",
            f"last beat {each['beat']:.1f} s ago",
            f"{each.get('waits', 0)} waits",
            f"{each.get('submitting', 0)} submitting",
            *([f"paused: {each['trouble']}"] if each.get("trouble") else []),
            *([f"holds back: {each['holds_back']}"] if each.get("holds_back") else []),
        )


@command("list")
async def list_entries(
    fleet: Fleet,
    state: Annotated[
        str | None, typer.Option(help="queued, running, unknown, refused, overdue, ...")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the submissions: state, key, id, failure and prompt, separated by tabs.

    Example: luma-poll fleet list postgresql://user@host/luma --state unknown
    """
    wanted: Any = state
    for entry in await fleet.entries(wanted):
        put_entry(entry, as_json=as_json)


@command()
async def resolve(
    fleet: Fleet,
    keys: KeysArgument,
    generation_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The id that the API gave it.")
    ] = None,
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Submit them again, even if that is billed twice.")
    ] = False,
) -> None:
    """Settle submissions that ended with an error; first look at the account's usage.

    Example: luma-poll fleet resolve order-18 --resubmit
    """
    if (generation_id is None) is not resubmit:
        raise ConfigurationError("give --id ID, or --resubmit")
    await fleet.resolve(*keys, generation_id=generation_id, resubmit=resubmit)
    does = "is submitted again" if resubmit else f"is {generation_id}: workers wait for it"
    for key in keys:
        say(f"{key}: {does}.")


@command()
async def pause(fleet: Fleet, why: WhyOption = None) -> None:
    """Stop submitting, in all workers, within a heartbeat. They keep waiting for what runs."""
    await fleet.pause(why)


@command()
async def drain(fleet: Fleet, why: WhyOption = None) -> None:
    """Stop submitting; each `luma-poll worker` exits with 0 when it has nothing running."""
    await fleet.drain(why)


@command()
async def resume(fleet: Fleet) -> None:
    """Submit again, after a pause or a drain."""
    await fleet.resume()


@command()
async def limits(
    fleet: Fleet,
    max_running: Annotated[
        str | None, typer.Option(metavar="N", help="Generations at once; none: no limit.")
    ] = None,
    submissions_per_minute: Annotated[
        str | None, typer.Option(metavar="N", help="In any 60 seconds; none: no limit.")
    ] = None,
    max_rate: Annotated[
        str | None, typer.Option(metavar="N", help="Polls per second; none: no limit.")
    ] = None,
) -> None:
    """Change limits of the fleet, for all its workers.

    Example: luma-poll fleet limits postgresql://user@host/luma --max-running 20
    """
    given = {
        "max_running": max_running,
        "submissions_per_minute": submissions_per_minute,
        "max_rate": max_rate,
    }
    lift = [name for name, text in given.items() if text == "none"]
    values = {name: _number(name, text) for name, text in given.items() if text and text != "none"}
    await fleet.set_limits(**values, lift=lift)


def _number(name: str, text: str) -> Any:
    try:
        return float(text) if name == "max_rate" else int(text)
    except ValueError:
        raise ConfigurationError(f"{name} must be a number or none, not {text!r}") from None


@command()
async def cancel(fleet: Fleet, keys: KeysArgument) -> None:
    """Cancel submissions that have not been sent; a running generation cannot be cancelled."""
    cancelled = await fleet.cancel(*keys)
    for key in keys:
        say(f"{key}: {'cancelled' if key in cancelled else 'not queued, so unchanged'}.")
    if len(cancelled) < len(set(keys)):
        raise typer.Exit(1)


@command()
async def forget(
    fleet: Fleet,
    before: Annotated[
        str, typer.Option(metavar="TIME", help="A date, a time with a zone, or an age (30d).")
    ],
) -> None:
    """Delete the parameters of submissions that ended before a time; their keys stay taken.

    Example: luma-poll fleet forget postgresql://user@host/luma --before 30d
    """
    time = _time(before)
    number = await fleet.forget(time)
    say(f"Forgot {number} submissions that ended before {time.isoformat()}.")


def _time(text: str) -> datetime:
    try:
        if text.endswith("d"):
            return datetime.now(UTC) - timedelta(days=float(text[:-1]))
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"--before takes a date, a time or 30d, not {text!r}") from None
    return time if time.tzinfo is not None else time.astimezone()


@command()
async def redeliver(fleet: Fleet, keys: KeysArgument) -> None:
    """Deliver the callbacks of submissions again, with the same message ids."""
    say(f"{await fleet.redeliver(*keys)} callbacks are due.")


@command(make=True)
async def migrate(fleet: Fleet) -> None:
    """Create the tables of a fleet, as a database user that may do so."""
    await fleet.migrate()
    say(f"The tables of the fleet {fleet.name!r} are ready.")
