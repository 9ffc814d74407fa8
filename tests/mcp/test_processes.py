"""`luma-poll mcp` as agents' clients start it: a process, spoken to over its standard streams."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from anyio.abc import Process

from luma_poll import Journal
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app
from tests.test_docs import ROOT, snippets

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


@asynccontextmanager
async def raw(
    base_url: str, directory: Path, *command: str, answers: int = subprocess.PIPE
) -> AsyncGenerator[Process]:
    """The process alone, which has answered a first message: it listens to signals, too."""
    process = await anyio.open_process(
        [sys.executable, *(command or (*COMMAND, "--download", str(directory)))],
        env=environment(base_url),
        stdin=subprocess.PIPE,
        stdout=answers,
        stderr=subprocess.PIPE,
    )
    async with process:
        await send(process, HELLO)
        if process.stdout is not None:
            await process.stdout.receive()
        yield process


async def send(process: Process, message: bytes) -> None:
    assert process.stdin is not None
    await process.stdin.send(message)


async def ended(process: Process) -> int:
    with anyio.fail_after(40):
        return await process.wait()


def call(number: int, name: str, **arguments: object) -> bytes:
    params = {"name": name, "arguments": arguments}
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    return json.dumps(message).encode() + b"\n"


def states(directory: Path) -> list[str]:
    with Journal(directory / "luma-poll.db") as journal:
        return [entry.state for entry in journal.entries()]


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
async def test_a_signal_is_a_clean_end(tmp_path: Path, name: str) -> None:
    """Exit code 0, although its input stays open."""
    async with Sandbox().serve() as base_url, raw(base_url, tmp_path) as process:
        process.send_signal(getattr(signal, name))
        assert await ended(process) == 0


class Gate:
    """A sandbox that says when a submission has arrived, and answers it when it may."""

    def __init__(self) -> None:
        self.sandbox = Sandbox()
        self.has_arrived = anyio.Event()
        self.may_pass = anyio.Event()

    async def __call__(self, scope: Any, receive: Any, respond: Any) -> None:
        if scope["method"] == "POST":
            self.has_arrived.set()
            await self.may_pass.wait()
        await self.sandbox.app(scope, receive, respond)


@pytest.mark.parametrize("end", ["signal", "input"])
async def test_an_end_during_a_submission_leaves_no_unknown(tmp_path: Path, end: str) -> None:
    """Its answer is waited for, and its id is in the journal."""
    gate = Gate()
    async with (
        serve_app(gate, "127.0.0.1", 0) as origin,
        raw(f"{origin}/v1", tmp_path) as process,
    ):
        await send(process, call(2, "generate", prompt="a fox sandbox:duration=1000"))
        await gate.has_arrived.wait()
        assert process.stdin is not None
        if end == "signal":
            process.terminate()
        else:
            await process.stdin.aclose()
        await anyio.sleep(0.3)  # it has seen its end, and is held by the submission
        gate.may_pass.set()
        assert await ended(process) == 0
    assert states(tmp_path) == ["running"]
    assert gate.sandbox.calls["POST /generations"] == 1


async def test_a_client_that_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    """A full pipe is no reason to stay: a signal ends it as ever."""
    async with Sandbox().serve() as base_url, raw(base_url, tmp_path) as process:
        for number in range(100):  # their answers are more than any pipe takes
            with anyio.move_on_after(0.5) as late:
                await send(process, b'{"jsonrpc":"2.0","id":%d,"method":"tools/list"}\n' % number)
            if late.cancelled_caught:
                break
        process.terminate()
        assert await ended(process) == 0


async def test_a_client_that_died_is_an_end(tmp_path: Path) -> None:
    """Its end of the output is closed, its end of the input is not: no traceback, no unknown."""
    gate = Gate()
    gate.may_pass.set()
    reads, writes = os.pipe()
    async with (
        serve_app(gate, "127.0.0.1", 0) as origin,
        raw(f"{origin}/v1", tmp_path, answers=writes) as process,
    ):
        os.close(writes)
        await anyio.to_thread.run_sync(os.read, reads, 4096)
        os.close(reads)
        await send(process, call(2, "generate", prompt="a fox sandbox:duration=1000"))
        await gate.has_arrived.wait()
        await send(process, call(3, "journal"))
        assert await ended(process) == 0
        assert process.stderr is not None
        with pytest.raises(anyio.EndOfStream):
            await process.stderr.receive()
    assert states(tmp_path) == ["running"]


NOISY = """
import os, subprocess, sys, threading
import anyio
from luma_poll import LumaClient
from luma_poll.mcp import open_server, serve_stdio

def noise() -> str:
    print("a library says hello")
    os.write(1, b"so does another\\n")
    subprocess.run([sys.executable, "-c", "print('and a child')"])
    return "done"

async def main():
    async with (
        LumaClient() as client,
        open_server(client, journal=sys.argv[1] + "/luma.db", download=sys.argv[1]) as server,
    ):
        server.add_tool(noise)
        await serve_stdio(server)

