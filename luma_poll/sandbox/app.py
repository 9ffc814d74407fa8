"""The simulated API: its routes, its answers and its errors."""

import json
import math
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from itertools import count
from random import Random
from time import gmtime, strftime
from typing import Any, cast
from uuid import UUID, uuid4

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tenacity import RetryCallState

from luma_poll._polling.schedules import DEFAULT_WAIT
from luma_poll.sandbox import lifecycles, object_store, presigning
from luma_poll.sandbox.account_limits import (
    WINDOW,
    Account,
    SubmissionRecord,
    default_weight,
)
from luma_poll.sandbox.clock import SandboxClock
from luma_poll.sandbox.faults import MISBEHAVE, Faults, Misbehave
from luma_poll.sandbox.file_routes import FileRoutes
from luma_poll.sandbox.lifecycles import Job
from luma_poll.sandbox.refusals import RefusedError, Submission, parse_submission
from luma_poll.sandbox.scripts import Script, parse_script
from luma_poll.sandbox.server import serve_app
from luma_poll.sandbox.stored_files import references

API_VERSION = "2026-04-01"
CONCURRENCY_RETRY_AFTER = 60  # seconds, always

KEY_PREFIX = "luma-api-"

SCRIPTED_KEYS = {
    "luma-api-invalid": (401, "Invalid API key"),
    "luma-api-revoked": (401, "API key has been revoked"),
    "luma-api-expired": (401, "API key has expired"),
    "luma-api-suspended": (403, "API client is suspended"),
}


class _RefusedSubmission(HTTPException):
    """The refusal of a submission, with the `kind` and the `units` for its record."""

    def __init__(self, kind: str, units: int, answer: HTTPException) -> None:
        super().__init__(answer.status_code, answer.detail, answer.headers)
        self.kind = kind
        self.units = units


