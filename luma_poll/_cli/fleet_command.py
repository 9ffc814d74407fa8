"""`luma-poll fleet`: the commands for operators of a fleet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import typer

from luma_poll._cli.options import JsonOption
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import put_entry
from luma_poll._cli.terminal import put_line, say
from luma_poll.errors import ConfigurationError

if TYPE_CHECKING:
    from luma_poll.dbos import Fleet, FleetStatus

T = TypeVar("T")

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


def _ask(
    database: str,
    queue: str,
    schema: str,
    question: Callable[[Fleet], Awaitable[T]],
    *,
    make: bool = False,
) -> T:
    opened = open_fleet(database, queue, schema, make=make)

    async def ask() -> T:
        return await question(opened)

    return anyio.run(ask)


@fleet.command()
def status(
    database: DatabaseArgument,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
    as_json: JsonOption = False,
) -> None:
    """Print the workers, the limits, and the number of submissions in each state.

    Example: luma-poll fleet status postgresql://user@host/luma
    """
    with orderly_exit():
        found = _ask(database, queue, schema, lambda fleet: fleet.status())
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


@fleet.command("list")
def list_entries(
    database: DatabaseArgument,
    state: Annotated[
        str | None, typer.Option(help="queued, running, unknown, refused, overdue, ...")
    ] = None,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
    as_json: JsonOption = False,
) -> None:
    """Print the submissions: state, key, id, failure and prompt, separated by tabs.

    Example: luma-poll fleet list postgresql://user@host/luma --state unknown
    """
    wanted: Any = state
    with orderly_exit():
        for entry in _ask(database, queue, schema, lambda fleet: fleet.entries(wanted)):
            put_entry(entry, as_json=as_json)


@fleet.command()
def resolve(
    keys: KeysArgument,
    database: DatabaseOption,
    generation_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The id that the API gave it.")
    ] = None,
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Submit them again, even if that is billed twice.")
    ] = False,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
) -> None:
    """Settle submissions that ended with an error; first look at the account's usage.

    Example: luma-poll fleet resolve order-18 --resubmit
    """
    with orderly_exit():
        if (generation_id is None) is not resubmit:
            raise ConfigurationError("give --id ID, or --resubmit")
        _ask(
            database,
            queue,
            schema,
            lambda fleet: fleet.resolve(*keys, generation_id=generation_id, resubmit=resubmit),
        )
        does = "is submitted again" if resubmit else f"is {generation_id}: workers wait for it"
        for key in keys:
            say(f"{key}: {does}.")


@fleet.command()
def pause(
    database: DatabaseArgument,
    why: WhyOption = None,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
) -> None:
    """Stop submitting, in all workers, within a heartbeat. They keep waiting for what runs."""
    with orderly_exit():
        _ask(database, queue, schema, lambda fleet: fleet.pause(why))


@fleet.command()
def drain(
    database: DatabaseArgument,
    why: WhyOption = None,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
) -> None:
    """Stop submitting; each `luma-poll worker` exits with 0 when it has nothing running."""
    with orderly_exit():
        _ask(database, queue, schema, lambda fleet: fleet.drain(why))


@fleet.command()
def resume(
    database: DatabaseArgument, queue: QueueOption = "luma", schema: SchemaOption = "dbos"
) -> None:
    """Submit again, after a pause or a drain."""
    with orderly_exit():
        _ask(database, queue, schema, lambda fleet: fleet.resume())


@fleet.command()
def limits(
    database: DatabaseArgument,
    max_running: Annotated[
        str | None, typer.Option(metavar="N", help="Generations at once; none: no limit.")
    ] = None,
    submissions_per_minute: Annotated[
        str | None, typer.Option(metavar="N", help="In any 60 seconds; none: no limit.")
    ] = None,
    max_rate: Annotated[
        str | None, typer.Option(metavar="N", help="Polls per second; none: no limit.")
    ] = None,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
) -> None:
    """Change limits of the fleet, for all its workers.

    Example: luma-poll fleet limits postgresql://user@host/luma --max-running 20
    """
    given = {
        "max_running": max_running,
        "submissions_per_minute": submissions_per_minute,
        "max_rate": max_rate,
    }
    with orderly_exit():
        lift = [name for name, text in given.items() if text == "none"]
        values = {
            name: _number(name, text) for name, text in given.items() if text and text != "none"
        }
        _ask(database, queue, schema, lambda fleet: fleet.set_limits(**values, lift=lift))


def _number(name: str, text: str) -> Any:
    try:
        return float(text) if name == "max_rate" else int(text)
    except ValueError:
        raise ConfigurationError(f"{name} must be a number or none, not {text!r}") from None


@fleet.command()
def cancel(
    keys: KeysArgument,
    database: DatabaseOption,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
) -> None:
    """Cancel submissions that have not been sent; a running generation cannot be cancelled."""
    with orderly_exit():
        cancelled = _ask(database, queue, schema, lambda fleet: fleet.cancel(*keys))
        for key in keys:
            say(f"{key}: {'cancelled' if key in cancelled else 'not queued, so unchanged'}.")
        if len(cancelled) < len(set(keys)):
            raise typer.Exit(1)


@fleet.command()
def forget(
    database: DatabaseArgument,
    before: Annotated[
        str, typer.Option(metavar="TIME", help="A date, a time with a zone, or an age (30d).")
    ],
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
) -> None:
    """Delete the parameters of submissions that ended before a time; their keys stay taken.

    Example: luma-poll fleet forget postgresql://user@host/luma --before 30d
    """
    with orderly_exit():
        time = _time(before)
        number = _ask(database, queue, schema, lambda fleet: fleet.forget(time))
        say(f"Forgot {number} submissions that ended before {time.isoformat()}.")


def _time(text: str) -> datetime:
    try:
        if text.endswith("d"):
            return datetime.now(UTC) - timedelta(days=float(text[:-1]))
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"--before takes a date, a time or 30d, not {text!r}") from None
    return time if time.tzinfo is not None else time.astimezone()


@fleet.command()
def redeliver(
    keys: KeysArgument,
    database: DatabaseOption,
    queue: QueueOption = "luma",
    schema: SchemaOption = "dbos",
) -> None:
    """Deliver the callbacks of submissions again, with the same message ids."""
    with orderly_exit():
        number = _ask(database, queue, schema, lambda fleet: fleet.redeliver(*keys))
        say(f"{number} callbacks are due.")


@fleet.command()
def migrate(
    database: DatabaseArgument, queue: QueueOption = "luma", schema: SchemaOption = "dbos"
) -> None:
    """Create the tables of a fleet, as a database user that may do so."""
    with orderly_exit():
        _ask(database, queue, schema, lambda fleet: fleet.migrate(), make=True)
        say(f"The tables of the fleet {queue!r} are ready.")
