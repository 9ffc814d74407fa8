"""The events of waits and runs: for progress, telemetry and tests.

    def show(event: Event) -> None:
        match event:
            case RunStateChanged():
                print(event.run.request, event.generation.state)
            case PollEnded(is_end=True):
                print(event.wait.generation_id, "has ended")

    stop = runner.observe(show)  # runs and waits; poller.observe reports only waits

An observer is called in the task of the wait or run, and delays it, so it must not block. If it
raises, the exception is logged and dropped. It gets all events, from beginning to end, of the waits
and runs that begin from now on. Times are in seconds, on anyio's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from luma_poll._texts import with_brief_request
from luma_poll.errors import APIError, GenerationError
from luma_poll.models import Generation

__all__ = [
    "Event",
    "Observer",
    "Outcome",
    "PollBegan",
    "PollEnded",
    "PollEvent",
    "Run",
    "RunBegan",
    "RunEnded",
    "RunEvent",
    "RunFailed",
    "RunFound",
    "RunRefused",
    "RunStateChanged",
    "RunSubmitted",
    "RunSubmitting",
    "RunUnreachable",
    "Wait",
    "WaitBegan",
    "WaitEnded",
    "WaitStateChanged",
]

Outcome: TypeAlias = Literal["completed", "failed", "timeout", "error", "cancelled"]
"""The end of a wait or run. With `completed` and `failed`, the generation has ended. With
`timeout`, `error` and `cancelled`, only the wait has, and the generation may still be running."""


@dataclass(frozen=True)
class PollEvent:
    """The outcome of one poll, for metrics and progress.

    Attributes:
        generation_id: The id of the generation.
        attempt: How many requests have been sent for it, from 1.
        generation: The snapshot, or None if the poll failed.
        error: The error, or None.
        elapsed: Seconds since the generation was first seen by the poller.
        next_delay: Seconds until the next poll; None if there will be none.
    """

    generation_id: str
    attempt: int
    generation: Generation | None
    error: APIError | None
    elapsed: float
    next_delay: float | None


@dataclass(frozen=True, eq=False)
class Wait:
    """One wait. All of its events carry the same object, which serves as a key.

    Attributes:
        generation_id: The id of the generation.
        timeout: Seconds that it may take; None for no limit.
        observers: The observers of all its events: those that were there when it began.
    """

    generation_id: str
    timeout: float | None
    observers: tuple[Observer, ...] = field(repr=False)


@dataclass(frozen=True)
class WaitBegan:
    """The event that a wait has begun.

    Attributes:
        wait: The wait.
        snapshot: The snapshot that the caller gave, perhaps already terminal; or None.
        sharing: How many waits now share the stream of requests, including this one.
    """

    wait: Wait
    snapshot: Generation | None
    sharing: int


@dataclass(frozen=True)
class WaitStateChanged:
    """The event that a wait yields a snapshot: the first one, or a new state, but not the last.

    Attributes:
        wait: The wait.
        generation: The snapshot.
    """

    wait: Wait
    generation: Generation


@dataclass(frozen=True)
class PollBegan:
    """The event that a request is sent. Its `PollEnded` follows in the same task.

    Attributes:
        wait: The wait that asks, on behalf of all that share the stream.
        attempt: How many requests have been sent for the generation, from 1.
        queued: Seconds that it waited for its turn, because of `max_rate` or `max_in_flight`.
    """

    wait: Wait
    attempt: int
    queued: float


@dataclass(frozen=True)
class PollEnded:
    """The event that a request has ended.

    Attributes:
        wait: The wait that asked.
        attempt: How many requests have been sent for the generation, from 1.
        others: The other waits that share the answer.
        duration: Seconds that the request took.
        answer: The snapshot or the error; None if the request was cut short.
        quiet: Seconds by which the answer prolongs the pause that the API asked for.
        is_end: True for the end: a completed or failed generation, or an error for good.
        age: Seconds since the generation was submitted, if that is known, else first seen.
        unfinished: Seconds since the last request whose answer was "still running"; None if there
            was none. If `is_end`, the generation ended at most this long ago.
        elapsed: Seconds since the poller first saw the generation.
        next_delay: Seconds until the next poll; None if there will be none.
    """

    wait: Wait
    attempt: int
    others: tuple[Wait, ...]
    duration: float
    answer: Generation | APIError | None
    quiet: float
    is_end: bool
    age: float
    unfinished: float | None
    elapsed: float
    next_delay: float | None


@dataclass(frozen=True)
class WaitEnded:
    """The event that a wait has ended.

    Attributes:
        wait: The wait.
        outcome: `completed` or `failed` if the generation has ended; `timeout`, `error` or
            `cancelled` (the caller left) if only the wait has.
        generation: The last snapshot, or None if there was none.
        error: The exception that the wait raised, or None. A failed generation and a cancellation
            have none.
        duration: Seconds that the wait took.
        polls: Requests sent for the generation meanwhile, by this wait or another one.
    """

    wait: Wait
    outcome: Outcome
    generation: Generation | None
    error: Exception | None
    duration: float
    polls: int


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a request. All of its events carry the same object, which serves as a key.

    Attributes:
        number: The number of the run in its Runner, from 0.
        request: The request, as it was given.
        key: The key that was given with it, or None.
        observers: The observers of all its events: those that were there when it began.
    """

    number: int
    request: str | Mapping[str, Any]
    key: str | None
    observers: tuple[Observer, ...] = field(repr=False)

    def __repr__(self) -> str:
        return with_brief_request(self)  # a request may hold megabytes of inputs


