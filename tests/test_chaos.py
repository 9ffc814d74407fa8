"""The sandbox's bad days, and how a wait gets through them."""

import logging
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import luma_agents
import pytest
from tenacity import wait_fixed

from luma_poll import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    InvalidResponseError,
    LumaClient,
    LumaError,
    Poller,
    PollTimeoutError,
    RateLimitError,
    ServerError,
)
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.faults import HTTP_FAULTS, SOCKET_FAULTS

EXPECTED: dict[str, type[APIError]] = {
    "408": APIStatusError,
    "429": RateLimitError,
    "500": ServerError,
    "502": ServerError,
    "503": ServerError,
    "504": ServerError,
    "html": InvalidResponseError,
    "empty": InvalidResponseError,
    "null": InvalidResponseError,
    "array": InvalidResponseError,
    "missing-fields": InvalidResponseError,
    "wrong-types": InvalidResponseError,
    "invalid-utf-8": InvalidResponseError,
    "reset": APIConnectionError,
    "reset-body": APIConnectionError,
    "truncated": APIConnectionError,
    "garbage": APIConnectionError,
    "trickle": APITimeoutError,
    "hang": APITimeoutError,
}


def patience(kind: str) -> float:
    """Seconds: only what never ends is waited for briefly."""
    return 0.4 if EXPECTED[kind] is APITimeoutError else 10


def test_every_fault_is_expected() -> None:
    """The table above leaves none out."""
    assert list(EXPECTED) == [*HTTP_FAULTS, *SOCKET_FAULTS]


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", EXPECTED)
async def test_a_fault_is_a_typed_error(kind: str) -> None:
    """Each is retryable, tells the id, and is counted; the next request works at once."""
    sandbox = Sandbox(faults={kind: 1.0})
    async with (
        sandbox.serve() as base_url,
        LumaClient("key", base_url=base_url) as another,
        LumaClient("key", base_url=base_url, timeout=patience(kind), max_retries=0) as client,
    ):
        # By another client: a connection that was used before would be tried once more.
        generation = await another.generations.create("a fox")
        with pytest.raises(EXPECTED[kind], match=generation.id) as caught:
            await client.generations.get(generation.id)
        assert caught.value.retryable
        assert sandbox.faults_served == {kind: 1}
        assert (await client.generations.create("another fox")).state == "queued"


class OneBadAnswer(Sandbox):
    """A sandbox whose first answer to a poll is a fault, and then no more."""

    def __init__(self, kind: str) -> None:
        super().__init__(faults={kind: 1.0}, speed=1e6)
        draw = self._faults.draw
        self._faults.draw = lambda: None if self.faults_served else draw()  # type: ignore[method-assign]


def our_client(base_url: str, timeout: float) -> LumaClient:
    return LumaClient("key", base_url=base_url, timeout=timeout)


def official_client(base_url: str, timeout: float) -> Any:
    return luma_agents.AsyncLuma(auth_token="key", base_url=base_url, timeout=timeout)


@pytest.mark.asyncio
@pytest.mark.parametrize("connect", [our_client, official_client])
@pytest.mark.parametrize("kind", [kind for kind in EXPECTED if kind not in ("429", "trickle")])
async def test_a_wait_gets_through(kind: str, connect: Callable[[str, float], Any]) -> None:
    """With our client and with the official SDK; the schedule is the only retry."""
    sandbox = OneBadAnswer(kind)
    async with sandbox.serve() as base_url, connect(base_url, patience(kind)) as client:
        generation = await client.generations.create(prompt="a fox")
        assert await Poller(client, wait=wait_fixed(0.01)).wait(generation.id, timeout=10)
    assert sandbox.calls["GET /generations/{id}"] == 2
    assert sandbox.faults_served == {kind: 1}


