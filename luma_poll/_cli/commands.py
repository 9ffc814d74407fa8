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
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from luma_poll._arguments import check_generation_id
from luma_poll._cli.bars import DownloadBars, download_bars
from luma_poll._cli.results import (
    EarlierResults,
    append_line,
    lacks_newline,
    read_results,
    to_json,
    verdict,
)
from luma_poll._cli.submissions import PATIENCE, Prompt, Submissions, read_params, read_prompts
from luma_poll._cli.table import live_table
from luma_poll._cli.terminal import (
    LogHandler,
    err,
    exit_codes,
    let_go_of_stdout,
    out,
    put_line,
    say,
    say_error,
    say_lines,
)
from luma_poll._cli.waiting import (
    OUTPUT_CLOSED,
    Batch,
    Source,
    exit_code,
    limits,
    option,
)
from luma_poll._client.client import LumaClient
from luma_poll._polling.batch import PollResult, run_each
from luma_poll._polling.poller import MAX_RATE, TIMEOUT, Poller
from luma_poll._version import __version__
from luma_poll.errors import ConfigurationError, LumaError
from luma_poll.models import Generation

MODELS = ("uni-1", "uni-1-max", "ray-3.2")
TYPES = ("image", "image_edit", "video", "video_edit", "video_reframe", "layering")

Paths = Sequence[Path] | None
"""The files of a result, if it was to be downloaded."""
Put = Callable[[PollResult, Paths], None]
"""What is done with each result as it comes."""

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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


def _positive(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value:g} is not above 0.")
    return value


def _offer(*values: str) -> Callable[[str], list[str]]:
    """Complete a word in the shell to one of these, though others are accepted too."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a generation.")]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID...", help="Ids of generations; - reads them from standard input."),
]
Timeout = Annotated[
    float,
    typer.Option(callback=_positive, metavar="SECONDS", help="How long to wait; inf for ever."),
]
MaxRate = Annotated[
    float,
    typer.Option(callback=_positive, metavar="N", help="Requests per second, over all."),
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
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    logging.getLogger("luma_poll").addHandler(LogHandler(logging.WARNING))
    try:
        app(prog_name="luma-poll")
    except SystemExit as ended:  # with 1, where Typer or Rich could not print, as to `head`
        if isinstance(ended.__context__, BrokenPipeError):
            let_go_of_stdout()
            sys.exit(OUTPUT_CLOSED)
        raise
    finally:  # a second Ctrl-C ends it there and then, without a word from a closing interpreter
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Take the options of the command itself."""
    if version:
        with exit_codes():
            put_line(__version__)
        raise typer.Exit


@app.command()
def demo(
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Replace three in ten answers by faults.")
    ] = False,
) -> None:
    """Submit six generations to a simulated API and wait for them. It takes seconds."""
    from luma_poll._cli.demo import run_demo

    with exit_codes():
        anyio.run(partial(run_demo, out, err, chaos=chaos))


@app.command()
def get(generation_id: Id, as_json: Json = False) -> None:
    """Print a snapshot of a generation, whatever its state."""

    async def fetch() -> Generation:
        async with _client() as client:
            return await client.generations.get(generation_id)

    with exit_codes():
        generation = anyio.run(fetch)
        for line in [generation.model_dump_json()] if as_json else _describe(generation):
            put_line(line)


