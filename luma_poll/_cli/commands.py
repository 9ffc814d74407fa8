"""The commands of `luma-poll`: their options, and what they call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, get_args

import anyio
import typer

from luma_poll._api.parameters import GenerationType, Model
from luma_poll._arguments import check_generation_id
from luma_poll._cli.api_client import open_client
from luma_poll._cli.exit_codes import HELP, exit_code
from luma_poll._cli.fetching import fetch_all
from luma_poll._cli.journals import after_resolve, open_journal, put_entries
from luma_poll._cli.process import orderly_exit, run_app
from luma_poll._cli.prompts import read_requests
from luma_poll._cli.results import Put, describe, put_json, put_text, put_urls, writing
from luma_poll._cli.resuming import Source, unless, words_of
from luma_poll._cli.running import run_prompts
from luma_poll._cli.runs import Runs
from luma_poll._cli.submissions import Prompt, Submissions, read_params, read_submissions, submit
from luma_poll._cli.terminal import err, out, put_line, say, say_lines
from luma_poll._cli.waiting import Batch, wait_for
from luma_poll._cli.waiting import watch as watch_changes
from luma_poll._cli.worker_command import worker
from luma_poll._journal.entry import STATES, check_state
from luma_poll._journal.journal import Journal
from luma_poll._polling.poller import MAX_RATE, TIMEOUT
from luma_poll._version import __version__
from luma_poll.errors import ConfigurationError, LumaError
from luma_poll.models import Generation

MODELS, TYPES = (get_args(get_args(names)[0]) for names in (Model, GenerationType))
"""Those that are known; the API takes others as it learns them."""

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Wait for Luma generations. Without an API key, try [bold]luma-poll demo[/].\n\n"
    "The key is read from LUMA_AGENTS_API_KEY, and the API's address from LUMA_BASE_URL if set.",
    epilog=HELP,
)


def _positive(value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise typer.BadParameter(f"must be above 0, not {value:g}.")
    return value


def _offer(values: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Let the shell complete a word to one of these, though others are accepted too."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a generation.")]
Ids = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID...", help="Ids of generations; - reads ids from standard input."),
]
Timeout = Annotated[
    float,
    typer.Option(callback=_positive, metavar="SECONDS", help="How long to wait; inf: no limit."),
]
MaxRate = Annotated[
    float,
    typer.Option(callback=_positive, metavar="N", help="Requests per second, for all together."),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", autocompletion=_offer(MODELS), help="uni-1, ray-3.2, ..."),
]
TypeOption = Annotated[
    str | None, typer.Option("--type", autocompletion=_offer(TYPES), help="image, video, ...")
]
AspectRatio = Annotated[str | None, typer.Option(help="16:9, 1:1, ...")]
Params = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Any other parameter; the value is JSON or text."),
]
Output = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Append results to a file, one JSON object per line."),
]
Download = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Download the outputs, and print their paths instead."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def run() -> None:
    """Run the command line."""
    run_app(app)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Take the options of the command itself."""
    if version:
        with orderly_exit():
            put_line(__version__)
        raise typer.Exit


@app.command()
def demo(
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Replace three in ten answers with faults.")
    ] = False,
) -> None:
    """Submit six generations to a simulated API and wait for them; takes seconds."""
    from luma_poll._cli.demo import run_demo

    with orderly_exit():
        anyio.run(partial(run_demo, out, err, chaos=chaos))


@app.command()
def get(generation_id: Id, as_json: Json = False) -> None:
    """Print a snapshot of a generation in any state."""

    async def fetch() -> Generation:
        async with open_client() as client:
            return await client.generations.get(generation_id)

    with orderly_exit():
        generation = anyio.run(fetch)
        for line in [generation.model_dump_json()] if as_json else describe(generation):
            put_line(line)


