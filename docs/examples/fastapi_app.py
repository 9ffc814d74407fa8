"""A page that makes pictures, and shows their states live.

    pip install 'luma-poll[fastapi,sandbox]'
    python -m luma_poll.examples.fastapi_app

Without LUMA_AGENTS_API_KEY it starts the sandbox, which costs nothing; with it, it uses Luma's API,
or the one at LUMA_BASE_URL, keeps its journal in the file LUMA_JOURNAL (luma-journal.db), and the
pictures in the directory LUMA_PICTURES (luma-pictures).
"""

import os
import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import anyio.to_thread
import uvicorn
from anyio.abc import TaskGroup
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from tenacity import wait_fixed

from luma_poll import GenerationError, LumaClient, LumaError, Runner
from luma_poll.events import (
    Event,
    RunEvent,
    RunRefused,
    RunStateChanged,
    RunSubmitting,
    RunUnreachable,
)
from luma_poll.fastapi import (
    ClientDep,
    PollerOptions,
    Problem,
    Prompt,
    add_error_handlers,
    luma_lifespan,
    to_problem,
)
from luma_poll.models import Generation
from luma_poll.sandbox import Sandbox

PAGE = Path(__file__).with_suffix(".html")
SANDBOX_KEY = "luma-api-sandbox"  # as `luma-poll sandbox` prints it; Luma's API refuses it
SANDBOX_SPEED = 4  # times as fast as real generations
API_KEY = os.environ.get("LUMA_AGENTS_API_KEY", "")
JOURNAL = os.environ.get("LUMA_JOURNAL", "luma-journal.db")
PICTURES = os.environ.get("LUMA_PICTURES", "luma-pictures")
TICK = 0.2
"""Seconds between two looks of a stream: what changes more often than that is not told."""
SAVE_TIMEOUT = 60.0
"""Seconds that the files of a generation may take."""


class Order(BaseModel):
    """What is known of an order.

    Attributes:
        key: Its name, which the page has chosen.
        state: That of its generation. Before there is one: `waiting` for room, or `submitting`.
            If there is trouble: `missing`, it was never submitted; `unknown`, its submission had no
            answer; `unseen`, its generation cannot be looked at.
        id: That of its generation.
        pictures: Where the page finds its files.
        problem: Why it has failed, or why it cannot be looked at. A completed one may have a
            problem too: then its files cannot be fetched.
    """

    key: str
    state: str
    id: str | None = None
    pictures: list[str] = []
    problem: Problem | None = None

    @property
    def has_ended(self) -> bool:
        """True if nothing more becomes of it, unless somebody acts."""
        return self.state in ("completed", "failed", "missing", "unknown", "unseen")


