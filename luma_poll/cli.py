"""The command line: `luma-poll`.

Results go to stdout, everything else to stderr. It exits with the highest code that applies:

- 0: all completed
- 1: a generation failed
- 2: usage: a bad argument, no API key
- 3: timed out; it may still finish
- 4: trouble with the API, the connection or the output
- 130: interrupted, by Ctrl-C or SIGTERM
- 141: stdout was closed, as `head` does
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import Annotated, Any

import anyio
import typer
from rich.console import Console

from luma_poll._version import __version__
from luma_poll.arguments import check_generation_id
from luma_poll.client import LumaClient
from luma_poll.display import live_table
from luma_poll.errors import ConfigurationError, GenerationError, LumaError, PollTimeoutError
from luma_poll.models import Generation
from luma_poll.poller import Poller

FAILED, USAGE, TIMED_OUT, TROUBLE, INTERRUPTED, OUTPUT_CLOSED = 1, 2, 3, 4, 130, 141

out = Console(highlight=False, markup=False, emoji=False)
err = Console(stderr=True, highlight=False, markup=False, emoji=False)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Wait for Luma generations. Without a key, try [bold]luma-poll demo[/].\n\n"
    "The key is read from LUMA_AGENTS_API_KEY, the API's address from LUMA_BASE_URL if it is set.",
    epilog="Exit codes:\n\n"
    "0 all completed, 1 a generation failed, 2 usage (a bad argument, no API key), 3 timed out "
    "(it may still finish: wait again), 4 trouble with the API, the connection or the output, "
    "130 interrupted by Ctrl-C or SIGTERM, 141 standard output was closed, as head does. "
    "With several generations it is the highest that applies.",
)


def _positive(value: float) -> float:
    if not value > 0:
        raise typer.BadParameter(f"{value:g} is not above 0.")
    return value


Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a generation.")]
Ids = Annotated[
    list[str],
    typer.Argument(metavar="ID...", help="Ids of generations; - reads them from standard input."),
]
Timeout = Annotated[
    float,
    typer.Option(callback=_positive, metavar="SECONDS", help="How long to wait; inf for ever."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def run() -> None:
    """Set up what belongs to the process as a whole, then run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")
    # A shell starts what a script puts into the background with SIGINT ignored. asyncio would then
    # leave it so, and there would be no orderly way to end for SIGTERM either.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
    logging.getLogger("luma_poll").addHandler(_LogHandler(logging.WARNING))
    try:
        app(prog_name="luma-poll")
    finally:  # a second Ctrl-C ends it there and then, without a word from a closing interpreter
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _LogHandler(logging.Handler):
    """Says what the library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message above the table, if there is one."""
        _say(f"warning: {record.getMessage()}")


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Take the options of the command itself."""
    if version:
        with _exit_codes():
            _put(__version__)
        raise typer.Exit


@app.command()
def demo(
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Replace three in ten answers by faults.")
    ] = False,
) -> None:
    """Submit six generations to a simulated API and wait for them. It takes seconds."""
    from luma_poll.demo import run_demo

    with _exit_codes():
        anyio.run(partial(run_demo, out, err, chaos=chaos))


@app.command()
def get(generation_id: Id, as_json: Json = False) -> None:
    """Print a snapshot of a generation, whatever its state."""

    async def fetch() -> Generation:
        async with _client() as client:
            return await client.generations.get(generation_id)

    with _exit_codes():
        generation = anyio.run(fetch)
        _put(generation.model_dump_json() if as_json else _describe(generation))


@app.command()
def create(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to make.")],
    model: Annotated[str | None, typer.Option(help="uni-1, uni-1-max, ray-3.2, ...")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="image, video, ...")] = None,
    aspect_ratio: Annotated[str | None, typer.Option(help="16:9, 1:1, ...")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait, and print the URLs of the outputs.")
    ] = False,
    timeout: Timeout = 600.0,
    as_json: Json = False,
) -> None:
    """Submit a generation, which is billed, and print its id."""
    submitted = False
    pending: list[str] = []

    async def submit() -> int:
        nonlocal submitted
        async with _client() as client:
            generation = await client.generations.create(
                prompt, model=model, type=kind, aspect_ratio=aspect_ratio
            )
            submitted = True
            if not wait:
                _put(generation.model_dump_json() if as_json else generation.id)
                return 0
            pending.append(generation.id)
            _say(f"Submitted {generation.id}.")
            return await _wait_for([generation], client, timeout, as_json, pending)

    def interrupted() -> None:
        if not submitted:
            _say("Interrupted while submitting: it may have been accepted, and be billed.")
        _say_how_to_resume(pending)

    with _exit_codes(interrupted):
        raise typer.Exit(anyio.run(submit))


@app.command()
def wait(ids: Ids, timeout: Timeout = 600.0, as_json: Json = False) -> None:
    """Wait for generations, and print the URLs of the outputs of each as it ends.

    Why one failed is said on standard error; with --json, in its object.
    """
    pending: list[str] = []

    async def wait_for_all() -> int:
        async with _client() as client:
            return await _wait_for(list(pending), client, timeout, as_json, pending)

    with _exit_codes(partial(_say_how_to_resume, pending)):
        pending.extend(_read_ids(ids))
        raise typer.Exit(anyio.run(wait_for_all))


@app.command()
def watch(generation_id: Id, timeout: Timeout = 600.0, as_json: Json = False) -> None:
    """Print every change of a generation's state, then the URLs of its outputs."""

    async def print_changes() -> None:
        async with _client() as client:
            started = anyio.current_time()
            async for generation in Poller(client).watch(generation_id, timeout=timeout):
                if as_json:
                    _put(generation.model_dump_json())
                else:
                    _put(f"{anyio.current_time() - started:7.1f} s  {generation.state}")
                    _put_urls(generation)
                generation.raise_for_failure()

    with _exit_codes(partial(_say_how_to_resume, [generation_id])):
        anyio.run(print_changes)


