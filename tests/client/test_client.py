"""The client's contract with HTTP, in virtual time, on asyncio and trio."""

import gzip
import json
import traceback
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, cast
from unittest.mock import AsyncMock
from uuid import UUID

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest
import respx
from hypothesis import given
from hypothesis import strategies as st

from luma_poll import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    Generation,
    InsufficientBalanceError,
    InvalidResponseError,
    LumaClient,
    LumaError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    Poller,
    RateLimitError,
    ServerError,
    UnprocessableEntityError,
    __version__,
)
from luma_poll._api.answers import snapshot_retry_after
from luma_poll._client.connections import MAX_ANSWER, MAX_CONNECTIONS, MAX_GETS
from tests.fakes import ID, URL, FakeClient, snapshot

TOKEN = "luma-api-test"
API = "https://agents.lumalabs.ai/v1"
QUEUED = {"id": ID, "state": "queued", "output": []}

Handler = Callable[[httpx.Request], Any]


class Api:
    """The API as a list: gives the answers one after the other, and the last one for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self._began: list[float] = []

    @property
    def times(self) -> list[float]:
        """When the requests arrived, from the first one on."""
        return [round(time - self._began[0], 6) for time in self._began]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self._began.append(anyio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def connected(handler: Handler, **options: Any) -> LumaClient:
    """A client whose requests go to `handler`."""
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return LumaClient(**{"auth_token": TOKEN, "http_client": http_client, **options})


async def error_for(*answers: httpx.Response | Exception, **options: Any) -> Any:
    """The error that `get` raises for these answers."""
    with pytest.raises(APIError) as caught:
        await connected(Api(*answers), **{"max_retries": 0, **options}).generations.get(ID)
    return caught.value


async def error_for_handler(handler: Handler) -> Any:
    """The error that `get` raises for what this answers."""
    with pytest.raises(APIError) as caught:
        await connected(handler, max_retries=0).generations.get(ID)
    return caught.value


async def timed(pending: Awaitable[Any]) -> tuple[float, Any]:
    """How long it took, and what came out: a result, or one of our errors."""
    began = anyio.current_time()
    try:
        result = await pending
    except LumaError as error:
        result = error
    return round(anyio.current_time() - began, 6), result


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


# --- error statuses ------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (301, APIStatusError),
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, InsufficientBalanceError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (408, APIStatusError),
        (409, APIStatusError),
        (413, PayloadTooLargeError),
        (418, APIStatusError),
        (422, UnprocessableEntityError),
        (425, APIStatusError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerError),
        (599, ServerError),
    ],
)
async def test_each_status_has_its_class(status: int, error_class: type[APIStatusError]) -> None:
    """The API's own words, the request id and what it asks for are kept."""
    headers = {"X-Request-Id": "request-17", "Retry-After": "7"}
    error = await error_for(httpx.Response(status, json={"detail": "No."}, headers=headers))
    assert type(error) is error_class
    assert (error.status_code, error.detail) == (status, "No.")
    assert (error.request_id, error.retry_after) == ("request-17", 7.0)
    assert error.generation_id == ID
    for words in (f"generation {ID}: HTTP {status}", ": No", "(request id request-17)"):
        assert words in str(error)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", None),
        (b"<html>Bad gateway</html>", None),
        (b"[1, 2]", None),
        (b'"text"', None),
        (b"null", None),
        (b"7", None),
        (b"\xff\xfe\x00", None),
        (b"[" * 100_000, None),
        (b"9" * 5_000, None),
        (b'{"error": "no"}', None),
        (b'{"detail": ""}', None),
        (b'{"detail": [{"loc": ["body"], "msg": "no"}]}', '[{"loc": ["body"], "msg": "no"}]'),
        (b'{"detail": {"a": 1}}', '{"a": 1}'),
        ('{"detail": "nö"}'.encode(), "nö"),
        (b'{"detail": "' + b"x" * 5_000 + b'"}', "x" * 1_000),
    ],
)
async def test_an_error_needs_no_body_of_a_certain_form(body: bytes, detail: str | None) -> None:
    """Proxies answer pages, and frameworks lists: the status is what counts."""
    error = await error_for(httpx.Response(502, content=body))
    assert type(error) is ServerError
    assert (error.status_code, error.detail) == (502, detail)
    assert (error.request_id, error.retry_after) == (None, None)
    assert "HTTP 502 Bad Gateway" in str(error)


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["get", "create"])
async def test_a_redirect_is_an_error_and_the_key_stays_here(method: str) -> None:
    """Nothing is sent to where the answer points, even by a client that follows redirects."""
    with respx.mock(assert_all_called=False) as mock:
        elsewhere = mock.route(host="evil.example.com").respond(json=QUEUED)
        mock.route(host="agents.lumalabs.ai").respond(
            307, headers={"Location": f"https://evil.example.com/v1/generations/{ID}"}
        )
        async with httpx.AsyncClient(follow_redirects=True) as http_client:
            client = LumaClient(TOKEN, http_client=http_client)
            with pytest.raises(APIStatusError, match="check the base URL") as caught:
                await getattr(client.generations, method)(ID)
        assert caught.value.status_code == 307
        assert not caught.value.retryable
        assert not elsewhere.called


