"""Connections that died without a word, in virtual time: the network as a list."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from luma_poll import APIConnectionError, APITimeoutError, LumaClient, Poller
from luma_poll._client.connections import PATIENCE
from luma_poll._client.transport import SHORTEST_PATIENCE
from tests.fakes import ID, OUTPUT

DONE = {"id": ID, "state": "completed", "output": OUTPUT}
ANSWER = 0.5  # seconds that an answer takes

pytestmark = pytest.mark.anyio


class Network:
    """Makes connections. Each answers after so many seconds, by how often it was used before."""

    def __init__(self, *connections: Callable[[int], float]) -> None:
        self.connections: list[Connection] = []
        self.requests: list[str] = []
        self.script = connections
        self.trickles = False

    def connect(self, **options: Any) -> httpx.AsyncBaseTransport:
        self.connections.append(Connection(self, len(self.connections)))
        return self.connections[-1]

    @property
    def open(self) -> list[int]:
        """The connections that were used and are not closed."""
        return [each.number for each in self.connections if each.uses and not each.is_closed]


class Trickle(httpx.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for byte in self.body:
            await anyio.sleep(1)
            yield bytes([byte])


class Connection(httpx.AsyncBaseTransport):
    def __init__(self, network: Network, number: int) -> None:
        self.network, self.number, self.uses, self.is_closed = network, number, 0, False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # The first transport only checks the proxy, and is never used.
        takes = self.network.script[min(self.number, len(self.network.script)) - 1]
        self.network.requests.append(request.method)
        seconds = takes(self.uses)
        self.uses += 1
        await anyio.sleep(abs(seconds))
        if seconds < 0:
            raise httpx.ConnectError("no route to host")
        body = json.dumps(DONE).encode()
        if self.network.trickles and self.uses == 1:
            return httpx.Response(200, stream=Trickle(body))
        return httpx.Response(200, stream=httpx.ByteStream(body))

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()  # where a cancellation would strike
        self.is_closed = True


def alive(uses: int) -> float:
    return ANSWER


def dies(uses: int) -> float:
    """Answers once, and never again."""
    return ANSWER if uses == 0 else 1e6


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Network, LumaClient]]:
    def connected(*script: Callable[[int], float], **options: Any) -> tuple[Network, LumaClient]:
        network = Network(*script)
        monkeypatch.setattr(httpx, "AsyncHTTPTransport", network.connect)
        return network, LumaClient("k", **{"max_retries": 0, "timeout": 30, **options})

    return connected


Connect = Callable[..., tuple[Network, LumaClient]]


async def seconds(pending: Awaitable[Any]) -> float:
    began = anyio.current_time()
    await pending
    return round(anyio.current_time() - began, 6)


async def test_a_silent_connection_costs_some_seconds_not_the_deadline(connect: Connect) -> None:
    """The request is sent once more, on a new connection; the dead one is closed."""
    network, client = connect(dies, alive)
    await client.generations.get(ID)
    await anyio.sleep(5)
    poller = Poller(client)
    assert await seconds(poller.wait(ID, timeout=25)) == SHORTEST_PATIENCE + ANSWER
    assert network.open == [2]


async def test_one_dead_connection_does_not_follow_another(connect: Connect) -> None:
    """What was idle when the silence began is not used again; what has answered since is."""
    network, client = connect(*[dies] * 20, alive)
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(client.generations.get, ID)
    assert len(network.open) == 20
    await anyio.sleep(5)
    assert await seconds(client.generations.get(ID)) == SHORTEST_PATIENCE + ANSWER
    assert network.open == [21]
    for _ in range(3):
        await anyio.sleep(1)
        assert await seconds(client.generations.get(ID)) == ANSWER
    assert network.open == [21]


async def test_all_at_once_wait_only_once(connect: Connect) -> None:
    """Twenty requests on twenty dead connections."""
    network, client = connect(*[dies] * 20, alive)
    for _ in range(2):
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(client.generations.get, ID)
    assert anyio.current_time() - began == SHORTEST_PATIENCE + ANSWER
    assert len(network.open) == 20


async def test_where_a_new_connection_fails_too_the_error_is_told(connect: Connect) -> None:
    """There is no network at the moment."""
    network, client = connect(dies, lambda uses: -0.1)
    await client.generations.get(ID)
    with pytest.raises(APIConnectionError, match="no route"):
        await client.generations.get(ID)
    assert not network.open


@pytest.mark.parametrize(
    ("takes", "first", "gets"), [(4.0, SHORTEST_PATIENCE + 4, 3), (15.0, PATIENCE + 15, 4)]
)
async def test_a_service_that_has_become_slow_is_not_asked_twice(
    connect: Connect, takes: float, first: float, gets: int
) -> None:
    """What its answers take is learned: only the first slow one costs a second request."""
    network, client = connect(lambda uses: ANSWER if not uses else takes, lambda uses: takes)
    await client.generations.get(ID)
    assert await seconds(client.generations.get(ID)) == first
    for _ in range(6):
        assert await seconds(client.generations.get(ID)) == takes
    assert network.requests == ["GET"] * (gets + 6)
    assert len(network.open) == 1


@pytest.mark.parametrize("byte_by_byte", [False, True])
async def test_a_get_that_is_held_on_its_way_is_sent_once_more(
    connect: Connect, byte_by_byte: bool
) -> None:
    """By a proxy, for a minute, or with a byte a second: it costs a wait ten seconds."""
    network, client = connect(lambda uses: 60.0, alive)
    if byte_by_byte:
        network.script = (alive,)
        network.trickles = True  # httpcore makes a new connection where a body was left
    assert await seconds(Poller(client).wait(ID, timeout=25)) == PATIENCE + ANSWER
    assert len(network.open) == 1


async def test_where_nothing_is_answered_not_all_is_sent_twice(connect: Connect) -> None:
    """The patience grows where it was of no use, and comes back with the answers."""
    network, client = connect(lambda uses: 1e6)
    for gets in (2, 4, 5, 6):
        with pytest.raises(APITimeoutError):
            await client.generations.get(ID)
        assert len(network.requests) == gets
    network.script = (alive,)
    for _ in range(20):
        await client.generations.get(ID)
    network.script = (lambda uses: 1e6 if uses else ANSWER, lambda uses: 1e6)
    with pytest.raises(APITimeoutError):
        await client.generations.get(ID)
    assert len(network.requests) == 6 + 20 + 3, "on the used one, on a new one, and once more"


async def test_a_submission_is_never_sent_twice(connect: Connect) -> None:
    """It has a new connection, and no answer leaves it open."""
    network, client = connect(alive, lambda uses: 1e6)
    await client.generations.get(ID)
    await anyio.sleep(5)
    with pytest.raises(APITimeoutError) as caught:
        await client.generations.create("a fox")
    assert caught.value.may_have_been_accepted
    assert network.requests == ["GET", "POST"]


@pytest.mark.parametrize("after", [0.2, 3.0, 3.2, 3.5])
async def test_a_cancelled_request_closes_its_connections(connect: Connect, after: float) -> None:
    """The used one or the new one: nothing is left open, nor left to the collector."""
    network, client = connect(dies, alive)
    await client.generations.get(ID)
    await anyio.sleep(5)
    with anyio.move_on_after(after):
        await client.generations.get(ID)
    assert network.open in ([], [2])
    await client.aclose()
    assert not network.open