@dataclass(frozen=True)
class RunEvent:
    """A step of a run: the base of the following events.

    Attributes:
        run: The run.
        attempt: The number of the submission, from 1.
        generation: The latest snapshot, or None.
    """

    run: Run
    attempt: int
    generation: Generation | None


@dataclass(frozen=True)
class RunBegan(RunEvent):
    """The event that a run has begun: it waits for its turn to submit."""


@dataclass(frozen=True)
class RunSubmitting(RunEvent):
    """The event that the turn of a run has come: it is being submitted."""


@dataclass(frozen=True)
class RunRefused(RunEvent):
    """The event that a submission was refused with 429: the run waits for its next turn.

    Attributes:
        error: The refusal.
    """

    error: APIError


@dataclass(frozen=True)
class RunUnreachable(RunEvent):
    """The event that a submission could not be sent: the run waits for its next turn.

    Attributes:
        error: The reason.
    """

    error: APIError


@dataclass(frozen=True)
class RunSubmitted(RunEvent):
    """The event that a submission was accepted: the run has an id.

    Attributes:
        generation: The first snapshot.
    """

    generation: Generation


@dataclass(frozen=True)
class RunFound(RunEvent):
    """The event that the journal has a run: it was submitted earlier.

    Attributes:
        generation_id: The id of the generation.
        running: True unless the journal already has its end.
    """

    generation_id: str
    running: bool


@dataclass(frozen=True)
class RunStateChanged(RunEvent):
    """The event that the generation of a run has a new state, including the first and the last.

    Attributes:
        generation: The snapshot with the new state.
    """

    generation: Generation

    @property
    def state(self) -> str:
        """The new state."""
        return self.generation.state


@dataclass(frozen=True)
class RunFailed(RunEvent):
    """The event that the generation of a run failed, and will be submitted again.

    Attributes:
        error: The failure.
    """

    error: GenerationError


@dataclass(frozen=True)
class RunEnded(RunEvent):
    """The event that a run has ended, with its result or by a cancellation.

    Attributes:
        outcome: The end.
        error: The exception that the run raised; None for a success or a cancellation.
    """

    outcome: Outcome
    error: Exception | None


Event: TypeAlias = (
    WaitBegan
    | PollBegan
    | PollEnded
    | WaitStateChanged
    | WaitEnded
    | RunBegan
    | RunSubmitting
    | RunRefused
    | RunUnreachable
    | RunSubmitted
    | RunFound
    | RunStateChanged
    | RunFailed
    | RunEnded
)
"""Any event."""
Observer: TypeAlias = Callable[[Event], object]
"""A function (not async) that is called with each event."""
