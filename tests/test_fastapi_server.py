"""luma-poll in a FastAPI app behind a real uvicorn."""

import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect
from tenacity import wait_fixed

from luma_poll import LumaClient
from luma_poll.fastapi import PollerDep
from luma_poll.sandbox import Sandbox
from tests.fakes import ID, FakeClient
from tests.fastapi_apps import app_of, fake_app, pass_on


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
@pytest.mark.usefixtures("api_key")
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


@pytest.mark.no_cover
@pytest.mark.asyncio
@pytest.mark.usefixtures("api_key")
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
@pytest.mark.usefixtures("api_key")
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
