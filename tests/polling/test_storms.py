"""Cancellation under load, over real sockets: on asyncio, uvloop and trio nothing is left."""

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.from_thread
import pytest
from tenacity import wait_fixed, wait_random

from luma_poll import LumaClient, Poller, PollTimeoutError
from luma_poll.sandbox import Sandbox

pytestmark = pytest.mark.usefixtures("sockets_left_to_the_collector")

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
FOR_AN_HOUR = "a fox sandbox:duration=3600"
FAULTS = {"hang": 0.4, "trickle": 0.1, "reset": 0.1, "truncated": 0.1, "503": 0.1}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A sandbox on a bad day, in a thread of its own: its clients choose their event loop."""
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Sandbox(faults=FAULTS, seed=3).serve()) as url,
    ):
        yield url


def connections(client: LumaClient) -> list[Any]:
    """The connections of the client that no request holds."""
    assert client._connections._transport is not None
    pools: list[Any] = [idle.transport._pool for idle in client._connections._transport._idle]
    return [connection for pool in pools for connection in pool.connections]


@pytest.mark.no_cover
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_storm_of_deadlines(backend: str, base_url: str) -> None:
    """200 deadlines hit requests in flight; then all slots are free and the next request works."""

    async def storm() -> None:
        timed_out = []
        async with LumaClient("key", base_url=base_url, timeout=5) as client:
            ids = [(await client.generations.create(FOR_AN_HOUR)).id for _ in range(200)]
            schedule = wait_fixed(0.05) + wait_random(-0.02, 0.02)
            poller = Poller(client, wait=schedule, max_rate=None, max_in_flight=40)

            async def wait_in_vain(number: int) -> None:
                with pytest.raises(PollTimeoutError) as caught:
                    await poller.wait(ids[number], timeout=0.3 + 0.001 * number)
                timed_out.append(caught.value.generation_id)

            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(wait_in_vain, number)
            assert sorted(timed_out) == sorted(ids)
            assert all(connection.is_idle() for connection in connections(client))
            assert repr(poller).endswith("generations=0)")
            assert (await client.generations.create("another fox")).state == "queued"
        assert connections(client) == []

    before = threading.active_count()
    anyio.run(storm, **BACKENDS[backend])
    assert threading.active_count() <= before  # an idle one of an earlier test may end meanwhile


@pytest.mark.no_cover
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_task_group_is_torn_down(backend: str, base_url: str) -> None:
    """An error beside a hundred waits ends them all, at once and cleanly."""

    async def tear_down() -> None:
        async with LumaClient("key", base_url=base_url, timeout=5) as client:
            ids = [(await client.generations.create(FOR_AN_HOUR)).id for _ in range(100)]
            poller = Poller(client, wait=wait_fixed(0.05), max_rate=None)

            async def app() -> None:
                async with anyio.create_task_group() as tasks:
                    for generation_id in ids:
                        tasks.start_soon(poller.wait, generation_id)
                    await anyio.sleep(0.3)
                    raise RuntimeError("the app has a problem of its own")

            with pytest.raises(ExceptionGroup) as caught:
                await app()
            assert len(caught.value.exceptions) == 1
            assert repr(poller).endswith("generations=0)")
            assert all(connection.is_idle() for connection in connections(client))
            assert (await client.generations.create("another fox")).state == "queued"

    anyio.run(tear_down, **BACKENDS[backend])


@pytest.mark.parametrize("backend", BACKENDS)
def test_cancelled_while_connecting(backend: str) -> None:
    """Requests cancelled in the middle of a connect leave no place taken in the pool."""

    async def connect_in_vain() -> None:
        # Nobody accepts: the queue of the listener is full after a few connections.
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=1)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, LumaClient("key", base_url=f"http://127.0.0.1:{port}/v1") as client:
            for _ in range(3):
                async with anyio.create_task_group() as tasks:
                    for number in range(60):
                        tasks.start_soon(client.generations.get, f"id-{number}")
                    await anyio.sleep(0.1)
                    tasks.cancel_scope.cancel()
            assert connections(client) == []
            assert client._connections._turns.kept.requests.statistics().tasks_waiting == 0

    anyio.run(connect_in_vain, **BACKENDS[backend])
