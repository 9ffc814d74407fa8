"""luma-poll in a FastAPI app: client, poller and runner as dependencies, errors as answers.

Needs the extra `luma-poll[fastapi]`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from copy import copy
from typing import Annotated, Any, ParamSpec, TypedDict, Unpack

from fastapi import Depends, FastAPI, Request, Response, WebSocket
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, Field
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.status import WS_1011_INTERNAL_ERROR
from starlette.websockets import WebSocketState

from luma_poll._arguments import check_prompt
from luma_poll._client.client import LumaClient
from luma_poll._fastapi.callers import Caller
from luma_poll._journal.journal import Journal
from luma_poll._polling.poller import Poller
from luma_poll._polling.schedules import Schedule
from luma_poll._running.runner import Runner
from luma_poll.errors import ConfigurationError, LumaError
from luma_poll.events import PollEvent, RunStateChanged, RunSubmitted
from luma_poll.models import Generation
from luma_poll.problems import PERHAPS_SUBMITTED, Problem, retry_after, to_problem

__all__ = [
    "ClientDep",
    "LumaState",
    "PollerDep",
    "PollerOptions",
    "Problem",
    "Prompt",
    "RunnerDep",
    "RunnerOptions",
    "add_error_handlers",
    "get_client",
    "get_poller",
    "get_runner",
    "luma_lifespan",
    "to_problem",
]

P = ParamSpec("P")

PROBLEM_TYPE = "application/problem+json"


class PollerOptions(TypedDict, total=False):
    """The options of `Poller`, which has defaults for those left out.

    Attributes:
        wait: The schedule, as a tenacity wait strategy.
        timeout: Seconds that a wait may take by default; None for no limit.
        max_in_flight: The most requests under way at the same time; None for no limit.
        max_rate: The most requests started per second; None for no limit.
        on_poll: A function, called with a `PollEvent` after every poll.
    """

    wait: Schedule | None
    timeout: float | None
    max_in_flight: int | None
    max_rate: float | None
    on_poll: Callable[[PollEvent], None] | None


class RunnerOptions(TypedDict, total=False):
    """The options of `Runner`, which has defaults for those left out.

    Attributes:
        max_running: The most generations under way at once; None for as many as the account allows.
        max_attempts: How often one request may be submitted in all.
        max_submissions: The most submissions of the app in all; None for no limit.
        on_submit: A function, called with a `RunSubmitted` as soon as there is an id.
        on_state: A function, called with a `RunStateChanged` at each change of state.
    """

    max_running: int | None
    max_attempts: int
    max_submissions: int | None
    on_submit: Callable[[RunSubmitted], object] | None
    on_state: Callable[[RunStateChanged], object] | None


class LumaState(TypedDict):
    """The state that `luma_lifespan` yields.

    Attributes:
        luma_client: The app's client.
        luma_poller: The app's poller.
        luma_runner: The app's runner, which waits with that poller.
    """

    luma_client: LumaClient
    luma_poller: Poller
    luma_runner: Runner


def luma_lifespan(
    open_client: Callable[[], LumaClient] = LumaClient,
    *,
    journal: str | os.PathLike[str] | None = None,
    runner: RunnerOptions | None = None,
    **poller_options: Unpack[PollerOptions],
) -> Callable[[Any], AbstractAsyncContextManager[LumaState]]:
    """Return a lifespan that opens one client, poller and runner for the app, and closes them.

    Use it as `FastAPI(lifespan=luma_lifespan())`. In a lifespan of your own, yield its state:

        async with luma_lifespan()(app) as luma:
            yield {**luma, "mine": ...}

    Args:
        open_client: A function that makes the client at startup; by default `LumaClient`, which
            reads the environment (LUMA_AGENTS_API_KEY, LUMA_BASE_URL).
        journal: The path of a `Journal` for the runner, so that a restart of the app submits
            nothing twice. Only one process can open it, so it is for an app with one worker.
        runner: The options of `Runner`: `max_running`, `max_attempts`, `max_submissions`,
            `on_submit`, `on_state`.
        poller_options: The options of `Poller`: `wait`, `timeout` (seconds), `max_in_flight`,
            `max_rate` (requests per second), `on_poll`.

    Returns:
        The lifespan, for `FastAPI(lifespan=...)`. Its state is a `LumaState`.

    Raises:
        ConfigurationError: Raised at startup if the API key is missing, an option is unusable, or
            another process has the journal open.
    """

    @asynccontextmanager
    async def lifespan(app: object) -> AsyncIterator[LumaState]:
        kept = nullcontext() if journal is None else Journal(journal)
        with kept as opened:
            async with open_client() as client:
                poller = Poller(client, **poller_options)
                yield {
                    "luma_client": client,
                    "luma_poller": poller,
                    "luma_runner": Runner(client, poller, journal=opened, **(runner or {})),
                }

    return lifespan


async def get_client(connection: HTTPConnection) -> LumaClient:
    """Return the app's client: the dependency behind `ClientDep`.

    Args:
        connection: The request or WebSocket.

    Returns:
        The client that `luma_lifespan` has opened.

    Raises:
        ConfigurationError: The app has no `luma_lifespan`.
    """
    client: LumaClient = _state(connection, "luma_client")
    return client


def _state(connection: HTTPConnection, name: str) -> Any:
    # The state of the lifespan and not app.state, because a mounted app sees it, too.
    try:
        return connection.scope["state"][name]
    except KeyError:
        raise ConfigurationError(
            f"the app has no {name}: create it with FastAPI(lifespan=luma_lifespan()), and let a "
            "lifespan of your own yield the state of luma_lifespan. In a test, enter the lifespan "
            "(with TestClient(app) as client) or use app.dependency_overrides"
        ) from None


async def _get_caller(connection: HTTPConnection) -> AsyncIterator[Caller | None]:
    if not isinstance(connection, Request):
        yield None  # the messages of a WebSocket belong to its handler
        return
    caller = Caller(connection)
    try:
        yield caller
    finally:
        await caller.let_go()


async def get_poller(
    connection: HTTPConnection,
    caller: Annotated[Caller | None, Depends(_get_caller, scope="function")],
) -> Poller:
    """Return the app's poller: the dependency behind `PollerDep`.

    When the client hangs up, a wait in the handler ends with Starlette's `ClientDisconnect`.
    Nothing else is cancelled: other waits continue, and so do the rest of the handler and waits
    that outlive it, such as those of a background task.

    Args:
        connection: The request or WebSocket.
        caller: The client behind the request, from a dependency.

    Raises:
        ConfigurationError: The app has no `luma_lifespan`.
    """
    shared: Poller = _state(connection, "luma_poller")
    if caller is None:
        return shared
    view = copy(shared)
    view._watch = _attended(shared._watch, caller)  # type: ignore[method-assign]
    return view


async def get_runner(connection: HTTPConnection) -> Runner:
    """Return the app's runner: the dependency behind `RunnerDep`.

    A run costs money, so it continues when the client hangs up.

    Args:
        connection: The request or WebSocket.

    Returns:
        The runner that `luma_lifespan` has made.

    Raises:
        ConfigurationError: The app has no `luma_lifespan`.
    """
    runner: Runner = _state(connection, "luma_runner")
    return runner


def _attended(
    watch: Callable[P, AsyncGenerator[Generation]], caller: Caller
) -> Callable[P, AsyncGenerator[Generation]]:
    """Return `watch`, which ends when the caller hangs up."""

    async def watch_while_there(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Generation]:
        async with aclosing(watch(*args, **kwargs)) as snapshots:
            while (found := await caller.unless_gone(anext(snapshots, None))) is not None:
                yield found

    return watch_while_there


ClientDep = Annotated[LumaClient, Depends(get_client)]
"""The app's `LumaClient`."""
PollerDep = Annotated[Poller, Depends(get_poller)]
"""The app's `Poller`. A wait in a handler ends when the client hangs up."""
RunnerDep = Annotated[Runner, Depends(get_runner)]
"""The app's `Runner`. A run in a handler continues when the client hangs up."""


