"""`luma-poll demo`: the whole way of some generations, against the sandbox, in seconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from luma_poll._cli.results import verdict
from luma_poll._cli.table import STYLES, LiveTable, live_table
from luma_poll._client.client import LumaClient
from luma_poll._polling.batch import PollResult
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
    ("what the moderation flags", "uni-1", "sandbox:duration=12 sandbox:fail=content_moderated"),
    ("a map drawn by a cat", "uni-1", "sandbox:duration=28 sandbox:fail=generation_failed"),
]

HOW = """\
async with LumaClient() as client:
    generation = await client.generations.create("a red fox in fresh snow")
    outputs = await Poller(client).wait(generation)"""


@dataclass
class Result:
    """What became of a prompt."""

    prompt: str
    state: str = ""
    lines: list[str] = field(default_factory=list)

    def take(self, result: PollResult) -> None:
        """Keep what a wait brought."""
        self.state = verdict(result.error)
        if result.error is None:
            self.lines = [redact(output.url) for output in result.outputs]
        else:
            self.lines = [f"{type(result.error).__name__}: {result.error}"]


async def run_demo(out: Console, err: Console, *, chaos: bool = False) -> None:
    """Submit `PROMPTS`, wait for all with a live table on `err`, and print what became of them.

    With `chaos`, three in ten answers to polls are faults.
    """
    say = partial(out.print, soft_wrap=not out.is_terminal)
    results: dict[str, Result] = {}
    sandbox = Sandbox(speed=SPEED, faults=0.3 if chaos else 0.0)
    async with sandbox.serve() as base_url:
        say(f"A simulated Luma API, {SPEED:g} times as fast as the real one, is at {base_url}.")
        say("It needs no key, and nothing is billed.")
        if chaos:
            say("It has a bad day: three in ten answers to polls are faults.")
        if err.is_terminal:
            say("")
        with live_table("prompt", "model", console=err) as table:
            patience = 1.0 if chaos else 30.0  # answers that never come are among the faults
            async with LumaClient(DEMO_KEY, base_url=base_url, timeout=patience) as client:
                poller = Poller(client, wait=sandbox.wait, timeout=60, on_poll=table.on_poll)
                submitted = _submit(client, table, results)
                async with poller.as_completed(submitted) as ended:
                    async for each in ended:
                        table.end(each.generation_id, verdict(each.error), each.error)
                        results[each.generation_id].take(each)
    say("\nWhat came out (the secret part of each URL is left out)\n", style="bold")
    for result in results.values():
        say(Text.assemble((f"{result.state:<10} ", STYLES.get(result.state, "red")), result.prompt))
        for line in result.lines:
            say(Padding(line, (0, 0, 0, 2), expand=False) if out.is_terminal else f"  {line}")
    if chaos:
        faults = ", ".join(f"{count} {kind}" for kind, count in sandbox.faults_served.items())
        say(f"\nFaults on the way: {faults or 'none, by luck'}. No wait ended by one.")
    say("\nThe same in Python\n", style="bold")
    say(HOW, highlight=True)


async def _submit(
    client: LumaClient, table: LiveTable, results: dict[str, Result]
) -> AsyncGenerator[Generation]:
    for prompt, model, script in PROMPTS:
        kind = "video" if model == "ray-3.2" else "image"
        generation = await client.generations.create(f"{prompt} {script}", model=model, type=kind)
        table.add(generation.id, prompt, model, state=generation.state)
        results[generation.id] = Result(prompt)
        yield generation
