"""The command line: `luma-poll`."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio
import typer
from rich.console import Console

from luma_poll._version import __version__
from luma_poll.client import LumaClient, check_generation_id
from luma_poll.display import LiveTable, live_table
from luma_poll.errors import (
    ConfigurationError,
    GenerationError,
    LumaError,
    PollTimeoutError,
)
from luma_poll.models import Generation
from luma_poll.poller import Poller

FAILED, USAGE, TIMED_OUT, NO_API, INTERRUPTED = 1, 2, 3, 4, 130

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Wait for Luma generations. Try: [bold]luma-poll demo[/]",
    epilog="Exit codes: 0 all completed, 1 a generation failed, 2 usage, 3 timed out, "
    "4 API or connection trouble, 130 interrupted. With several generations: the highest.",
)

Ids = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Generation ids; - reads them from stdin.")
]
Timeout = Annotated[float, typer.Option(help="Seconds to wait at the most.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]

T = TypeVar("T")


def _run(function: Callable[[], Awaitable[T]], on_interrupt: Callable[[], None]) -> T:
    """Run a command's async part, and turn its errors into words and exit codes."""
    try:
        return anyio.run(function)
    except LumaError as error:
        _say_error(error)
        raise typer.Exit(_exit_code(error)) from None
    except KeyboardInterrupt:
        on_interrupt()
        raise typer.Exit(INTERRUPTED) from None


def _exit_code(error: LumaError) -> int:
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, PollTimeoutError):
        return TIMED_OUT
    return FAILED if isinstance(error, GenerationError) else NO_API


def _say_error(error: LumaError, say: Callable[[str, Console], None] | None = None) -> None:
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    (say or _print)(f"{type(error).__name__}: {error}{notes}", err)


def _print(text: str, console: Console) -> None:
    console.print(text, markup=False)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    _print(f"warning: {message}", err)


def _nothing() -> None:
    pass


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Set up what all commands share."""
    warnings.showwarning = _warn
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo() -> None:
    """Submit and wait for a handful of generations, against a simulated API."""
    from luma_poll.demo import run_demo

    _run(partial(run_demo, out), _nothing)


@app.command()
def get(generation_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Print a snapshot of a generation."""

    async def run() -> None:
        async with LumaClient() as client:
            generation = await client.generations.get(generation_id)
        print(generation.model_dump_json() if as_json else _describe(generation))

    _run(run, _nothing)


@app.command()
def create(
    prompt: Annotated[str, typer.Argument(help="What to make.")],
    model: Annotated[str | None, typer.Option(help="uni-1, uni-1-max, ray-3.2, ...")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="image, video, ...")] = None,
    aspect_ratio: Annotated[str | None, typer.Option(help="16:9, 1:1, ...")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    timeout: Timeout = 600.0,
    as_json: Json = False,
) -> None:
    """Submit a generation and print its id. It is billed."""
    generation: Generation | None = None

    async def run() -> int:
        nonlocal generation
        async with LumaClient() as client:
            generation = await client.generations.create(
                prompt, model=model, type=kind, aspect_ratio=aspect_ratio
            )
            if not wait:
                print(generation.model_dump_json() if as_json else generation.id)
                return 0
            _print(f"submitted {generation.id}", err)
            return await _wait_for({generation.id: generation}, client, timeout, as_json, pending)

    def interrupted() -> None:
        if generation is not None:
            _say_how_to_resume([generation.id])

    pending: list[str] = []
    raise typer.Exit(_run(run, interrupted))


@app.command()
def wait(ids: Ids, timeout: Timeout = 600.0, as_json: Json = False) -> None:
    """Wait for generations, and print the URLs of their outputs as each one ends."""
    pending: list[str] = []

    async def run() -> int:
        pending.extend(_read_ids(ids))
        async with LumaClient() as client:
            waits: dict[str, str | Generation] = {each: each for each in pending}
            return await _wait_for(waits, client, timeout, as_json, pending)

    raise typer.Exit(_run(run, lambda: _say_how_to_resume(pending)))


