"""The client's requests, its options, and what it refuses, in virtual time, on asyncio and trio."""

import traceback
import warnings
from typing import Any, cast
from unittest.mock import AsyncMock
from uuid import UUID

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest
import respx

from luma_poll import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    BadRequestError,
    ConfigurationError,
    Generation,
    InvalidResponseError,
    LumaClient,
    NotFoundError,
    Poller,
    ServerError,
    __version__,
)
from tests.client.support import API, OK, QUEUED, TOKEN, Api, connected, error_for
from tests.fakes import ID, URL, FakeClient, snapshot, timed

# --- the request ---------------------------------------------------------------------------------


@pytest.mark.anyio
@respx.mock
async def test_get_sends_what_the_api_asks_for() -> None:
    """A client without any options can be mocked, and needs nothing but the environment's key."""
    route = respx.get(f"{API}/generations/{ID}").respond(json=QUEUED)
    async with LumaClient(f" {TOKEN}\n") as client:
        generation = await client.generations.get(ID)
    assert generation == Generation.model_validate(QUEUED)
    request = route.calls.last.request
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["User-Agent"] == f"luma-poll/{__version__}"
    assert request.headers["Accept"] == "application/json"
    assert "Content-Type" not in request.headers
    assert request.content == b""


@pytest.mark.anyio
async def test_the_environment_gives_the_key_and_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are those of the official SDK; arguments win over them."""
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-environment\n")
    monkeypatch.setenv("LUMA_BASE_URL", "https://luma.example.com/v1/")
    with respx.mock:
        route = respx.get(f"https://luma.example.com/v1/generations/{ID}").respond(json=QUEUED)
        async with LumaClient() as client:
            await client.generations.get(ID)
        other = respx.get(f"https://other.example.com/v1/generations/{ID}").respond(json=QUEUED)
        async with LumaClient("mine", base_url="https://other.example.com/v1") as client:
            await client.generations.get(ID)
    assert route.calls.last.request.headers["Authorization"] == "Bearer luma-api-environment"
    assert other.calls.last.request.headers["Authorization"] == "Bearer mine"


@pytest.mark.parametrize(
    ("base_url", "used"),
    [
        ("https://luma.example.com/v1/", "https://luma.example.com/v1"),
        (" https://luma.example.com ", "https://luma.example.com"),
        (httpx.URL("https://luma.example.com:8443/v1"), "https://luma.example.com:8443/v1"),
        ("", API),
        (None, API),
    ],
)
def test_a_base_url_may_be_written_in_several_ways(base_url: Any, used: str) -> None:
    """A slash at the end and white space around it do no harm."""
    assert LumaClient(TOKEN, base_url=base_url).base_url == used


@pytest.mark.anyio
async def test_an_id_may_be_a_uuid() -> None:
    """White space around an id is none of it."""
    api = Api(httpx.Response(200, json=QUEUED))
    await connected(api).generations.get(UUID(ID))
    await connected(api).generations.get(f" {ID}\n")
    assert [request.url.path for request in api.requests] == [f"/v1/generations/{ID}"] * 2


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize(
    ("generation_id", "segment"),
    [
        ("a/b", b"a%2Fb"),
        ("../files", b"..%2Ffiles"),
        ("a?b=c", b"a%3Fb%3Dc"),
        ("a#b", b"a%23b"),
        ("100%", b"100%25"),
        ("%2e%2e", b"%252e%252e"),
        ("a b", b"a%20b"),
        ("ä🐈", b"%C3%A4%F0%9F%90%88"),
        ("a\\b", b"a%5Cb"),
        ("a\r\nHost: evil", b"a%0D%0AHost%3A%20evil"),
        ("https://evil.example.com/", b"https%3A%2F%2Fevil.example.com%2F"),
        ("...", b"..."),
    ],
)
async def test_an_id_is_one_segment_of_the_path(
    library: Any, generation_id: str, segment: bytes
) -> None:
    """Whatever it holds, it never reaches another endpoint."""
    requests: list[Any] = []

    def handler(request: Any) -> Any:
        requests.append(request)
        return library.Response(200, json={**QUEUED, "id": generation_id})

    http_client = library.AsyncClient(transport=library.MockTransport(handler))
    await LumaClient(TOKEN, http_client=http_client).generations.get(generation_id)
    (request,) = requests
    assert request.url.raw_path == b"/v1/generations/" + segment
    assert request.url.host == "agents.lumalabs.ai"


# --- options -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_with_options_is_a_view_with_other_options() -> None:
    """What is not given stays; the connections are shared, and only their owner closes them."""
    api = Api(httpx.Response(503))
    client = connected(api, timeout=7, max_retries=1)
    await timed(client.with_options(max_retries=0).generations.get(ID))
    assert len(api.requests) == 1
    await timed(client.generations.get(ID))
    assert len(api.requests) == 3
    view = client.with_options(timeout=None)
    assert (view.timeout, view.max_retries) == (None, 1)
    assert (client.timeout, client.max_retries) == (7, 1)
    with respx.mock:
        respx.get(f"{API}/generations/{ID}").respond(json=QUEUED)
        async with LumaClient(TOKEN) as owner:
            await owner.with_options(timeout=3).aclose()
            assert (await owner.generations.get(ID)).id == ID


@pytest.mark.anyio
async def test_what_a_test_puts_in_the_place_of_get_is_used_by_a_poller() -> None:
    """Else the test would talk to the real API."""
    async with LumaClient(TOKEN) as client:
        client.generations.get = AsyncMock(return_value=snapshot())  # type: ignore[method-assign]
        (output,) = await Poller(client).wait(ID)
        assert output.url == URL
        client.generations.get.assert_awaited_once_with(ID)
        client.generations = FakeClient("completed").generations  # type: ignore[assignment]
        assert await Poller(client).wait(ID)


@pytest.mark.anyio
async def test_a_view_of_a_view_of_a_client_has_its_own_options() -> None:
    """Nothing is shared but the connections."""
    api = Api(httpx.Response(503))
    client = connected(api, max_retries=1)
    view = client.with_options(max_retries=0).with_options(timeout=7)
    await timed(view.generations.get(ID))
    assert len(api.requests) == 1
    await timed(client.generations.get(ID))
    assert len(api.requests) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_a_client_handed_in_is_used_and_never_closed(library: Any) -> None:
    """It belongs to the caller; its redirects are not used, its own auth is."""
    seen: list[Any] = []

    def handler(request: Any) -> Any:
        seen.append(request)
        return library.Response(200, json=QUEUED)

    def signed(request: Any) -> Any:
        request.headers["X-Gateway"] = "signature"
        return request

    http_client = library.AsyncClient(
        transport=library.MockTransport(handler), headers={"X-Team": "cats"}, auth=signed
    )
    async with LumaClient(TOKEN, http_client=http_client) as client:
        await client.generations.get(ID)
    assert not http_client.is_closed
    assert seen[0].headers["X-Team"] == "cats"
    assert seen[0].headers["X-Gateway"] == "signature"
    assert seen[0].headers["Authorization"] == f"Bearer {TOKEN}"
    await http_client.aclose()


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_a_client_whose_auth_would_replace_the_key_is_refused(library: Any) -> None:
    """At once, with words: the API would answer 401 to each request."""

    def other_key(request: Any) -> Any:
        request.headers["Authorization"] = "Bearer other"
        return request

    for auth in (("a", "b"), library.BasicAuth("a", "b"), library.DigestAuth("a", "b"), other_key):
        with pytest.raises(ConfigurationError, match="replaces the Authorization header"):
            LumaClient(TOKEN, http_client=library.AsyncClient(auth=auth))


@pytest.mark.anyio
async def test_a_client_of_our_own_is_closed() -> None:
    """By `aclose`, and at the end of `async with`; twice is no error."""
    async with LumaClient(TOKEN) as client:
        pass
    await client.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await client.generations.get(ID)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "error_class", "request_sent"),
    [
        ("ConnectError", APIConnectionError, False),
        ("ConnectTimeout", APITimeoutError, False),
        ("PoolTimeout", APITimeoutError, False),
        ("ReadError", APIConnectionError, True),
        ("ReadTimeout", APITimeoutError, True),
        ("RemoteProtocolError", APIConnectionError, True),
        ("DecodingError", InvalidResponseError, None),
    ],
)
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_the_errors_of_both_libraries_are_translated(
    library: Any, name: str, error_class: type[APIError], request_sent: bool | None
) -> None:
    """The classes are unrelated, and our errors are the same."""

    def handler(request: Any) -> Any:
        raise getattr(library, name)("told")

    http_client = library.AsyncClient(transport=library.MockTransport(handler))
    client = LumaClient(TOKEN, http_client=http_client, max_retries=0)
    with pytest.raises(APIError, match=f"generation {ID}: ") as caught:
        await client.generations.get(ID)
    assert type(caught.value) is error_class
    assert getattr(caught.value, "request_sent", None) is request_sent
    assert isinstance(caught.value.__cause__, getattr(library, name))


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_a_hook_that_raises_for_status_does_no_harm(library: Any) -> None:
    """A client handed in may have one; the body is not read yet when it raises."""

    async def raise_for_status(response: Any) -> None:
        response.raise_for_status()

    def handler(request: Any) -> Any:
        body = library.Response(503, json={"detail": "busy"}).content

        class Stream(library.AsyncByteStream):  # type: ignore[misc]
            async def __aiter__(self) -> Any:
                yield body

        return library.Response(503, stream=Stream(), headers={"Retry-After": "3"})

    http_client = library.AsyncClient(
        transport=library.MockTransport(handler), event_hooks={"response": [raise_for_status]}
    )
    client = LumaClient(TOKEN, http_client=http_client, max_retries=0)
    with pytest.raises(ServerError) as caught:
        await client.generations.get(ID)
    assert (caught.value.status_code, caught.value.retry_after) == (503, 3)


def test_a_repr_tells_where_to_and_not_the_key() -> None:
    """It may stand in a log."""
    assert repr(LumaClient(TOKEN)) == f"LumaClient(base_url='{API}')"


# --- bad input -----------------------------------------------------------------------------------

BAD_ARGUMENTS: list[dict[str, Any]] = [
    *[
        {"auth_token": token}
        for token in (
            None,
            "",
            " \t\n",
            "luma api",
            "luma\napi",
            "luma\x00api",
            "Bearer luma-api-x",
            "lümä",
            "“luma-api-x”",
            b"luma-api-x",
            7,
        )
    ],
    *[
        {"base_url": url}
        for url in (
            "agents.lumalabs.ai/v1",
            "//agents.lumalabs.ai/v1",
            "ftp://agents.lumalabs.ai",
            "https://",
            "https:///v1",
            "   ",
            "https://agents.lumalabs.ai/v1?a=b",
            "https://agents.lumalabs.ai/v1?",
            "https://agents.lumalabs.ai/v1#a",
            "https://user@agents.lumalabs.ai/v1",
            "https://user:word@agents.lumalabs.ai/v1",
            "https://agents.lumalabs.ai:port/v1",
            "https://agents.lumalabs.ai:99999/v1",
            "https://[::1/v1",
            "https://agents.luma\nlabs.ai/v1",
            "https://agents..lumalabs.ai/v1",
            f"https://{'a' * 64}.lumalabs.ai/v1",
            "https://agents lumalabs ai/v1",
            "https://\ud800/v1",
            7,
            b"https://agents.lumalabs.ai/v1",
        )
    ],
    *[
        {"timeout": timeout}
        for timeout in (0, -1, float("nan"), "5", True, httpx.Timeout(5), 10**400)
    ],
    *[{"max_retries": count} for count in (-1, 1.5, "2", True, None, float("inf"))],
    *[{"http_client": client} for client in (httpx.Client(), httpx2.Client(), httpx, "client")],
    {"http_client": httpx.AsyncHTTPTransport},
]


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_a_bad_argument_is_refused_when_the_client_is_made(arguments: dict[str, Any]) -> None:
    """The mistake shows where it is made, by the name of the argument, before any request."""
    with pytest.raises(ConfigurationError) as caught:
        LumaClient(**({"auth_token": TOKEN} | arguments))
    words = "API key" if "auth_token" in arguments else next(iter(arguments))
    assert words in str(caught.value) or next(iter(arguments)) in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [{"timeout": 0}, {"timeout": "5"}, {"max_retries": -1}, {"max_retries": 1.5}],
)
def test_with_options_refuses_what_the_constructor_refuses(arguments: dict[str, Any]) -> None:
    """By name too."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        LumaClient(TOKEN).with_options(**arguments)