anyio.run(main)
"""


async def test_what_a_library_prints_is_not_on_the_wire(tmp_path: Path) -> None:
    """It goes to standard error, also what is in a buffer at the end."""
    async with (
        Sandbox().serve() as base_url,
        raw(base_url, tmp_path, "-c", NOISY, str(tmp_path)) as process,
    ):
        await send(process, call(2, "noise"))
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        lines = await process.stdout.receive()
        await process.stdin.aclose()
        async for more in process.stdout:
            lines += more
        said = b"".join([part async for part in process.stderr])
        assert await ended(process) == 0
    assert [json.loads(line)["id"] for line in lines.splitlines()] == [2]
    assert said.count(b"\n") == 3


async def test_a_restart_waits_for_the_one_before(tmp_path: Path) -> None:
    """Clients start the next process before the last one has ended."""
    async with (
        Sandbox().serve() as base_url,
        raw(base_url, tmp_path) as process,
        anyio.create_task_group() as tasks,
    ):

        async def leave() -> None:
            await anyio.sleep(0.5)
            process.terminate()

        tasks.start_soon(leave)
        async with started(base_url, tmp_path) as client:
            assert report(await client.call_tool("journal", {}))["total"] == 0


async def test_http_on_the_loopback_address(tmp_path: Path) -> None:
    """Two clients at once, one purse and one journal; strangers are refused; a signal ends it."""
    sandbox, fox = Sandbox(), {"prompt": "a fox sandbox:duration=0"}
    command = (*COMMAND, "--download", str(tmp_path), "--port", "0", "--max-submissions", "1")
    async with sandbox.serve() as base_url:
        process = await anyio.open_process(
            [sys.executable, *command],
            env=environment(base_url),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        async with process:
            assert process.stderr is not None
            said = (await process.stderr.receive()).decode()
            url = said.removeprefix("Listening at ").partition(" until")[0]
            assert url.startswith("http://127.0.0.1:")
            async with Client(url) as first, Client(url) as second, httpx.AsyncClient() as http:
                told = report(await first.call_tool("generate", fox))
                same = report(await second.call_tool("generate", fox))
                more = await second.call_tool("generate", {"prompt": "an owl"})
                foreign = {"Host": "luma.example.com"}, {"Origin": "https://example.com"}
                refused = [(await http.post(url, json={}, headers=each)) for each in foreign]
                process.terminate()  # with two sessions open
                assert await ended(process) == 0
    assert told["generation_id"] == same["generation_id"]
    assert more.is_error
    assert [each.status_code for each in refused] == [421, 403]
    assert sandbox.calls["POST /generations"] == 1


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """And exit code 4, as for other troubles of the machine."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = await anyio.run_process(
            [sys.executable, *COMMAND, "--download", str(tmp_path), "--port", port],
            env=environment("http://127.0.0.1:1/v1"),
            check=False,
        )
    assert told.returncode == 4
    assert told.stderr.count(b"\n") == 1
    assert b"in use" in told.stderr


async def test_a_client_that_goes_away_leaves_no_unknown(tmp_path: Path) -> None:
    """The end of its input ends it; what was submitted is in the journal with its id."""
    sandbox = Sandbox()
    slow = {"prompt": "a fox sandbox:duration=1000"}
    async with (
        sandbox.serve() as base_url,
        started(base_url, tmp_path, "--patience", "0.3") as client,
    ):
        report(await client.call_tool("generate", slow))
    assert states(tmp_path) == ["running"]


@pytest.mark.parametrize("block", snippets(ROOT / "docs/agents.md", "json"))
async def test_what_the_page_says_to_paste_starts_a_server(tmp_path: Path, block: str) -> None:
    """By the command and the arguments alone, in a directory of the client's own."""
    shim = tmp_path / "bin/uvx"  # it would fetch the package first
    shim.parent.mkdir()
    shim.write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    shim.chmod(0o755)
    ((server,),) = [each.values() for each in json.loads(block).values()]
    path = f"{shim.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    parameters = StdioServerParameters(
        command=str(shim.parent / "uvx") if server["command"] == "uvx" else "luma-poll",
        args=[each.replace("/home/me", str(tmp_path)) for each in server["args"]],
        env={**server["env"], "PATH": path},
        cwd="/",
    )
    async with Client(stdio_client(parameters)) as client:
        assert len((await client.list_tools()).tools) == 4
    assert (tmp_path / "pictures/luma-poll.db").exists()


async def test_it_says_what_is_missing(tmp_path: Path) -> None:
    """No key: one line on standard error, and exit code 2."""
    told = await anyio.run_process(
        [sys.executable, *COMMAND, "--download", str(tmp_path)],
        env={name: value for name, value in os.environ.items() if "LUMA" not in name},
        check=False,
    )
    assert told.returncode == 2
    assert b"LUMA_AGENTS_API_KEY" in told.stderr
