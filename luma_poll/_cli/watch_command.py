"""`luma-poll watch`: the changes of a generation's state."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import typer

from luma_poll._cli.hints import command, longer_timeout, options_given
from luma_poll._cli.options import IdArgument, JsonOption, TimeoutOption, open_client
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import put_urls
from luma_poll._cli.terminal import put_line
from luma_poll._polling.poller import Poller
from luma_poll.errors import PollTimeoutError
from luma_poll.models import Generation


def watch(
    ctx: typer.Context,
    generation_id: IdArgument,
    timeout: TimeoutOption = 600.0,
    as_json: JsonOption = False,
) -> None:
    """Print every change of a generation's state, then the URLs of its outputs.

    Example: luma-poll watch 182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e
    """
    ended, timed_out = True, False

    def put(generation: Generation, seconds: float) -> None:
        if as_json:
            put_line(generation.model_dump_json())
        else:
            put_line(f"{seconds:7.1f} s  {generation.state}")
            put_urls(generation)

    async def print_changes() -> None:
        nonlocal ended, timed_out
        started = anyio.current_time()
        async with open_client() as client:
            ended = False
            try:
                async for generation in Poller(client).watch(generation_id, timeout=timeout):
                    ended = generation.is_terminal
                    put(generation, anyio.current_time() - started)
                    generation.raise_for_failure()
            except PollTimeoutError:
                timed_out = True
                raise

    def hints() -> Iterator[str]:
        if not ended:
            yield "To keep watching:"
            again = options_given(ctx, **longer_timeout(ctx, timed_out))
            yield command("watch", generation_id, *again)

    with orderly_exit(hints):
        anyio.run(print_changes)