def _check_prompt(prompt: str) -> str:
    try:
        return check_prompt(prompt)
    except ConfigurationError as error:  # FastAPI would put its attributes into the answer
        raise ValueError(str(error)) from None


Prompt = Annotated[str, Field(min_length=1, max_length=6000), AfterValidator(_check_prompt)]
"""A prompt that `create` and the API accept, for models and parameters; any other gets a 422."""


def add_error_handlers(app: Starlette) -> None:
    """Make an app answer every `LumaError` with problem+json.

        app = FastAPI(lifespan=luma_lifespan())
        add_error_handlers(app)

    The errors of a task group are answered, too. Of several, the one with the highest status
    counts, but a failed submission that may have been accepted goes first. A group that contains
    any other error is left alone. A client that hung up is not an error. The OpenAPI document of a
    FastAPI app describes the problems.

    An open WebSocket is closed with 1011 and the code of the problem as its reason.

    Args:
        app: A FastAPI or Starlette app. A mounted app has handlers of its own, so call this for
            each.
    """
    app.add_exception_handler(LumaError, _answer)
    app.add_exception_handler(ClientDisconnect, _answer)
    app.add_exception_handler(ExceptionGroup, _answer)
    if isinstance(app, FastAPI):
        _document_problems(app)


async def _answer(connection: object, error: Exception) -> Any:
    errors = list(_flatten(error))
    if not all(isinstance(each, LumaError | ClientDisconnect) for each in errors):
        raise error
    problems = [(to_problem(each), each) for each in errors if isinstance(each, LumaError)]
    if not problems:
        return Response(status_code=499)  # nginx's "client closed request", only for the log
    problem, cause = max(problems, key=lambda each: _gravity(each[0]))
    if (
        isinstance(connection, WebSocket)
        and connection.application_state is not WebSocketState.CONNECTING
    ):
        with suppress(RuntimeError):  # it is already closed
            await connection.close(WS_1011_INTERNAL_ERROR, problem.code)
        return None
    seconds = retry_after(cause)
    return JSONResponse(
        problem.model_dump(),
        problem.status,
        headers=None if seconds is None else {"Retry-After": str(seconds)},
        media_type=PROBLEM_TYPE,
    )


def _gravity(problem: Problem) -> tuple[bool, int]:
    # Advice to try again must not hide that something may have been paid for.
    return problem.detail == PERHAPS_SUBMITTED, problem.status


def _flatten(error: Exception) -> Iterator[Exception]:
    if not isinstance(error, ExceptionGroup):
        yield error
        return
    for each in error.exceptions:
        yield from _flatten(each)


def _document_problems(app: FastAPI) -> None:
    """Add the problems to the app's OpenAPI document.

    FastAPI's `responses=` would declare them as application/json, and hide its validation error.
    """
    openapi = app.openapi
    problem = {"schema": {"$ref": "#/components/schemas/LumaProblem"}}

    def openapi_with_problems() -> dict[str, Any]:
        document = openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["LumaProblem"] = Problem.model_json_schema()
        for operation in (each for path in document["paths"].values() for each in path.values()):
            responses = operation["responses"]
            responses.setdefault("default", {"description": "A problem (RFC 9457)"})
            for status in {"default", "422"} & responses.keys():
                responses[status].setdefault("content", {})[PROBLEM_TYPE] = problem
        return document

    app.openapi = openapi_with_problems  # type: ignore[method-assign]
