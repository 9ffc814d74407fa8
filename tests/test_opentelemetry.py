"""Traces and metrics, as the SDK's exporters in memory see them."""

import gc
import weakref
from typing import Any

import anyio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from tenacity import wait_fixed

from luma_poll import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    GenerationError,
    LumaError,
    Poller,
    PollTimeoutError,
    RateLimitError,
    Runner,
    __version__,
)
from luma_poll.events import Event, Run, RunEvent, Wait
from luma_poll.opentelemetry import instrument
from luma_poll.sync import Session
from tests.fakes import ID, URL, FakeClient, snapshot
from tests.running.fakes import FakeAccount

pytestmark = pytest.mark.anyio

KEY = "luma-api-5ec4e7"


class Telemetry:
    """The SDK, with exporters in memory."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(**options)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meter_provider = MeterProvider([self._reader])
        self.tracer = self.tracer_provider.get_tracer("the program")

    @property
    def providers(self) -> dict[str, Any]:
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    @property
    def span(self) -> ReadableSpan:
        """The only one."""
        (span,) = self.spans
        return span

    @property
    def units(self) -> dict[str, str | None]:
        """The unit of each metric that was recorded."""
        data = self._reader.get_metrics_data()
        scopes = [] if data is None else data.resource_metrics[0].scope_metrics
        assert {scope.scope.name for scope in scopes} == {"luma_poll"}
        return {metric.name: metric.unit for scope in scopes for metric in scope.metrics}

    def points(self, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
        """The values of a metric: those of a histogram as (count, sum); without the constants."""
        data = self._reader.get_metrics_data()
        metrics = [] if data is None else data.resource_metrics[0].scope_metrics[0].metrics
        return {
            frozenset(_own(point.attributes).items()): (
                point.value if hasattr(point, "value") else (point.count, point.sum)
            )
            for metric in metrics
            if metric.name == name
            for point in metric.data.data_points
        }


def _own(attributes: Any) -> dict[str, Any]:
    constants = {"gen_ai.operation.name", "gen_ai.provider.name"}
    return {name: value for name, value in (attributes or {}).items() if name not in constants}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def instrumented(client: Any, telemetry: Telemetry, **options: Any) -> Poller:
    poller = Poller(client, wait=wait_fixed(10), **options)
    instrument(poller, **telemetry.providers)
    return poller


def image(state: str, **fields: Any) -> Any:
    return snapshot(state, model="uni-1", type="image", **fields)


IMAGE = {"gen_ai.response.model": "uni-1", "luma_poll.generation.type": "image"}


async def test_the_span_of_a_wait(telemetry: Telemetry) -> None:
    """It is the conventions' `fetch_response`, a child of the caller's span."""
    poller = instrumented(FakeClient(image("queued"), image("completed"), latency=0.5), telemetry)
    with telemetry.tracer.start_as_current_span("the caller's"):
        await poller.wait(ID)
    span, parent = telemetry.spans
    assert (span.name, span.kind, span.status.status_code) == (
        "fetch_response",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert span.parent == parent.context
    assert span.attributes == {
        "gen_ai.operation.name": "fetch_response",
        "gen_ai.provider.name": "luma",
        "gen_ai.response.id": ID,
        "luma_poll.outcome": "completed",
        **IMAGE,
    }


async def test_the_events_of_a_span(telemetry: Telemetry) -> None:
    """Each poll and each state is one."""
    busy = RateLimitError("HTTP 429", status_code=429, retry_after=30)
    poller = instrumented(FakeClient("queued", busy, "completed", latency=0.5), telemetry)
    await poller.wait(ID)
    assert [(event.name, event.attributes) for event in telemetry.span.events] == [
        ("luma_poll.poll", poll(1, "unfinished", **{"luma_poll.state": "queued"})),
        ("luma_poll.state", {"luma_poll.state": "queued"}),
        (
            "luma_poll.poll",
            poll(
                2,
                "error",
                **{
                    "error.type": "RateLimitError",
                    "http.response.status_code": 429,
                    "luma_poll.quiet.time": 30,
                },
            ),
        ),
        ("luma_poll.poll", poll(3, "completed", **{"luma_poll.state": "completed"})),
        ("luma_poll.state", {"luma_poll.state": "completed"}),
    ]


def poll(attempt: int, outcome: str, **more: Any) -> dict[str, Any]:
    return {
        "luma_poll.attempt": attempt,
        "luma_poll.outcome": outcome,
        "luma_poll.poll.duration": 0.5,
        "luma_poll.poll.queued": 0.0,
        **more,
    }


@pytest.mark.parametrize(
    ("answer", "outcome", "error_type"),
    [
        (snapshot("failed", failure_code="content_moderated"), "failed", "content_moderated"),
        (snapshot("failed"), "failed", "GenerationError"),
        (snapshot("completed", output=[]), "failed", "output_not_found"),
        ("processing", "timeout", "PollTimeoutError"),
        (AuthenticationError("HTTP 401", status_code=401), "error", "AuthenticationError"),
        (ZeroDivisionError("a bug"), "error", "ZeroDivisionError"),
    ],
)
async def test_trouble(telemetry: Telemetry, answer: Any, outcome: str, error_type: str) -> None:
    """It is the status of the span, and its type is a failure code or the name of a class."""
    poller = instrumented(FakeClient(answer), telemetry)
    (result,) = await poller.wait_all([ID], timeout=60)
    span = telemetry.span
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["luma_poll.outcome"] == outcome
    assert span.attributes["error.type"] == error_type
    ours = not isinstance(result.error, ZeroDivisionError)
    assert span.status.description == (str(result.error) if ours else None)


async def test_a_cancelled_wait_is_no_error(telemetry: Telemetry) -> None:
    """The caller has left: the span ends, and the poll that was under way is one of its events."""
    poller = instrumented(FakeClient("completed", latency=5), telemetry)
    with anyio.move_on_after(2):
        await poller.wait(ID)
    span = telemetry.span
    assert span.attributes is not None
    assert span.attributes["luma_poll.outcome"] == "cancelled"
    assert "error.type" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["luma_poll.poll"]
    outcome = frozenset({("luma_poll.outcome", "cancelled")})
    assert telemetry.points("luma_poll.polls") == {outcome: 1}
    assert telemetry.points("gen_ai.client.operation.duration") == {outcome: (1, 2)}


class Traced(FakeClient):
    """A client whose requests have spans, as an instrumented HTTP client's do."""

    def __init__(self, tracer: trace.Tracer, *answers: Any, **options: Any) -> None:
        super().__init__(*answers, **options)
        self._tracer = tracer

    async def get(self, generation_id: str) -> Any:
        with self._tracer.start_as_current_span("GET"):
            return await super().get(generation_id)


