"""`luma-poll run`: submitting as the account allows, waiting, and downloading."""

from __future__ import annotations

from dataclasses import replace

from luma_poll._cli.bars import DownloadBars
from luma_poll._cli.fetching import fetch
from luma_poll._cli.results import Put, Result
from luma_poll._cli.runs import Runs, RunTable
from luma_poll._cli.terminal import err
from luma_poll._client.client import LumaClient
from luma_poll._journal.journal import Journal
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.poller import MAX_RATE, Poller
from luma_poll._running.run_result import RunResult
from luma_poll._running.runner import REQUEST_COST, Runner
from luma_poll._tasks.each import run_each


async def run_prompts(
    runs: Runs,
    client: LumaClient,
    put: Put,
    *,
    timeout: float,
    max_rate: float = MAX_RATE,
    max_running: int | None = None,
    max_attempts: int = 1,
    max_submissions: int | None = None,
    journal: Journal | None = None,
    directory: str | None = None,
) -> None:
    """Run requests, and `put` each result as it ends.

    Args:
        runs: The requests; takes note of what becomes of them.
        client: The client to submit, poll and download with.
        put: Called with each result, after its files were downloaded.
        timeout: Seconds for each, from its submission.
        max_rate: Polls per second, for all together.
        max_running: Generations at once; None for as many as the account allows.
        max_attempts: How often one request may be submitted.
        max_submissions: Submissions in all; None for no limit.
        journal: Keeps track of the submissions.
        directory: Where to download the outputs; None for no download.
    """
    bars = DownloadBars(err)
    table = RunTable.on(err, "prompt", bars=bars)
    poller = Poller(
        client,
        wait=AdaptiveWait(request_cost=REQUEST_COST),
        timeout=timeout,
        max_rate=max_rate,
        on_poll=table.on_poll,
    )
    runner = Runner(
        client,
        poller,
        max_running=max_running,
        max_attempts=max_attempts,
        max_submissions=max_submissions,
        journal=journal,
    )
    runner.observe(runs.on_run)
    runner.observe(table.on_run)

    async def finish(ran: RunResult) -> Result:
        generation, request = ran.generation, ran.request
        assert not isinstance(request, str)
        generation_id = ran.submitted[-1] if ran.submitted else ""
        result = Result(
            generation_id, generation, ran.error, request=request, submitted=ran.submitted
        )
        if directory is None or generation is None or not ran.ok:
            return result
        table.download(request)
        fetched = await fetch(client, generation, directory, bars, name=request.get("key"))
        return replace(result, error=fetched.error, paths=fetched.paths)

    table.expect(len(runs.lines))
    with table.shown():
        async with (
            runner.as_completed(line.request for line in runs.lines) as ran,
            run_each(finish, ran, limit=None) as results,
        ):
            async for result in results:
                put(result)
                runs.end(result)
                table.finish(result)
