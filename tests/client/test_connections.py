"""The connections that a client keeps, on real sockets."""

import asyncio

import pytest

from luma_poll import ConfigurationError, LumaClient
from tests.client.servers import (
    QUEUED,
    TOKEN,
    answer,
    client_of,
    eventually,
    http,
    patiently,
    read_request,
    serve,
)
from tests.fakes import ID


@pytest.mark.asyncio
async def test_one_connection_serves_one_request_after_the_other() -> None:
    """It is kept alive, and no other is opened."""
    async with serve(patiently()) as server, client_of(server.base_url) as client:
        for _ in range(5):
            await client.generations.get(ID)
        assert server.accepted == 1
    await eventually(lambda: not server.open)


@pytest.mark.asyncio
async def test_as_many_connections_as_requests_under_way() -> None:
    """They are used again by the next ones."""
    async with serve(patiently(0.05)) as server, client_of(server.base_url) as client:
        for _ in range(3):
            await asyncio.gather(*[client.generations.get(ID) for _ in range(20)])
        assert server.accepted == len(server.open) == 20


@pytest.mark.asyncio
async def test_what_is_not_used_any_more_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a burst the client goes back to the few connections that it needs."""
    monkeypatch.setattr("luma_poll._client.http_client.KEEPALIVE", 0.2)
    async with serve(patiently(0.01)) as server, client_of(server.base_url) as client:
        await asyncio.gather(*[client.generations.get(ID) for _ in range(20)])
        for _ in range(10):
            await asyncio.sleep(0.05)
            await client.generations.get(ID)
        await eventually(lambda: len(server.open) == 1)


@pytest.mark.asyncio
async def test_a_connection_that_the_server_closed_is_replaced() -> None:
    """A server may end a connection that is kept alive: nobody notices."""
    once = answer(http(QUEUED))
    async with serve(once) as server, client_of(server.base_url) as client:
        for _ in range(3):
            await client.generations.get(ID)
            await eventually(lambda: not server.open)
        assert server.accepted == 3


@pytest.mark.asyncio
async def test_closing_a_client_with_a_request_under_way() -> None:
    """The request ends as if nothing were; its connection is closed after it."""
    async with serve(patiently(0.1)) as server:
        client = client_of(server.base_url)
        request = asyncio.create_task(client.generations.get(ID))
        await eventually(lambda: len(server.open) == 1)
        await asyncio.sleep(0.05)
        await client.aclose()
        assert (await request).state == "queued"
        await eventually(lambda: not server.open)
        with pytest.raises(RuntimeError, match="closed"):
            await client.generations.get(ID)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
async def test_the_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As with any httpx client: the proxy is asked for the whole URL."""
    asked = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read_request(reader))
        writer.write(http(QUEUED))
        await writer.drain()

    async with serve(proxy) as server:
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
        with pytest.warns(UserWarning, match="unencrypted"):
            client = client_of("http://api.example.com/v1")
        async with client:
            assert (await client.generations.get(ID)).state == "queued"
    assert asked[0].startswith(b"GET http://api.example.com/v1/generations/")


@pytest.mark.asyncio
@pytest.mark.parametrize("no_proxy", ["", "127.0.0.0/8"])
async def test_no_proxy_stands_between_us_and_this_machine(
    monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    """The sandbox works behind a proxy too, whatever NO_PROXY says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    async with serve(patiently()) as server, client_of(server.base_url) as client:
        assert (await client.generations.get(ID)).state == "queued"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "foo://127.0.0.1:9?key=5ec4e7"),
        ("HTTPS_PROXY", "foo://user:5ec4e7@127.0.0.1:9"),
        ("HTTPS_PROXY", "http://user:5ec4e7@127.0.0.1:x"),
        ("ALL_PROXY", "http://user:5ec4e7@[::1"),
        ("HTTPS_PROXY", "http://user:5ec4e7@127.0.0.1:99999"),
    ],
)
def test_an_unusable_proxy_is_told_of_at_once(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Not as an error of a library that the user has never heard of, nor with its password."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name) as caught:
        LumaClient(TOKEN)
    assert "5ec4e7" not in str(caught.value)


@pytest.mark.asyncio
async def test_a_submission_through_a_proxy_uses_no_idle_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a GET that one breaks under is sent once more: as without a proxy."""
    kept = answer(http(QUEUED), then=answer(b""))
    async with serve(kept, patiently()) as server:
        monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{server.port}")
        with pytest.warns(UserWarning, match="unencrypted"):
            client = client_of("http://api.example.com/v1")
        async with client:
            await client.generations.get(ID)
            await client.generations.get(ID)
            await client.generations.create("a fox")
        assert server.accepted == 3