@pytest.mark.anyio
async def test_not_modified_is_no_redirect() -> None:
    """A cache in between says so; the base URL is not at fault."""
    error = await error_for(httpx.Response(304))
    assert type(error) is InvalidResponseError
    assert error.retryable
    assert "HTTP 304 Not Modified: a cache in between" in str(error)
    assert "base URL" not in str(error)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"", {}, "not in the API's words, without any text."),
        (
            b"<html><title>404 Not Found</title><h1>default  backend</h1></html>",
            {"Server": "nginx/1.25"},
            "from the server 'nginx/1.25', a page with the title '404 Not Found', saying "
            "'default backend'.",
        ),
        (b"<script>let key = 1</script>Just a moment&hellip;", {}, "saying 'Just a moment\u2026'."),
        (b'{"message": "no Route matched"}', {}, """saying '{"message": "no Route matched"}'."""),
        (b'{"detail": null}', {}, """saying '{"detail": null}'."""),
        (b"<p>\x1b[2J\r\nhttps://x/y?token=abc</p>", {}, r"saying '\x1b[2J https://x/y?..."),
        (b"<" * 100_000, {}, "saying '" + "<" * 200 + "'."),
        (f"Not allowed: {TOKEN}".encode(), {}, "saying 'Not allowed: ...'."),
    ],
)
@pytest.mark.parametrize("status", [404, 403, 502])
async def test_a_foreign_answer_names_who_gave_it(
    body: bytes, headers: dict[str, str], words: str, status: int
) -> None:
    """Server, title and some text, safe to show; and no advice about the id or the key."""
    error = await error_for(httpx.Response(status, content=body, headers=headers))
    assert isinstance(error, APIStatusError)
    assert not error.in_api_words
    assert words in str(error)
    assert "Check the id" not in str(error)
    assert len(str(error)) < 600
    assert ("proxy or gateway" in str(error)) == (status < 500)


@pytest.mark.anyio
async def test_a_foreign_answer_never_shows_a_part_of_the_key() -> None:
    """The key is longer than what is kept of a text, and the text is cut in the middle of it."""
    page = b"x" * 795 + b" " + TOKEN.encode()
    for body in (page, b"https://x/?" + b"y" * 780 + b" " + TOKEN.encode()):
        error = await error_for(httpx.Response(403, content=body))
        assert "luma" not in str(error)


# --- Retry-After ---------------------------------------------------------------------------------

NOW = datetime(2026, 4, 8, 12, 0, 0, tzinfo=UTC)


