"""luma-poll in a FastAPI app: mapping of errors, dependencies, and waits behind a real uvicorn."""

import asyncio
import contextlib
import inspect
import json
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    HTTPException,
    Request,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from starlette.testclient import WebSocketDenialResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tenacity import wait_fixed

import luma_poll
from luma_poll import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    DownloadError,
    GenerationError,
    InvalidResponseError,
    LumaClient,
    LumaError,
    Poller,
    PollTimeoutError,
    RateLimitError,
    ServerError,
    SubmissionUnknownError,
)
from luma_poll.errors import FAILURE_ERRORS, STATUS_ERRORS
from luma_poll.fastapi import (
    ClientDep,
    PollerDep,
    PollerOptions,
    Problem,
    Prompt,
    add_error_handlers,
    get_client,
    get_poller,
    luma_lifespan,
    to_problem,
)
from luma_poll.sandbox import Sandbox
from tests.fakes import ID, FakeClient, snapshot

KEY = "luma-api-secret"
SECRET = "5ec4e7"
SOON = wait_fixed(0.02)

# --- every error has its answer ------------------------------------------------------------------

ANSWERS = {
    "LumaError": (500, "internal", False),
    "ConfigurationError": (503, "unavailable", False),
    "APIError": (502, "upstream_error", False),
    "APIConnectionError": (502, "upstream_error", True),
    "APITimeoutError": (502, "upstream_error", True),
    "InvalidResponseError": (502, "upstream_error", True),
    "APIStatusError": (502, "upstream_error", False),
    "BadRequestError": (400, "bad_request", False),
    "AuthenticationError": (503, "unavailable", False),
    "InsufficientBalanceError": (503, "unavailable", False),
    "PermissionDeniedError": (503, "unavailable", False),
    "NotFoundError": (404, "not_found", False),
    "PayloadTooLargeError": (413, "payload_too_large", False),
    "UnprocessableEntityError": (422, "unprocessable_input", False),
    "RateLimitError": (503, "rate_limited", True),
    "ServerError": (502, "upstream_error", True),
    "GenerationError": (502, "unknown_failure", False),
    "ContentModeratedError": (422, "content_moderated", False),
    "GenerationFailedError": (502, "generation_failed", True),
    "BudgetExhaustedError": (503, "unavailable", False),
    "OutputNotFoundError": (502, "output_not_found", True),
    "ImageTooLargeError": (413, "image_too_large", False),
    "UnsupportedFormatError": (415, "unsupported_format", False),
    "CorruptInputError": (422, "corrupt_input", False),
    "InvalidRequestError": (422, "invalid_request", False),
    "GenerationRateLimitedError": (503, "generation_rate_limited", True),
    "DownloadError": (502, "download_failed", True),
    "UploadError": (502, "upload_failed", False),
    "JournalError": (503, "unavailable", False),
    "SubmissionLimitError": (503, "unavailable", False),
    "SubmissionUnknownError": (502, "submission_unknown", False),
    "PollTimeoutError": (504, "timed_out", True),
}
ERRORS = [name for name in luma_poll.__all__ if name.endswith("Error")]
SAID = f"the account of Acme, see https://api.internal/x?X-Amz-Signature={SECRET} and {KEY}"


def make(name: str, *, generation_id: str | None = ID) -> LumaError:
    """An error of this class that knows too much."""
    error_class = getattr(luma_poll, name)
    if issubclass(error_class, GenerationError):
        codes = {found: code for code, found in FAILURE_ERRORS.items()}
        code = codes.get(error_class, "account_of_acme_is_broke")
        error: LumaError = error_class(snapshot("failed", failure_code=code, failure_reason=SAID))
    elif issubclass(error_class, APIStatusError):
        statuses = {found: status for status, found in STATUS_ERRORS.items()}
        status = 503 if error_class is ServerError else statuses.get(error_class, 418)
        error = error_class(SAID, status_code=status, detail=SAID, generation_id=generation_id)
    elif issubclass(error_class, APIError):
        error = error_class(SAID, generation_id=generation_id)
    elif error_class is DownloadError:
        error = DownloadError(SAID, generation_id=ID, path=Path("/srv/acme/out"), retryable=True)
    elif error_class is SubmissionUnknownError:
        error = SubmissionUnknownError(SAID, key="k", request={})
    elif error_class is PollTimeoutError:
        error = PollTimeoutError(
            SAID, generation_id=ID, last_generation=None, elapsed=1, attempts=1
        )
    else:
        error = error_class(SAID)
    return error