@app.command()
def create(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to make.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(autocompletion=_offer(*MODELS), help="uni-1, ray-3.2, ...")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", autocompletion=_offer(*TYPES), help="image, video, ..."),
    ] = None,
    aspect_ratio: Annotated[str | None, typer.Option(help="16:9, 1:1, ...")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Any other parameter; the value is JSON, or text."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Prompts, one a line; - is standard input."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait, and print the URLs of the outputs.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            callback=_positive,
            metavar="SECONDS",
            help="How long to --wait; 600 by default, inf for ever.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a generation, which is billed, and print its id.

    With --file one for each line of a file; a line that begins with # is a comment.
    """
    usual = {"model": model, "type": kind, "aspect_ratio": aspect_ratio}
    source = Source(as_json=as_json, limits=limits(timeout or TIMEOUT))
    submissions, batch = Submissions(), None

    def put_submitted(prompt: Prompt, generation: Generation) -> None:
        if wait:
            say(f"Submitted {generation.id}.")
        elif as_json:
            put_line(generation.model_copy(update={"prompt": prompt.text}).model_dump_json())
        else:
            put_line(generation.id)

    async def submit(params: dict[str, Any]) -> int:
        nonlocal batch
        async with _client() as client:
            code = await _submit(client, submissions, params, put_submitted)
            if not wait or not submissions.accepted:
                return code
            batch = Batch(submissions.accepted)
            put: Put = _put_json if as_json else partial(_put_text, alone=batch.is_one)
            await _wait_for(batch, client, timeout or TIMEOUT, MAX_RATE, put)
            say_lines(source.after_end(batch))
            return max(code, batch.code)

    def interrupted() -> None:
        say_lines(submissions.after_interrupt())
        if wait:
            say_lines(source.after_interrupt(batch or Batch(submissions.accepted)))

    with exit_codes(interrupted):
        if (prompt is None) == (file is None):
            raise ConfigurationError("give a PROMPT, or --file PATH")
        if timeout is not None and not wait:
            raise ConfigurationError("--timeout goes with --wait")
        params = read_params(usual, param or ())
        prompts = [Prompt(prompt or "")] if file is None else read_prompts(file)
        options = [word for key, value in usual.items() for word in option(key, value)]
        options += [word for each in param or () for word in option("param", each)]
        options += [*["--wait"] * wait, *source.limits, *["--json"] * as_json]
        submissions = Submissions(prompts, file, options)
        raise typer.Exit(anyio.run(submit, params))


@app.command()
def wait(
    ids: Ids = None,
    file: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Read ids from a file too; # begins a comment."),
    ] = None,
    timeout: Timeout = TIMEOUT,
    max_rate: MaxRate = MAX_RATE,
    as_json: Json = False,
    output: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Append results to a file, one JSON object a line."),
    ] = None,
    download: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Download the outputs, and print the paths instead."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Skip what is done in this file, which --json or --output wrote."
        ),
    ] = None,
) -> None:
    """Wait for generations, and print the URLs of the outputs of each as it ends.

    Of several, each URL comes after its id and a tab.

    Why one failed is said on standard error; with --json, in its object.
    """
    source = Source(
        tuple(ids or ()),
        tuple(file or ()),
        as_json,
        output,
        resume,
        download,
        limits(timeout, max_rate),
    )
    batch = Batch()

    async def wait_for_all(put: Put) -> None:
        async with _client() as client:
            await _wait_for(batch, client, timeout, max_rate, put, download)

    with exit_codes(lambda: say_lines(source.after_interrupt(batch))), ExitStack() as stack:
        earlier = _read_earlier(source)
        batch = Batch(source.read_ids(), source.has_stdin, earlier)
        if batch.skipped:
            say(f"{batch.skipped} done in {resume}, skipped.")
        put: Put = _put_json if as_json else partial(_put_text, alone=batch.is_one)
        if output is not None:
            put = _telling(stack.enter_context(_appending(output)))
        elif resume is not None:
            _end_cut_off_line(resume)
        try:
            if batch.generations or batch.stdin:
                anyio.run(wait_for_all, put)
        except LumaError:  # of standard input, after what came before
            say_lines(source.after_end(batch))
            raise
        say_lines(source.after_end(batch))
        raise typer.Exit(batch.code)


@app.command()
def download(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of generations.")],
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Made if it is not there.")],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Fetch also what is there already.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download the outputs of completed generations, and print the paths of the files.

    After an interruption the same command goes on from the bytes that are there.
    """
    put: Put = _put_json if as_json else _put_text
    codes, running = [0], list[str]()

    async def fetch_all(wanted: list[str]) -> None:
        async with _client() as client:
            with download_bars(err) as bars:

                async def fetch(generation_id: str) -> tuple[PollResult, Paths]:
                    return await _fetch(client, generation_id, directory, bars, overwrite=overwrite)

                async with run_each(fetch, wanted, limit=None) as results:
                    async for result, paths in results:
                        put(result, paths)
                        codes.append(0 if result.error is None else exit_code(result.error))
                        if result.generation is not None and not result.generation.is_terminal:
                            running.append(result.generation_id)

    def interrupted() -> None:
        say("Interrupted; the same command goes on from the bytes that are there.")

    with exit_codes(interrupted):
        anyio.run(fetch_all, list(dict.fromkeys(map(check_generation_id, ids))))
        if running:
            source = Source(as_json=as_json, download=directory)
            say_lines(["To wait for what is still running:", source.command(running)])
        raise typer.Exit(max(codes))


@app.command()
def watch(generation_id: Id, timeout: Timeout = TIMEOUT, as_json: Json = False) -> None:
    """Print every change of a generation's state, then the URLs of its outputs."""

    async def print_changes() -> None:
        async with _client() as client:
            started = anyio.current_time()
            async for generation in Poller(client).watch(generation_id, timeout=timeout):
                if as_json:
                    put_line(generation.model_dump_json())
                else:
                    put_line(f"{anyio.current_time() - started:7.1f} s  {generation.state}")
                    _put_urls(generation)
                generation.raise_for_failure()

    source, batch = Source(limits=limits(timeout)), Batch([generation_id])
    with exit_codes(lambda: say_lines(source.after_interrupt(batch))):
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
            say(f"The sandbox listens at {base_url}. Ctrl-C ends it. To use it:")
            # An address that stands for all of this machine is none to connect to.
            own = base_url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
            put_line(f"export LUMA_BASE_URL={own}")
            put_line("export LUMA_AGENTS_API_KEY=luma-api-sandbox")
            await anyio.sleep_forever()

    with exit_codes():
        anyio.run(serve)


async def _submit(
    client: LumaClient,
    submissions: Submissions,
    params: dict[str, Any],
    put: Callable[[Prompt, Generation], None],
) -> int:
    """Submit one after the other, until one fails in a way that others would; the exit code."""
    if submissions.path is not None:
        client = client.with_options(max_retries=PATIENCE)
    codes = [0]
    for prompt in submissions:
        try:
            generation = await client.generations.create(prompt.text, **params)
        except LumaError as error:
            say_error(error, submissions.place())
            codes.append(exit_code(error))
            if not submissions.refuse(error):
                break
        else:
            submissions.accept(generation)
            try:
                put(prompt, generation)
            except OSError:  # lest it is forgotten, though it is billed
                say_lines([f"Submitted {generation.id}.", *submissions.after_end()])
                raise
    say_lines(submissions.after_end())
    return max(codes)


async def _wait_for(
    batch: Batch,
    client: LumaClient,
    timeout: float,
    max_rate: float,
    put: Put,
    directory: str | None = None,
) -> None:
    """Wait for all, and `put` each result as it comes, when its files are in the directory."""

    async def fetch(result: PollResult) -> tuple[PollResult, Paths]:
        if directory is None or result.generation is None or not result.ok:
            return result, None
        table.set_state(result.generation_id, "downloading")
        return await _fetch(client, result.generation, directory, bars)

    with live_table("generation", console=err) as table:
        table.bars = bars = DownloadBars(err)
        poller = Poller(client, timeout=timeout, max_rate=max_rate, on_poll=table.on_poll)
        async with (
            poller.as_completed(batch.take(table)) as results,
            run_each(fetch, results, limit=None) as fetched,
        ):
            async for result, paths in fetched:
                put(result, paths)
                batch.end(result)
                table.end(result.generation_id, verdict(result.error), result.error)


async def _fetch(
    client: LumaClient,
    generation: Generation | str,
    directory: str,
    bars: DownloadBars,
    *,
    overwrite: bool = False,
) -> tuple[PollResult, Paths]:
    """Download the files of one generation."""
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
            snapshot, directory, overwrite=overwrite, on_progress=bars.on_progress
        )
    except Exception as error:
        return PollResult(generation_id, snapshot, error), []
    finally:
        bars.forget(generation_id)
    return PollResult(generation_id, snapshot), paths


