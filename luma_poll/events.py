"""The events of waits and runs: for progress, telemetry and tests.

    def show(event: Event) -> None:
        match event:
            case RunStateChanged():
                print(event.run.request, event.generation.state)
            case PollEnded(is_end=True):
                print(event.wait.generation_id, "has ended")

    stop = runner.observe(show)  # its poller too; poller.observe hears of waits alone

An observer is called in the task of the wait or run, and delays it: it must not block. What it
raises is logged and dropped. It gets the events of the waits and runs that begin from now on, each
from beginning to end. Times are in seconds, on anyio's clock.
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
"""The end of a wait or run. `completed` and `failed` are ends of the generation; `timeout`, `error`
and `cancelled` are ends of the wait alone, and the generation may still be running."""


@dataclass(frozen=True)
class PollEvent:
    """The outcome of one poll, for metrics and progress.

    Attributes:
        generation_id: The generation.
        attempt: How many requests have been sent for it, from 1.
        generation: The snapshot, or None if there was an error.
        error: The error in its place, or None.
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
        generation_id: The generation.
        timeout: Seconds that it may take; None for no limit.
        observers: The observers of all its events: those of its beginning.
    """

    generation_id: str
    timeout: float | None
    observers: tuple[Observer, ...] = field(repr=False)

    def __repr__(self) -> str:
        return with_brief_request(self)  # inputs in memory may have megabytes


@dataclass(frozen=True)
class WaitBegan:
    """A wait has begun.

    Attributes:
        wait: The wait.
        snapshot: The generation as the caller handed it in, perhaps already terminal; or None.
        sharing: How many waits share the stream of requests by now, this one included.
    """

    wait: Wait
    snapshot: Generation | None
    sharing: int


@dataclass(frozen=True)
class WaitStateChanged:
    """The caller of a wait gets a snapshot: the first one, or another state. Never a terminal one.

    Attributes:
        wait: The wait.
        generation: The snapshot.
    """

    wait: Wait
    generation: Generation


@dataclass(frozen=True)
class PollBegan:
    """A request is sent. Its end follows in the same task.

    Attributes:
        wait: The wait that asks, on behalf of all that share the stream.
        attempt: How many requests have been sent for the generation, from 1.
        queued: Seconds that it waited for its turn, for `max_rate` or `max_in_flight`.
    """

    wait: Wait
    attempt: int
    queued: float


@dataclass(frozen=True)
class PollEnded:
    """A request has ended.

    Attributes:
        wait: The wait that asked.
        attempt: How many requests have been sent for the generation, from 1.
        others: The other waits that share the answer.
        duration: Seconds that the request took.
        answer: The snapshot or the error; None if the request was cut short.
        quiet: Seconds by which the answer prolongs the quiet of all requests.
        is_end: True if it is the end: a completed or failed generation, or an error for good.
        age: Seconds since the generation was submitted, as far as known, else first seen.
        unfinished: Seconds since the last request whose answer was that it still runs; None if
            there was none. Where `is_end`, the generation ended at most this long ago.
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
    """A wait has ended.

    Attributes:
        wait: The wait.
        outcome: `completed` and `failed` are ends of the generation; `timeout`, `error` and
            `cancelled` (the caller left) are ends of the wait alone.
        generation: The last snapshot, or None if there was none.
        error: What was raised, except for a cancellation; a failed generation raises nothing here.
        duration: Seconds that it took.
        polls: Requests sent for the generation during it, by this wait or another one.
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
        number: Its number in its runner, from 0.
        request: The request, as it was given.
        key: The key that was given with it, or None.
        observers: The observers of all its events: those of its beginning.
    """

    number: int
    request: str | Mapping[str, Any]
    key: str | None
    observers: tuple[Observer, ...] = field(repr=False)


@dataclass(frozen=True)
class RunEvent:
    """A step of a run: the base of the following ones.

    Attributes:
        run: The run.
        attempt: Which submission it is, from 1.
        generation: The latest snapshot, or None.
    """

    run: Run
    attempt: int
    generation: Generation | None


@dataclass(frozen=True)
class RunBegan(RunEvent):
    """A run has begun: it waits for its turn to submit."""


@dataclass(frozen=True)
class RunSubmitting(RunEvent):
    """Its turn has come, and it is being submitted."""


@dataclass(frozen=True)
class RunRefused(RunEvent):
    """It was refused with a 429, and waits for its next turn.

    Attributes:
        error: The refusal.
    """

    error: APIError


@dataclass(frozen=True)
class RunUnreachable(RunEvent):
    """It could not be sent, and waits for its next turn.

    Attributes:
        error: The reason.
    """

    error: APIError


@dataclass(frozen=True)
class RunSubmitted(RunEvent):
    """It was accepted.

    Attributes:
        generation: The first snapshot.
    """

    generation: Generation


@dataclass(frozen=True)
class RunFound(RunEvent):
    """The journal knows it: an earlier process submitted it.

    Attributes:
        generation_id: The id of the generation.
        running: False if its end was seen by then.
    """

    generation_id: str
    running: bool


@dataclass(frozen=True)
class RunStateChanged(RunEvent):
    """Its generation is in another state than before, the first and the last one included.

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
    """Its generation failed, and will be submitted again.

    Attributes:
        error: The failure.
    """

    error: GenerationError


@dataclass(frozen=True)
class RunEnded(RunEvent):
    """It has its result, or was cancelled.

    Attributes:
        outcome: How it ended.
        error: What it raised; None for a success or a cancellation.
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
"""Is called with each event; a function, not async."""
