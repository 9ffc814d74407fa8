"""Apps with a prepared API behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from tenacity import wait_fixed

from luma_poll import Poller
from luma_poll.fastapi import PollerDep, Prompt, add_error_handlers, luma_lifespan
from tests.fakes import FakeClient

SOON = wait_fixed(0.02)


class Order(BaseModel):
    prompt: Prompt


def app_of(lifespan: Any = None, **options: Any) -> FastAPI:
    """An app with a handler that waits."""
    app = FastAPI(lifespan=lifespan or luma_lifespan(**{"wait": SOON, **options}))
    add_error_handlers(app)

    @app.get("/wait/{generation_id}")
    async def wait(generation_id: str, poller: PollerDep, timeout: float = 30) -> list[str]:
        return [output.url for output in await poller.wait(generation_id, timeout=timeout)]

    return app


def fake_app(fake: FakeClient) -> tuple[FastAPI, Poller]:
    """An app whose poller asks this client."""
    poller = Poller(fake, wait=SOON, max_rate=None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        yield {"luma_client": fake, "luma_poller": poller}

    return app_of(lifespan), poller


async def pass_on(request: Request, call_next: Any) -> Any:
    """The least that a middleware can do."""
    return await call_next(request)