async def test_the_spans_of_http_are_children_of_the_wait(telemetry: Telemetry) -> None:
    """And between the requests the caller's own span is the current one."""
    client = Traced(telemetry.tracer, "queued", "processing", "completed", latency=1)
    poller = instrumented(client, telemetry)
    with telemetry.tracer.start_as_current_span("the caller's") as callers:
        async for _ in poller.watch(ID):
            assert trace.get_current_span() is callers
    *requests, wait, _ = telemetry.spans
    assert [request.name for request in requests] == ["GET"] * 3
    assert {_id(request.parent) for request in requests} == {_id(wait.context)}


async def test_waits_that_share_a_stream_link_to_the_one_that_asks(telemetry: Telemetry) -> None:
    """One has the spans of HTTP; when another one takes over, both are linked to."""
    client = Traced(telemetry.tracer, *["processing"] * 3, "completed")
    poller = instrumented(client, telemetry)

    async def wait(timeout: int, leaves_after: float = 1000) -> None:
        with telemetry.tracer.start_as_current_span(f"caller {timeout}"):
            with anyio.move_on_after(leaves_after):
                await poller.wait(ID, timeout=timeout)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, 300, 15)  # asks first, and leaves
        tasks.start_soon(wait, 200)
        tasks.start_soon(wait, 100)
    spans = telemetry.spans
    callers = {_id(span.context): span.name for span in spans if "caller" in span.name}
    waits = {callers[_id(span.parent)]: span for span in spans if span.name == "fetch_response"}
    names = {_id(span.context): name for name, span in waits.items()}
    links = {
        name: [names[_id(link.context)] for link in span.links] for name, span in waits.items()
    }
    assert links == {
        "caller 300": [],
        "caller 200": ["caller 300"],
        "caller 100": ["caller 300", "caller 200"],
    }
    asked = [names[_id(span.parent)] for span in spans if span.name == "GET"]
    assert asked == ["caller 300", "caller 300", "caller 200", "caller 200"]


