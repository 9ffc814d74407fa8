"""A page that makes pictures, and shows their states live.

    pip install 'luma-poll[fastapi,sandbox]'
    python -m luma_poll.examples.fastapi_app

Without LUMA_AGENTS_API_KEY it starts the sandbox, which costs nothing; with it, it uses Luma's API,
or the one at LUMA_BASE_URL, and keeps its journal in the file LUMA_JOURNAL (luma-journal.db).
"""

import os
import socket
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import uvicorn
from anyio.abc import TaskGroup
from fastapi import FastAPI, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import HTMLResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel
from tenacity import wait_fixed

from luma_poll import LumaClient, LumaError, Poller, Runner
from luma_poll.fastapi import (
    ClientDep,
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
API_KEY = os.environ.get("LUMA_AGENTS_API_KEY", "")
JOURNAL = os.environ.get("LUMA_JOURNAL", "luma-journal.db")


class State(BaseModel):
    """The state of a submission, or of its generation, for the page."""

    state: str
    id: str | None = None
    urls: list[str] = []


class Submissions:
    """The submissions of the page, in the background of the app. Each key is submitted once."""

    def __init__(self, runner: Runner, tasks: TaskGroup) -> None:
        assert runner.journal is not None
        self._runner, self._journal, self._tasks = runner, runner.journal, tasks
        self._running: set[str] = set()
        self._failures: dict[str, LumaError] = {}
        # What the process before this one has begun. The journal cuts prompts of more than 2,000
        # characters: these are refused as different ones, and only watched by the page.
        for entry in self._journal.entries("running"):
            self.start(entry.key, entry.request["prompt"])

    def start(self, key: str, prompt: str) -> None:
        """Submit it when there is room, unless it has been."""
        if key not in self._running:
            self._running.add(key)
            self._failures.pop(key, None)
            self._tasks.start_soon(self._run, key, prompt)

    async def _run(self, key: str, prompt: str) -> None:
        try:
            await self._runner.run(prompt, key=key, timeout=None)
        except LumaError as error:
            self._failures[key] = error
        except Exception as error:  # whatever befalls one, the others continue
            self._failures[key] = LumaError(f"submission {key}: {error!r}")
        finally:
            self._running.discard(key)

    async def watch(self, key: str, poller: Poller) -> AsyncGenerator[State]:
        """Yield its states as they change: first those of the submission."""
        before = None
        while True:
            running, failure = key in self._running, self._failures.get(key)
            entry = await anyio.to_thread.run_sync(self._journal.entry, key)
            if entry is not None and entry.generation_id is not None:
                break
            state = entry.state if entry is not None else "waiting" if running else "missing"
            if failure is not None and state != "unknown":
                raise failure.with_traceback(None)
            if state in ("missing", "unknown"):
                yield State(state=state)
                return
            if state == before:  # not for the moment that a submission takes
                yield State(state=state)
            before = state
            await anyio.sleep(0.2)
        async with aclosing(poller.watch(entry.generation_id)) as snapshots:
            async for each in snapshots:
                urls = [output.url for output in each.output]
                yield State(state=each.state, id=each.id, urls=urls)
                each.raise_for_failure()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, object]]:
    """One client, poller and runner for the app; a sandbox too, if there is no key."""
    async with AsyncExitStack() as stack:
        open_client: Callable[[], LumaClient] = LumaClient
        options, journal = PollerOptions(timeout=300), JOURNAL
        if billing(API_KEY, "") == "sandbox":
            options["wait"] = wait_fixed(0.5)
        if not API_KEY:
            base_url = await stack.enter_async_context(Sandbox(speed=SANDBOX_SPEED).serve())
            open_client = partial(LumaClient, SANDBOX_KEY, base_url=base_url)
            # The generations of this sandbox end with it, so their journal does, too.
            journal = f"{stack.enter_context(TemporaryDirectory())}/journal.db"
        opened = luma_lifespan(open_client, journal=journal, **options)(app)
        luma = await stack.enter_async_context(opened)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)  # a submission under way still gets its id
        yield {**luma, "submissions": Submissions(luma["luma_runner"], tasks)}


app = FastAPI(title="luma-poll example", lifespan=lifespan)
# Whoever can send it requests can spend money. A name that somebody else has pointed at this
# machine, in order to reach it through your browser, gets no answer.
app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
add_error_handlers(app)


class NewGeneration(BaseModel):
    """A submission of the page."""

    prompt: Prompt


def billing(key: str, base_url: str) -> str:
    """Who bills for generations: Luma (`live`), nobody (`sandbox`), or who knows (`other`)."""
    if key.strip() in ("", SANDBOX_KEY):
        return "sandbox"
    return "live" if f".{urlsplit(base_url).hostname}".endswith(".lumalabs.ai") else "other"


@app.get("/", response_class=HTMLResponse)
async def page(client: ClientDep) -> str:
    """The page itself."""
    mode = billing(API_KEY, client.base_url)
    host = urlsplit(client.base_url).hostname or ""
    return (
        PAGE.read_text()
        .replace('data-mode="?"', f'data-mode="{mode}"')
        .replace('data-host="?"', f'data-host="{escape(host)}"')
        .replace('data-journal="?"', f'data-journal="{escape(JOURNAL)}"')
    )


@app.put("/generations/{key}", status_code=202)
async def submit(key: str, new: NewGeneration, request: Request) -> dict[str, str]:
    """Submit a generation, once for each key: a page that has no answer sends it again."""
    request.state.submissions.start(key, new.prompt)
    return {"events": request.url_for("events", key=key).path}


class Streams:
    """The streams that are open. uvicorn would wait for them, and in the end kill them."""

    def __init__(self) -> None:
        self._waits: set[anyio.CancelScope] = set()
        self._stopped = False

    async def until_stopped(self, states: AsyncGenerator[State]) -> AsyncGenerator[State]:
        """Pass them on until the server stops."""
        async with aclosing(states):
            while not self._stopped:
                with anyio.CancelScope() as wait:
                    self._waits.add(wait)
                    try:
                        state = await anext(states, None)
                    finally:
                        self._waits.discard(wait)
                if wait.cancelled_caught or state is None:
                    return
                yield state

    def stop(self) -> None:
        """End all of them."""
        self._stopped = True
        for wait in self._waits:
            wait.cancel()


streams = Streams()


@app.get("/generations/{key}/events", response_class=EventSourceResponse)
async def events(key: str, poller: PollerDep, request: Request) -> AsyncIterable[ServerSentEvent]:
    """Send its states as they change. The current one comes first, so a reconnect needs no more."""
    try:
        submissions: Submissions = request.state.submissions
        async for state in streams.until_stopped(submissions.watch(key, poller)):
            yield ServerSentEvent(event="state", data=state)
    except LumaError as error:  # the stream has begun: too late for a status
        yield ServerSentEvent(event="problem", data=to_problem(error))


class Server(uvicorn.Server):
    """uvicorn does not tell an app that it stops before all requests have ended. This does."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams; browsers come back by themselves."""
        streams.stop()
        await super().shutdown(sockets)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    # The limit is for requests only: the lifespan waits for submissions as long as it takes.
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5)
    print(f"Open http://127.0.0.1:{port} (Ctrl-C ends it)")  # noqa: T201
    with suppress(KeyboardInterrupt):
        Server(config).run()
