"""Traces and metrics of waits and runs, for OpenTelemetry.

Needs the extra `luma-poll[opentelemetry]`, which is only OpenTelemetry's API: without its SDK,
nothing is recorded. Names follow the semantic conventions for generative AI as far as those go: a
wait is their operation `fetch_response`, a run `generate_content`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Token
from dataclasses import dataclass
from functools import partial
from weakref import WeakSet

from opentelemetry import context, metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from luma_poll._arguments import shown
from luma_poll._polling.poller import Poller
from luma_poll._running.runner import Runner
from luma_poll._sync.session import Session
from luma_poll._version import __version__
from luma_poll.errors import (
    APIError,
    APIStatusError,
    ConfigurationError,
    GenerationError,
    LumaError,
    failure_of,
)
from luma_poll.events import (
    Event,
    PollBegan,
    PollEnded,
    Run,
    RunBegan,
    RunEnded,
    RunEvent,
    RunRefused,
    RunSubmitted,
    RunSubmitting,
    RunUnreachable,
    Wait,
    WaitBegan,
    WaitEnded,
    WaitStateChanged,
)
from luma_poll.models import Generation

__all__ = ["instrument"]

Attributes = dict[str, str | int | float]
Instruments = Mapping[str, Callable[[float, Attributes], None]]

_INSTRUMENTED = WeakSet[object]()
"""The pollers and runners that are recorded, so that none is recorded twice."""

FETCH: Attributes = {
    "gen_ai.operation.name": "fetch_response",
    "gen_ai.provider.name": "luma",
}
GENERATE: Attributes = FETCH | {"gen_ai.operation.name": "generate_content"}
# The conventions advise these for the duration of an operation.
OPERATION_BUCKETS: list[float] = [0.01 * 2**power for power in range(14)]
DELAY_BUCKETS: list[float] = [0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120]
MINUTES: list[float] = [60, 90, 120, 180, 300, 600, 1800, 3600]
GENERATION_BUCKETS: list[float] = [1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, *MINUTES]

ACTIVE = {
    "luma_poll.waits.active": ("{wait}", "Waits under way."),
    "luma_poll.runs.active": ("{run}", "Runs under way, including those that wait for room."),
}
COUNTERS = {
    "luma_poll.polls": ("{request}", "Requests for a snapshot that have ended."),
    "luma_poll.quiet.time": ("s", "Time for which the API asked to be left alone."),
    "luma_poll.submissions": ("{request}", "Submissions that were answered."),
}
HISTOGRAMS = {
    "gen_ai.client.operation.duration": ("GenAI operation duration.", OPERATION_BUCKETS),
    "luma_poll.detection.delay": (
        "From the last answer that a generation still runs to the answer that it has ended: an "
        "upper bound on how long its end went unnoticed.",
        DELAY_BUCKETS,
    ),
    "luma_poll.generation.duration": (
        "From the submission of a generation, if known, to the answer that it has ended.",
        GENERATION_BUCKETS,
    ),
}


def instrument(
    poller_or_runner: Poller | Runner | Session,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> Callable[[], None]:
    """Record waits and runs: a span for each, and metrics.

        poller = Poller(client)
        instrument(poller)

    Args:
        poller_or_runner: The `Poller` or `Runner` to record from now on, or a `Session` of
            `luma_poll.sync`. The poller of a Runner is recorded with it, unless it already is.
        tracer_provider: The provider for the spans; by default the global one.
        meter_provider: The provider for the metrics; by default the global one.

    Returns:
        A function that stops the recording. Waits and runs under way are recorded to their end.

    Raises:
        ConfigurationError: It is already instrumented, or neither a poller nor a runner.
    """
    tracer = trace.get_tracer("luma_poll", __version__, tracer_provider)
    note = _instruments(metrics.get_meter("luma_poll", __version__, meter_provider))
    if isinstance(poller_or_runner, Session):
        poller_or_runner = poller_or_runner.runner
    if not isinstance(poller_or_runner, (Poller, Runner)):
        raise ConfigurationError(
            f"instrument takes a Poller or a Runner, not {shown(poller_or_runner)}"
        )
    if poller_or_runner in _INSTRUMENTED:
        raise ConfigurationError(
            "this is already instrumented: to change the providers, first call the function that "
            "the first instrument() returned"
        )
    runs = _Runs(tracer, note)

    def observer(event: Event) -> None:
        if isinstance(event, RunEvent):
            runs(event)
        elif waits is not None:
            waits(event)

    poller = poller_or_runner if isinstance(poller_or_runner, Poller) else poller_or_runner.poller
    waits = None if poller in _INSTRUMENTED else _Waits(tracer, note)
    added = {poller_or_runner} if waits is None else {poller_or_runner, poller}
    _INSTRUMENTED.update(added)
    stop = poller_or_runner.observe(observer)

    def undo() -> None:
        stop()
        _INSTRUMENTED.difference_update(added)

    return undo


def _instruments(meter: metrics.Meter) -> Instruments:
    """Return the function of each instrument that takes a value and its attributes."""
    counters = {name: meter.create_counter(name, *row).add for name, row in COUNTERS.items()}
    active = {name: meter.create_up_down_counter(name, *row).add for name, row in ACTIVE.items()}
    histogram = partial(meter.create_histogram, unit="s")
    histograms = {
        name: histogram(name, description=text, explicit_bucket_boundaries_advisory=buckets).record
        for name, (text, buckets) in HISTOGRAMS.items()
    }
    return {**counters, **active, **histograms}


@dataclass
class _Record:
    """A wait under way: its span, and the waits that asked on its behalf."""

    span: Span
    linked: tuple[Wait, ...] = ()
    queued: float = 0.0
    outside: Token[context.Context] | None = None  # restores the context after its request


class _Waits:
    """An observer of waits. The id of a generation is in spans, but not in metrics."""

    def __init__(self, tracer: trace.Tracer, note: Instruments) -> None:
        self._tracer = tracer
        self._note = note
        self._records: dict[Wait, _Record] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case WaitBegan():
                self._begin(event)
            case PollBegan():
                self._begin_poll(event)
            case PollEnded():
                self._end_poll(event)
            case WaitStateChanged():
                if event.wait in self._records:
                    _add_state(self._records[event.wait].span, event.generation)
            case WaitEnded():
                self._end(event)

    def _begin(self, event: WaitBegan) -> None:
        self._note["luma_poll.waits.active"](1, FETCH)
        attributes = {**FETCH, "gen_ai.response.id": event.wait.generation_id}
        span = self._tracer.start_span(
            "fetch_response", kind=SpanKind.CLIENT, attributes=attributes
        )
        self._records[event.wait] = _Record(span)

    def _begin_poll(self, event: PollBegan) -> None:
        record = self._records.get(event.wait)
        if record is None:
            return
        record.queued = event.queued
        # The context lasts until the request ends, so that HTTP spans become children.
        record.outside = context.attach(trace.set_span_in_context(record.span))

    def _end_poll(self, event: PollEnded) -> None:
        record, answer = self._records.get(event.wait), event.answer
        if record is None:
            return
        if record.outside is not None:
            context.detach(record.outside)
            record.outside = None
        generation = answer if isinstance(answer, Generation) else None
        error = answer if isinstance(answer, Exception) else failure_of(generation)
        if record.span.is_recording():
            record.span.add_event("luma_poll.poll", _attributes_of_poll(event, record))
        if answer is not None:
            self._link(event)
        attributes = _attributes_of(generation, error)
        attributes["luma_poll.outcome"] = _outcome_of_poll(event)
        self._note["luma_poll.polls"](1, attributes)
        if event.quiet:
            self._note["luma_poll.quiet.time"](event.quiet, attributes)
        if event.is_end and generation is not None and event.unfinished is not None:
            self._note["luma_poll.detection.delay"](event.unfinished, attributes)
            self._note["luma_poll.generation.duration"](event.age, attributes)

    def _link(self, event: PollEnded) -> None:
        """Link the other waits to the one that asked, which has the HTTP spans."""
        asked = self._records[event.wait].span.get_span_context()
        for other in event.others:
            record = self._records.get(other)
            if record is not None and event.wait not in record.linked:
                record.linked += (event.wait,)
                record.span.add_link(asked)

    def _end(self, event: WaitEnded) -> None:
        # First of all: an SDK that raised at the beginning of the wait, or raises now, must not
        # leave the number of waits wrong for ever.
        self._note["luma_poll.waits.active"](-1, FETCH)
        record, generation = self._records.pop(event.wait, None), event.generation
        error = event.error or failure_of(generation)
        attributes = _attributes_of(generation, error)
        attributes["luma_poll.outcome"] = event.outcome
        if record is not None:
            span = record.span
            if generation is not None and generation.is_terminal:
                _add_state(span, generation)
            span.set_attributes(attributes)
            _end_span(span, error)
        self._note["gen_ai.client.operation.duration"](event.duration, attributes)


@dataclass
class _Run:
    """A run under way, with its submission if one is under way."""

    span: Span
    outside: Token[context.Context]
    request: Attributes  # model and type, as far as the request names them
    is_submitting: bool = False


class _Runs:
    """An observer of runs. The prompt is never recorded."""

    def __init__(self, tracer: trace.Tracer, note: Instruments) -> None:
        self._tracer = tracer
        self._note = note
        self._records: dict[Run, _Run] = {}

    def __call__(self, event: RunEvent) -> None:
        if isinstance(event, RunBegan):
            self._begin(event)
            return
        run = self._records.get(event.run)
        if isinstance(event, RunEnded):
            # First of all, as for a wait: an SDK may raise afterwards.
            self._note["luma_poll.runs.active"](-1, GENERATE)
            self._records.pop(event.run, None)
            if run is not None:
                context.detach(run.outside)
        if run is None:
            return
        was_submitting, run.is_submitting = run.is_submitting, isinstance(event, RunSubmitting)
        try:
            if was_submitting:
                self._note_submission(event, run)
        finally:
            if isinstance(event, RunEnded):
                self._end(event, run)

    def _begin(self, event: RunEvent) -> None:
        self._note["luma_poll.runs.active"](1, GENERATE)
        given = event.run.request if isinstance(event.run.request, Mapping) else {}
        named = {"gen_ai.request.model": "model", "luma_poll.generation.type": "type"}
        request: Attributes = {
            name: given[key] for name, key in named.items() if isinstance(given.get(key), str)
        }
        name = f"generate_content {request.get('gen_ai.request.model', '')}".rstrip()
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=GENERATE | request)
        # The context lasts until the run ends, in its task, so that submissions and waits become
        # children.
        outside = context.attach(trace.set_span_in_context(span))
        self._records[event.run] = _Run(span, outside, request)

    def _note_submission(self, event: RunEvent, run: _Run) -> None:
        error = getattr(event, "error", None)
        attributes = _attributes_of(None, error, run.request)
        attributes["luma_poll.outcome"] = _outcome_of_submission(event)
        self._note["luma_poll.submissions"](1, GENERATE | attributes)
        attributes["luma_poll.attempt"] = event.attempt
        if isinstance(event, RunSubmitted):
            attributes["gen_ai.response.id"] = event.generation.id
        run.span.add_event("luma_poll.submission", attributes)

    def _end(self, event: RunEnded, run: _Run) -> None:
        attributes = _attributes_of(event.generation, event.error, run.request)
        if event.generation is not None:
            attributes["gen_ai.response.id"] = event.generation.id
        run.span.set_attributes(attributes | {"luma_poll.outcome": event.outcome})
        _end_span(run.span, event.error)


def _outcome_of_submission(event: RunEvent) -> str:
    match event:
        case RunSubmitted():
            return "accepted"
        case RunRefused():
            return "refused"
        case RunUnreachable():
            return "unreachable"
        case RunEnded(outcome="cancelled"):
            return "cancelled"
        case RunEnded(error=APIError(may_have_been_accepted=True)):
            return "unknown"
    return "rejected"


def _end_span(span: Span, error: Exception | None) -> None:
    if error is not None:
        # Only the texts of our own errors: others may hold what must not leave the process.
        said = str(error) if isinstance(error, LumaError) else None
        span.set_status(Status(StatusCode.ERROR, said))
    span.end()


def _add_state(span: Span, generation: Generation) -> None:
    if span.is_recording():
        span.add_event("luma_poll.state", {"luma_poll.state": generation.state})


def _attributes_of_poll(event: PollEnded, record: _Record) -> Attributes:
    answer = event.answer
    attributes: Attributes = {
        "luma_poll.attempt": event.attempt,
        "luma_poll.outcome": _outcome_of_poll(event),
        "luma_poll.poll.duration": event.duration,
        "luma_poll.poll.queued": record.queued,
    }
    if isinstance(answer, Generation):
        attributes["luma_poll.state"] = answer.state
    elif answer is not None:
        attributes["error.type"] = type(answer).__name__
    if isinstance(answer, APIStatusError):
        attributes["http.response.status_code"] = answer.status_code
    if event.quiet:
        attributes["luma_poll.quiet.time"] = event.quiet
    return attributes


def _outcome_of_poll(event: PollEnded) -> str:
    if event.answer is None:
        return "cancelled"
    if isinstance(event.answer, Exception):
        return "error"
    return event.answer.state if event.is_end else "unfinished"


def _attributes_of(
    generation: Generation | None, error: Exception | None, base: Attributes = FETCH
) -> Attributes:
    """Return the model, type and error, as far as known, for spans and metrics."""
    attributes = base.copy()
    if generation is not None and generation.model:
        attributes["gen_ai.response.model"] = generation.model
    if generation is not None and generation.type:
        attributes["luma_poll.generation.type"] = generation.type
    if error is not None:
        attributes["error.type"] = _error_type(error)
    return attributes


def _error_type(error: Exception) -> str:
    code = error.failure_code if isinstance(error, GenerationError) else None
    return code or type(error).__name__
