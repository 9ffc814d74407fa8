"""How far a request came, by what the libraries raise."""

from __future__ import annotations

import socket
from typing import Any

import aiohttp
import anyio
import httpcore
import httpx
import httpx2
import luma_agents
import pytest

from luma_poll import APIConnectionError, LumaClient, Runner
from luma_poll._api.evidence import nothing_was_sent
from luma_poll._api.outcomes import Accepted, NotAccepted, Unknown, submit_once

REQUEST = httpx.Request("POST", "https://luma.example.com/v1/generations")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def during(error: BaseException, context: BaseException) -> BaseException:
    error.__context__ = context
    return error


REFUSED = ConnectionRefusedError(111, "refused")


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx2.ConnectTimeout("late"),
        httpx.PoolTimeout("none free"),
        httpx.ProxyError("503 Service Unavailable"),
        httpx.UnsupportedProtocol("ftp"),
        httpx.InvalidURL("no host"),
        httpcore.ProxyError("407 Proxy Authentication Required"),
        REFUSED,
        socket.gaierror(-2, "unknown"),
        RuntimeError("Cannot send a request, as the client has been closed."),
        RuntimeError("Session is closed"),
        aiohttp.ConnectionTimeoutError("late"),
        caused(luma_agents.APIConnectionError(request=REQUEST), httpx.ConnectError("refused")),
        caused(httpx.ConnectTimeout(""), aiohttp.ConnectionTimeoutError("late")),
        caused(ValueError("of my own"), REFUSED),
        during(ValueError("of my own"), REFUSED),
        caused(OSError("all attempts failed"), ExceptionGroup("", [REFUSED, REFUSED])),
    ],
    ids=repr,
)
def test_nothing_was_sent(error: BaseException) -> None:
    """By the error itself, its cause, its context, or all members of its group."""
    assert nothing_was_sent(error)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadError("reset"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("disconnected"),
        OSError("reset"),
        TimeoutError(),
        ValueError("of my own"),
        luma_agents.APIConnectionError(request=REQUEST),
        caused(luma_agents.APITimeoutError(request=REQUEST), httpx.ReadTimeout("late")),
        # httpx-aiohttp calls a connection that was lost at any stage a ConnectTimeout.
        caused(httpx.ConnectTimeout(""), aiohttp.ServerDisconnectedError()),
        # The context is of an earlier try, while handling which this one was made.
        during(httpx.ReadError("reset"), httpx.ConnectError("refused")),
        during(TimeoutError(), httpx.ConnectError("refused")),
        ExceptionGroup("", [REFUSED, httpx.ReadError("reset")]),
        ExceptionGroup("", [REFUSED, ValueError("of my own")]),
    ],
    ids=repr,
)
def test_what_says_nothing_counts_as_sent(error: BaseException) -> None:
    """A second submission could be billed as well."""
    assert not nothing_was_sent(error)


@pytest.mark.anyio
async def test_one_submission_has_three_ends() -> None:
    """An answer with an id is accepted, however little else is readable in it."""

    async def create(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def outcome(answer: Any) -> Any:
        return await submit_once(lambda: create(answer))

    assert isinstance(await outcome({"id": "1", "state": "queued"}), Accepted)
    assert isinstance(await outcome({"id": "1"}), Accepted)
    assert isinstance(await outcome({}), Unknown)
    assert isinstance(await outcome(httpx.ReadError("reset")), Unknown)
    assert isinstance(await outcome(httpx.ConnectError("refused")), NotAccepted)
    assert isinstance(await outcome(ValueError("a bug")), Unknown)


@pytest.mark.parametrize("status", ["407 Proxy Authentication Required", "403 Forbidden"])
@pytest.mark.anyio
async def test_the_refusal_of_a_proxy_is_final_and_says_whose_it_is(status: str) -> None:
    """In a submission and in a wait."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ProxyError(status)

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as http_client:
        client = LumaClient("luma-api-x", http_client=http_client)
        began = anyio.current_time()
        (result,) = await Runner(client).run_all(["a red fox"])
        assert isinstance(result.error, APIConnectionError)
        assert "the proxy refused" in str(result.error)
        assert not result.error.may_have_been_accepted
        with pytest.raises(APIConnectionError, match="the proxy refused"):
            await client.generations.get("182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e")
        assert anyio.current_time() == began