def answer_to(error: Exception) -> Any:
    """What the client of an app gets whose handler raises it."""
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    async def handler() -> None:
        raise error

    return TestClient(app).get("/")


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_becomes_a_problem(name: str) -> None:
    """Status, code and advice are those of the table; the shape is RFC 9457's."""
    status, code, retryable = ANSWERS[name]
    response = answer_to(make(name))
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert list(problem) == list(Problem.model_fields)
    assert (problem["code"], problem["retryable"]) == (code, retryable)
    assert problem["type"] == f"urn:luma-poll:{code}"
    assert problem["title"]
    assert problem["detail"]
    knows_id = (
        name not in ("LumaError", "ConfigurationError", "UploadError")
        and "Submission" not in name
        and "Journal" not in name
    )
    assert problem["generation_id"] == (ID if knows_id else None)


@pytest.mark.parametrize("name", ERRORS)
def test_no_answer_tells_a_secret(name: str) -> None:
    """Neither a key, a signature nor an upstream address gets out, whatever the error says."""
    text = answer_to(make(name)).text
    assert not any(secret in text for secret in (SECRET, KEY, "://", "internal/x", "luma-api-s"))


@pytest.mark.parametrize("name", [name for name, answer in ANSWERS.items() if answer[0] >= 500])
def test_only_words_about_the_input_get_out(name: str) -> None:
    """What the API says of the operator's account stays inside."""
    assert "cme" not in answer_to(make(name)).text


def test_the_operators_faults_look_alike_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The public cannot tell a bad key from an empty account; the log can."""
    answers = []
    for name in ("AuthenticationError", "InsufficientBalanceError", "BudgetExhaustedError"):
        answers.append(answer_to(make(name)).json())
        record = caplog.records[-1]
        assert record.levelno == logging.ERROR
        assert record.exc_info
        assert name in caplog.text
        assert "cme" in record.getMessage()
    assert answers[0] == answers[1] == answers[2]
    assert KEY not in caplog.text
    assert SECRET not in caplog.text


def test_words_about_the_input_reach_the_caller() -> None:
    """Who wrote the prompt is told what is wrong with it, without the links."""
    failed = snapshot(
        "failed", failure_code="content_moderated", failure_reason="A face. See h://x"
    )
    problem = to_problem(FAILURE_ERRORS["content_moderated"](failed))
    assert problem.detail == "A face. See (link)"
    refused = luma_poll.BadRequestError("x", status_code=400, detail="aspect_ratio: 7:3, see h://x")
    assert to_problem(refused).detail == "aspect_ratio: 7:3, see (link)"


def test_the_caller_is_told_when_to_come_back() -> None:
    """`Retry-After` is passed on in whole seconds, also where a wait timed out because of it."""
    limited = RateLimitError("busy", status_code=429, retry_after=7.2)
    assert answer_to(limited).headers["Retry-After"] == "8"
    timed_out = PollTimeoutError(generation_id=ID, last_generation=None, elapsed=1, attempts=1)
    assert "Retry-After" not in answer_to(timed_out).headers
    timed_out.__cause__ = limited
    assert answer_to(timed_out).headers["Retry-After"] == "8"
    ours = AuthenticationError("bad key", status_code=401, retry_after=7.2)
    assert "Retry-After" not in answer_to(ours).headers


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ServerError("x", status_code=502), False),
        (APITimeoutError("x"), False),
        (InvalidResponseError("x"), False),
        (APIConnectionError("x", request_sent=False), True),
        (RateLimitError("x", status_code=429), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nobody_is_told_to_pay_twice(error: APIError, retryable: bool) -> None:
    """A submission may be repeated only where the first one certainly was not accepted."""
    problem = to_problem(error)
    assert problem.retryable is retryable
    assert ("not known whether" in problem.detail) is not retryable


@pytest.mark.parametrize(
    ("errors", "answer", "logged"),
    [
        ([make("NotFoundError")], (404, "not_found"), 0),
        ([make("ServerError"), make("AuthenticationError")], (503, "unavailable"), 2),
        (
            [make("ServerError", generation_id=None), make("AuthenticationError")],
            (502, "upstream_error"),
            2,
        ),
        ([ClientDisconnect(), make("RateLimitError")], (503, "rate_limited"), 1),
        ([ExceptionGroup("inner", [make("PollTimeoutError")])], (504, "timed_out"), 0),
    ],
    ids=["one", "the-highest", "perhaps-submitted", "nobody-listens", "nested"],
)
def test_errors_of_a_task_group_are_answered(
    errors: list[Exception], answer: tuple[int, str], logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As one, by the highest status or the risk to pay twice; each is logged as if alone."""
    response = answer_to(ExceptionGroup("in a task group", errors))
    assert (response.status_code, response.json()["code"]) == answer
    assert response.headers["Content-Type"] == "application/problem+json"
    assert len(caplog.records) == logged


