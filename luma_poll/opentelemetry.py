"""Traces and metrics of waits, for OpenTelemetry.

Needs the extra `luma-poll[opentelemetry]`. That is OpenTelemetry's API alone: without its SDK
nothing is recorded. Names follow the semantic conventions for generative AI, where there are some:
a wait is their operation `fetch_response`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass, field

from opentelemetry import context, metrics, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from luma_poll._polling.events import (
    Event,
    PollBegan,
    PollEnded,
    StateChanged,
    Wait,
    WaitBegan,
    WaitEnded,
)
from luma_poll._polling.poller import Poller
from luma_poll._version import __version__
from luma_poll.errors import APIStatusError, ConfigurationError, GenerationError, LumaError
from luma_poll.models import Generation

__all__ = ["instrument"]

Attributes = dict[str, str | int | float]

OPERATION: Attributes = {
    "gen_ai.operation.name": "fetch_response",
    "gen_ai.provider.name": "luma",
}
# Those that the conventions advise for the duration of an operation.
OPERATION_BUCKETS = [0.01 * 2**power for power in range(14)]
DELAY_BUCKETS = [0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120]
GENERATION_BUCKETS = [1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1800, 3600]


def instrument(
    poller: Poller,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> Callable[[], None]:
    """Record the waits of a poller: a span for each, and metrics.

    ::

        poller = Poller(client)
        instrument(poller)

    Args:
        poller: The poller. Waits that have begun are not recorded.
        tracer_provider: Takes the spans; by default the global one.
        meter_provider: Takes the metrics; by default the global one.

    Returns:
        A function that undoes it. Waits under way are recorded to their end.

    Raises:
        ConfigurationError: It is instrumented already.
    """
    reporter = poller._streams.reporter
    if any(isinstance(observer, _Telemetry) for observer in reporter.observers):
        raise ConfigurationError(
            "this poller is instrumented already: to change the providers, first call what the "
            "first instrument() returned"
        )
    telemetry = _Telemetry(
        trace.get_tracer("luma_poll", __version__, tracer_provider),
        metrics.get_meter("luma_poll", __version__, meter_provider),
    )
    reporter.observers += (telemetry,)

    def undo() -> None:
        reporter.observers = tuple(each for each in reporter.observers if each is not telemetry)

    return undo


@dataclass
class _Record:
    """A wait under way: its span, and the waits that have asked on its behalf."""

    span: Span
    linked: set[Wait] = field(default_factory=set)
    queued: float = 0.0
    outside: Token[context.Context] | None = None  # of the request under way


class _Telemetry:
    """An observer of waits. The id of a generation is in spans, and in no metric."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._records: dict[Wait, _Record] = {}
        self._waits = meter.create_up_down_counter(
            "luma_poll.waits.active", "{wait}", "Waits under way."
        )
        self._polls = meter.create_counter(
            "luma_poll.polls", "{request}", "Requests for a snapshot that have ended."
        )
        self._quiet = meter.create_counter(
            "luma_poll.quiet.time", "s", "Time for which the API asked to be left alone."
        )
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=OPERATION_BUCKETS,
        )
        self._delay = meter.create_histogram(
            "luma_poll.detection.delay",
            "s",
            "From the last answer that a generation still runs to that of its end: at most so "
            "much later than it ended.",
            explicit_bucket_boundaries_advisory=DELAY_BUCKETS,
        )
        self._age = meter.create_histogram(
            "luma_poll.generation.duration",
            "s",
            "From the submission of a generation, as far as known, to the answer of its end.",
            explicit_bucket_boundaries_advisory=GENERATION_BUCKETS,
        )

    def __call__(self, event: Event) -> None:
        match event:
            case WaitBegan():
                self._begin(event)
            case PollBegan():
                self._begin_poll(event)
            case PollEnded():
                self._end_poll(event)
            case StateChanged():
                _add_state(self._records[event.wait].span, event.generation)
            case WaitEnded():
                self._end(event)

    def _begin(self, event: WaitBegan) -> None:
        self._waits.add(1, OPERATION)
        attributes = {**OPERATION, "gen_ai.response.id": event.wait.generation_id}
        span = self._tracer.start_span(
            "fetch_response", kind=SpanKind.CLIENT, attributes=attributes
        )
        self._records[event.wait] = _Record(span)

    def _begin_poll(self, event: PollBegan) -> None:
        record = self._records[event.wait]
        record.queued = event.queued
        # From here to the end of the request: spans of HTTP become children.
        record.outside = context.attach(trace.set_span_in_context(record.span))

    def _end_poll(self, event: PollEnded) -> None:
        record, answer = self._records[event.wait], event.answer
        if record.outside is not None:
            context.detach(record.outside)
        generation = answer if isinstance(answer, Generation) else None
        error = answer if isinstance(answer, Exception) else _failure_of(generation)
        if record.span.is_recording():
            record.span.add_event("luma_poll.poll", _attributes_of_poll(event, record))
        if answer is not None:
            self._link(event)
        attributes = _attributes_of(generation, error)
        attributes["luma_poll.outcome"] = _outcome_of_poll(event)
        self._polls.add(1, attributes)
        if event.quiet:
            self._quiet.add(event.quiet, attributes)
        if event.is_end and generation is not None and event.unfinished is not None:
            self._delay.record(event.unfinished, attributes)
            self._age.record(event.age, attributes)

    def _link(self, event: PollEnded) -> None:
        """Link the other waits to the one that asked: the spans of HTTP are there."""
        asked = self._records[event.wait].span.get_span_context()
        for other in event.others:
            record = self._records.get(other)
            if record is not None and event.wait not in record.linked:
                record.linked.add(event.wait)
                record.span.add_link(asked)

    def _end(self, event: WaitEnded) -> None:
        record, generation = self._records.pop(event.wait), event.generation
        error = event.error or _failure_of(generation)
        attributes = _attributes_of(generation, error)
        attributes["luma_poll.outcome"] = event.outcome
        span = record.span
        if generation is not None and generation.is_terminal:
            _add_state(span, generation)
        span.set_attributes(attributes)
        if error is not None:
            # The text of our own errors alone: others' may hold what must not leave the process.
            said = str(error) if isinstance(error, LumaError) else None
            span.set_status(Status(StatusCode.ERROR, said))
        span.end()
        self._waits.add(-1, OPERATION)
        self._duration.record(event.duration, attributes)


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


def _attributes_of(generation: Generation | None, error: Exception | None) -> Attributes:
    """Model, type and error, as far as known: for spans and for metrics."""
    attributes = OPERATION.copy()
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


def _failure_of(generation: Generation | None) -> GenerationError | None:
    try:
        if generation is not None:
            generation.raise_for_failure()
    except GenerationError as error:
        return error
    return None
