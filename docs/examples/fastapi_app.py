"""A page that makes pictures, and shows their states live.

    pip install 'luma-poll[fastapi,sandbox]'
    python -m luma_poll.examples.fastapi_app

Without LUMA_AGENTS_API_KEY it starts the sandbox, which costs nothing; with it, it uses Luma's API,
or the one at LUMA_BASE_URL.
"""

import os
import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from html import escape
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from tenacity import wait_fixed

from luma_poll import Generation, LumaClient, LumaError
from luma_poll.fastapi import (
    ClientDep,
    LumaState,
    PollerDep,
    PollerOptions,
    Prompt,
    add_error_handlers,
    luma_lifespan,
    to_problem,
)
from luma_poll.sandbox import Sandbox

PAGE = Path(__file__).with_suffix(".html")
SANDBOX_KEY = "luma-api-sandbox"  # as `luma-poll sandbox` prints it; Luma's API refuses it
SANDBOX_SPEED = 4  # times as fast as real generations


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[LumaState]:
    """One client and one poller for the app; a sandbox too, if there is no key."""
    async with AsyncExitStack() as stack:
        open_client: Callable[[], LumaClient] = LumaClient
        options = PollerOptions(timeout=300)
        if not os.environ.get("LUMA_AGENTS_API_KEY"):
            base_url = await stack.enter_async_context(Sandbox(speed=SANDBOX_SPEED).serve())
            open_client = partial(LumaClient, SANDBOX_KEY, base_url=base_url)
            options["wait"] = wait_fixed(0.5)
        yield await stack.enter_async_context(luma_lifespan(open_client, **options)(app))


app = FastAPI(title="luma-poll example", lifespan=lifespan)
# Whoever can send it requests can spend money. A name that somebody else has pointed at this
# machine, in order to reach it through your browser, gets no answer.
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
add_error_handlers(app)


class NewGeneration(BaseModel):
    """A submission of the page."""

    prompt: Prompt


class Submitted(BaseModel):
    """The answer: the id is all that the page needs from now on."""

    id: str


class State(BaseModel):
    """A state, as the page is told of it."""

    state: str
    urls: list[str]


def describe(generation: Generation) -> State:
    """As much of a snapshot as the page shows."""
    return State(state=generation.state, urls=[output.url for output in generation.output])


def billing(key: str, base_url: str) -> str:
    """Who bills for generations: Luma (`live`), nobody (`sandbox`), or who knows (`other`)."""
    if key.strip() in ("", SANDBOX_KEY):
        return "sandbox"
    return "live" if f".{urlsplit(base_url).hostname}".endswith(".lumalabs.ai") else "other"


@app.get("/", response_class=HTMLResponse)
async def page(client: ClientDep) -> str:
    """The page itself."""
    mode = billing(os.environ.get("LUMA_AGENTS_API_KEY", ""), client.base_url)
    host = escape(urlsplit(client.base_url).hostname or "")
    return (
        PAGE.read_text()
        .replace('data-mode="?"', f'data-mode="{mode}"')
        .replace('data-host="?"', f'data-host="{host}"')
    )


@app.post("/generations", status_code=202)
async def submit(new: NewGeneration, client: ClientDep) -> Submitted:
    """Submit a generation; it goes on whether anybody waits for it or not."""
    generation = await client.generations.create(new.prompt)
    return Submitted(id=generation.id)


class Streams:
    """The streams that are open. uvicorn would wait for them, and in the end kill them."""

    def __init__(self) -> None:
        self._waits: set[anyio.CancelScope] = set()
        self._stopped = False

    async def until_stopped(
        self, snapshots: AsyncGenerator[Generation]
    ) -> AsyncGenerator[Generation]:
        """Pass them on until the server stops."""
        async with aclosing(snapshots):
            while not self._stopped:
                with anyio.CancelScope() as wait:
                    self._waits.add(wait)
                    try:
                        generation = await anext(snapshots, None)
                    finally:
                        self._waits.discard(wait)
                if wait.cancelled_caught or generation is None:
                    return
                yield generation

    def stop(self) -> None:
        """End all of them."""
        self._stopped = True
        for wait in self._waits:
            wait.cancel()


streams = Streams()


@app.get("/generations/{generation_id}/events", response_class=EventSourceResponse)
async def events(generation_id: UUID, poller: PollerDep) -> AsyncIterable[ServerSentEvent]:
    """Tell its states as they change. The current one comes first, so a reconnect needs no more."""
    try:
        async for generation in streams.until_stopped(poller.watch(generation_id)):
            yield ServerSentEvent(event="state", id=generation.state, data=describe(generation))
            generation.raise_for_failure()
    except LumaError as error:  # the stream has begun: too late for a status
        yield ServerSentEvent(event="problem", data=to_problem(error))


class Server(uvicorn.Server):
    """uvicorn does not tell an app that it stops before all requests have ended. This does."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams; browsers come back by themselves. Submissions get their answers."""
        streams.stop()
        await super().shutdown(sockets)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    # A submission may take as long as the client lets it: to cancel it would lose its id.
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=30)
    print(f"Open http://127.0.0.1:{port} (Ctrl-C ends it)")  # noqa: T201
    with suppress(KeyboardInterrupt):
        Server(config).run()