def http_date(seconds: float) -> str:
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("2.5", 2.5),
        (" 7 ", 7.0),
        ("120", 120.0),
        ("121", 120.0),
        ("3600", 120.0),
        ("1e300", 120.0),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e400", None),
        ("9" * 400, None),
        ("soon", None),
        ("", None),
        ("7 s", None),
        (http_date(90), 90.0),
        (http_date(90).replace("GMT", "-0000"), 90.0),
        (http_date(0), 0.0),
        (http_date(-90), None),
        (http_date(7200), 120.0),
        ("Wed, 08 Apr 2026 12:01:30 +9999", None),
        ("Wed, 08 Apr 99999 12:01:30 GMT", None),
        ("Wed, 08 Apr 99999999999999999999 12:01:30 GMT", None),
        ("Wed, 08 Apr 2026 12:01:30 +99999999999999999999", None),
    ],
)
async def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    """By the server's own clock; believed up to two minutes; what makes no sense is ignored."""
    headers = {"Retry-After": value, "Date": http_date(0)}
    error = await error_for(httpx.Response(429, headers=headers))
    assert type(error) is RateLimitError
    assert error.retry_after == seconds


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([("Retry-After", "5"), ("Retry-After", "60")], 60.0),
        ([("Retry-After", "60"), ("Retry-After", "5")], 60.0),
        ([("Retry-After", "5, 60")], 60.0),
        ([("Retry-After", "soon"), ("Retry-After", "-1"), ("Retry-After", "7")], 7.0),
        ([("Retry-After", http_date(90)), ("Retry-After", "7")], 90.0),
        ([("Retry-After", "7"), ("Retry-After", http_date(90))], 90.0),
        ([("Retry-After-Ms", "1500")], 1.5),
        ([("Retry-After-Ms", "500"), ("Retry-After", "7")], 0.5),
        ([("Retry-After-Ms", "0"), ("Retry-After", "7")], 0.0),
        ([("Retry-After-Ms", "1e9")], 120.0),
        *[([("Retry-After-Ms", bad), ("Retry-After", "7")], 7.0) for bad in ("-1", "nan", "x", "")],
        ([("Retry-After", "1," * 30_000)], 1.0),
    ],
)
async def test_of_several_hints_one_counts(
    headers: list[tuple[str, str]], seconds: float | None
) -> None:
    """A proxy may add its own: the longest valid one; milliseconds go first, as in the SDK."""
    answer = httpx.Response(429, headers=[*headers, ("Date", http_date(0))])
    error = await error_for(answer)
    assert error.retry_after == seconds


@pytest.mark.anyio
@pytest.mark.parametrize("date", [None, "", "today", "Wed, 08 Apr 99999999999999999999 12:00 GMT"])
async def test_without_a_usable_date_our_own_clock_counts(date: str | None) -> None:
    """A server may leave the header out."""
    until = datetime.now(UTC) + timedelta(seconds=90)
    headers = {"Retry-After": format_datetime(until, usegmt=True)}
    error = await error_for(httpx.Response(503, headers=headers | ({"Date": date} if date else {})))
    assert error.retry_after == pytest.approx(60, abs=30)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255)) | st.from_regex(r"[\w ,:+-]*"))
def test_no_retry_after_hides_the_status(value: str) -> None:
    """Whatever it says, the error is the typed one."""
    headers = {b"Retry-After": value.encode("latin-1", "replace")}
    answer = httpx.Response(429, headers=headers)
    error = anyio.run(error_for, answer)
    assert type(error) is RateLimitError
    assert error.retry_after is None or 0 <= error.retry_after <= 120


# --- retries of get ------------------------------------------------------------------------------

OK = httpx.Response(200, json=QUEUED)
TRANSIENT: list[httpx.Response | Exception] = [
    *[httpx.Response(status) for status in (408, 409, 425, 429, 500, 502, 503, 504, 599)],
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("no route"),
    httpx.ReadError("reset"),
    httpx.ReadTimeout("slow"),
    httpx.WriteError("broken pipe"),
    httpx.PoolTimeout("busy"),
    httpx.ProxyError("503"),
    httpx.RemoteProtocolError("garbage"),
    httpx.DecodingError("no gzip"),
    ConnectionResetError("reset"),
    TimeoutError("of the system"),
    anyio.EndOfStream(),
    anyio.BrokenResourceError(),
    anyio.ClosedResourceError(),
    httpx.Response(200, text="<html>busy</html>"),
    httpx.Response(200),
    httpx.Response(204),
    httpx.Response(200, json={"id": ID}),
]


