"""`luma-poll worker`, a ready worker, and `luma-poll fleet`, which looks after it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
from httpx import AsyncClient

from luma_poll.sandbox import Sandbox
from tests.fleet.processes import Api, Processes

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


async def start(*arguments: str, **variables: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "luma_poll", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **variables},
    )


async def ask(*arguments: str, **variables: str) -> tuple[int | None, str, str]:
    """The exit code, stdout and stderr of `luma-poll fleet`."""
    process = await start("fleet", *arguments, **variables)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.posix
async def test_a_worker_works_until_sigterm(tmp_path: Path, free_tcp_port: int) -> None:
    """What others submit is submitted and waited for; an operator sees it; the exit code is 0."""
    database = f"sqlite:///{tmp_path}/fleet.db"
    api = Api(Sandbox(speed=1000))
    async with api.serve() as base_url, Processes(database, base_url) as processes:
        variables = {"LUMA_DATABASE_URL": database, "LUMA_BASE_URL": base_url}
        assert (await ask("migrate", **variables))[0] == 0
        options = "--max-running", "3", "--name", "blue", "--health-port", str(free_tcp_port)
        worker = await start("worker", *options, **variables, LUMA_AGENTS_API_KEY="key")
        assert worker.stderr is not None
        assert b"and are max_running 3" in await worker.stderr.readline()
        said = (await worker.stderr.readline()).decode()
        assert said.startswith("worker blue-")
        assert "of the fleet 'luma' is ready" in said
        assert database in said
        caller = await processes.start(worker=False)
        await caller.call("submit", prompt="a fox", key="order-17", timeout=30)
        assert (await caller.call("result", key="order-17"))["state"] == "completed"
        async with AsyncClient(trust_env=False) as http:
            assert (await http.get(f"http://127.0.0.1:{free_tcp_port}/")).status_code == 200
        _, out, _ = await ask("status", **variables)
        assert "completed\t1\n" in out
        assert "max_running\t3\n" in out
        assert "worker\tblue-" in out
        _, out, _ = await ask("list", "--state", "completed", **variables)
        assert out.startswith("completed\torder-17\t")
        worker.send_signal(signal.SIGTERM)
        out_bytes, err = await worker.communicate()
    assert (worker.returncode, out_bytes) == (0, b"")
    assert b"has left the fleet" in err
    assert err.count(b"\n") == 1


async def test_an_operator_cancels_pauses_and_drains(tmp_path: Path) -> None:
    """And a worker that is drained ends by itself, with 0."""
    database = f"sqlite:///{tmp_path}/fleet.db"
    variables = {"LUMA_DATABASE_URL": database}
    assert (await ask("migrate", **variables))[0] == 0
    assert (await ask("pause", "--why", "a change of keys", **variables))[0] == 0
    async with Processes(database, "http://127.0.0.1:1/v1") as processes:
        caller = await processes.start(worker=False)
        await caller.call("submit", prompt="a fox", key="k")
    assert "paused\ta change of keys" in (await ask("status", **variables))[1]
    assert (await ask("cancel", "k", "never", **variables))[0] == 1
    assert (await ask("list", **variables))[1].startswith("cancelled\tk\t")
    assert (await ask("resolve", "k", "--resubmit", **variables))[0] == 2
    assert (await ask("limits", "--max-running", "7", **variables))[0] == 0
    assert "max_running\t7" in (await ask("status", **variables))[1]
    assert (await ask("forget", "--before", "0d", **variables))[2].startswith(
        "Forgot 1 submissions"
    )
    assert (await ask("drain", **variables))[0] == 0
    worker = await start("worker", **variables, LUMA_AGENTS_API_KEY="key")
    with anyio.fail_after(30):
        assert await worker.wait() == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://user:secret-of-mine@127.0.0.1:1/luma", b"out of reach"),
        ("sqlite:////nowhere/at/all.db", b"there is no database"),
        ("", b"no database"),
        ("mysql://user:secret-of-mine@localhost/luma", b"postgresql://"),
    ],
)
async def test_a_database_that_is_not_there_is_said(url: str, says: bytes) -> None:
    """In one line, without its URL; and none is made."""
    worker = await start("worker", "--database", url, LUMA_AGENTS_API_KEY="key")
    out, err = await worker.communicate()
    assert worker.returncode in (2, 4)
    assert (out, err.count(b"\n")) == (b"", 1)
    assert says in err
    assert b"secret-of-mine" not in err