def _id(context: trace.SpanContext | None) -> int:
    return 0 if context is None else context.span_id


async def test_the_metrics_of_a_wait(telemetry: Telemetry) -> None:
    """Durations in seconds, with model, type and outcome, and never with the id."""
    client = FakeClient(image("processing"), image("completed"), latency=0.5)
    poller = instrumented(client, telemetry)
    await poller.wait(ID)
    image_ = frozenset(IMAGE.items())
    completed = image_ | {("luma_poll.outcome", "completed")}
    unfinished = image_ | {("luma_poll.outcome", "unfinished")}
    assert telemetry.points("gen_ai.client.operation.duration") == {completed: (1, 11)}
    assert telemetry.points("luma_poll.detection.delay") == {completed: (1, 11)}
    assert telemetry.points("luma_poll.generation.duration") == {completed: (1, 11)}
    assert telemetry.points("luma_poll.polls") == {unfinished: 1, completed: 1}
    assert telemetry.points("luma_poll.waits.active") == {frozenset(): 0}
    assert telemetry.points("luma_poll.quiet.time") == {}


async def test_a_generation_that_had_ended_before_says_nothing_of_durations(
    telemetry: Telemetry,
) -> None:
    """It may have ended days ago."""
    poller = instrumented(FakeClient("completed"), telemetry)
    await poller.wait(ID)
    await poller.wait(snapshot())
    assert telemetry.points("luma_poll.detection.delay") == {}
    assert telemetry.points("luma_poll.generation.duration") == {}
    completed = frozenset({("luma_poll.outcome", "completed")})
    assert telemetry.points("gen_ai.client.operation.duration") == {completed: (2, 0)}


async def test_the_time_of_quiet(telemetry: Telemetry) -> None:
    """As the API asked for it, with the error."""
    busy = RateLimitError("HTTP 429", status_code=429, retry_after=30)
    await instrumented(FakeClient(busy, "completed"), telemetry).wait(ID)
    error = {("luma_poll.outcome", "error"), ("error.type", "RateLimitError")}
    assert telemetry.points("luma_poll.quiet.time") == {frozenset(error): 30}


async def test_waits_under_way_are_counted(telemetry: Telemetry) -> None:
    """An up-down counter: two now, none in the end."""
    poller = instrumented(FakeClient("processing"), telemetry)
    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(poller.wait, f"{number}{ID[1:]}")
        await anyio.sleep(5)
        assert telemetry.points("luma_poll.waits.active") == {frozenset(): 2}
        tasks.cancel_scope.cancel()
    assert telemetry.points("luma_poll.waits.active") == {frozenset(): 0}


async def test_no_secret_leaves_the_process(telemetry: Telemetry) -> None:
    """No signature of a URL, no key, no text of another library's error."""
    reason = f"could not read {URL}"
    failed = snapshot("failed", failure_reason=reason)
    poller = instrumented(
        FakeClient(snapshot("processing", output=[{"url": URL}]), failed), telemetry
    )
    with pytest.raises(GenerationError):
        await poller.wait(ID)
    poller = instrumented(FakeClient(ValueError(f"Bearer {KEY}")), telemetry)
    with pytest.raises(ValueError, match="Bearer"):
        await poller.wait(ID)
    told = "".join(span.to_json() for span in telemetry.spans)
    assert "could not read" in told
    assert "5ec4e7" not in told