@pytest.mark.asyncio
@pytest.mark.parametrize("connect", [our_client, official_client])
@pytest.mark.parametrize("kind", ["trickle", "hang"])
async def test_the_deadline_holds_whatever_the_server_does(
    kind: str, connect: Callable[[str, float], Any]
) -> None:
    """A trickle restarts httpx's read timeout with every byte, so only a cancellation bounds it."""
    sandbox = Sandbox(faults={kind: 1.0})
    async with sandbox.serve() as base_url, connect(base_url, patience(kind)) as client:
        generation = await client.generations.create(prompt="a fox")
        client = client.with_options(timeout=60)
        began = anyio.current_time()
        with pytest.raises(PollTimeoutError):
            await Poller(client).wait(generation.id, timeout=0.3)
        assert anyio.current_time() - began < 2, (
            "bounded by the wait, not by the 60 s of the client"
        )


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [*HTTP_FAULTS, "hang"])
async def test_faults_without_a_socket(kind: str) -> None:
    """Mounted in a client, the sandbox has those faults that need no socket, in any clock."""
    sandbox = Sandbox(faults={kind: 1.0})
    transport = httpx.ASGITransport(app=sandbox.app)
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = LumaClient(
            "key", base_url="http://localhost/v1", http_client=http_client, timeout=5, max_retries=0
        )
        generation = await client.generations.create("a fox")
        with pytest.raises(EXPECTED[kind]):
            await client.generations.get(generation.id)


@pytest.mark.anyio
async def test_without_a_socket_there_are_no_socket_faults() -> None:
    """A reset is not pretended where there is nothing to reset."""
    sandbox = Sandbox(faults={"reset": 0.5, "garbage": 0.5})
    transport = httpx.ASGITransport(app=sandbox.app)
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = LumaClient("key", base_url="http://localhost/v1", http_client=http_client)
        generation = await client.generations.create("a fox")
        assert (await client.generations.get(generation.id)).id == generation.id
    assert not sandbox.faults_served


async def faults_of_a_run(seed: int) -> list[str]:
    sandbox = Sandbox(faults=0.6, seed=seed)
    transport = httpx.ASGITransport(app=sandbox.app)
    errors = []
    async with httpx.AsyncClient(transport=transport) as http_client:
        client = LumaClient(
            "key", base_url="http://localhost/v1", http_client=http_client, timeout=5, max_retries=0
        )
        generation = await client.generations.create("a fox")
        for _ in range(200):
            try:
                await client.generations.get(generation.id)
            except LumaError as error:
                errors.append(type(error).__name__)
            else:
                errors.append("")
    return errors


@pytest.mark.anyio
async def test_a_bad_day_can_be_repeated() -> None:
    """The same seed gives the same faults, in about the share that was asked for."""
    first, again, other = [await faults_of_a_run(seed) for seed in (1, 1, 2)]
    assert first == again != other
    share_without_sockets = 0.6 * (len(HTTP_FAULTS) + 1) / (len(HTTP_FAULTS) + len(SOCKET_FAULTS))
    assert sum(map(bool, first)) / 200 == pytest.approx(share_without_sockets, abs=0.1)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), {"503": 0.6, "502": 0.6}, {"504.5": 0.1}])
def test_bad_shares_are_refused(bad: Any) -> None:
    """The message names the argument."""
    with pytest.raises(ValueError, match="faults"):
        Sandbox(faults=bad)


@pytest.mark.asyncio
async def test_no_log_holds_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG level, in our log and in those of the libraries below, on a good and a bad day."""
    caplog.set_level(logging.DEBUG)
    sandbox = Sandbox(speed=1e6, faults={"503": 0.2, "reset": 0.2, "garbage": 0.2}, seed=1)
    async with (
        sandbox.serve() as base_url,
        LumaClient("luma-api-s3cr3t", base_url=base_url) as client,
    ):
        poller = Poller(client, wait=wait_fixed(0.01))
        for _ in range(5):
            outputs = await poller.wait((await client.generations.create("a fox")).id)
            signature = outputs[0].url.partition("X-Amz-Signature=")[2]
            assert len(signature) == 64
            assert signature not in caplog.text
    assert "s3cr3t" not in caplog.text
    assert {"luma_poll", "httpcore.http11"} <= {record.name for record in caplog.records}
