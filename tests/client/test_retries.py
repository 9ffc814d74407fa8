"""What is sent again, what is not, and how long a request may take, in virtual time."""

import json
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import respx

from luma_poll import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Generation,
    InvalidResponseError,
    LumaClient,
)
from luma_poll._api.answers import snapshot_retry_after
from luma_poll._client.connections import MAX_CONNECTIONS, MAX_GETS, PATIENCE
from tests.client.support import API, OK, QUEUED, TOKEN, Api, connected, error_for
from tests.fakes import ID, timed

# --- retries of get ------------------------------------------------------------------------------

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
    """The caller may bound the call by a scope of their own; a GET is sent twice all the same."""

    async def late(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(86_400)
        return OK

    elapsed, generation = await timed(connected(late, timeout=None).generations.get(ID))
    assert (elapsed, generation.state) == (PATIENCE + 86_400, "queued")
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