async def test_to_instrument_twice_is_refused(telemetry: Telemetry) -> None:
    """Every wait would count twice. What the first call returned undoes it."""
    poller = Poller(FakeClient("completed"))
    undo = instrument(poller, **telemetry.providers)
    with pytest.raises(ConfigurationError, match="already instrumented"):
        instrument(poller, **telemetry.providers)
    undo()
    await poller.wait(ID)
    assert telemetry.spans == ()
    instrument(poller, **telemetry.providers)
    await poller.wait(ID)
    assert len(telemetry.spans) == 1


async def test_only_pollers_and_runners_can_be_instrumented() -> None:
    """A client is refused with the name of what was expected."""
    with pytest.raises(ConfigurationError, match="takes a Poller or a Runner, not"):
        instrument(FakeClient())  # type: ignore[arg-type]


def test_a_session_is_recorded_by_its_runner(telemetry: Telemetry) -> None:
    """Its runner and its poller are then instrumented, until it is undone."""
    with Session(KEY) as session:
        undo = instrument(session, **telemetry.providers)
        for part in (session, session.runner, session.runner.poller):
            with pytest.raises(ConfigurationError, match="already"):
                instrument(part, **telemetry.providers)
        undo()
        instrument(session, **telemetry.providers)()


async def test_undoing_a_runner_leaves_a_poller_that_was_instrumented_before(
    telemetry: Telemetry,
) -> None:
    """Each function undoes what its own call has done."""
    poller = instrumented(FakeClient("completed"), telemetry)
    instrument(Runner(FakeAccount(), poller), **telemetry.providers)()
    with pytest.raises(ConfigurationError, match="already"):
        instrument(poller, **telemetry.providers)
    await poller.wait(ID)
    assert telemetry.span.name == "fetch_response"


async def test_the_time_for_which_a_poll_waits_for_its_turn(telemetry: Telemetry) -> None:
    """At one request in two seconds, the second has to wait."""
    poller = instrumented(FakeClient("completed"), telemetry, max_rate=0.5)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, ID)
        tasks.start_soon(poller.wait, f"{ID[:-1]}0")
    attributes = [event.attributes for span in telemetry.spans for event in span.events]
    queued = [each["luma_poll.poll.queued"] for each in attributes if each and len(each) > 1]
    assert queued == [0.0, 2.0]


async def test_the_units_of_the_metrics(telemetry: Telemetry) -> None:
    """Durations are in seconds, and what is counted is named; all are of `luma_poll`."""
    runner = Runner(FakeAccount())
    instrument(runner, **telemetry.providers)
    await runner.run("a red fox")
    assert telemetry.units == {
        "gen_ai.client.operation.duration": "s",
        "luma_poll.detection.delay": "s",
        "luma_poll.generation.duration": "s",
        "luma_poll.polls": "{request}",
        "luma_poll.runs.active": "{run}",
        "luma_poll.submissions": "{request}",
        "luma_poll.waits.active": "{wait}",
    }
    for span in telemetry.spans:
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "luma_poll"
        assert span.instrumentation_scope.version == __version__


async def test_a_wait_that_times_out_has_each_state_once(telemetry: Telemetry) -> None:
    """Only an end is a state that the wait has not told before."""
    poller = instrumented(FakeClient("queued"), telemetry)
    with pytest.raises(PollTimeoutError):
        await poller.wait(ID, timeout=30)
    assert [event.name for event in telemetry.span.events].count("luma_poll.state") == 1


async def test_nothing_is_kept_of_runs_and_waits_that_have_ended(telemetry: Telemetry) -> None:
    """A worker records for months."""
    runner = Runner(FakeAccount())
    seen: list[weakref.ref[Run | Wait]] = []
    runner.observe(lambda event: seen.append(weakref.ref(of(event))))
    instrument(runner, **telemetry.providers)
    await runner.run("a red fox")
    gc.collect()
    assert seen
    assert [found for each in seen if (found := each()) is not None] == []


def of(event: Event) -> Run | Wait:
    return event.run if isinstance(event, RunEvent) else event.wait


