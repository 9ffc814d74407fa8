"""The official SDK and httpx-aiohttp against the same servers, on real sockets."""

from typing import Any

import luma_agents
import pytest
from httpx_aiohttp import HttpxAiohttpClient

from luma_poll import (
    APIConnectionError,
    AuthenticationError,
    ConfigurationError,
    Poller,
    PollEvent,
    PollTimeoutError,
)
from tests.client.servers import (
    FAULTS,
    QUEUED,
    SOON,
    TOKEN,
    Server,
    answer,
    client_of,
    completed,
    eventually,
    hang,
    http,
    serve,
    short_if_it_hangs,
)
from tests.fakes import ID, URL

# --- what a server may do with a connection ------------------------------------------------------

unauthorized = answer(http(b'{"detail": "Invalid API key"}', status="401 Unauthorized"))


# --- the official SDK ----------------------------------------------------------------------------


def sdk_of(server: Server, **options: Any) -> luma_agents.AsyncLuma:
    """The official client, with retries of its own that a wait must not use."""
    return luma_agents.AsyncLuma(
        auth_token=TOKEN, base_url=server.base_url, max_retries=5, **options
    )


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name",
    [
        "reset before an answer",
        "truncated body",
        "garbage",
        "page with status 200",
        "page with status 502",
        "no gzip",
        "hang",
    ],
)
async def test_a_wait_with_the_official_sdk_polls_through_each_fault(name: str) -> None:
    """One request for each poll, as its own retries are off; its errors become ours."""
    connection, error_class = FAULTS[name]
    if name == "no gzip":
        error_class = APIConnectionError  # that is what the SDK makes of it
    timeout = short_if_it_hangs(error_class)
    events: list[PollEvent] = []
    async with (
        serve(connection, connection, completed) as server,
        sdk_of(server, timeout=timeout) as sdk,
    ):
        poller = Poller(sdk, wait=SOON, max_rate=None, on_poll=events.append)
        outputs = await poller.wait(ID, timeout=5)
        assert sdk.max_retries == 5
    assert [output.url for output in outputs] == [URL]
    assert [type(event.error) for event in events] == [error_class, error_class, type(None)]
    assert server.accepted == 3


@pytest.mark.asyncio
async def test_a_deadline_bounds_a_request_of_the_official_sdk() -> None:
    """Its own timeout restarts with every byte, so a trickle would last for ever."""
    connection, _ = FAULTS["trickle"]
    async with serve(connection) as server, sdk_of(server, timeout=60) as sdk:
        with pytest.raises(PollTimeoutError) as caught:
            await Poller(sdk, wait=SOON).wait(ID, timeout=0.2)
    assert caught.value.attempts == 1


@pytest.mark.asyncio
async def test_a_refusal_of_the_official_sdk_is_our_error() -> None:
    """It ends the wait at once, with the API's words, and the chain keeps no key."""
    async with serve(unauthorized) as server, sdk_of(server) as sdk:
        with pytest.raises(AuthenticationError, match=f"{ID}.*Invalid API key") as caught:
            await Poller(sdk, wait=SOON).wait(ID, timeout=5)
    assert (caught.value.status_code, caught.value.detail) == (401, "Invalid API key")
    assert server.accepted == 1
    cause = caught.value.__cause__
    assert isinstance(cause, luma_agents.AuthenticationError)
    assert "Authorization" not in cause.request.headers
    assert "Authorization" not in cause.response.request.headers


@pytest.mark.asyncio
async def test_what_the_official_sdk_creates_can_be_waited_for() -> None:
    """Its snapshot is the first answer, so one poll is enough; its outputs come back as ours."""
    created = answer(
        http(
            QUEUED,
            status="201 Created",
            more="Content-Type: application/json\r\nConnection: close\r\n",
        )
    )
    async with serve(created, completed) as server, sdk_of(server) as sdk:
        snapshot = await sdk.generations.create(prompt="A cat")
        (output,) = await Poller(sdk, wait=SOON).wait(snapshot, timeout=5)
    assert (output.type, output.url) == ("image", URL)
    assert server.accepted == 2


def test_the_synchronous_sdk_is_refused() -> None:
    """It would block the event loop; the message names the one to use."""
    client: Any = luma_agents.Luma(auth_token=TOKEN)
    with client, pytest.raises(ConfigurationError, match=r"use luma_agents\.AsyncLuma"):
        Poller(client)


# --- httpx-aiohttp -------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name", ["reset inside the body", "truncated body", "garbage", "page with status 502", "hang"]
)
async def test_a_wait_over_aiohttp_polls_through_each_fault(name: str) -> None:
    """The transport of the extra `aiohttp` raises httpx's errors, and heeds the timeout."""
    connection, error_class = FAULTS[name]
    events: list[PollEvent] = []
    async with (
        serve(connection, completed) as server,
        HttpxAiohttpClient() as http,
        client_of(
            server.base_url, timeout=short_if_it_hangs(error_class), http_client=http
        ) as client,
    ):
        poller = Poller(client, wait=SOON, on_poll=events.append)
        assert await poller.wait(ID, timeout=5)
    assert [type(event.error) for event in events] == [error_class, type(None)]


@pytest.mark.asyncio
async def test_a_deadline_over_aiohttp() -> None:
    """It bounds a request that hangs, and closes its connection."""
    async with (
        serve(hang) as server,
        HttpxAiohttpClient() as http,
        client_of(server.base_url, http_client=http) as client,
    ):
        with pytest.raises(PollTimeoutError):
            await Poller(client, wait=SOON).wait(ID, timeout=0.2)
        await eventually(lambda: not server.open)


@pytest.mark.asyncio
async def test_a_submission_over_aiohttp_is_not_repeated_where_it_may_have_arrived() -> None:
    """httpx-aiohttp says "connect timeout" of a connection that broke after the request too."""
    connection, _ = FAULTS["closed after the request"]
    async with (
        serve(connection) as server,
        HttpxAiohttpClient() as http,
        client_of(server.base_url, http_client=http, max_retries=2) as client,
    ):
        with pytest.raises(APIConnectionError) as caught:
            await client.generations.create("a fox")
    assert caught.value.request_sent
    assert server.accepted == 1


@pytest.mark.asyncio
async def test_a_submission_over_aiohttp_is_repeated_where_nobody_listened() -> None:
    """Then nobody can have accepted it."""
    async with (
        HttpxAiohttpClient() as http,
        client_of("http://127.0.0.1:9/v1", http_client=http) as client,
    ):
        with pytest.raises(APIConnectionError) as caught:
            await client.generations.create("a fox")
    assert not caught.value.request_sent
