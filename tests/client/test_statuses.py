"""What the client makes of each status and each `Retry-After`, in virtual time."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import anyio.lowlevel
import httpx
import pytest
import respx
from hypothesis import given
from hypothesis import strategies as st

from luma_poll import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    InsufficientBalanceError,
    InvalidResponseError,
    LumaClient,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    UnprocessableEntityError,
)
from tests.client.support import QUEUED, TOKEN, error_for
from tests.fakes import ID

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