async def test_to_undo_it_in_the_middle_of_a_wait(telemetry: Telemetry) -> None:
    """The wait is recorded to its end."""
    poller = Poller(FakeClient("processing", "completed"))
    undo = instrument(poller, **telemetry.providers)
    async for _ in poller.watch(ID):
        undo()
    assert telemetry.span.name == "fetch_response"
    assert telemetry.points("luma_poll.waits.active") == {frozenset(): 0}


async def test_spans_that_are_not_sampled() -> None:
    """The metrics are complete all the same."""
    telemetry = Telemetry(sampler=ALWAYS_OFF)
    await instrumented(FakeClient("processing", "completed"), telemetry).wait(ID)
    assert telemetry.spans == ()
    assert len(telemetry.points("luma_poll.polls")) == 2


async def test_without_the_sdk() -> None:
    """The API alone records nothing, and nothing breaks."""
    poller = Poller(FakeClient("processing", "completed"))
    instrument(poller)
    assert await poller.wait(ID)


def running(account: FakeAccount, telemetry: Telemetry, **options: Any) -> Runner:
    runner = Runner(account, Poller(account, wait=wait_fixed(10)), **options)
    instrument(runner, **telemetry.providers)
    return runner


async def test_the_span_of_a_run(telemetry: Telemetry) -> None:
    """It is a child of the caller's, and the parent of its waits; the prompt is nowhere."""
    runner = running(FakeAccount(), telemetry)
    with telemetry.tracer.start_as_current_span("the caller's") as callers:
        generation = await runner.run("a secret fox", model="uni-1")
        assert trace.get_current_span() is callers
    wait, run, caller = telemetry.spans
    assert (run.name, run.kind) == ("generate_content uni-1", SpanKind.CLIENT)
    assert _id(run.parent) == _id(caller.context)
    assert _id(wait.parent) == _id(run.context)
    assert run.attributes == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "luma",
        "gen_ai.request.model": "uni-1",
        "gen_ai.response.id": generation.id,
        "luma_poll.outcome": "completed",
    }
    assert "secret" not in "".join(span.to_json() for span in telemetry.spans)


async def test_the_attempts_of_a_run(telemetry: Telemetry) -> None:
    """Each submission is an event with its outcome, each wait a child."""
    account = FakeAccount()
    busy = RateLimitError("HTTP 429", status_code=429, retry_after=5)
    failed = {"state": "failed", "failure_code": "generation_failed"}
    account.answers = [busy, APIConnectionError("refused", request_sent=False), failed]
    await running(account, telemetry, max_attempts=2).run("a fox")
    *waits, run = telemetry.spans
    events = [dict(event.attributes or {}) for event in run.events]
    assert [(event["luma_poll.attempt"], event["luma_poll.outcome"]) for event in events] == [
        (1, "refused"),
        (1, "unreachable"),
        (1, "accepted"),
        (2, "accepted"),
    ]
    assert events[0]["error.type"] == "RateLimitError"
    ids = [(span.attributes or {})["gen_ai.response.id"] for span in waits]
    assert [event.get("gen_ai.response.id") for event in events] == [None, None, *ids]
    assert {_id(span.parent) for span in waits} == {_id(run.context)}
    outcomes = [(span.attributes or {})["luma_poll.outcome"] for span in waits]
    assert outcomes == ["failed", "completed"]


@pytest.mark.parametrize(
    ("answer", "submission", "outcome", "error_type"),
    [
        (
            AuthenticationError("HTTP 401", status_code=401),
            "rejected",
            "error",
            "AuthenticationError",
        ),
        (APITimeoutError("no answer", request_sent=True), "unknown", "error", "APITimeoutError"),
        (
            {"state": "failed", "failure_code": "content_moderated"},
            "accepted",
            "failed",
            "content_moderated",
        ),
    ],
)
async def test_runs_that_end_badly(
    telemetry: Telemetry, answer: Any, submission: str, outcome: str, error_type: str
) -> None:
    """The span says why, and the counter whether a submission may have been paid for."""
    account = FakeAccount()
    account.answers = [answer]
    with pytest.raises(LumaError):
        await running(account, telemetry).run("a fox")
    run = telemetry.spans[-1]
    assert run.attributes is not None
    assert run.attributes["luma_poll.outcome"] == outcome
    assert run.attributes["error.type"] == error_type
    assert run.status.status_code is StatusCode.ERROR
    ((attributes, number),) = telemetry.points("luma_poll.submissions").items()
    assert (dict(attributes)["luma_poll.outcome"], number) == (submission, 1)