@app.command()
def sandbox(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8787,
    speed: Annotated[
        float, typer.Option(callback=_positive, help="How many times as fast as the real API.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeat the same ids and durations.")] = None,
    faults: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="The share of answers to polls that is replaced by faults."
        ),
    ] = 0.0,
) -> None:
    """Serve a simulated API until Ctrl-C, for any client in any language.

    Words in a prompt script it: sandbox:duration=3, sandbox:outputs=2,
    sandbox:fail=content_moderated, sandbox:state=throttled.
    """
    from luma_poll.sandbox import Sandbox

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            serving = Sandbox(speed=speed, seed=seed, faults=faults).serve(host, port)
            try:
                base_url = await stack.enter_async_context(serving)
            except (OSError, UnicodeError) as error:
                why = str(getattr(error, "strerror", None) or error).partition(" (")[0]
                raise ConfigurationError(f"cannot listen on {host}, port {port}: {why}") from None
            _say(f"The sandbox listens at {base_url}. Ctrl-C ends it. To use it:")
            _put(f"export LUMA_BASE_URL={base_url}")
            _put("export LUMA_AGENTS_API_KEY=luma-api-sandbox")
            await anyio.sleep_forever()

    with _exit_codes():
        anyio.run(serve)


async def _wait_for(
    generations: Sequence[str | Generation],
    client: LumaClient,
    timeout: float,
    as_json: bool,
    pending: list[str],
) -> int:
    """Wait for ids or snapshots, print each as it ends, and return the exit code.

    Those that have not ended yet are in `pending`.
    """
    codes = [0]
    lost_output: OSError | None = None

    async def wait_for_one(generation: str | Generation) -> None:
        nonlocal lost_output
        generation_id = generation if isinstance(generation, str) else generation.id
        table.add(generation_id, generation_id)
        snapshot, error = await _result(poller, generation)
        pending.remove(generation_id)
        table.end(generation_id, _verdict(error))
        codes.append(0 if error is None else _exit_code(error))
        try:
            with table.lifted():
                _put_result(generation_id, snapshot, error, as_json)
        except OSError as trouble:  # caught here, lest the task group wraps it
            lost_output = trouble
            tasks.cancel_scope.cancel()

    with live_table("generation", console=err) as table:
        poller = Poller(client, timeout=timeout, on_poll=table.on_poll)
        async with anyio.create_task_group() as tasks:
            for generation in generations:
                tasks.start_soon(wait_for_one, generation)
    if lost_output is not None:
        raise lost_output
    return max(codes)


