"""`luma-poll demo`: six generations from submission to end, against the sandbox, in seconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated

import anyio
import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import Result
from luma_poll._cli.table import STYLES, LiveTable
from luma_poll._cli.terminal import err, is_terminal, out
from luma_poll._client.client import LumaClient
from luma_poll._polling.poller import Poller
from luma_poll._redaction import redact
from luma_poll.models import Generation
from luma_poll.sandbox import Sandbox

SPEED = 10.0
DEMO_KEY = "luma-api-sandbox"

PROMPTS = [
    ("a red fox in fresh snow", "uni-1", "sandbox:duration=24"),
    ("a lighthouse at dusk", "uni-1", "sandbox:duration=33"),
    ("two views of a glass teapot", "uni-1-max", "sandbox:duration=45 sandbox:outputs=2"),
    ("waves on black sand, in slow motion", "ray-3.2", "sandbox:duration=58"),
    (
        "something that moderation rejects",
        "uni-1",
        "sandbox:duration=12 sandbox:fail=content_moderated",
    ),
    ("a map drawn by a cat", "uni-1", "sandbox:duration=28 sandbox:fail=generation_failed"),
]

HOW = """\
async with LumaClient() as client:
    generation = await client.generations.create("a red fox in fresh snow")
    outputs = await Poller(client).wait(generation)"""


def demo(
    chaos: Annotated[
        bool, typer.Option("--chaos", help="Replace three in ten answers with faults.")
    ] = False,
) -> None:
    """Submit six generations to a simulated API, and wait for them; this takes seconds.

    It needs no API key. Example: luma-poll demo --chaos
    """
    with orderly_exit():
        anyio.run(partial(run_demo, out, err, chaos=chaos))


async def run_demo(out: Console, err: Console, *, chaos: bool = False) -> None:
    """Submit `PROMPTS`, wait for all, and print their results.

    Args:
        out: The console for the results.
        err: The console for the live table.
        chaos: True to replace three in ten answers to polls with faults.
    """
    say = partial(out.print, soft_wrap=not out.is_terminal)
    prompts: dict[str, str] = {}
    results: dict[str, Result] = {}
    sandbox = Sandbox(speed=SPEED, faults=0.3 if chaos else 0.0)
    async with sandbox.serve() as base_url:
        say(f"A simulated Luma API, {SPEED:g} times as fast as the real one, is at {base_url}.")
        say("It needs no key, and nothing is billed.")
        if chaos:
            say("On a bad day: three in ten polls are answered with a fault.")
        if err.is_terminal:
            say("")
        table = LiveTable.on(err, "prompt", "model", quiet=not is_terminal(err))
        with table.shown():
            async with LumaClient(DEMO_KEY, base_url=base_url) as client:
                # Some of the faults are answers that never come.
                hasty = client.with_options(timeout=1.0) if chaos else client
                poller = Poller(hasty, wait=sandbox.wait, timeout=60, on_poll=table.on_poll)
                submitted = _submit(client, table, prompts)
                async with poller.as_completed(submitted) as ended:
                    async for each in ended:
                        result = Result(each.generation_id, each.generation, each.error)
                        table.end(result.generation_id, result.verdict, result.error)
                        results[result.generation_id] = result
    say("\nResults (without the secret part of each URL)\n", style="bold")
    for generation_id, prompt in prompts.items():
        result = results[generation_id]
        say(Text.assemble((f"{result.verdict:<10} ", STYLES.get(result.verdict, "red")), prompt))
        for line in _lines(result):
            say(Padding(line, (0, 0, 0, 2), expand=False) if out.is_terminal else f"  {line}")
    if chaos:
        faults = ", ".join(f"{count} {kind}" for kind, count in sandbox.faults_served.items())
        say(f"\nFaults served: {faults or 'none, by chance'}. None of them ended a wait.")
    say("\nThe same in Python\n", style="bold")
    say(HOW, highlight=True)


def _lines(result: Result) -> list[str]:
    if result.error is not None:
        return [f"{type(result.error).__name__}: {result.error}"]
    return [redact(output.url) for output in result.generation.output] if result.generation else []


async def _submit(
    client: LumaClient, table: LiveTable, prompts: dict[str, str]
) -> AsyncGenerator[Generation]:
    for prompt, model, script in PROMPTS:
        kind = "video" if model == "ray-3.2" else "image"
        generation = await client.generations.create(f"{prompt} {script}", model=model, type=kind)
        table.add(generation.id, prompt, model, state=generation.state)
        prompts[generation.id] = prompt
        yield generation