def test_a_task_group_whose_client_hung_up_is_silent() -> None:
    """Its waits have all ended with Starlette's error."""
    assert (
        answer_to(ExceptionGroup("", [ClientDisconnect(), ClientDisconnect()])).status_code == 499
    )


def test_a_group_with_an_error_of_the_app_stays_an_error_of_the_app() -> None:
    """The mistake is not hidden behind what Luma said."""
    with pytest.raises(ExceptionGroup) as raised:
        answer_to(ExceptionGroup("", [make("NotFoundError"), ValueError("a mistake")]))
    assert len(raised.value.exceptions) == 2


class Order(BaseModel):
    prompt: Prompt


def ordering_app() -> FastAPI:
    """An app that takes a prompt, and has another handler that takes nothing."""
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/")
    async def order(order: Order) -> str:
        return order.prompt

    @app.get("/")
    async def nothing() -> None: ...

    return app


@pytest.mark.parametrize("code", [*range(0x21), 0x7F, 0x85, 0xA0, 0x2028, 0x200B, 0x3000])
def test_a_prompt_that_passes_can_be_submitted(code: int) -> None:
    """Only what `create` takes gets past the declaration; the caller hears of the rest."""
    prompt = chr(code) * 2
    status = TestClient(ordering_app()).post("/", json={"prompt": prompt}).status_code
    assert status == (422 if prompt.isspace() else 200)


@pytest.mark.parametrize(("length", "status"), [(0, 422), (1, 200), (6000, 200), (6001, 422)])
def test_a_prompt_has_the_length_that_the_api_takes(length: int, status: int) -> None:
    """From 1 to 6000 characters."""
    answer = TestClient(ordering_app()).post("/", json={"prompt": "é" * length})
    assert answer.status_code == status