async def test_runs_under_way_and_submissions_are_counted(telemetry: Telemetry) -> None:
    """Those that wait for room are under way, too."""
    runner = running(FakeAccount(), telemetry, max_running=1)
    with anyio.move_on_after(5):
        await runner.run_all([{"prompt": "a fox", "model": "uni-1", "type": "image"}] * 2)
    request = {("gen_ai.request.model", "uni-1"), ("luma_poll.generation.type", "image")}
    accepted = frozenset(request | {("luma_poll.outcome", "accepted")})
    assert telemetry.points("luma_poll.submissions") == {accepted: 1}
    assert telemetry.points("luma_poll.runs.active") == {frozenset(): 0}
    outcomes = [(span.attributes or {})["luma_poll.outcome"] for span in telemetry.spans]
    assert outcomes == ["cancelled"] * 3, "a wait and two runs"


async def test_a_runner_whose_poller_is_instrumented(telemetry: Telemetry) -> None:
    """Its waits are recorded once."""
    account = FakeAccount()
    poller = Poller(account, wait=wait_fixed(10))
    instrument(poller, **telemetry.providers)
    runner = Runner(account, poller)
    undo = instrument(runner, **telemetry.providers)
    with pytest.raises(ConfigurationError, match="already instrumented"):
        instrument(runner, **telemetry.providers)
    await runner.run("a fox")
    assert [span.name for span in telemetry.spans] == ["fetch_response", "generate_content"]
    undo()
    await runner.run("a fox")
    assert [span.name for span in telemetry.spans][2:] == ["fetch_response"]


async def test_an_sdk_that_raises_leaves_no_run_counted(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even while the end of a submission is noted; and the caller's span is the current one."""

    def raise_(*args: object, **kwargs: object) -> None:
        raise RuntimeError("an SDK's trouble")

    account = FakeAccount()
    account.answers = [AuthenticationError("HTTP 401", status_code=401)]
    runner = running(account, telemetry)
    monkeypatch.setattr(Span, "add_event", raise_)
    with telemetry.tracer.start_as_current_span("the caller's") as callers:
        with pytest.raises(AuthenticationError):
            await runner.run("a fox")
        assert trace.get_current_span() is callers
    assert telemetry.points("luma_poll.runs.active") == {frozenset(): 0}
    assert [span.name for span in telemetry.spans] == ["generate_content", "the caller's"]


class Broken(SpanProcessor):
    """A processor of the program that raises, at the begin or at the end of each of our spans."""

    def __init__(self, at: str) -> None:
        self.at = at

    def on_start(self, span: Span, parent_context: Any = None) -> None:
        if self.at == "begin" and span.name != "the caller's":
            raise RuntimeError("a processor's trouble")

    def on_end(self, span: ReadableSpan) -> None:
        if self.at == "end" and span.name != "the caller's":
            raise RuntimeError("a processor's trouble")


@pytest.mark.parametrize("at", ["begin", "end"])
async def test_a_processor_that_raises_leaves_no_wait_counted(
    telemetry: Telemetry, at: str
) -> None:
    """Nor a run; both end as ever, and the caller's span is the current one."""
    telemetry.tracer_provider.add_span_processor(Broken(at))
    poller = instrumented(FakeClient("processing", "completed"), telemetry)
    runner = running(FakeAccount(), telemetry)
    with telemetry.tracer.start_as_current_span("the caller's") as callers:
        assert await poller.wait(ID)
        assert await runner.run("a fox")
        with anyio.move_on_after(1):
            await poller.wait("other", timeout=60)
        assert trace.get_current_span() is callers
    assert telemetry.points("luma_poll.waits.active") == {frozenset(): 0}
    assert telemetry.points("luma_poll.runs.active") == {frozenset(): 0}
