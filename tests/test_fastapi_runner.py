"""The app's Runner: a dependency, with a journal that outlives the app."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from tenacity import wait_fixed

from luma_poll import ConfigurationError, Journal, LumaClient, Runner
from luma_poll.fastapi import RunnerDep, RunnerOptions, add_error_handlers, luma_lifespan
from luma_poll.sandbox import Sandbox


def app_of(sandbox: Sandbox, **options: Any) -> FastAPI:
    """An app that runs prompts against a sandbox."""

    def open_client() -> LumaClient:
        transport = httpx.ASGITransport(app=sandbox.app)
        http_client = httpx.AsyncClient(transport=transport)
        return LumaClient("luma-api-x", base_url="https://test/v1", http_client=http_client)

    app = FastAPI(lifespan=luma_lifespan(open_client, **{"wait": wait_fixed(0.02), **options}))
    add_error_handlers(app)

    @app.put("/orders/{key}")
    async def order(key: str, prompt: str, runner: RunnerDep) -> str:
        return (await runner.run(prompt, key=key)).id

    @app.get("/state/{key}")
    def state(key: str, runner: RunnerDep, request: Request) -> str | None:
        assert runner is request.state.luma_runner
        assert runner.journal is not None
        entry = runner.journal.entry(key)
        return None if entry is None else entry.state

    return app


def test_the_options_are_those_of_the_runner() -> None:
    """None is forgotten when the runner learns a new one."""
    known = inspect.signature(Runner).parameters.keys() - {"client", "poller", "journal"}
    assert RunnerOptions.__annotations__.keys() == known


def test_a_handler_runs_a_prompt() -> None:
    """With the options of the lifespan: here one submission, then a refusal that costs nothing."""
    sandbox = Sandbox(speed=1000)
    app = app_of(sandbox, runner={"max_submissions": 1})
    with TestClient(app) as http:
        assert len(http.put("/orders/1", params={"prompt": "a fox"}).json()) == 36
        assert http.put("/orders/2", params={"prompt": "a fox"}).status_code == 503
    assert sandbox.calls["POST /generations"] == 1


def test_a_restart_submits_nothing_twice(tmp_path: Path) -> None:
    """The same order, sent to the app that was restarted, has the same generation."""
    sandbox = Sandbox(speed=1000)
    ids = set()
    for _ in range(3):
        with TestClient(app_of(sandbox, journal=tmp_path / "orders.db")) as http:
            for _ in range(2):
                ids.add(http.put("/orders/17", params={"prompt": "a fox"}).json())
            assert http.get("/state/17").json() == "completed"
            assert http.get("/state/18").json() is None
    assert len(ids) == sandbox.calls["POST /generations"] == 1


def test_a_journal_that_is_in_use_fails_at_startup(tmp_path: Path) -> None:
    """A second worker does not start: two of them could submit twice."""
    path = tmp_path / "orders.db"
    with (
        Journal(path),
        pytest.raises(ConfigurationError, match="in use"),
        TestClient(app_of(Sandbox(), journal=path)),
    ):
        pytest.fail("it started")
    Journal(path).close()


def test_without_the_lifespan_the_fix_is_told() -> None:
    """As for the poller."""
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    async def handler(runner: RunnerDep) -> None: ...

    assert TestClient(app).get("/").status_code == 503
