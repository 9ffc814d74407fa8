"""`luma_poll.testing`: the fixtures for tests of code that uses luma-poll."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from luma_agents import AsyncLuma

import luma_poll.sync
from luma_poll import (
    AdaptiveWait,
    APIConnectionError,
    ConfigurationError,
    ContentModeratedError,
    LumaClient,
    Poller,
    Runner,
)
from luma_poll.sandbox import Sandbox
from tests.fakes import ID, FakeClient

STRANGER = """
import pytest

@pytest.mark.anyio
async def test_a_picture_is_made(luma_client, luma_poller):
    generation = await luma_client.generations.create("a red fox")
    assert await luma_poller.wait(generation)
"""


def test_a_stranger_needs_four_lines(tmp_path: Path) -> None:
    """The fixtures are found without an import, on asyncio and trio, in a project of its own."""
    tmp_path.joinpath("test_app.py").write_text(STRANGER)
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert "2 passed" in told.stdout, told.stdout + told.stderr


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
def test_the_real_host_cannot_be_reached(luma_redirect: Sandbox, host: str | bytes) -> None:
    """However it is spelt; the sandbox is reached all the same."""
    with pytest.raises(socket.gaierror, match="does not reach the real"):
        socket.getaddrinfo(host, 443)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_with_the_real_address_fails(luma_redirect: Sandbox, backend: str) -> None:
    """Also one that does not look at the environment."""

    async def app() -> None:
        url = "https://agents.lumalabs.ai/v1"
        async with LumaClient("luma-api-real", base_url=url, max_retries=0) as client:
            await client.generations.get(ID)

    with pytest.raises(APIConnectionError):
        anyio.run(app, backend=backend)


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
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert "takes keyword arguments only" in told.stdout
