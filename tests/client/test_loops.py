"""One client and several event loops, on real sockets."""

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from luma_poll import ConfigurationError, LumaClient
from tests.client.servers import client_of, patiently, serve
from tests.fakes import ID


@pytest.fixture
def base_url() -> Iterator[str]:
    """An API in a thread of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve(patiently())) as server,
    ):
        yield server.base_url


def test_a_client_outlives_its_event_loop() -> None:
    """Connections of the old one are not used in the new one."""

    async def get_twice(client: LumaClient) -> None:
        async with serve(patiently(), port=ports[-1]) as server:
            ports.append(server.port)
            client.generations._session._base_url = server.base_url
            for _ in range(2):
                assert (await client.generations.get(ID)).state == "queued"

    ports = [0]
    client = client_of("http://127.0.0.1:1/v1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in range(3):
            asyncio.run(get_twice(client))
        del client
        gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio",) * 2])
def test_a_client_is_used_in_one_kind_of_event_loop_after_the_other(
    base_url: str, backends: tuple[str, str]
) -> None:
    """Requests, downloads' turns and the end: nothing of the first one is left."""

    async def use(client: LumaClient) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(client.generations.get, ID)
        await client.generations.create("a fox")

    async def use_and_close() -> None:
        await use(client)
        await client.aclose()
        await client.aclose()

    client = client_of(base_url)
    anyio.run(use, client, backend=backends[0])
    anyio.run(use_and_close, backend=backends[1])
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_that_is_closed_in_a_later_event_loop(base_url: str) -> None:
    """A program may have one event loop for its work and one for its end."""
    client = client_of(base_url)
    asyncio.run(client.generations.get(ID))
    asyncio.run(client.aclose())
    gc.collect()
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(client.generations.get(ID))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_turns_that_a_dead_event_loop_held_are_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was closed in the middle of requests, whose ends never ran."""
    monkeypatch.setattr("luma_poll._client.connections.MAX_CONNECTIONS", 1)

    async def never() -> None:
        await anyio.sleep_forever()

    async def start(client: LumaClient) -> None:
        task = asyncio.create_task(client.generations.get(ID))
        tasks.append(task)
        await asyncio.sleep(0.05)

    async def get(client: LumaClient) -> str:
        async with serve(patiently()) as server:
            client.generations._session._base_url = server.base_url
            return (await client.generations.get(ID)).state

    tasks: list[Any] = []
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(lambda request: never()))  # type: ignore[arg-type]
    client = client_of("http://127.0.0.1:1/v1", http_client=http_client)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(start(client))
    loop.close()
    client._connections.http = httpx.AsyncClient()
    assert asyncio.run(get(client)) == "queued"


def test_a_client_in_two_event_loops_at_once_is_refused(base_url: str) -> None:
    """With the advice to make one for each, for requests, downloads and the end."""
    client = client_of(base_url)
    uses: list[Callable[[], Any]] = [
        lambda: client.generations.get(ID),
        lambda: client.generations.create("a fox"),
        lambda: client.with_options(timeout=1).generations.get(ID),
        lambda: client.download(ID, "nowhere"),
        client.aclose,
    ]
    with start_blocking_portal() as portal:
        portal.call(client.generations.get, ID)
        for use in uses:
            with pytest.raises(ConfigurationError, match="create a LumaClient for each event loop"):
                anyio.run(use)
        assert portal.call(client.generations.get, ID).state == "queued"
        portal.call(client.aclose)