async def _result(
    poller: Poller, generation: str | Generation
) -> tuple[Generation | None, LumaError | None]:
    """The last snapshot, and the error that ended the wait."""
    last = None
    try:
        async for snapshot in poller.watch(generation):
            last = snapshot
            last.raise_for_failure()
    except GenerationError as error:
        return error.generation, error
    except LumaError as error:
        return last, error
    return last, None


def _put_result(
    generation_id: str, generation: Generation | None, error: LumaError | None, as_json: bool
) -> None:
    if as_json:
        line = {
            "id": generation_id,
            "ok": error is None,
            "generation": None if generation is None else generation.model_dump(mode="json"),
            "error": None if error is None else _error_fields(error),
        }
        _put(json.dumps(line))
    elif error is not None:
        _say_error(error)
    elif generation is not None:
        _put_urls(generation)


def _put_urls(generation: Generation) -> None:
    for output in generation.output:
        _put(output.url)


def _error_fields(error: LumaError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "failure_code": getattr(error, "failure_code", None),
        "retryable": getattr(error, "retryable", None),
    }


def _describe(generation: Generation) -> str:
    facts = list(generation.model_dump(exclude={"output"}).items())
    for output in generation.output:
        facts.append(("output", output.url))
        if output.expires_at is not None:
            facts.append(("  expires", f"{output.expires_at:%Y-%m-%d %H:%M:%S} UTC"))
    return "\n".join(
        f"{name.replace('_', ' '):<15} {value}" for name, value in facts if value is not None
    )


def _client() -> LumaClient:
    """The client, with complaints in words of the command line."""
    if not os.environ.get("LUMA_AGENTS_API_KEY", "").strip():
        raise ConfigurationError(
            "there is no API key. Set the environment variable LUMA_AGENTS_API_KEY; keys are made "
            "at https://platform.lumalabs.ai. Without a key, try: luma-poll demo"
        )
    try:
        return LumaClient()
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("base_url", "LUMA_BASE_URL")) from None


def _read_ids(arguments: list[str]) -> list[str]:
    """The ids of the command line, those of stdin in place of `-`; each once."""
    ids: list[str] = []
    for argument in arguments:
        ids.extend(_read_stdin().split() if argument == "-" else [argument])
    if not ids:
        raise ConfigurationError("there is no id on standard input")
    return list(dict.fromkeys(check_generation_id(generation_id) for generation_id in ids))


def _read_stdin() -> str:
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise ConfigurationError("standard input is closed")
    try:
        return sys.stdin.read()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"standard input cannot be read: {error}") from None


@contextmanager
def _exit_codes(on_interrupt: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn what ends a command early into words and exit codes."""
    try:
        yield
    except LumaError as error:
        _say_error(error)
        raise typer.Exit(_exit_code(error)) from None
    except KeyboardInterrupt:
        on_interrupt()
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _let_go_of_stdout()
        raise typer.Exit(OUTPUT_CLOSED) from None
    except OSError as error:
        _let_go_of_stdout()
        _say(f"Error: {error}")
        raise typer.Exit(TROUBLE) from None


def _exit_code(error: LumaError) -> int:
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, PollTimeoutError):
        return TIMED_OUT
    return FAILED if isinstance(error, GenerationError) else TROUBLE


def _verdict(error: LumaError | None) -> str:
    """What the table says of a generation that is not waited for any more."""
    if error is None:
        return "completed"
    if isinstance(error, PollTimeoutError):
        return "timed out"
    return "failed" if isinstance(error, GenerationError) else type(error).__name__


def _let_go_of_stdout() -> None:
    """Python would try to write the rest at exit, and complain."""
    with suppress(OSError):  # in a test it may have no file number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _put(text: str) -> None:
    """Print a result. Not with rich, which would replace `:key:` in a URL by an emoji."""
    print(text, flush=True)


def _say(text: str) -> None:
    """Print to stderr, above the table if there is one; a terminal gets whole words in a line."""
    err.print(text, soft_wrap=not err.is_terminal)


def _say_error(error: LumaError) -> None:
    name = "Error" if isinstance(error, ConfigurationError) else type(error).__name__
    notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
    _say(f"{name}: {error}{notes}")


def _say_how_to_resume(pending: list[str]) -> None:
    if pending:
        still = "1 is" if len(pending) == 1 else f"{len(pending)} are"
        _say(f"Interrupted; {still} still running. To wait on:")
        err.print(f"  luma-poll wait {shlex.join(pending)}", soft_wrap=True)