@app.command()
def create(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt.", show_default=False)
    ] = None,
    model: ModelOption = None,
    kind: TypeOption = None,
    aspect_ratio: AspectRatio = None,
    param: Params = None,
    file: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Read prompts, one per line; - is standard input."),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait, and print the URLs of the outputs.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            callback=_positive,
            metavar="SECONDS",
            help=f"How long to --wait (default: {TIMEOUT:g}); inf: no limit.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Submit a generation, which is billed, and print its id.

    With --file, submit one for each line of a file; lines that begin with # are comments.
    """
    usual = {"model": model, "type": kind, "aspect_ratio": aspect_ratio}
    seconds = timeout or TIMEOUT
    source = Source(as_json=as_json, timeout=seconds)
    submissions, batch = Submissions(), Batch()

    def put_submitted(prompt: Prompt, generation: Generation) -> None:
        if wait:
            batch.add(generation)
            say(f"Submitted {generation.id}.")
        elif as_json:
            put_line(generation.model_copy(update={"prompt": prompt.text}).model_dump_json())
        else:
            put_line(generation.id)

    async def submit_and_wait(params: dict[str, Any]) -> int:
        async with open_client() as client:
            code = await submit(client, submissions, params, put_submitted)
            if not batch.generations:
                return code
            with writing(as_json=as_json, alone=batch.is_one) as put:
                await wait_for(batch, client, put, timeout=seconds)
            say_lines(source.after_end(batch))
            return max(code, batch.code)

    def hints() -> Iterator[str]:
        yield from submissions.after_interrupt()
        yield from source.after_interrupt(batch)

    with orderly_exit(hints):
        if timeout is not None and not wait:
            raise ConfigurationError("--timeout goes with --wait")
        params = read_params(usual, param or ())
        options = words_of(
            **usual, param=param, wait=wait, timeout=unless(TIMEOUT, seconds), json=as_json
        )
        submissions = read_submissions(prompt, file, options)
        raise typer.Exit(anyio.run(submit_and_wait, params))


@app.command("run")
def run_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="One prompt per line, or a .jsonl file of parameters; - is standard input.",
        ),
    ],
    model: ModelOption = None,
    kind: TypeOption = None,
    aspect_ratio: AspectRatio = None,
    param: Params = None,
    download: Download = None,
    max_running: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Generations at once (default: all that fit)."),
    ] = None,
    max_attempts: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Submit again after failures that may pass."),
    ] = 1,
    max_submissions: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Submissions in all.")
    ] = None,
    journal: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Remember the submissions: the same command continues the run."
        ),
    ] = None,
    timeout: Timeout = TIMEOUT,
    max_rate: MaxRate = MAX_RATE,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Submit prompts as fast as the account allows, wait, and print the URLs of the outputs.

    Each generation is billed. Nothing is submitted twice, unless --max-attempts allows it.
    """
    runs = Runs()

    async def run_all(kept: Journal | None, put: Put) -> None:
        async with open_client() as client:
            await run_prompts(
                runs,
                client,
                put,
                timeout=timeout,
                max_rate=max_rate,
                max_running=max_running,
                max_attempts=max_attempts,
                max_submissions=max_submissions,
                journal=kept,
                directory=download,
            )

    with orderly_exit(lambda: runs.after_interrupt()):
        usual = {"model": model, "type": kind, "aspect_ratio": aspect_ratio}
        lines = read_requests(source, read_params(usual, param or ()))
        options = words_of(
            **usual,
            param=param,
            download=download,
            max_running=None if max_running is None else str(max_running),
            max_attempts=unless(1, max_attempts),
            timeout=unless(TIMEOUT, timeout),
            max_rate=unless(MAX_RATE, max_rate),
            json=as_json,
            output=output,
        )
        runs = Runs(lines, source, options, journal)
        with (
            nullcontext() if journal is None else Journal(journal) as kept,
            writing(output, as_json=as_json, alone=False) as put,
        ):
            anyio.run(run_all, kept, put)
        say_lines(runs.after_end())
        raise typer.Exit(runs.code)