def _put_json(result: PollResult, paths: Paths = None) -> None:
    put_line(to_json(result, paths))


def _put_text(result: PollResult, paths: Paths = None, *, alone: bool = True) -> None:
    """Print the paths, or else the URLs; beside the id, unless there is no other."""
    if result.error is not None:
        say_error(result.error)
    elif paths is not None:
        for path in paths:
            put_line(str(path))
    elif result.generation is not None:
        _put_urls(result.generation, *[] if alone else [result.generation_id])


def _telling(put: Put) -> Put:
    """Also say why one failed: nobody looks into the file meanwhile."""

    def put_and_tell(result: PollResult, paths: Paths) -> None:
        put(result, paths)
        if result.error is not None:
            say_error(result.error)

    return put_and_tell


@contextmanager
def _appending(path: str) -> Iterator[Put]:
    """Gives what appends results to a file."""
    cut_off = lacks_newline(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None

    def put(result: PollResult, paths: Paths) -> None:
        append_line(descriptor, to_json(result, paths))

    try:
        if cut_off:
            append_line(descriptor, "")
        yield put
    finally:
        os.close(descriptor)


def _put_urls(generation: Generation, *before: str) -> None:
    for output in generation.output:
        put_line(*before, output.url)


def _describe(generation: Generation) -> Iterator[str]:
    facts = list(generation.model_dump(exclude={"output"}).items())
    for output in generation.output:
        facts.append(("output", output.url))
        if output.expires_at is not None:
            facts.append(("  expires", f"{output.expires_at:%Y-%m-%d %H:%M:%S} UTC"))
    for name, value in facts:
        if value is not None:
            yield f"{name.replace('_', ' '):<15} {value}"


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


def _read_earlier(source: Source) -> EarlierResults:
    """Read the file of `--resume`, and say what is wrong with it."""
    if source.resume is None:
        return EarlierResults()
    if not source.as_json and source.output is None:
        raise ConfigurationError("--resume goes with --json or --output: it reads their lines")
    earlier = read_results(source.resume, source.download)
    for problem in earlier.problems():
        say(f"warning: {source.resume}: {problem}")
    return earlier


def _end_cut_off_line(path: str) -> None:
    """Lest the first result continues it, where stdout is appended to the file of `--resume`."""
    with suppress(OSError, ValueError, AttributeError):
        same = os.path.samestat(os.fstat(sys.stdout.fileno()), os.stat(path))
        if same and lacks_newline(path):
            put_line("")
