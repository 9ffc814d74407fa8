"""`luma-poll create`: one prompt and, if asked for, its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import anyio
import typer

from luma_poll._cli.hints import command, longer_timeout, options_given
from luma_poll._cli.options import (
    AspectRatioOption,
    ImageOption,
    JsonOption,
    ModelOption,
    ParamOption,
    QuietOption,
    SourceOption,
    TypeOption,
    check_place,
    open_client,
    positive,
    read_params,
    reference,
)
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import Result, writing
from luma_poll._cli.terminal import in_words, put_line, say, say_lines
from luma_poll._cli.wait_command import Batch, wait_for
from luma_poll._client.client import LumaClient
from luma_poll._running.requests import read_request
from luma_poll.errors import ConfigurationError
from luma_poll.models import Generation


def create(
    ctx: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", help="What to make; only --type layering needs none."),
    ] = None,
    model: ModelOption = None,
    kind: TypeOption = None,
    aspect_ratio: AspectRatioOption = None,
    source: SourceOption = None,
    image: ImageOption = None,
    param: ParamOption = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait, and print the URLs of the outputs.")
    ] = False,
    download: Annotated[
        str | None,
        typer.Option(
            "--download",
            "-o",
            metavar="DIR|FILE",
            help="Wait, download the outputs, and print their paths.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--open", help="Wait, and show the outputs on the screen.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            callback=positive,
            metavar="SECONDS",
            help="How long to wait (default: 600); inf: no limit.",
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Submit a generation, which is billed, and print its id, or wait for its files.

    Example: luma-poll create "a red fox" -o fox.png
    """
    waits = wait or show or download is not None
    submission, batch = Submission(), Batch()

    async def submit_and_wait(params: Mapping[str, object]) -> None:
        async with open_client() as client:
            with writing(as_json=as_json, alone=True) as put:
                generation = await submission.submit(client, params)
                if not waits:
                    named = generation.model_copy(update={"prompt": prompt})
                    put_line(named.model_dump_json() if as_json else generation.id)
                    submission.is_told = True
                    return
                say(f"Submitted {generation.id}.")
                batch.add(generation)

                def put_and_open(result: Result) -> None:
                    put(result)
                    submission.is_told = not result.is_open
                    if show and result.error is None:
                        _open(result)

                await wait_for(
                    batch,
                    client,
                    put_and_open,
                    timeout=timeout or 600.0,
                    directory=download,
                    quiet=quiet,
                )

    def hints() -> Iterator[str]:
        yield from submission.problems()
        if submission.generation is not None and not submission.is_told:
            longer = longer_timeout(ctx, batch.timed_out)
            again = options_given(ctx, "timeout", "download", "as_json", **longer)
            yield f"Generation {submission.generation.id} was submitted. To wait for it:"
            yield command("wait", submission.generation.id, *again)

    with orderly_exit(hints):
        if timeout is not None and not waits:
            raise ConfigurationError("--timeout needs --wait or --download")
        usual = {
            "model": model,
            "type": kind,
            "aspect_ratio": aspect_ratio,
            "source": None if source is None else reference(source),
            "image_ref": None if image is None else [reference(each) for each in image],
        }
        params = read_request({"prompt": prompt, **read_params(usual, param)}).params
        check_place(download)
        anyio.run(submit_and_wait, params)
        say_lines(hints())
        raise typer.Exit(batch.code)


class Submission:
    """A submission and its outcome.

    Attributes:
        generation: The first snapshot, once it was accepted; else None.
        is_told: True if the id, or the end, has been printed.
    """

    def __init__(self) -> None:
        self.generation: Generation | None = None
        self.is_told = False
        self._is_under_way = False
        self._failure: Exception | None = None

    async def submit(self, client: LumaClient, params: Mapping[str, Any]) -> Generation:
        """Submit it, and wait for the answer even after Ctrl-C: it has an id that is billed.

        It has a task of its own, which asyncio's own cancellation does not reach.
        """
        is_answered = False

        async def send() -> None:
            nonlocal is_answered
            try:
                with anyio.CancelScope(shield=True):
                    self.generation = await client.generations.create(**params)
            except Exception as error:  # raised below: the task group would wrap it
                self._failure = error
            is_answered = True
            tasks.cancel_scope.cancel()

        async def tell() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                if not is_answered:
                    say("Waiting for the answer, which has the id. Ctrl-C again gives up.")

        self._is_under_way = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            tasks.start_soon(tell)
        failure, self._failure, self._is_under_way = self._failure, None, False
        if failure is not None:
            raise failure
        assert self.generation is not None, "a submission without a failure has a generation"
        return self.generation

    def problems(self) -> Iterator[str]:
        """Yield the lines to print about a submission that was interrupted."""
        if not self._is_under_way or self.generation is not None:
            return
        if self._failure is not None:
            yield in_words(self._failure)
        else:
            yield (
                "Interrupted while submitting: it may have been accepted and billed. "
                "Check the account's usage before you submit it again."
            )


def _open(result: Result) -> None:
    outputs = result.generation.output if result.generation else []
    places = [output.url for output in outputs] if result.paths is None else result.paths
    for place in places:
        typer.launch(str(place))