@pytest.mark.anyio
@pytest.mark.parametrize("fault", TRANSIENT)
async def test_a_transient_failure_is_retried_with_backoff(
    fault: httpx.Response | Exception,
) -> None:
    """`max_retries` times, 0.5 s and 1 s less a quarter at most; then the typed error is raised."""
    api = Api(fault, fault, OK)
    assert (await connected(api, max_retries=2).generations.get(ID)).state == "queued"
    first, second = (b - a for a, b in zip(api.times, api.times[1:], strict=False))
    assert 0.375 <= first <= 0.5
    assert 0.75 <= second <= 1.0
    for max_retries in (0, 1, 2):
        api = Api(fault)
        with pytest.raises(APIError) as caught:
            await connected(api, max_retries=max_retries).generations.get(ID)
        assert caught.value.retryable
        assert caught.value.generation_id == ID
        assert len(api.requests) == max_retries + 1


@pytest.mark.anyio
async def test_the_backoff_has_a_cap_and_jitter() -> None:
    """No sleep is above 8 s, and two clients do not march in step."""
    apis = [Api(httpx.Response(503)) for _ in range(2)]
    for api in apis:
        await timed(connected(api, max_retries=10).generations.get(ID))
        gaps = [b - a for a, b in zip(api.times, api.times[1:], strict=False)]
        assert all(6 <= gap <= 8 for gap in gaps[4:])
    assert apis[0].times != apis[1].times


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 307, 400, 401, 402, 403, 404, 405, 413, 418, 422])
async def test_a_permanent_failure_is_not_retried(status: int) -> None:
    """What will not change is not asked again."""
    api = Api(httpx.Response(status))
    elapsed, error = await timed(connected(api, max_retries=5).generations.get(ID))
    assert (elapsed, len(api.requests)) == (0, 1)
    assert error.status_code == status


@pytest.mark.anyio
async def test_a_permanent_failure_ends_the_retries() -> None:
    """Also where a transient one came first."""
    api = Api(httpx.Response(503), httpx.Response(401), OK)
    with pytest.raises(AuthenticationError):
        await connected(api, max_retries=5).generations.get(ID)
    assert len(api.requests) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [("0", 0.375, 0.5), ("0.1", 0.375, 0.5), ("20", 20, 20), ("60", 60, 60), ("soon", 0.375, 0.5)],
)
async def test_a_retry_respects_retry_after(retry_after: str, least: float, most: float) -> None:
    """It is the least time until the next try, unless it makes no sense."""
    api = Api(httpx.Response(429, headers={"Retry-After": retry_after}), OK)
    await connected(api).generations.get(ID)
    assert least <= api.times[1] <= most


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["get", "create"])
@pytest.mark.parametrize(("said", "seconds"), [("61", 61), ("9999", 120)])
async def test_a_retry_after_above_a_minute_is_not_slept(
    method: str, said: str, seconds: float
) -> None:
    """The error is raised at once, with the seconds for the caller to decide."""
    api = Api(httpx.Response(429, headers={"Retry-After": said}))
    elapsed, error = await timed(getattr(connected(api).generations, method)(ID))
    assert (elapsed, len(api.requests)) == (0, 1)
    assert error.retry_after == seconds


@pytest.mark.anyio
@pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("9999", 120), ("-1", None), (None, None)])
async def test_a_retry_after_of_a_snapshot_is_kept_for_the_poller(
    said: str | None, seconds: float | None
) -> None:
    """An answer with status 200 may have one too; it is no part of what the snapshot says."""
    headers = {} if said is None else {"Retry-After": said}
    api = Api(httpx.Response(200, json=QUEUED, headers=headers))
    generation = await connected(api).generations.get(ID)
    assert snapshot_retry_after(generation) == seconds
    assert generation == Generation.model_validate(QUEUED)


@pytest.mark.anyio
@pytest.mark.parametrize("fault", TRANSIENT)
async def test_each_failure_has_its_class(fault: httpx.Response | Exception) -> None:
    """No response, no response in time, and an unreadable one are told apart."""
    error = await error_for(fault)
    if isinstance(fault, httpx.Response):
        assert type(error) is InvalidResponseError or error.status_code == fault.status_code
        assert error.__cause__ is None
        return
    expected: type[APIError] = APIConnectionError
    if isinstance(fault, (httpx.TimeoutException, TimeoutError)):
        expected = APITimeoutError
    if isinstance(fault, httpx.DecodingError):
        expected = InvalidResponseError
    assert type(error) is expected
    assert error.__cause__ is fault