class Orders:
    """The orders of the page, in the background of the app. Each key is submitted once."""

    def __init__(self, client: LumaClient, runner: Runner, tasks: TaskGroup, folder: Path) -> None:
        assert runner.journal is not None, "the lifespan has opened it"
        self._client, self._runner, self._journal = client, runner, runner.journal
        self._tasks, self._folder = tasks, folder
        self._orders: dict[str, Order] = {}
        self._under_way: set[str] = set()
        self._news = anyio.Event()
        self._stopped = False
        runner.observe(self._note)
        for entry in self._journal.entries("running"):  # the process before this one began them
            self._tell(Order(key=entry.key, state="queued", id=entry.generation_id))
            self._begin(entry.key, entry.request["prompt"])

    def submit(self, key: str, prompt: str) -> None:
        """Submit it when there is room, unless it has been."""
        if key not in self._under_way:
            self._tell(Order(key=key, state="waiting"))
            self._begin(key, prompt)

    async def watch(self, keys: list[str]) -> AsyncGenerator[Order]:
        """Yield what is known of each, and again as it changes, until all have ended."""
        for key in set(keys) - self._under_way:
            known = self._orders.get(key)
            # One that was refused is in no journal. Of any other there may be news.
            if known is None or known.id is not None:
                self._orders.pop(key, None)
                self._begin(key, None)
        told: dict[str, Order] = {}
        while not self._stopped:
            await anyio.sleep(TICK)
            news = self._news
            for key in keys:
                order = self._orders.get(key)
                if order is not None and order != told.get(key):
                    told[key] = order
                    yield order
            if len(told) == len(set(keys)) and all(order.has_ended for order in told.values()):
                return
            await news.wait()

    def stop(self) -> None:
        """End all streams. uvicorn would wait for them, and in the end kill them."""
        self._stopped = True
        self._news.set()

    def _begin(self, key: str, prompt: str | None) -> None:
        self._under_way.add(key)
        self._tasks.start_soon(self._see_through, key, prompt)

    async def _see_through(self, key: str, prompt: str | None) -> None:
        try:
            order = await self._end(key, prompt)
        except Exception as error:  # whatever befalls one, the others continue
            problem = to_problem(LumaError(f"order {key}: {error!r}"))
            order = Order(key=key, state="unseen", problem=problem)
        self._under_way.discard(key)
        self._tell(order)

    async def _end(self, key: str, prompt: str | None) -> Order:
        """Wait for its end; without a prompt, for one that has been submitted."""
        refusal = None
        if prompt is not None:
            try:
                generation = await self._runner.run(prompt, key=key, timeout=None)
                return await self._fetch(key, generation)
            except LumaError as error:
                refusal = error
        entry = await anyio.to_thread.run_sync(self._journal.entry, key)
        if entry is None and refusal is None:
            return Order(key=key, state="missing")
        if entry is None or entry.generation_id is None:
            problem = None if refusal is None else to_problem(refusal)
            is_unknown = entry is not None and entry.state == "unknown"
            return Order(key=key, state="unknown" if is_unknown else "failed", problem=problem)
        # It has an id, so it may have been paid for: only its own failure is one.
        order = Order(key=key, state="unseen", id=entry.generation_id)
        if pictures := await self._pictures(entry.generation_id):
            return order.model_copy(update={"state": "completed", "pictures": pictures})
        try:
            watching = self._runner.poller.watch(entry.generation_id, timeout=None)
            async with aclosing(watching) as snapshots:
                async for generation in snapshots:
                    self._show(key, generation)
            return await self._fetch(key, generation.raise_for_failure())
        except LumaError as error:
            if isinstance(error, GenerationError):
                state = "failed"
            else:  # the key may have stopped working, which takes nothing away from what is done
                state = "completed" if entry.state == "completed" else "unseen"
            return order.model_copy(update={"state": state, "problem": to_problem(error)})

    async def _fetch(self, key: str, generation: Generation) -> Order:
        """Save its files, if they are not saved: their addresses work for an hour."""
        if not await self._pictures(generation.id):
            folder = self._folder_of(generation.id)
            part = anyio.Path(folder.with_name(f".{folder.name}"))  # all of them, or none
            await self._client.download(generation, part, name="{n}", timeout=SAVE_TIMEOUT)
            await part.rename(folder)
        pictures = await self._pictures(generation.id)
        return Order(key=key, state="completed", id=generation.id, pictures=pictures)

    def _folder_of(self, generation_id: str) -> Path:
        return self._folder / str(UUID(generation_id))

    async def _pictures(self, generation_id: str) -> list[str]:
        """Where the page finds the files that are saved, in the order of the outputs."""
        folder = anyio.Path(self._folder_of(generation_id))
        names = [file.name async for file in folder.glob("*.*")]
        ordered = sorted(names, key=lambda name: int(name.split(".")[0]))
        return [f"/pictures/{folder.name}/{name}" for name in ordered]

    def _note(self, event: Event) -> None:
        """See what becomes of a run until it ends."""
        if not isinstance(event, RunEvent) or event.run.key is None:
            return
        match event:
            case RunSubmitting():
                self._tell(Order(key=event.run.key, state="submitting"))
            case RunRefused() | RunUnreachable():
                self._tell(Order(key=event.run.key, state="waiting"))
            case RunStateChanged():
                self._show(event.run.key, event.generation)

    def _show(self, key: str, generation: Generation) -> None:
        if not generation.is_terminal:  # what has ended is told when its files are there
            self._tell(Order(key=key, state=generation.state, id=generation.id))

    def _tell(self, order: Order) -> None:
        self._orders[order.key] = order
        self._news.set()
        self._news = anyio.Event()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, object]]:
    """One client, poller and runner for the app; a sandbox too, if there is no key."""
    async with AsyncExitStack() as stack:
        open_client: Callable[[], LumaClient] = LumaClient
        options, journal, pictures = PollerOptions(), JOURNAL, Path(PICTURES)
        if billing(API_KEY, "") == "sandbox":
            options["wait"] = wait_fixed(0.5)
        if not API_KEY:
            base_url = await stack.enter_async_context(Sandbox(speed=SANDBOX_SPEED).serve())
            open_client = partial(LumaClient, SANDBOX_KEY, base_url=base_url)
            # The generations of this sandbox end with it, so all that is known of them does, too.
            pictures = Path(stack.enter_context(TemporaryDirectory()))
            journal = f"{stack.enter_context(TemporaryDirectory())}/journal.db"
        opened = luma_lifespan(open_client, journal=journal, **options)(app)
        luma = await stack.enter_async_context(opened)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)  # a submission under way still gets its id
        app.state.orders = Orders(luma["luma_client"], luma["luma_runner"], tasks, pictures)
        yield {**luma, "orders": app.state.orders, "pictures": pictures}