def test_the_openapi_document_tells_of_problems() -> None:
    """At each operation, as problem+json, beside FastAPI's own validation error."""
    http = TestClient(ordering_app())
    document = http.get("/openapi.json").json()
    assert http.get("/openapi.json").json() == document
    operations = document["paths"]["/"]
    for operation, validates in ((operations["post"], True), (operations["get"], False)):
        content = operation["responses"]["default"]["content"]
        assert list(content) == ["application/problem+json"]
        name = content["application/problem+json"]["schema"]["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
        assert list(schema["properties"]) == list(Problem.model_fields)
        assert ("422" in operation["responses"]) is validates
    validation = operations["post"]["responses"]["422"]["content"]
    assert list(validation) == ["application/json", "application/problem+json"]


# --- the lifespan and the dependencies -----------------------------------------------------------


def app_of(lifespan: Any = None, **options: Any) -> FastAPI:
    """An app with a handler that waits."""
    app = FastAPI(lifespan=lifespan or luma_lifespan(**{"wait": SOON, **options}))
    add_error_handlers(app)

    @app.get("/wait/{generation_id}")
    async def wait(generation_id: str, poller: PollerDep, timeout: float = 30) -> list[str]:
        return [output.url for output in await poller.wait(generation_id, timeout=timeout)]

    return app


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", KEY)


def test_the_options_are_those_of_the_poller() -> None:
    """None is forgotten when the poller learns a new one."""
    known = inspect.signature(Poller).parameters.keys() - {"client"}
    assert PollerOptions.__annotations__.keys() == known


def test_no_key_fails_at_startup() -> None:
    """Not at the first request."""
    with pytest.raises(ConfigurationError, match="LUMA_AGENTS_API_KEY"), TestClient(app_of()):
        pytest.fail("it started")


@pytest.mark.usefixtures("key")
def test_an_unusable_option_fails_at_startup() -> None:
    """So does a rate below zero."""
    with pytest.raises(ConfigurationError, match="max_rate"), TestClient(app_of(max_rate=-1)):
        pytest.fail("it started")


def test_without_the_lifespan_the_fix_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """To the operator; the public gets a 503."""
    assert TestClient(app_of()).get(f"/wait/{ID}").status_code == 503
    assert "FastAPI(lifespan=luma_lifespan())" in caplog.text


@pytest.mark.usefixtures("key")
def test_it_composes_with_a_lifespan_of_ones_own() -> None:
    """Which can use the poller itself, and adds state of its own."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with luma_lifespan(timeout=5)(app) as luma:
            yield {**luma, "mine": luma["luma_poller"]}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def handler(request: Request, client: ClientDep, poller: PollerDep) -> list[str]:
        assert request.state.mine is request.state.luma_poller
        return [repr(client), repr(poller)]

    with TestClient(app) as http:
        assert http.get("/").json() == [
            "LumaClient(base_url='https://agents.lumalabs.ai/v1')",
            "Poller(max_in_flight=64, max_rate=30.0, in_flight=0, generations=0)",
        ]


@pytest.mark.usefixtures("key")
@pytest.mark.parametrize("accepted", [True, False])
def test_an_error_ends_a_websocket(accepted: bool) -> None:
    """With the problem as the answer to the handshake, or else with its code as the reason."""

    async def fail(websocket: WebSocket) -> None:
        if accepted:
            await websocket.accept()
        raise luma_poll.NotFoundError("gone", status_code=404)

    app = FastAPI()
    add_error_handlers(app)
    app.add_api_websocket_route("/socket", fail)
    with TestClient(app) as http:
        if accepted:
            with (
                http.websocket_connect("/socket") as socket,
                pytest.raises(WebSocketDisconnect) as closed,
            ):
                socket.receive_text()
            assert (closed.value.code, closed.value.reason) == (1011, "not_found")
        else:
            with pytest.raises(WebSocketDenialResponse) as denied:
                http.websocket_connect("/socket").__enter__()
            assert denied.value.json()["code"] == "not_found"


@pytest.mark.usefixtures("key")
def test_routers_mounted_apps_and_websockets_have_them_too() -> None:
    """All share the one client of the outermost app."""
    seen = []

    async def see(client: ClientDep, poller: PollerDep) -> None:
        seen.append(client)
        assert isinstance(poller, Poller)

    async def see_socket(websocket: WebSocket, client: ClientDep, poller: PollerDep) -> None:
        await websocket.accept()
        await see(client, poller)
        await websocket.close()

    router, mounted = APIRouter(), FastAPI()
    router.add_api_route("/router", see)
    mounted.add_api_route("/", see)
    app = FastAPI(lifespan=luma_lifespan())
    app.include_router(router)
    app.mount("/mounted", mounted)
    app.add_api_websocket_route("/socket", see_socket)
    with TestClient(app) as http:
        assert http.get("/router").status_code == http.get("/mounted/").status_code == 200
        with http.websocket_connect("/socket"):
            pass
    assert len(seen) == 3
    assert len(set(map(id, seen))) == 1


def test_they_can_be_overridden() -> None:
    """A test needs neither key nor lifespan."""
    fake = FakeClient("queued", "completed")
    app = app_of()
    app.dependency_overrides[get_poller] = lambda: Poller(fake, wait=SOON)
    app.dependency_overrides[get_client] = lambda: fake
    assert TestClient(app).get(f"/wait/{ID}").status_code == 200
    assert len(fake.calls) == 2


def fake_app(fake: FakeClient) -> tuple[FastAPI, Poller]:
    """An app whose poller asks this client."""
    poller = Poller(fake, wait=SOON, max_rate=None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"luma_client": fake, "luma_poller": poller}

    return app_of(lifespan), poller


def test_the_handlers_poller_does_what_the_poller_does() -> None:
    """`watch` gives the same snapshots, errors are raised bare, bad arguments at once."""
    app, _ = fake_app(FakeClient("queued", "processing", "failed"))
    seen: list[str] = []

    @app.get("/")
    async def handler(poller: PollerDep) -> None:
        with pytest.raises(ConfigurationError):
            poller.watch("")
        async for generation in poller.watch(ID):
            seen.append(generation.state)
        await poller.wait(ID)

    with TestClient(app) as http:
        assert http.get("/").json()["code"] == "unknown_failure"
    assert seen == ["queued", "processing", "failed"]


def test_the_handlers_poller_waits_for_many() -> None:
    """`wait_all` and `as_completed` work on the shared poller's streams too."""
    fake = FakeClient("queued", "completed")
    app, _ = fake_app(fake)

    @app.get("/")
    async def handler(poller: PollerDep) -> list[bool]:
        async with poller.as_completed([ID]) as results:
            found = [result.ok async for result in results]
        return found + [result.ok for result in await poller.wait_all([ID])]

    with TestClient(app) as http:
        assert http.get("/").json() == [True, True]


@pytest.mark.parametrize("length", [0, 10, 100_000])
def test_the_handler_can_still_read_the_body(length: int) -> None:
    """Listening for the end of the connection does not take the body from it."""
    app, _ = fake_app(FakeClient("queued", "completed"))

    @app.post("/")
    async def handler(request: Request, poller: PollerDep) -> int:
        await poller.wait(ID)
        await poller.wait(ID)
        return len(await request.body())

    @app.post("/stream")
    async def stream(request: Request, poller: PollerDep) -> int:
        read = sum([len(chunk) async for chunk in request.stream()])
        await poller.wait(ID)
        return read

    with TestClient(app) as http:
        assert http.post("/", content=b"x" * length).json() == length
        assert http.post("/stream", content=b"x" * length).json() == length


@pytest.mark.parametrize("layers", [0, 2])
def test_a_body_that_comes_during_waits_is_whole(layers: int) -> None:
    """Behind middlewares too, of which Starlette's own loses what it hears as it is cancelled."""
    app, _ = fake_app(FakeClient("queued", "processing", "completed"))
    for _ in range(layers):
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)

    @app.post("/")
    async def handler(request: Request, poller: PollerDep) -> str:
        with contextlib.suppress(PollTimeoutError):
            await poller.wait(ID, timeout=0.001)
        await poller.wait(ID)
        return (await request.body()).decode()

    def pieces() -> Iterator[bytes]:
        yield from (f"{number}, ".encode() for number in range(100))

    with TestClient(app) as http:
        assert http.post("/", content=pieces()).json() == b"".join(pieces()).decode()


