"""`luma-poll worker`: a ready worker."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from luma_poll.sandbox import Sandbox
from tests.fleet.processes import Api, Processes

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def start(*arguments: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "luma_poll", "worker", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **variables},
    )


async def test_a_worker_works_until_sigterm(tmp_path: Path) -> None:
    """What another process submits is submitted and waited for."""
    database = f"sqlite:///{tmp_path}/fleet.db"
    api = Api(Sandbox(speed=1000))
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        variables = {"LUMA_DATABASE_URL": database, "LUMA_BASE_URL": base_url}
        worker = await start("--max-running", "3", **variables, LUMA_AGENTS_API_KEY="key")
        assert worker.stderr is not None
        assert b"'luma' is ready" in await worker.stderr.readline()
        caller = await processes.start(worker=False)
        await caller.call("submit", prompt="a fox", key="order-17", timeout=30)
        assert (await caller.call("result", key="order-17"))["state"] == "completed"
        worker.send_signal(signal.SIGTERM)
        out, err = await worker.communicate()
    assert (worker.returncode, out, err) == (130, b"", b"")


async def test_a_database_that_is_not_there_is_said(tmp_path: Path) -> None:
    """In one line, without its URL."""
    url = "postgresql://user:secret-of-mine@127.0.0.1:1/luma"
    worker = await start("--database", url, LUMA_AGENTS_API_KEY="key")
    out, err = await worker.communicate()
    assert (worker.returncode, out, err.count(b"\n")) == (2, b"", 1)
    assert b"the database cannot be used" in err
    assert b"secret-of-mine" not in err