@pytest.mark.anyio
async def test_an_error_that_is_no_trouble_of_the_network_is_raised_as_it_is() -> None:
    """A bug is not retried."""
    api = Api(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await connected(api).generations.get(ID)
    assert len(api.requests) == 1


# --- create --------------------------------------------------------------------------------------


@pytest.mark.anyio
@respx.mock
async def test_create_posts_the_prompt_and_the_parameters() -> None:
    """As JSON, as they are; None means "not given"."""
    route = respx.post(f"{API}/generations").respond(201, json=QUEUED)
    newer: dict[str, Any] = {"n": [None]}
    async with LumaClient(TOKEN) as client:
        generation = await client.generations.create(
            "A cät", model="uni-1", source={"url": "https://example.com"}, type=None, **newer
        )
    assert (generation.id, generation.state) == (ID, "queued")
    request = route.calls.last.request
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {
        "prompt": "A cät",
        "model": "uni-1",
        "source": {"url": "https://example.com"},
        "n": [None],
    }


AMBIGUOUS: list[httpx.Response | Exception] = [
    *[httpx.Response(status) for status in (408, 409, 425, 500, 502, 503)],
    httpx.ReadError("reset"),
    httpx.ReadTimeout("slow"),
    httpx.WriteError("broken pipe"),
    httpx.RemoteProtocolError("garbage"),
    httpx.DecodingError("no gzip"),
    ConnectionResetError("reset"),
    httpx.Response(201, text="<html>busy</html>"),
    httpx.Response(201, json={"state": "queued"}),
]


@pytest.mark.anyio
@pytest.mark.parametrize("fault", AMBIGUOUS)
async def test_create_is_never_repeated_when_it_may_have_been_accepted(
    fault: httpx.Response | Exception,
) -> None:
    """A second one could be billed too; a note says that nobody knows."""
    api = Api(fault)
    with pytest.raises(APIError) as caught:
        await connected(api, max_retries=5).generations.create("A cat")
    assert len(api.requests) == 1
    (note,) = caught.value.__notes__
    assert "not known whether the generation was accepted" in note
    assert caught.value.generation_id is None


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fault",
    [httpx.Response(429), httpx.ConnectError("refused"), httpx.ConnectTimeout("no route")],
)
async def test_create_is_repeated_when_it_was_certainly_not_accepted(
    fault: httpx.Response | Exception,
) -> None:
    """No connection, or a refusal that says when to come back; without a note in the end."""
    api = Api(fault, fault, httpx.Response(201, json=QUEUED))
    assert (await connected(api).generations.create("A cat")).id == ID
    assert len(api.requests) == 3
    assert len({request.content for request in api.requests}) == 1
    with pytest.raises(APIError) as caught:
        await connected(Api(fault), max_retries=1).generations.create("A cat")
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.anyio
@pytest.mark.parametrize("status", [307, 400, 401, 402, 403, 413, 422])
async def test_a_refusal_of_create_is_certain(status: int) -> None:
    """It is not repeated, and there is nothing to warn of."""
    api = Api(httpx.Response(status))
    with pytest.raises(APIStatusError) as caught:
        await connected(api).generations.create("A cat")
    assert len(api.requests) == 1
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.anyio
async def test_create_is_not_repeated_when_the_time_is_up() -> None:
    """The request may have arrived."""
    requests: list[httpx.Request] = []

    async def hang(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        await anyio.sleep_forever()
        raise AssertionError

    elapsed, error = await timed(connected(hang, timeout=5).generations.create("A cat"))
    assert (elapsed, len(requests)) == (5, 1)
    assert type(error) is APITimeoutError
    assert "not known" in error.__notes__[0]


# --- time ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_timeout_bounds_a_whole_request() -> None:
    """From connecting to the last byte, each try anew; httpx's own restarts with every chunk."""

    class Trickle(httpx.AsyncByteStream):
        async def __aiter__(self) -> Any:
            while True:
                await anyio.sleep(1)
                yield b" "

    async def trickle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Trickle())

    elapsed, error = await timed(connected(trickle, timeout=7, max_retries=0).generations.get(ID))
    assert elapsed == 7
    assert type(error) is APITimeoutError
    assert "no complete answer within 7 s" in str(error)
    elapsed, error = await timed(connected(trickle, timeout=7, max_retries=1).generations.get(ID))
    assert 14.375 <= elapsed <= 14.5
    assert type(error) is APITimeoutError


