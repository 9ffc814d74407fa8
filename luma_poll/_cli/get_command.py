"""`luma-poll get`: one snapshot of a generation."""

from __future__ import annotations

from collections.abc import Iterator

import anyio

from luma_poll._cli.options import IdArgument, JsonOption, open_client
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.terminal import put_line
from luma_poll.models import Generation


def get(generation_id: IdArgument, as_json: JsonOption = False) -> None:
    """Print a snapshot of a generation, in whatever state it is.

    Example: luma-poll get 182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e
    """

    async def fetch() -> Generation:
        async with open_client() as client:
            return await client.generations.get(generation_id)

    with orderly_exit():
        generation = anyio.run(fetch)
        for line in [generation.model_dump_json()] if as_json else describe(generation):
            put_line(line)


def describe(generation: Generation) -> Iterator[str]:
    """Yield a snapshot as lines to read, one for each fact."""
    facts = list(generation.model_dump(exclude={"output"}).items())
    for output in generation.output:
        facts.append(("output", output.url))
        if output.expires_at is not None:
            facts.append(("  expires", f"{output.expires_at:%Y-%m-%d %H:%M:%S} UTC"))
    for name, value in facts:
        if value is not None:
            yield f"{name.replace('_', ' '):<15} {value}"