app = FastAPI(title="luma-poll example", lifespan=lifespan)
# Whoever can send it requests can spend money. A name that somebody else has pointed at this
# machine, in order to reach it through your browser, gets no answer.
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
add_error_handlers(app)


class NewOrder(BaseModel):
    """An order of the page."""

    prompt: Prompt


def billing(key: str, base_url: str) -> str:
    """Who bills for generations: Luma (`live`), nobody (`sandbox`), or who knows (`other`)."""
    if key.strip() in ("", SANDBOX_KEY):
        return "sandbox"
    return "live" if f".{urlsplit(base_url).hostname}".endswith(".lumalabs.ai") else "other"


@app.get("/", response_class=HTMLResponse)
async def page(client: ClientDep) -> str:
    """Return the page itself."""
    mode = billing(API_KEY, client.base_url)
    host = urlsplit(client.base_url).hostname or ""
    return (
        PAGE.read_text()
        .replace('data-mode="?"', f'data-mode="{mode}"')
        .replace('data-host="?"', f'data-host="{escape(host)}"')
        .replace('data-journal="?"', f'data-journal="{escape(JOURNAL)}"')
    )


@app.put("/orders/{key}", status_code=202)
async def submit(key: str, new: NewOrder, request: Request) -> dict[str, str]:
    """Submit an order, once for each key: a page that has no answer sends it again."""
    request.state.orders.submit(key, new.prompt)
    return {"events": str(request.url_for("events").include_query_params(key=key))}


@app.get("/orders/{key}")
async def order(key: str, request: Request) -> Order:
    """Say what is known of one."""
    orders: Orders = request.state.orders
    async with aclosing(orders.watch([key])) as states:
        found = await anext(states, None)
    if found is None or found.state == "missing":
        raise HTTPException(404, "not submitted yet: wait, or send it again")
    return found


@app.get("/events", response_class=EventSourceResponse)
async def events(
    key: Annotated[list[str], Query()], request: Request
) -> AsyncIterable[ServerSentEvent]:
    """Send the states of these as they change: one stream, since a browser opens six at most.

    The current ones come first, so a reconnect needs no more.
    """
    orders: Orders = request.state.orders
    async with aclosing(orders.watch(key)) as states:
        async for each in states:
            yield ServerSentEvent(event="order", data=each)


@app.get("/pictures/{generation_id}/{number}.{extension}")
async def picture(
    generation_id: UUID, number: int, extension: str, request: Request
) -> FileResponse:
    """Send a file that was saved."""
    path = request.state.pictures / str(generation_id) / f"{number}.{extension}"
    if not await anyio.Path(path).is_file():
        raise HTTPException(404)
    # Were it a page, it could do nothing in the name of this one.
    headers = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, headers=headers)


class Server(uvicorn.Server):
    """uvicorn does not tell an app that it stops before all requests have ended. This does."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams; browsers come back by themselves."""
        app.state.orders.stop()
        await super().shutdown(sockets)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    # The limit is for requests only: the lifespan waits for submissions as long as it takes.
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5)
    print(f"Open http://127.0.0.1:{port} (Ctrl-C ends it)")  # noqa: T201
    with suppress(KeyboardInterrupt):
        Server(config).run()