def test_background_tasks_may_wait() -> None:
    """The answer is out and the client gone, but the task goes on."""
    app, _ = fake_app(FakeClient("queued", "queued", "completed"))
    ended: list[int] = []

    async def wait_and_keep(poller: Poller) -> None:
        ended.append(len(await poller.wait(ID)))

    async def mine(poller: PollerDep) -> AsyncIterator[Poller]:
        yield poller

    @app.post("/", status_code=202)
    async def handler(tasks: BackgroundTasks, poller: Annotated[Poller, Depends(mine)]) -> None:
        tasks.add_task(wait_and_keep, poller)

    with TestClient(app) as http:
        assert http.post("/").status_code == 202
    assert ended == [1]


async def pass_on(request: Request, call_next: Any) -> Any:
    """The least that a middleware can do."""
    return await call_next(request)


# --- a client that sends slowly, much, or nothing ------------------------------------------------


@dataclass
class Exchange:
    """One request as a server hands it to an app: pieces of a body, then nothing more."""

    pieces: Iterator[bytes] = field(default_factory=lambda: iter([b""]))
    last: bytes | None = None  # piece; None: it never comes
    taken: int = 0
    sent: list[Message] = field(default_factory=list)
    over: anyio.Event = field(default_factory=anyio.Event)

    async def receive(self) -> Message:
        for piece in self.pieces:
            self.taken += len(piece)
            return {"type": "http.request", "body": piece, "more_body": True}
        if self.last is not None:
            piece, self.last = self.last, None
            self.taken += len(piece)
            return {"type": "http.request", "body": piece, "more_body": False}
        if not self.over.is_set():
            await self.over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.over.set()

    async def run(self, app: FastAPI, poller: Poller) -> int:
        """Have the app answer it; gives the status."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "state": {"luma_poller": poller},
        }
        await app(scope, self.receive, self.send)
        return int(self.sent[0]["status"])


def app_at(handler: Callable[..., Any]) -> FastAPI:
    """An app that has nothing but this handler."""
    app = FastAPI()
    add_error_handlers(app)
    app.post("/")(handler)
    return app


async def wait_nine_seconds(poller: PollerDep) -> None:
    """A handler."""
    await poller.wait(ID, timeout=9)


def poller_of(*answers: Any) -> Poller:
    return Poller(FakeClient(*answers), wait=wait_fixed(1))


@pytest.mark.anyio
async def test_a_body_without_end_does_not_fill_the_memory() -> None:
    """So much of it is taken as a form has; the wait begins at once, and ends in its time."""
    exchange = Exchange(b"x" * 65536 for _ in range(1000))
    began = anyio.current_time()
    assert await exchange.run(app_at(wait_nine_seconds), poller_of("queued")) == 504
    assert anyio.current_time() - began < 10
    assert exchange.taken <= 512 * 1024


@pytest.mark.anyio
async def test_a_body_that_never_comes_holds_nothing_up() -> None:
    """The wait begins at once, and ends in its time."""
    exchange = Exchange(iter(()))
    began = anyio.current_time()
    assert await exchange.run(app_at(wait_nine_seconds), poller_of("queued")) == 504
    assert anyio.current_time() - began < 10


@pytest.mark.anyio
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_has_come_costs_a_wait_no_time(declared: bool) -> None:
    """Whether FastAPI has read it or nobody has."""
    exchange = Exchange(iter(()), last=b'{"prompt": "a fox"}')

    async def handler(poller: PollerDep) -> None:
        await poller.wait(ID)

    async def handler_with_body(order: Order, poller: PollerDep) -> None:
        await poller.wait(ID)

    app = app_at(handler_with_body if declared else handler)
    began = anyio.current_time()
    assert await exchange.run(app, poller_of("queued", "completed")) == 200
    assert anyio.current_time() - began == pytest.approx(1)


@pytest.mark.anyio
async def test_a_client_that_hangs_up_in_the_middle_of_its_body_ends_the_wait() -> None:
    """As one does that has sent all of it."""
    exchange = Exchange(iter([b"the first half"]))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, app_at(wait_nine_seconds), poller_of("queued"))
        await anyio.sleep(2)
        assert not exchange.sent
        exchange.over.set()
        await anyio.sleep(0.01)
        assert exchange.sent[0]["status"] == 499


@pytest.mark.anyio
async def test_a_long_body_can_be_read_after_a_wait() -> None:
    """Byte for byte, and from then on the client is listened to again."""
    pieces = [bytes([number]) * 10_000 for number in range(100)]
    exchange = Exchange(iter(pieces), last=b"end")
    read: list[bytes] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        with pytest.raises(PollTimeoutError):
            await poller.wait(ID, timeout=9)
        assert exchange.taken < 500_000
        read.append(await request.body())
        await poller.wait(ID, timeout=None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(exchange.run, app_at(handler), poller_of("queued"))
        await anyio.sleep(20)
        assert read == [b"".join([*pieces, b"end"])]
        assert not exchange.sent
        exchange.over.set()
        await anyio.sleep(0.01)
        assert exchange.sent[0]["status"] == 499


@pytest.mark.anyio
async def test_one_task_may_read_while_another_waits() -> None:
    """Neither takes a piece from the other."""
    exchange = Exchange((b"x" * 1000 for _ in range(1000)), last=b"end")
    read: list[bytes] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        async def wait() -> None:
            await poller.wait(ID)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            async for piece in request.stream():
                read.append(piece)
                await anyio.sleep(0.01)

    assert await exchange.run(app_at(handler), poller_of("queued", (2, "completed"))) == 200
    assert b"".join(read) == b"x" * 1_000_000 + b"end"


@pytest.mark.anyio
async def test_what_a_middleware_says_of_a_body_reaches_the_handler() -> None:
    """A limit of the app's own holds: the wait goes on, and reading the body does not."""
    exchange = Exchange(iter([b"x" * 1000]))
    waited: list[int] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        waited.append(len(await poller.wait(ID)))
        await request.body()

    class Limit:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def limited() -> Message:
                if len((message := await receive())["body"]) > 100:
                    raise HTTPException(413)
                return message

            await self.app(scope, limited, send)

    app = app_at(handler)
    app.add_middleware(Limit)
    assert await exchange.run(app, poller_of("queued", "completed")) == 413
    assert waited == [1]