@pytest.mark.anyio
async def test_none_is_no_timeout() -> None:
    """The caller may bound the call by a scope of their own."""

    async def late(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(86_400)
        return OK

    elapsed, generation = await timed(connected(late, timeout=None).generations.get(ID))
    assert (elapsed, generation.state) == (86_400, "queued")
    with anyio.move_on_after(60) as scope:
        await connected(late, timeout=None).generations.get(ID)
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_an_outer_scope_that_ends_first_is_no_error_of_ours() -> None:
    """Cancellation goes through, and the client can be used again."""

    async def late(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(10)
        return httpx.Response(200, json=QUEUED)

    client = connected(late, timeout=30)
    with anyio.move_on_after(5) as scope:
        await client.generations.get(ID)
    assert scope.cancelled_caught
    assert (await client.generations.get(ID)).id == ID


class Busy:
    """An API that takes its time, and counts the requests under way."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.under_way = self.most = self.count = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.count += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await anyio.sleep(self.seconds if request.method == "GET" else 1)
        finally:
            self.under_way -= 1
        return httpx.Response(200, json=QUEUED)


@pytest.mark.anyio
async def test_more_requests_than_connections_queue() -> None:
    """None of them fails as long as their time, which the queueing is part of, is enough."""
    busy = Busy(1)
    client = connected(busy, timeout=3.5, max_retries=0)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(2 * MAX_GETS + 50):
            tasks.start_soon(client.generations.get, ID)
    assert anyio.current_time() - began == pytest.approx(3)
    assert busy.most == MAX_GETS


@pytest.mark.anyio
async def test_the_timeout_bounds_the_queueing_too() -> None:
    """Nothing was sent of what had no turn, and the error says so."""
    busy = Busy(1000)
    client = connected(busy, timeout=5, max_retries=0)
    results: list[tuple[float, Any]] = []

    async def get() -> None:
        results.append(await timed(client.generations.get(ID)))

    async with anyio.create_task_group() as tasks:
        for _ in range(MAX_GETS + 10):
            tasks.start_soon(get)
    assert {elapsed for elapsed, _ in results} == {5}
    assert {type(error) for _, error in results} == {APITimeoutError}
    sent = [error.request_sent for _, error in results]
    assert (sent.count(True), sent.count(False)) == (MAX_GETS, 10) == (busy.count, 10)
    assert sum("no free connection within 5 s" in str(error) for _, error in results) == 10


@pytest.mark.anyio
async def test_a_submission_does_not_queue_behind_polls() -> None:
    """Some connections are kept for submissions, however slow the GETs are."""
    client = connected(Busy(1000), timeout=30, max_retries=0)

    async with anyio.create_task_group() as tasks:
        for _ in range(500):
            tasks.start_soon(timed, client.generations.get(ID))
        await anyio.sleep(1)
        elapsed, generation = await timed(client.generations.create("A cat"))
        assert (elapsed, generation.id) == (1, ID)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_submission_that_had_no_turn_is_certainly_not_accepted() -> None:
    """It is repeated, and without a note in the end."""

    async def hang(request: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    client = connected(hang, timeout=None)
    async with anyio.create_task_group() as tasks:
        for _ in range(MAX_CONNECTIONS):
            tasks.start_soon(client.generations.create, "A cat")
        await anyio.sleep(1)
        view = client.with_options(timeout=5, max_retries=1)
        elapsed, error = await timed(view.generations.create("A dog"))
        assert 10.375 <= elapsed <= 10.5
        assert type(error) is APITimeoutError
        assert not error.may_have_been_accepted
        assert not hasattr(error, "__notes__")
        tasks.cancel_scope.cancel()


# --- the size of an answer -----------------------------------------------------------------------


class Endless(httpx.AsyncByteStream):
    """A body that never ends, and counts what is taken of it."""

    def __init__(self, chunk: bytes) -> None:
        self.chunk = chunk
        self.taken = 0

    async def __aiter__(self) -> Any:
        while True:
            self.taken += len(self.chunk)
            yield self.chunk
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["get", "create"])
async def test_an_answer_is_read_up_to_its_limit(method: str) -> None:
    """More than that is no generation, and would fill the memory."""
    body = Endless(b" " * 10_000)
    client = connected(lambda request: httpx.Response(200, stream=body), max_retries=0)
    elapsed, error = await timed(getattr(client.generations, method)(ID))
    assert elapsed == 0
    assert type(error) is InvalidResponseError
    assert f"larger than {MAX_ANSWER:,} bytes" in str(error)
    assert MAX_ANSWER < body.taken < MAX_ANSWER + 10 * len(body.chunk)
    assert hasattr(error, "__notes__") == (method == "create")


@pytest.mark.anyio
async def test_what_an_answer_holds_compressed_is_bounded_too() -> None:
    """A chunk of 20 kB that would become 20 MB never does; the next ones are not looked at."""
    chunk = gzip.compress(b" " * 20 * 1024**2)
    body = Endless(chunk)
    answer = httpx.Response(200, stream=body, headers={"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        error = await error_for_handler(lambda request: answer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(error) is InvalidResponseError
    assert "larger than" in str(error)
    assert body.taken < 10 * len(chunk)
    assert peak < 4 * MAX_ANSWER


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
async def test_an_error_status_counts_although_its_body_is_of_no_use(
    headers: dict[str, str],
) -> None:
    """Too large or no gzip: the status says what to do, and that a submission was refused."""
    answer = httpx.Response(
        429, stream=Endless(b"x" * 10_000), headers={"Retry-After": "7"} | headers
    )
    client = connected(lambda request: answer, max_retries=0)
    _, error = await timed(client.generations.create("A cat"))
    assert type(error) is RateLimitError
    assert (error.detail, error.retry_after) == (None, 7)
    assert not hasattr(error, "__notes__")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("encoding", "zipped"),
    [
        *[(name, False) for name in ("", "identity", "Identity ", "utf-8", "aws-chunked", ",")],
        *[(name, True) for name in ("gzip", "x-gzip", "identity, gzip", "GZIP,identity")],
    ],
)
async def test_a_content_encoding_is_a_list_in_which_some_names_say_nothing(
    encoding: str, zipped: bool
) -> None:
    """What is no coding leaves the bytes as they are."""
    body = gzip.compress(OK.content) if zipped else OK.content
    answer = httpx.Response(
        200, stream=httpx.ByteStream(body), headers={"Content-Encoding": encoding}
    )
    client = connected(lambda request: answer)
    assert (await client.generations.get(ID)).id == ID


@pytest.mark.anyio
@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "utf-8, br"])
async def test_an_encoding_that_was_not_asked_for_is_an_unreadable_answer(encoding: str) -> None:
    """Only gzip is asked for, which can be decoded bit by bit."""
    answer = httpx.Response(200, stream=Endless(b"x"), headers={"Content-Encoding": encoding})
    error = await error_for_handler(lambda request: answer)
    assert type(error) is InvalidResponseError
    assert "encoded in a way that was not asked for" in str(error)


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_a_hook_may_read_the_answer_first(library: Any) -> None:
    """What it has read is read no more, and is an answer like any other."""

    async def read(response: Any) -> None:
        await response.aread()

    def handler(request: Any) -> Any:
        class Stream(library.AsyncByteStream):  # type: ignore[misc]
            async def __aiter__(self) -> Any:
                yield gzip.compress(json.dumps(QUEUED).encode())

        return library.Response(200, stream=Stream(), headers={"Content-Encoding": "gzip"})

    http_client = library.AsyncClient(
        transport=library.MockTransport(handler), event_hooks={"response": [read]}
    )
    client = LumaClient(TOKEN, http_client=http_client)
    assert (await client.generations.get(ID)).state == "queued"


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