class Sandbox:
    """A simulated Luma Agents API, for tests and demonstrations of programs that poll it.

    Generations are queued, processed and completed in about the time that real ones take. Their
    outputs are small PNGs, or MP4s of five seconds for videos. Time is that of anyio's clock, so it
    is virtual if the event loop's clock is.

    Give `app` to a client, without a socket:

        sandbox = Sandbox(speed=10)
        transport = httpx.ASGITransport(app=sandbox.app)
        client = httpx.AsyncClient(transport=transport, base_url="http://sandbox/v1")

    Or serve it on a socket, for any client at all:

        async with sandbox.serve() as base_url: ...

    Tokens in a prompt control its generation:

    - `sandbox:duration=3`: it takes 3 seconds, divided by `speed`.
    - `sandbox:fail=generation_failed`: it fails with that code, known or not. Without a token for
      the duration, `content_moderated` fails early.
    - `sandbox:outputs=2`: it has two outputs; with 0 it completes without any.
    - `sandbox:size=100000000`: each output has that many bytes, generated as they are sent.
    - `sandbox:state=throttled`: it shows that state instead of `processing`.

    Four keys have fixed answers: `luma-api-invalid`, `luma-api-revoked` and `luma-api-expired` get
    401, and `luma-api-suspended` gets 403.

    The sandbox refuses a submission that the API documents as invalid, with 400, 413 or 422 like
    the API. It also refuses unknown parameters, which the real API may ignore.

    Every API key is an account of its own, with two limits, both counted in units: those
    submitted in a minute and those running at once. `Sandbox(**DEFAULT_ACCOUNT)` has the limits
    of a new account. A submission beyond them gets a 429, as it was seen live:

    - too many in the minute: `Rate limit exceeded`; `Retry-After` counts the seconds until the
      oldest submission leaves the window;
    - too many at once: `Concurrent generation limit reached (10)`, or, if it weighs more than
      one unit, `Concurrent generation capacity reached (limit=10 weight units; this request needs
      3). Wait for existing jobs to complete.`; `Retry-After` is always 60.

    Args:
        speed: How many times faster than real generations these are. `url_expires` and the
            limits are not sped up.
        seed: A number that makes ids and durations repeatable; None for different ones each time.
        auth_tokens: The accepted API keys, each of which sees only its own generations. None
            accepts every key but the four with fixed answers.
        strict_keys: True to refuse keys that do not begin with `luma-api-`, as the API does.
        extra_parameters: Parameters of a submission to accept with any value, in addition to
            those of the official SDK 0.5.0, such as newer ones of the API.
        url_expires: Seconds for which the URL of an output is valid, rounded up to whole ones.
            They count from the whole second in which it was signed, as in S3.
        faults: The share of answers to polls that is replaced by faults, from 0 to 1: error
            statuses, bodies that are not a generation and, if served on a socket, resets,
            truncation, garbage, a trickle of bytes and silence. A mapping gives the share of
            each kind, such as `{"503": 0.2, "reset": 0.1}`. Submissions get no faults.
        storage_faults: The same for downloads: refusals, a web page instead of the file, ignored
            ranges, slow bodies and, if served on a socket, bodies cut in the middle.
        requests_per_minute: The units that an account may submit in 60 seconds. A submission
            that is then refused for another reason counts, too.
        max_concurrent: The units that an account may have running. A generation counts until
            it completes or fails, and for at most an hour.
        weigh: A function that returns the units of a submission, a whole number from 1 up, given
            its parameters, always including `model` and `type`. By default an edit by `uni-1-max`
            has 3, the only weight above 1 that was seen, and everything else has 1.

    Attributes:
        app: The ASGI application.
        calls: The number of requests, including refused ones, by method and route:
            `POST /generations`, `GET /generations/{id}` and `GET /storage/{id}/{index}`.
        submissions: A `SubmissionRecord` for every submission with a valid key, in order.
        refusals: The number of refused ones among these, by `SubmissionRecord.refused`.
        faults_served: The number of faults served, by kind.
        storage_faults_served: The number of faults served to downloads, by kind.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """

    app: ASGIApp
    calls: Counter[str]
    submissions: list[SubmissionRecord]
    refusals: Counter[str]
    faults_served: Counter[str]
    storage_faults_served: Counter[str]

    def __init__(
        self,
        *,
        speed: float = 1.0,
        seed: int | None = None,
        auth_tokens: Collection[str] | None = None,
        strict_keys: bool = False,
        extra_parameters: Collection[str] = (),
        url_expires: float = 3600,
        faults: float | Mapping[str, float] = 0.0,
        storage_faults: float | Mapping[str, float] = 0.0,
        requests_per_minute: int = 10_000,
        max_concurrent: int = 10_000,
        weigh: Callable[[Mapping[str, Any]], int] = default_weight,
    ) -> None:
        _check_positive("speed", speed)
        _check_positive("url_expires", url_expires)
        _check_count("requests_per_minute", requests_per_minute)
        _check_count("max_concurrent", max_concurrent)
        if isinstance(auth_tokens, str):
            raise ValueError("auth_tokens must be a collection of API keys, not a single string")
        if isinstance(extra_parameters, str):
            raise ValueError("extra_parameters must be a collection of names, not a single string")

        self.calls = Counter()
        self.submissions = []
        self.refusals = Counter()
        self._speed = speed
        self._random = Random(seed)
        self._auth_tokens = None if auth_tokens is None else frozenset(auth_tokens)
        self._strict_keys = strict_keys
        self._extra_parameters = frozenset(extra_parameters)
        self._url_expires = math.ceil(url_expires)
        self._requests_per_minute = requests_per_minute
        self._max_concurrent = max_concurrent
        self._weigh = weigh

        self._faults = Faults(faults, seed)
        self.faults_served = self._faults.served
        self._storage_faults = Faults(
            storage_faults, seed, object_store.STORAGE_FAULTS, "storage_faults"
        )
        self.storage_faults_served = self._storage_faults.served

        self._clock = SandboxClock()
        self._jobs: dict[str, Job] = {}
        self._accounts: dict[str, Account] = {}
        self._signing_key = secrets.token_bytes(32)
        self._nonces = count(1)
        self._records: dict[str, SubmissionRecord] = {}
        self._files = FileRoutes(
            authenticate=self._authenticate,
            clock=self._clock,
            sign=self._sign_url,
            speed=speed,
            random=Random(seed),  # its own, so that uploads change nothing about generations
            calls=self.calls,
            signing_key=self._signing_key,
            url_expires=self._url_expires,
            faults=self._faults,
            storage_faults=self._storage_faults,
        )
        self.app = self._build_app()

    def __repr__(self) -> str:
        return f"<Sandbox speed={self._speed} generations={len(self._jobs)}>"

    @property
    def running(self) -> int:
        """The number of generations of all accounts that run now; needs a running event loop."""
        now = self._clock.now()
        return sum(account.count_running(now) for account in self._accounts.values())

    def wait(self, retry_state: RetryCallState) -> float:
        """Return the delay of the default schedule, divided by `speed`.

            poller = Poller(client, wait=sandbox.wait)

        Returns:
            The seconds until the next poll.
        """
        return DEFAULT_WAIT(retry_state) / self._speed

    @property
    def speed(self) -> float:
        """The factor by which these generations are faster than real ones."""
        return self._speed

    @asynccontextmanager
    async def serve(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
        """Listen on a real socket until the block ends; yield the base URL, including `/v1`.

        It runs in the caller's event loop, and does not touch signals. Leaving the block closes all
        connections; requests under way get half a second to finish.

        Args:
            host: The address to listen on.
            port: The port; 0 for any free one.

        Raises:
            OSError: The address cannot be bound, for example because the port is in use.
            RuntimeError: The event loop is not asyncio's. On trio use `app`.
            ValueError: `port` is out of range.
        """
        if not 0 <= port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {port!r}")
        async with serve_app(self.app, host, port) as origin:
            yield f"{origin}/v1"

    def _build_app(self) -> Starlette:
        app = Starlette(
            routes=[
                Route("/v1/generations", self._create, methods=["POST"]),
                Route("/v1/generations/{id}", self._get, methods=["GET"]),
                Route("/storage/{id}/{index}", self._download, methods=["GET"]),
                *self._files.routes,
            ],
            middleware=[Middleware(_StandardHeaders, clock=self._clock)],
            exception_handlers={HTTPException: _answer_error, ClientDisconnect: _answer_nobody},
        )
        app.router.redirect_slashes = False
        return app

    async def _create(self, request: Request) -> Response:
        self.calls[f"{request.method} /generations"] += 1
        client = self._authenticate(request)
        body = await request.body()

        now = self._clock.now()
        account = self._accounts.setdefault(client, Account())
        try:
            job = self._admit(client, account, body, now)
        except _RefusedSubmission as refusal:
            self.refusals[refusal.kind] += 1
            self.submissions.append(SubmissionRecord(now, refusal.units, refused=refusal.kind))
            raise

        # Taken first of all, so that even a job without a duration is "queued" here.
        content = self._describe(job, -math.inf, request)
        headers = self._rate_headers(account, now, reset=now + WINDOW)
        return _answer_json(201, content, headers)

    def _admit(self, client: str, account: Account, body: bytes, now: float) -> Job:
        """Start a generation, or raise the refusal, with checks in the API's order."""
        parsed = _parse(body, self._extra_parameters)
        units = 1 if isinstance(parsed, HTTPException) else self._weigh(parsed[0].parameters)
        if account.units_in_window(now) + units > self._requests_per_minute:
            raise _RefusedSubmission("rate", units, self._rate_error(account, now))
        account.count_submission(now, units)
        if isinstance(parsed, HTTPException):
            raise _RefusedSubmission(str(parsed.status_code), units, parsed)
        if account.units_running(now) + units > self._max_concurrent:
            raise _RefusedSubmission("concurrency", units, self._concurrency_error(units))
        if (trouble := self._reference_trouble(client, parsed[0].parameters, now)) is not None:
            raise _RefusedSubmission(str(trouble.status_code), units, trouble)
        job = self._make_job(client, *parsed, now)
        account.start(now, job.ends, units)
        self._jobs[job.id] = job
        record = SubmissionRecord(now, units, job.id, job.ends, params=parsed[0].parameters)
        self._records[job.id] = record
        self.submissions.append(record)
        return job

    def _reference_trouble(
        self, client: str, parameters: Mapping[str, Any], now: float
    ) -> HTTPException | None:
        """Return the error for a generation or a file that parameters refer to, or None."""
        kind = parameters["type"]
        for place, name, given in references(dict(parameters)):
            try:
                if name == "file_id":
                    is_video = self._files.ready(client, given, now).media_type.startswith("video/")
                else:
                    is_video = self._completed(client, given, now).type.startswith("video")
            except ValueError as error:
                return HTTPException(422, f"{place}: {error}")
            wants_video = place == "source" and kind.startswith("video")
            if is_video != wants_video and place not in ("video.start_frame", "video.end_frame"):
                what = "a video" if wants_video else "an image"
                return HTTPException(422, f"{place}: content-type is not {what}")
        return None

    def _completed(self, client: str, generation_id: str, now: float) -> Job:
        job = self._jobs.get(generation_id)
        if job is None or job.client != client:
            raise ValueError("generation not found")
        state = lifecycles.state_at(job, now)
        if state != "completed":
            raise ValueError(f"generation is not completed (state: {state})")
        return job

    async def _get(self, request: Request) -> Response:
        self.calls[f"{request.method} /generations/{{id}}"] += 1
        client = self._authenticate(request)
        job = self._jobs.get(request.path_params["id"])
        if job is None or job.client != client:
            raise HTTPException(404, "Generation not found")
        self._records[job.id].polls += 1
        answer = _answer_json(200, self._describe(job, self._clock.now(), request))
        return await self._faults.spoil(answer, _misbehave(request))

    async def _download(self, request: Request) -> Response:
        self.calls[f"{request.method} /storage/{{id}}/{{index}}"] += 1
        now = self._clock.timestamp(self._clock.now())
        path = _storage_path(request.path_params["id"], request.path_params["index"])
        if refusal := object_store.refused_url(request, path, self._signing_key, now):
            return refusal
        job = self._jobs[request.path_params["id"]]
        self._records[job.id].downloads += 1
        is_video = job.type.startswith("video")
        return self._answer_blob(
            object_store.Blob(path, job.script.size, is_video=is_video), request
        )

    def _answer_blob(self, blob: object_store.Blob, request: Request) -> Response:
        misbehave = _misbehave(request)
        fault = self._storage_faults.take(misbehave is not None)
        replacement = fault and fault.response()
        answer = replacement or object_store.answer(blob, request, fault)
        if fault is not None and fault.ending and misbehave is not None:
            misbehave(object_store.cut_in_the_middle(fault, answer))
        return answer

    def _authenticate(self, request: Request) -> str:
        """Return the client that sent the request: each key is one."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        wrong = self._strict_keys and not key.startswith(KEY_PREFIX)
        if scheme != "Bearer" or not key.strip() or wrong:
            raise HTTPException(401, "Missing or invalid API key")
        if key in SCRIPTED_KEYS:
            raise HTTPException(*SCRIPTED_KEYS[key])
        if self._auth_tokens is not None and key not in self._auth_tokens:
            raise HTTPException(401, "Invalid API key")
        return key

    def _rate_error(self, account: Account, now: float) -> HTTPException:
        frees = account.window_frees(now)
        headers = self._rate_headers(account, now, reset=frees)
        headers["Retry-After"] = str(max(1, math.ceil(round(frees - now, 6))))
        return HTTPException(429, "Rate limit exceeded", headers)

    def _concurrency_error(self, units: int) -> HTTPException:
        # Both texts were seen live; only the second one names weights.
        limit = self._max_concurrent
        detail = f"Concurrent generation limit reached ({limit})"
        if units > 1:
            detail = (
                f"Concurrent generation capacity reached (limit={limit} weight units; "
                f"this request needs {units}). Wait for existing jobs to complete."
            )
        return HTTPException(429, detail, {"Retry-After": str(CONCURRENCY_RETRY_AFTER)})

    def _rate_headers(self, account: Account, now: float, *, reset: float) -> dict[str, str]:
        remaining = self._requests_per_minute - account.units_in_window(now)
        return {
            "X-RateLimit-Limit": str(self._requests_per_minute),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Reset": str(math.ceil(self._clock.timestamp(reset))),
        }

    def _make_job(self, client: str, submission: Submission, script: Script, now: float) -> Job:
        # Both are always drawn, so that a script does not change the jobs after it.
        job_id = UUID(int=self._random.getrandbits(128), version=4)
        drawn = lifecycles.draw_duration(self._random, submission.model)
        return Job(
            id=str(job_id),
            client=client,
            model=submission.model,
            type=submission.type,
            created=now,
            duration=lifecycles.choose_duration(script, drawn) / self._speed,
            script=script,
        )

    def _describe(self, job: Job, now: float, request: Request) -> dict[str, Any]:
        created_at = gmtime(self._clock.timestamp(job.created))
        failure_code, failure_reason = lifecycles.failure_at(job, now)
        return {
            "id": job.id,
            "created_at": strftime("%Y-%m-%dT%H:%M:%SZ", created_at),
            "model": job.model,
            "state": lifecycles.state_at(job, now),
            "type": job.type,
            "failure_code": failure_code,
            "failure_reason": failure_reason,
            "output": [
                {
                    **output,
                    "url": self._sign_url(request, "GET", _storage_path(job.id, index), now),
                }
                for index, output in enumerate(lifecycles.outputs_at(job, now))
            ],
        }

    def _sign_url(self, request: Request, method: str, path: str, now: float) -> str:
        query = presigning.presign(
            self._signing_key,
            path,
            method=method,
            timestamp=self._clock.timestamp(now),
            expires=self._url_expires,
            nonce=next(self._nonces),
        )
        # Not request.base_url: it lacks the path under which another Starlette app has mounted
        # this one.
        mount = request.scope.get("root_path", "")
        return str(request.url.replace(path=f"{mount}{path}", query=query))


class _StandardHeaders:
    """Middleware that adds the headers of every response."""

    def __init__(self, app: ASGIApp, clock: SandboxClock) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("X-Request-Id") or str(uuid4())

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                now = self._clock.timestamp(self._clock.now())
                headers = MutableHeaders(scope=message)
                headers["Date"] = formatdate(now, usegmt=True)
                headers["X-API-Version"] = API_VERSION
                headers["X-Request-Id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, not {value!r}")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be a whole number from 1 up, not {value!r}")


def _misbehave(request: Request) -> Misbehave | None:
    """Return the way to break the connection of a request, if the sandbox serves its socket."""
    misbehave: Misbehave | None = request.scope.get("state", {}).get(MISBEHAVE)
    return misbehave


def _parse(
    body: bytes, extra_parameters: Collection[str]
) -> tuple[Submission, Script] | HTTPException:
    """Return the submission and its script, or the error to answer, which is raised later."""
    try:
        submission = parse_submission(body, extra_parameters)
        return submission, parse_script(submission.prompt)
    except RefusedError as refusal:
        return HTTPException(refusal.status, refusal.detail)
    except ValueError as error:
        return HTTPException(400, str(error))


def _storage_path(generation_id: str, index: str | int) -> str:
    return f"/storage/{generation_id}/{index}"


def _answer_json(
    status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    # Not JSONResponse: it cannot encode half of a surrogate pair, which a prompt may contain.
    return Response(json.dumps(content), status, headers, "application/json")


async def _answer_error(request: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    return _answer_json(refusal.status_code, {"detail": refusal.detail}, refusal.headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """Answer a client that left before its request was complete, without a traceback."""
    return Response(status_code=400)