@pytest.mark.anyio
async def test_a_handler_can_ask_whether_the_client_is_there() -> None:
    """Starlette's `is_disconnected` hears of it between waits."""
    exchange = Exchange(iter(()), last=b"")
    heard: list[bool] = []

    async def handler(request: Request, poller: PollerDep) -> None:
        await poller.wait(ID)
        heard.append(await request.is_disconnected())
        exchange.over.set()
        heard.append(await request.is_disconnected())

    await exchange.run(app_at(handler), poller_of("queued", "completed"))
    assert heard == [False, True]


# --- behind a real server ------------------------------------------------------------------------


@dataclass
class Served:
    """An app behind uvicorn, on this machine."""

    url: str
    server: uvicorn.Server
    ended: "asyncio.Task[None]"
    http: httpx.AsyncClient = field(repr=False)


@asynccontextmanager
async def serve(app: FastAPI, **options: Any) -> AsyncIterator[Served]:
    """Uvicorn itself, in this event loop."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    options = {"log_level": "critical", "timeout_graceful_shutdown": 5, **options}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    ended = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    limits = httpx.Limits(max_connections=None)
    try:
        await eventually(lambda: server.started)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as http:
            yield Served(url, server, ended, http)
    finally:
        server.should_exit = True
        await ended


async def eventually(holds: Any) -> None:
    """What happens on another task, or at the other end of a connection, takes a moment."""
    for _ in range(2500):
        if holds():
            return
        await asyncio.sleep(0.002)
    pytest.fail("it does not happen within five seconds")


async def hang_up(request: "asyncio.Task[Any]") -> None:
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request


@pytest.mark.asyncio
async def test_a_client_that_hangs_up_ends_its_wait_and_no_other() -> None:
    """The polls for it end, those that others wait for go on."""
    state = "queued"
    fake = FakeClient(at=lambda now: state)
    app, poller = fake_app(fake)
    other = ID.replace("1", "2")
    async with serve(app) as served:
        stays = asyncio.create_task(served.http.get(f"/wait/{ID}"))
        goes = asyncio.create_task(served.http.get(f"/wait/{ID}"))
        alone = asyncio.create_task(served.http.get(f"/wait/{other}"))
        await eventually(lambda: len(fake.calls) > 3 and repr(poller).endswith("generations=2)"))
        await hang_up(goes)
        await hang_up(alone)
        await eventually(lambda: repr(poller).endswith("generations=1)"))
        await eventually(lambda: len(served.server.server_state.tasks) == 1)
        state = "completed"
        assert (await stays).status_code == 200
        await eventually(lambda: repr(poller).endswith("generations=0)"))


@pytest.mark.asyncio
async def test_hanging_up_cancels_the_wait_and_nothing_else() -> None:
    """The handler hears of it as Starlette's error, and may still save what it has paid for."""
    app, _ = fake_app(FakeClient("queued"))
    heard: list[str] = []

    @app.post("/")
    async def handler(poller: PollerDep) -> None:
        async def one() -> None:
            try:
                await poller.wait(ID)
            except ClientDisconnect:
                await asyncio.sleep(0.01)
                heard.append("saved")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(one())
            tasks.create_task(one())
        heard.append("ended")

    async with serve(app) as served:
        request = asyncio.create_task(served.http.post("/", content=b"x" * 100_000))
        await asyncio.sleep(0.2)
        assert heard == []
        await hang_up(request)
        await eventually(lambda: heard == ["saved", "saved", "ended"])


