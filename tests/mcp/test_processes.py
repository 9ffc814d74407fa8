"""`luma-poll mcp` as agents' clients start it: a process, spoken to over its standard streams."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from luma_poll import Journal
from luma_poll.sandbox import Sandbox

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp import Client, StdioServerParameters, stdio_client
from mcp.types import CallToolResult

pytestmark = pytest.mark.anyio
HELLO = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",'
    b'"capabilities":{},"clientInfo":{"name":"test","version":"1"}}}\n'
)
COMMAND = ["-m", "luma_poll", "mcp"]


@pytest.fixture
def anyio_backend() -> str:
    """In real time, with real processes and sockets."""
    return "asyncio"


def environment(base_url: str) -> dict[str, str]:
    given = {"LUMA_BASE_URL": base_url, "LUMA_AGENTS_API_KEY": "luma-api-x"}
    return {**os.environ, **given, "LUMA_POLL_SPEED": "100"}


@asynccontextmanager
async def started(base_url: str, directory: Path, *options: str) -> AsyncGenerator[Client]:
    parameters = StdioServerParameters(
        command=sys.executable,
        args=[*COMMAND, "--download", str(directory), *options],
        env=environment(base_url),
    )
    async with Client(stdio_client(parameters)) as client:
        yield client


def report(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    found: dict[str, Any] = result.structured_content or {}
    return found


async def test_a_client_that_retries_pays_once(tmp_path: Path) -> None:
    """Over a restart, too: the second process has the journal of the first."""
    sandbox = Sandbox()
    async with sandbox.serve() as base_url:
        async with started(base_url, tmp_path, "--patience", "0.5") as client:
            first = report(
                await client.call_tool("generate", {"prompt": "a fox sandbox:duration=2"})
            )
        async with started(base_url, tmp_path) as client:
            again = report(
                await client.call_tool("generate", {"prompt": "a fox sandbox:duration=2"})
            )
    assert "still running" in first["next"]
    assert (again["key"], again["state"]) == (first["key"], "completed")
    assert len(again["files"]) == 1
    assert sandbox.calls["POST /generations"] == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
async def test_a_signal_is_a_clean_end(tmp_path: Path, name: str) -> None:
    """Exit code 0, although its input stays open."""
    async with Sandbox().serve() as base_url:
        process = await anyio.open_process(
            [sys.executable, *COMMAND, "--download", str(tmp_path)],
            env=environment(base_url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        async with process:
            # Its answer to a first message says that it listens to signals, too.
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.send(HELLO)
            await process.stdout.receive()
            process.send_signal(getattr(signal, name))
            with anyio.fail_after(20):
                assert await process.wait() == 0


async def test_a_client_that_goes_away_leaves_no_unknown(tmp_path: Path) -> None:
    """The end of its input ends it; what was submitted is in the journal with its id."""
    sandbox = Sandbox()
    slow = {"prompt": "a fox sandbox:duration=1000"}
    async with (
        sandbox.serve() as base_url,
        started(base_url, tmp_path, "--patience", "0.3") as client,
    ):
        report(await client.call_tool("generate", slow))
    with Journal(tmp_path / "luma-poll.db") as journal:
        assert [entry.state for entry in journal.entries()] == ["running"]


async def test_it_says_what_is_missing(tmp_path: Path) -> None:
    """No key: one line on standard error, and exit code 2."""
    told = await anyio.run_process(
        [sys.executable, *COMMAND, "--download", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if "LUMA" not in name},
        check=False,
    )
    assert told.returncode == 2
    assert b"LUMA_AGENTS_API_KEY" in told.stderr
