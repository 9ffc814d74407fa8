"""A page that makes pictures, and shows their states live.

    pip install 'luma-poll[fastapi,sandbox]'
    python docs/examples/fastapi_app.py

Without LUMA_AGENTS_API_KEY it starts the sandbox, which costs nothing; with it, it uses Luma's API.
"""

import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field
from tenacity import wait_fixed

from luma_poll import Generation, LumaClient, LumaError
from luma_poll.fastapi import (
    ClientDep,
    PollerDep,
    PollerOptions,
    add_error_handlers,
    luma_lifespan,
    to_problem,
)
from luma_poll.sandbox import Sandbox

PAGE = Path(__file__).with_suffix(".html")
SANDBOX_SPEED = 4  # times as fast as real generations


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """One client and one poller for the app; a sandbox too, if there is no key."""
    async with AsyncExitStack() as stack:
        open_client: Callable[[], LumaClient] = LumaClient
        options = PollerOptions(timeout=300)
        sandboxed = not os.environ.get("LUMA_AGENTS_API_KEY")
        if sandboxed:
            base_url = await stack.enter_async_context(Sandbox(speed=SANDBOX_SPEED).serve())
            open_client = partial(LumaClient, "sandbox", base_url=base_url)
            options["wait"] = wait_fixed(0.5)
        luma = await stack.enter_async_context(luma_lifespan(open_client, **options)(app))
        yield {**luma, "sandboxed": sandboxed}


app = FastAPI(title="luma-poll example", lifespan=lifespan)
add_error_handlers(app)


class NewGeneration(BaseModel):
    """What the page submits."""

    prompt: str = Field(min_length=1, max_length=6000, pattern=r"\S")


class Submitted(BaseModel):
    """What it gets: the id is all that it needs from now on."""

    id: str


class State(BaseModel):
    """What it is then told."""

    state: str
    urls: list[str]


def describe(generation: Generation) -> State:
    """What the page shows of a snapshot."""
    return State(state=generation.state, urls=[output.url for output in generation.output])


@app.get("/", response_class=HTMLResponse)
async def page(request: Request) -> str:
    """The page itself."""
    mode = "sandbox" if request.state.sandboxed else "live"
    return PAGE.read_text().replace('data-mode="?"', f'data-mode="{mode}"')


@app.post("/generations", status_code=202)
async def submit(new: NewGeneration, client: ClientDep) -> Submitted:
    """Submit a generation; it goes on whether anybody waits for it or not."""
    generation = await client.generations.create(new.prompt)
    return Submitted(id=generation.id)


@app.get("/generations/{generation_id}/events", response_class=EventSourceResponse)
async def events(generation_id: UUID, poller: PollerDep) -> AsyncIterable[ServerSentEvent]:
    """Tell its states as they change. The current one comes first, so a reconnect needs no more."""
    try:
        async for generation in poller.watch(generation_id):
            yield ServerSentEvent(event="state", id=generation.state, data=describe(generation))
        generation.raise_for_failure()
    except LumaError as error:  # the stream has begun: too late for a status
        yield ServerSentEvent(event="problem", data=to_problem(error))


if __name__ == "__main__":
    # Streams are open for minutes: a shutdown leaves them a second.
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=1)