@pytest.mark.asyncio
async def test_a_client_that_hung_up_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """It is no error of the app."""
    fake = FakeClient("queued")
    app, poller = fake_app(fake)
    async with serve(app, log_config=None) as served:
        request = asyncio.create_task(served.http.get(f"/wait/{ID}"))
        await eventually(lambda: fake.calls)
        await hang_up(request)
        await eventually(lambda: not served.server.server_state.tasks)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert repr(poller).endswith("generations=0)")


@pytest.mark.asyncio
@pytest.mark.parametrize("layers", [0, 2])
async def test_a_wait_that_outlives_its_handler_goes_on(
    layers: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Answered, hung up or behind middlewares: nobody listens any more, and nobody cancels it."""
    state = "queued"
    app, poller = fake_app(FakeClient(at=lambda now: state))
    for _ in range(layers):
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    waits: list[asyncio.Task[Any]] = []

    @app.post("/")
    async def handler(poller: PollerDep) -> None:
        waits.append(asyncio.create_task(poller.wait(ID)))
        waits.append(asyncio.create_task(poller.wait_all([ID, ID.replace("1", "2")])))
        await asyncio.sleep(0.1)

    async with serve(app, log_config=None) as served:
        assert (await served.http.post("/", content=b"x" * 1000)).status_code == 200
        await served.http.aclose()
        await eventually(lambda: not served.server.server_state.connections)
        assert repr(poller).endswith("generations=2)")
        state = "completed"
        one, two = await asyncio.gather(*waits)
    assert len(one) == 1
    assert [result.ok for result in two] == [True, True]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def with_events(app: FastAPI) -> FastAPI:
    @app.get("/events/{generation_id}", response_class=EventSourceResponse)
    async def events(generation_id: str, poller: PollerDep) -> AsyncIterable[ServerSentEvent]:
        async for generation in poller.watch(generation_id):
            yield ServerSentEvent(data=generation.state, id=generation.state)

    return app


@pytest.mark.asyncio
async def test_events_come_as_they_happen_and_at_once_after_a_reconnect() -> None:
    """A browser that reconnects gets the current state first; one that leaves ends the polls."""
    state = "queued"
    fake = FakeClient(at=lambda now: state)
    app, poller = fake_app(fake)
    async with serve(with_events(app)) as served:
        async with served.http.stream("GET", f"/events/{ID}") as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            assert [await anext(lines) for _ in range(2)] == ['data: "queued"', "id: queued"]
            state = "processing"
            assert [await anext(lines) for _ in range(2)] == ["", 'data: "processing"']
        await eventually(lambda: repr(poller).endswith("generations=0)"))
        headers = {"Last-Event-ID": "processing"}
        async with served.http.stream("GET", f"/events/{ID}", headers=headers) as response:
            lines = response.aiter_lines()
            assert await anext(lines) == 'data: "processing"'
            state = "completed"
            assert 'data: "completed"' in [line async for line in lines]
        await eventually(lambda: repr(poller).endswith("generations=0)"))


@pytest.mark.asyncio
async def test_a_shutdown_ends_waits_and_streams() -> None:
    """Within uvicorn's `timeout_graceful_shutdown`, and nothing is left."""
    fake = FakeClient("queued")
    app, poller = fake_app(fake)
    async with serve(with_events(app), timeout_graceful_shutdown=0.2) as served:
        requests = [
            asyncio.create_task(served.http.get(path))
            for path in (f"/wait/{ID}", f"/events/{ID}", f"/wait/{ID.replace('1', '2')}")
        ]
        await eventually(lambda: len(served.server.server_state.tasks) == 3 and fake.calls)
        served.server.should_exit = True
        await asyncio.wait_for(served.ended, 5)
        await asyncio.gather(*requests, return_exceptions=True)
    assert repr(poller).endswith("generations=0)")
    assert not any(fake.under_way.values())


@pytest.mark.asyncio
@pytest.mark.usefixtures("key")
async def test_fifty_handlers_on_one_id_poll_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty tabs cost the requests of one."""
    sandbox = Sandbox(seed=1)
    async with sandbox.serve() as base_url:
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
        events: Counter[str] = Counter()
        app = app_of(
            wait=wait_fixed(0.2), on_poll=lambda event: events.update([event.generation_id])
        )
        async with serve(app) as served, LumaClient() as client:
            generation = await client.generations.create("a fox sandbox:duration=1")
            path = f"/wait/{generation.id}"
            answers = await asyncio.gather(*(served.http.get(path) for _ in range(50)))
    assert [answer.status_code for answer in answers] == [200] * 50
    assert events[generation.id] == sandbox.calls["GET /generations/{id}"] <= 8


async def status_of(url: str, path: str) -> int:
    """A GET without httpx, whose pool is slow with hundreds of connections."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


@pytest.mark.asyncio
@pytest.mark.usefixtures("key")
async def test_five_hundred_handlers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are answered, at the poller's rate, and nothing is left of them."""
    sandbox = Sandbox(seed=1)
    async with sandbox.serve() as base_url:
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
        async with (
            serve(app_of(wait=wait_fixed(1), max_rate=400)) as served,
            LumaClient() as client,
        ):
            ids = []
            for number in range(100):
                prompt = f"fox {number} sandbox:duration=0.5"
                ids.append((await client.generations.create(prompt)).id)
            paths = [f"/wait/{each}" for each in ids for _ in range(5)]
            answers = await asyncio.gather(*(status_of(served.url, path) for path in paths))
            await eventually(lambda: not served.server.server_state.tasks)
    assert Counter(answers) == {200: 500}


@pytest.mark.asyncio
@pytest.mark.usefixtures("key")
async def test_a_bad_key_is_the_operators_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, from the API's 401 to the public's 503."""
    async with Sandbox().serve() as base_url:
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
        monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-revoked")
        async with serve(app_of()) as served:
            answer = await served.http.get(f"/wait/{ID}")
            late = await served.http.get(f"/wait/{ID}?timeout=nan")
    assert answer.status_code == 503
    assert "key" not in answer.text.lower()
    assert json.loads(late.text)["code"] == "unavailable"
