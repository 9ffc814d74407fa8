"""Kills a process with a journal at random moments, and counts what became of its submissions."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import MutableMapping
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from luma_poll import Journal
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app

Message = MutableMapping[str, Any]


class Recorded:
    """The sandbox, with a record of what was accepted for each prompt, and slow answers to it.

    A submission is accepted at once, and answered a little later: long enough to be killed between.
    """

    def __init__(self, answers_after: float) -> None:
        self.sandbox = Sandbox(speed=1.0)
        self.accepted: dict[str, list[str]] = defaultdict(list)
        self._answers_after = answers_after

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.sandbox.app(scope, receive, send)
            return
        body, answer = b"", b""

        async def read() -> Message:
            nonlocal body
            message: Message = await receive()
            body += message.get("body", b"")
            return message

        messages: list[Message] = []

        async def keep(message: Message) -> None:
            nonlocal answer
            answer += message.get("body", b"")
            messages.append(message)

        await self.sandbox.app(scope, read, keep)
        if not answer:  # the process was killed while it sent the request
            return
        fields = json.loads(answer)
        if "id" in fields:
            name = json.loads(body)["prompt"].split()[1]
            self.accepted[f"k{name}"].append(fields["id"])
        await anyio.sleep(self._answers_after)
        for message in messages:
            await send(message)


@dataclass
class Tally:
    """What became of the requests of a campaign.

    Attributes:
        rounds: How often a process was ended.
        completed: Keys that ended well.
        unknown: Keys whose submission had no answer, and how many of these had been accepted.
        twice: Keys with two generations.
        lost: Generations that no entry has the id of, beside the unknown ones.
    """

    rounds: int = 0
    completed: int = 0
    unknown: int = 0
    unknown_accepted: int = 0
    twice: int = 0
    lost: int = 0
    ends: Counter[str] = field(default_factory=Counter)


async def campaign(
    directory: Path,
    rounds: int,
    number: int,
    *,
    end_by: signal.Signals,
    backend: str,
    seed: int,
    forks: bool = False,
) -> Tally:
    """Run a process with a journal, end it at a random moment, and so on; then let it finish."""
    chosen, tally = random.Random(seed), Tally()
    path = directory / "runs.db"
    api = Recorded(answers_after=0.1)
    async with AsyncExitStack() as stack:
        origin = await stack.enter_async_context(serve_app(api, "127.0.0.1", 0))
        for turn in range(rounds + 1):
            command = [sys.executable, "-m", "tests.journal.journal_child"]
            command += [f"{origin}/v1", str(path), str(number), backend]
            command += ["forks" if forks else "alone"]
            is_last = turn == rounds
            # The more there is to submit, the later it may be ended: each round does a part of it.
            delay = None if is_last else chosen.uniform(0.05, 1.0)
            code = await run_child(command, end_by, delay)
            if is_last:
                assert code == 0, code
            tally.rounds += not is_last
        with Journal(path) as journal:
            count(journal, api.accepted, tally)
    assert_no_secret(path)
    return tally


async def run_child(command: list[str], end_by: signal.Signals, delay: float | None) -> int:
    """Run it to its end, or end it this long after it began to submit."""
    async with await anyio.open_process(command, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            await process.stdout.receive()  # "ready"
            if delay is None:
                async for _ in process.stdout:
                    pass
            else:
                with anyio.move_on_after(delay):
                    async for _ in process.stdout:
                        pass
                if process.returncode is None:
                    process.send_signal(end_by)
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


def count(journal: Journal, accepted: dict[str, list[str]], tally: Tally) -> None:
    """Compare the journal with what the API accepted."""
    entries = {entry.key: entry for entry in journal.entries()}
    for entry in entries.values():
        tally.ends[entry.state] += 1
    tally.completed = tally.ends["completed"]
    tally.unknown = tally.ends["unknown"]
    for key, ids in accepted.items():
        tally.twice += len(ids) > 1
        entry = entries[key]
        tally.unknown_accepted += entry.state == "unknown"
        tally.lost += entry.state != "unknown" and set(ids) != set(entry.submitted)


def assert_no_secret(path: Path) -> None:
    """Neither the API key nor a signature is in any file of the journal."""
    for file in path.parent.glob(f"{path.name}*"):
        content = file.read_bytes()
        assert b"secret" not in content
        assert b"X-Amz" not in content
    with closing(sqlite3.connect(path)) as connection:
        assert "secret" not in "\n".join(connection.iterdump())
