"""`luma-poll demo`: the whole way of some generations, against the sandbox, in seconds."""

from __future__ import annotations

import anyio
from rich.console import Console
from tenacity import RetryCallState

from luma_poll.client import LumaClient
from luma_poll.display import LiveTable, live_table
from luma_poll.errors import GenerationError
from luma_poll.models import Generation
from luma_poll.poller import Poller
from luma_poll.redaction import redact
from luma_poll.sandbox import Sandbox
from luma_poll.schedules import DEFAULT_WAIT

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


def ten_times_as_often(state: RetryCallState) -> float:
    """The default schedule, as fast as the sandbox."""
    return DEFAULT_WAIT(state) / SPEED


async def run_demo(console: Console) -> None:
    """Submit `PROMPTS`, wait for all of them with a live table, and print what became of them."""
    results: dict[str, str] = {}
    async with Sandbox(speed=SPEED).serve() as base_url:
        console.print(
            f"[bold]luma-poll demo[/]: a simulated Luma API on {base_url}, {SPEED:g} times as fast "
            "as the real one.\nIt needs no key, and nothing is billed.\n"
        )
        async with (
            LumaClient(DEMO_KEY, base_url=base_url) as client,
            live_table("prompt", "model", console=console) as table,
            anyio.create_task_group() as tasks,
        ):
            poller = Poller(client, wait=ten_times_as_often, timeout=60, on_poll=table.on_poll)
            for prompt, model, script in PROMPTS:
                generation = await client.generations.create(f"{prompt} {script}", model=model)
                table.add(generation.id, prompt, model)
                tasks.start_soon(_wait, poller, generation, prompt, table, results)
    console.print("\n[bold]What came out[/] (the secret part of each URL is left out)\n")
    for result in results.values():
        console.print(result)
    console.print(f"\n[bold]The same in Python[/]\n\n{HOW}", highlight=True)


async def _wait(
    poller: Poller, generation: Generation, prompt: str, table: LiveTable, results: dict[str, str]
) -> None:
    results[generation.id] = ""  # keeps the order of submission
    try:
        outputs = await poller.wait(generation)
    except GenerationError as error:
        table.end(generation.id, "failed")
        results[generation.id] = f"[red]✗[/] {prompt}\n  [red]{type(error).__name__}[/]: {error}"
    else:
        table.end(generation.id, "completed")
        urls = "".join(f"\n  {redact(output.url)}" for output in outputs)
        results[generation.id] = f"[green]✓[/] {prompt}{urls}"