@app.command("journal")
def journal_command(
    path: Annotated[str, typer.Argument(metavar="FILE", help="The journal of luma-poll run.")],
    action: Annotated[
        str | None,
        typer.Argument(metavar="ACTION", help="resolve: settle KEY.", show_default=False),
    ] = None,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY]", help="Of the entry.", show_default=False)
    ] = None,
    generation_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="It was accepted, with this id.")
    ] = None,
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="It may be submitted, and billed, again.")
    ] = False,
    state: Annotated[
        str | None,
        typer.Option(
            autocompletion=_offer(STATES),
            help="List those in this state: submitting, running, completed, failed, unknown.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the entries of a journal, or settle one whose submission is unknown."""
    with orderly_exit():
        journal = open_journal(path)
        with journal:
            if action is None:
                put_entries(journal.entries(check_state(state)), as_json=as_json)
            elif action != "resolve" or key is None:
                raise ConfigurationError("the only action is: resolve KEY --id ID | --resubmit")
            else:
                journal.resolve(key, generation_id=generation_id, resubmit=resubmit)
                say_lines(after_resolve(key, generation_id))


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
    output: Output = None,
    download: Download = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Skip generations that have ended according to this file of --json or --output.",
        ),
    ] = None,
) -> None:
    """Wait for generations, and print the URLs of the outputs of each as it ends.

    With several ids, each URL follows its id and a tab.

    Failures are reported on standard error; with --json, in the object.
    """
    source = Source(
        tuple(ids or ()), tuple(file or ()), as_json, output, resume, download, timeout, max_rate
    )
    batch = Batch()

    async def wait_for_all(put: Put) -> None:
        async with open_client() as client:
            await wait_for(
                batch, client, put, timeout=timeout, max_rate=max_rate, directory=download
            )

    with orderly_exit(lambda: source.after_interrupt(batch)):
        earlier = source.read_earlier()
        say_lines(f"warning: {resume}: {problem}" for problem in earlier.problems())
        batch = Batch(source.read_ids(), source.has_stdin, earlier)
        if batch.skipped:
            say(f"Skipped {batch.skipped} that are done in {resume}.")
        with writing(output, resume, as_json=as_json, alone=batch.is_one) as put:
            try:
                if batch.generations or batch.stdin:
                    anyio.run(wait_for_all, put)
            except LumaError:  # a bad line of standard input, after the results before it
                say_lines(source.after_end(batch))
                raise
        say_lines(source.after_end(batch))
        raise typer.Exit(batch.code)


@app.command()
def download(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of generations.")],
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="Where to; created if it does not exist.")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Fetch files again even if they exist.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download the outputs of completed generations, and print the paths of the files.

    After an interruption the same command continues where it stopped.
    """

    async def download_all() -> tuple[int, list[str]]:
        wanted = list(dict.fromkeys(map(check_generation_id, ids)))
        put = put_json if as_json else put_text
        async with open_client() as client:
            results = await fetch_all(client, wanted, directory, put, overwrite=overwrite)
        running = [each.generation_id for each in results if each.is_running]
        return max(exit_code(each.error) for each in results), running

    def hints() -> list[str]:
        return ["Interrupted; the same command continues where this one stopped."]

    with orderly_exit(hints):
        code, running = anyio.run(download_all)
        if running:
            source = Source(as_json=as_json, download=directory)
            say_lines(["To wait for those still running:", source.command(running)])
        raise typer.Exit(code)


@app.command()
def watch(generation_id: Id, timeout: Timeout = TIMEOUT, as_json: Json = False) -> None:
    """Print every change of a generation's state, then the URLs of its outputs."""

    def put(generation: Generation, seconds: float) -> None:
        if as_json:
            put_line(generation.model_dump_json())
        else:
            put_line(f"{seconds:7.1f} s  {generation.state}")
            put_urls(generation)

    async def print_changes() -> None:
        async with open_client() as client:
            await watch_changes(client, generation_id, put, timeout=timeout)

    source, batch = Source(timeout=timeout), Batch([generation_id])
    with orderly_exit(lambda: source.after_interrupt(batch)):
        anyio.run(print_changes)


@app.command()
def sandbox(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8787,
    speed: Annotated[
        float, typer.Option(callback=_positive, help="How many times as fast as the real API.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeat the same ids and durations.")] = None,
    faults: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of polls that are answered with a fault."),
    ] = 0.0,
    strict_keys: Annotated[
        bool, typer.Option("--strict-keys", help="Refuse keys that do not begin with luma-api-.")
    ] = False,
) -> None:
    """Serve a simulated API until Ctrl-C, for clients in any language.

    Words in a prompt script its generation: sandbox:duration=3, sandbox:outputs=2,
    sandbox:fail=content_moderated, sandbox:state=throttled.
    """
    from luma_poll._cli.serving import serve
    from luma_poll.sandbox import Sandbox

    with orderly_exit():
        simulated = Sandbox(speed=speed, seed=seed, faults=faults, strict_keys=strict_keys)
        anyio.run(serve, simulated, host, port)


app.command()(worker)