def test_a_missing_key_tells_how_to_give_one() -> None:
    """The variable, the argument and where keys are made."""
    with pytest.raises(ConfigurationError, match="LUMA_AGENTS_API_KEY or pass auth_token"):
        LumaClient()


@pytest.mark.parametrize(
    "base_url",
    [
        "http://agents.lumalabs.ai/v1",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://10.0.0.1:8000/v1",
        "http://[2001:db8::1]/v1",
    ],
)
def test_a_key_over_plain_http_is_warned_of(base_url: str) -> None:
    """At the line that makes the client."""
    with pytest.warns(UserWarning, match="unencrypted") as caught:
        LumaClient(TOKEN, base_url=base_url)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "base_url",
    ["http://127.0.0.1:8000/v1", "http://[::1]:8000", "http://localhost/v1", "http://a.localhost"],
)
def test_plain_http_to_this_machine_is_fine(base_url: str) -> None:
    """The sandbox listens there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LumaClient(TOKEN, base_url=base_url).base_url == base_url


BAD_IDS: list[Any] = [
    *["", "  ", ".", "..", " .. ", "\ud800", "x" * 100_000, None, 7, b"bytes", [ID]],
]


@pytest.mark.anyio
@pytest.mark.parametrize("bad", BAD_IDS)
async def test_a_bad_id_is_refused_before_any_request(bad: Any) -> None:
    """The error is ours, and nothing was sent."""
    api = Api(OK)
    with pytest.raises(ConfigurationError):
        await connected(api).generations.get(bad)
    assert api.requests == []


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ("", {}),
        (" \n", {}),
        (None, {}),
        (b"A cat", {}),
        ("A cat", {"source": b"\x89PNG"}),
        ("A cat", {"source": object()}),
        ("A cat", {"seed": float("nan")}),
        ("A cat", {"source": CIRCLE}),
        ("A cat", {"source": {(1, 2): 3}}),
    ],
)
async def test_a_bad_parameter_is_refused_before_any_request(
    prompt: Any, params: dict[str, Any]
) -> None:
    """What is not JSON cannot be sent."""
    api = Api(OK)
    with pytest.raises(ConfigurationError):
        await connected(api).generations.create(prompt, **params)
    assert api.requests == []


@pytest.mark.anyio
async def test_a_bad_generation_in_an_answer_names_no_url() -> None:
    """The body of an unreadable answer is nowhere in the error."""
    error = await error_for(httpx.Response(200, json={"id": ID, "state": 7, "output": URL}))
    assert type(error) is InvalidResponseError
    assert "5ec4e7" not in str(error) + repr(vars(cast(Any, error)))


@pytest.mark.anyio
async def test_a_short_key_garbles_no_message() -> None:
    """The sandbox takes any key, even a letter that is in every word."""
    client = connected(Api(httpx.Response(400, json={"detail": "Unknown model"})), auth_token="k")
    with pytest.raises(BadRequestError, match="Unknown model"):
        await client.generations.create("a fox")


@pytest.mark.anyio
async def test_no_local_variable_shows_the_key() -> None:
    """Some tools print the variables of each frame of a traceback."""
    with respx.mock:
        respx.get(f"{API}/generations/{ID}").respond(404, json={"detail": "not found"})
        async with LumaClient("luma-api-s3cr3t") as client:
            with pytest.raises(NotFoundError) as caught:
                await client.generations.get(ID)
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "s3cr3t" not in "".join(told.format())


@pytest.mark.anyio
async def test_a_transport_of_somebody_elses_may_look_like_httpcores() -> None:
    """A cancelled request stays a cancelled request."""

    class Odd(httpx.AsyncBaseTransport):
        _pool = 5

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await anyio.sleep(1000)
            raise AssertionError

    async with LumaClient(TOKEN, http_client=httpx.AsyncClient(transport=Odd())) as client:
        with anyio.move_on_after(1) as scope:
            await client.generations.get(ID)
        assert scope.cancelled_caught
