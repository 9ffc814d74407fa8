"""`luma_poll.testing`: the fixtures for tests of code that uses luma-poll."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
import urllib3
from luma_agents import AsyncLuma

import luma_poll.sync
from luma_poll import (
    AdaptiveWait,
    ConfigurationError,
    ContentModeratedError,
    LumaClient,
    Poller,
    Runner,
)
from luma_poll.sandbox import Sandbox
from luma_poll.testing import _real_hosts_refused
from tests.fakes import ID, FakeClient

STRANGER = """
import pytest

@pytest.mark.anyio
async def test_a_picture_is_made(luma_client, luma_poller):
    generation = await luma_client.generations.create("a red fox")
    assert await luma_poller.wait(generation)
"""

HERMIT = """
import socket, time
import anyio, anyio._backends._asyncio, anyio._backends._trio
import pytest

@pytest.fixture(autouse=True)
def hermit(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("no network here")
    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    seconds = []
    sleep = anyio.sleep
    async def counted(delay):
        seconds.append(delay)
        await sleep(delay)
    monkeypatch.setattr(anyio, "sleep", counted)
    yield
    assert sum(seconds) < 0.1
"""
"""The network cut, and all that is slept counted: a picture takes 20 seconds otherwise."""


def run_pytest(directory: Path, *options: str) -> str:
    """What pytest says in a project of its own, where it knows of us by the entry point alone."""
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    return told.stdout + told.stderr


def test_a_stranger_needs_four_lines(tmp_path: Path) -> None:
    """Without an import, a network or sleeping, on asyncio and trio, in a project of its own."""
    tmp_path.joinpath("conftest.py").write_text(HERMIT)
    tmp_path.joinpath("test_app.py").write_text(STRANGER)
    said = run_pytest(tmp_path, "--strict-markers")
    assert "2 passed" in said, said


def test_it_works_with_pytest_asyncio(tmp_path: Path) -> None:
    """In its automatic mode as in its strict one, and with one event loop for all tests."""
    tmp_path.joinpath("pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_test_loop_scope = session\n"
        "asyncio_default_fixture_loop_scope = session\n"
    )
    asynchronous = STRANGER.replace("@pytest.mark.anyio", "@pytest.mark.asyncio")
    redirected = asynchronous.replace("luma_client, luma_poller", "luma_redirect").replace(
        "    generation", "    from luma_poll import LumaClient, Poller\n    generation"
    )
    redirected = redirected.replace("luma_client.", "LumaClient().").replace(
        "luma_poller.wait", "Poller(LumaClient()).wait"
    )
    for number, text in enumerate([asynchronous, asynchronous, redirected, asynchronous]):
        tmp_path.joinpath(f"test_app{number}.py").write_text(text)
    said = run_pytest(tmp_path, "--strict-markers")
    assert "4 passed" in said, said


@pytest.mark.anyio
async def test_the_fixtures_stand_on_one_sandbox(
    luma_sandbox: Sandbox, luma_client: LumaClient, luma_poller: Poller, luma_runner: Runner
) -> None:
    """What was submitted can be asserted, whichever of them did it."""
    generation = await luma_client.generations.create("an owl")
    await luma_poller.wait(generation)
    ended = await luma_runner.run("a red fox", model="uni-1")
    ids = [each.generation_id for each in luma_sandbox.submissions]
    assert ids == [generation.id, ended.id]
    assert [each.params["prompt"] for each in luma_sandbox.submissions] == ["an owl", "a red fox"]
    assert luma_sandbox.calls["POST /generations"] == 2


@pytest.mark.luma_sandbox(max_concurrent=1, speed=50)
class TestMarked:
    """A marker on a class, and one on a test."""

    def test_the_marker_of_a_class(self, luma_sandbox: Sandbox) -> None:
        """It reaches the sandbox."""
        assert luma_sandbox.speed == 50

    @pytest.mark.luma_sandbox(speed=7)
    def test_the_nearest_marker_wins(self, luma_sandbox: Sandbox) -> None:
        """A test says something else than its class."""
        assert luma_sandbox.speed == 7


def test_code_with_a_client_of_its_own(luma_redirect: Sandbox) -> None:
    """Key, base URL and schedule come from the environment; nothing is passed in."""

    async def app() -> int:
        async with LumaClient() as client:
            return len(await Poller(client).wait(await client.generations.create("a fox")))

    async def learning() -> int:
        async with LumaClient() as client:
            poller = Poller(client, wait=AdaptiveWait())
            return len(await poller.wait(await client.generations.create("a fox")))

    async def official() -> int:
        async with AsyncLuma() as client:
            return len(await Poller(client).wait(await client.generations.create(prompt="a fox")))

    assert [anyio.run(each) for each in (app, learning, official)] == [1, 1, 1]
    assert luma_poll.sync.run("a fox").state == "completed"
    with pytest.raises(ContentModeratedError):
        luma_poll.sync.run("a fox sandbox:fail=content_moderated")
    assert len(luma_redirect.submissions) == 5


@pytest.mark.parametrize("host", ["agents.lumalabs.ai", "AGENTS.LumaLabs.AI.", b"x.luma.ai"])
@pytest.mark.parametrize("look_up", ["getaddrinfo", "gethostbyname"])
def test_the_real_host_cannot_be_looked_up(look_up: str, host: Any) -> None:
    """However it is spelt; other hosts can be."""
    port = [443] * (look_up == "getaddrinfo")
    with _real_hosts_refused() as refused:
        with pytest.raises(pytest.fail.Exception, match="does not reach the real"):
            getattr(socket, look_up)(host, *port)
        assert getattr(socket, look_up)("localhost", *port)
    assert len(refused) == 1


TRAP = """
import threading
import anyio, httpx, pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from luma_poll import LumaClient, Poller, Runner
from luma_poll.fastapi import ClientDep, PollerDep, luma_lifespan

client = LumaClient("luma-api-real")
app = FastAPI(lifespan=luma_lifespan(lambda: LumaClient(base_url="https://agents.lumalabs.ai/v1")))

@app.post("/")
async def pictures(client: ClientDep, poller: PollerDep) -> str:
    return (await poller.wait(await client.generations.create("a fox")))[0].url

def test_a_wait(luma_redirect):
    anyio.run(Poller(client).wait, "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e")

def test_a_run(luma_redirect):
    anyio.run(Runner(client).run, "a fox")

def test_an_app(luma_redirect):
    with TestClient(app) as browser:
        browser.post("/")

def test_that_hides_it(luma_redirect):
    try:
        anyio.run(client.generations.create, "a fox")
    except BaseException:
        pass

@pytest.mark.filterwarnings("ignore")
def test_a_thread(luma_redirect):
    thread = threading.Thread(target=httpx.get, args=["https://agents.lumalabs.ai"])
    thread.start()
    thread.join()
"""


def test_a_client_made_by_an_import_fails_its_test_at_once(tmp_path: Path) -> None:
    """A wait would sit it out as an outage, for ten minutes; a thread would tell nobody."""
    tmp_path.joinpath("test_app.py").write_text(TRAP)
    said = run_pytest(tmp_path)
    # The tests that hide it fail when the fixture ends, the others there as well.
    for name in ("a_wait", "a_run", "an_app", "that_hides_it", "a_thread"):
        assert f"ERROR test_app.py::test_{name}" in said
    assert said.count("does not reach the real agents.lumalabs.ai") >= 5


REAL = "https://agents.lumalabs.ai/v1"


async def with_ours() -> None:
    async with LumaClient("luma-api-real", base_url=REAL, max_retries=0) as client:
        await client.generations.get(ID)


async def with_the_official_sdk() -> None:
    async with AsyncLuma(auth_token="luma-api-real", base_url=REAL, max_retries=0) as client:
        await client.generations.get(ID)


async def with_httpx() -> None:
    async with httpx.AsyncClient() as client:
        await client.get(REAL)


async def with_aiohttp() -> None:
    async with aiohttp.ClientSession() as session, session.get(REAL):
        pass


async def with_aiodns() -> None:
    connector = aiohttp.TCPConnector(resolver=aiohttp.AsyncResolver())
    async with aiohttp.ClientSession(connector=connector) as session, session.get(REAL):
        pass


async def with_the_loop() -> None:
    await asyncio.get_running_loop().create_connection(asyncio.Protocol, "agents.lumalabs.ai", 443)


async def with_the_loop_by_name() -> None:
    connect: Any = asyncio.get_running_loop().create_connection
    await connect(asyncio.Protocol, port=443, host="agents.lumalabs.ai")


async def with_urllib3() -> None:
    with urllib3.PoolManager(retries=False) as pool:
        pool.request("GET", REAL)


async def with_sync_httpx() -> None:
    httpx.get(REAL)  # noqa: ASYNC210  (that is how people's code calls it)


EVERYWHERE = [with_ours, with_the_official_sdk, with_httpx, with_urllib3, with_sync_httpx]
ON_ASYNCIO = [with_aiohttp, with_aiodns, with_the_loop, with_the_loop_by_name]


@pytest.mark.parametrize(
    ("loop", "reach"),
    [(loop, reach) for loop in ("asyncio", "uvloop", "trio") for reach in EVERYWHERE]
    + [(loop, reach) for loop in ("asyncio", "uvloop") for reach in ON_ASYNCIO],
)
def test_no_client_reaches_the_real_host(loop: str, reach: Callable[[], Awaitable[None]]) -> None:
    """Also one that does not look at the environment, on any event loop, by any library."""
    backend, options = ("asyncio", {"use_uvloop": True}) if loop == "uvloop" else (loop, {})
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    if reach is with_aiodns:
        pytest.importorskip("aiodns")
    with _real_hosts_refused() as refused, pytest.raises(pytest.fail.Exception):
        anyio.run(reach, backend=backend, backend_options=options)
    assert refused == ["agents.lumalabs.ai"]


@pytest.mark.parametrize("speed", ["fast", "0", "-1", "nan", "inf"])
def test_an_unusable_speed(monkeypatch: pytest.MonkeyPatch, speed: str) -> None:
    """It is named, before anything is sent."""
    monkeypatch.setenv("LUMA_POLL_SPEED", speed)
    with pytest.raises(ConfigurationError, match="LUMA_POLL_SPEED must be a number above zero"):
        Poller(FakeClient([]))


def test_a_marker_with_positional_arguments_is_an_error(tmp_path: Path) -> None:
    """It would be taken for nothing otherwise."""
    tmp_path.joinpath("test_app.py").write_text(
        "import pytest\n@pytest.mark.luma_sandbox(5)\ndef test_it(luma_sandbox): pass\n"
    )
    assert "takes keyword arguments only" in run_pytest(tmp_path)
