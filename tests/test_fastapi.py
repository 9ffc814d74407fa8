"""luma-poll in a FastAPI app: the lifespan and the dependencies."""

import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Depends,
    FastAPI,
    Request,
    WebSocket,
    WebSocketDisconnect,
)
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import WebSocketDenialResponse

import luma_poll
from luma_poll import ConfigurationError, Poller, PollTimeoutError
from luma_poll.fastapi import (
    ClientDep,
    PollerDep,
    PollerOptions,
    add_error_handlers,
    get_client,
    get_poller,
    luma_lifespan,
)
from tests.fakes import ID, FakeClient
from tests.fastapi_apps import SOON, app_of, fake_app, pass_on


def test_the_options_are_those_of_the_poller() -> None:
    """None is forgotten when the poller learns a new one."""
    known = inspect.signature(Poller).parameters.keys() - {"client"}
    assert PollerOptions.__annotations__.keys() == known


def test_no_key_fails_at_startup() -> None:
    """Not at the first request."""
    with pytest.raises(ConfigurationError, match="LUMA_AGENTS_API_KEY"), TestClient(app_of()):
        pytest.fail("it started")


@pytest.mark.usefixtures("api_key")
def test_an_unusable_option_fails_at_startup() -> None:
    """So does a rate below zero."""
    with pytest.raises(ConfigurationError, match="max_rate"), TestClient(app_of(max_rate=-1)):
        pytest.fail("it started")


def test_without_the_lifespan_the_fix_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """To the operator; the public gets a 503."""
    assert TestClient(app_of()).get(f"/wait/{ID}").status_code == 503
    assert "FastAPI(lifespan=luma_lifespan())" in caplog.text


@pytest.mark.usefixtures("api_key")
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


@pytest.mark.usefixtures("api_key")
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


@pytest.mark.usefixtures("api_key")
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