@app.command()
def watch(
    generation_id: Annotated[str, typer.Argument(metavar="ID")],
    timeout: Timeout = 600.0,
    as_json: Json = False,
) -> None:
    """Print every change of a generation's state until it has ended."""

    async def run() -> None:
        async with LumaClient() as client:
            started = anyio.current_time()
            async for generation in Poller(client).watch(generation_id, timeout=timeout):
                if as_json:
                    print(generation.model_dump_json(), flush=True)
                    continue
                print(f"{anyio.current_time() - started:7.1f} s  {generation.state}", flush=True)
                for output in generation.output:
                    print(output.url, flush=True)
                generation.raise_for_failure()

    _run(run, lambda: _say_how_to_resume([generation_id]))


@app.command()
def sandbox(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8787,
    speed: Annotated[float, typer.Option(help="How many times as fast as the real API.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeat the same ids and durations.")] = None,
) -> None:
    """Serve a simulated API, for any client in any language."""
    from luma_poll.sandbox import Sandbox

    async def run() -> None:
        try:
            async with Sandbox(speed=speed, seed=seed).serve(host, port) as base_url:
                _print(f"The sandbox listens at {base_url}. Ctrl-C ends it. To use it:", err)
                print(f"export LUMA_BASE_URL={base_url}")
                print("export LUMA_AGENTS_API_KEY=luma-api-sandbox", flush=True)
                await anyio.sleep_forever()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot serve at {host}:{port}: {error}") from None

    _run(run, _nothing)


def _read_ids(arguments: list[str]) -> list[str]:
    """The ids of the command line, those of stdin in place of `-`; each once."""
    ids: list[str] = []
    for argument in arguments:
        ids.extend(sys.stdin.read().split() if argument == "-" else [argument])
    if not ids:
        raise ConfigurationError("there is no id on standard input")
    return list(dict.fromkeys(check_generation_id(generation_id) for generation_id in ids))


async def _wait_for(
    generations: dict[str, str | Generation],
    client: LumaClient,
    timeout: float,
    as_json: bool,
    pending: list[str],
) -> int:
    """Wait for ids or snapshots, print each as it ends, and return the exit code."""
    codes = [0]
    pending[:] = generations

    async with live_table("generation", console=err) as table:
        poller = Poller(client, timeout=timeout, on_poll=table.on_poll)

        async def wait_for_one(generation_id: str) -> None:
            table.add(generation_id, generation_id)
            generation, error = await _result(poller, generations[generation_id])
            pending.remove(generation_id)
            table.end(generation_id)
            _print_result(generation_id, generation, error, table, as_json)
            codes.append(0 if error is None else _exit_code(error))

        async with anyio.create_task_group() as tasks:
            for generation_id in generations:
                tasks.start_soon(wait_for_one, generation_id)
    return max(codes)


async def _result(
    poller: Poller, generation: str | Generation
) -> tuple[Generation | None, LumaError | None]:
    """The last snapshot, and the error that ended the wait."""
    last = None
    try:
        async for snapshot in poller.watch(generation):
            last = snapshot
        if last is not None:
            last.raise_for_failure()
    except LumaError as error:
        return last, error
    return last, None


def _print_result(
    generation_id: str,
    generation: Generation | None,
    error: LumaError | None,
    table: LiveTable,
    as_json: bool,
) -> None:
    if as_json:
        line = {
            "id": generation_id,
            "ok": error is None,
            "generation": None if generation is None else generation.model_dump(mode="json"),
            "error": None if error is None else _error_fields(error),
        }
        table.print(json.dumps(line), out)
    elif error is not None:
        _say_error(error, table.print)
    elif generation is not None:
        for output in generation.output:
            table.print(output.url, out)


def _error_fields(error: LumaError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "failure_code": getattr(error, "failure_code", None),
        "retryable": getattr(error, "retryable", None),
    }


def _describe(generation: Generation) -> str:
    lines = [
        f"{name.replace('_', ' '):<15} {value}"
        for name, value in generation.model_dump(exclude={"output"}).items()
        if value is not None
    ]
    for output in generation.output:
        expires = output.expires_at
        until = f"  (until {expires:%Y-%m-%d %H:%M:%S} UTC)" if expires else ""
        lines.append(f"{'output':<15} {output.type} {output.url}{until}")
    return "\n".join(lines)


def _say_how_to_resume(pending: list[str]) -> None:
    if pending:
        _print(f"interrupted; still running: {len(pending)}. To wait on:", err)
        _print(f"  luma-poll wait {shlex.join(pending)}", err)
