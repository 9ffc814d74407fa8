"""Waits and polls as events: for progress, for telemetry, and in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from luma_poll._logging import fields, logger
from luma_poll._polling.decisions import Progress
from luma_poll.errors import APIError, GenerationError, PollTimeoutError
from luma_poll.models import Generation

KNOWN_STATES = frozenset({"queued", "processing", "completed", "failed"})
MAX_UNKNOWN_STATES = 100
"""Unknown states that are remembered, to log each of them once; more are not logged."""


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
        observers: Those that hear of it, from its begin to its end.
    """

    generation_id: str
    timeout: float | None
    observers: tuple[Observer, ...] = field(repr=False)


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
class StateChanged:
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


Outcome: TypeAlias = Literal["completed", "failed", "timeout", "error", "cancelled"]


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


Event: TypeAlias = WaitBegan | StateChanged | PollBegan | PollEnded | WaitEnded
Observer: TypeAlias = Callable[[Event], object]
"""Is called with each event, in the task of the wait. An exception in it is logged and dropped."""


def tell(event: Event) -> None:
    """Tell the observers of a wait."""
    for observer in event.wait.observers:
        try:
            observer(event)
        except Exception as error:
            generation_id = event.wait.generation_id
            logger.exception(
                "an observer raised; generation %s is polled on",
                generation_id,
                extra=fields(generation_id, error=error),
            )


def outcome_of(generation: Generation | None, error: BaseException | None) -> Outcome:
    """The outcome of a wait with this last snapshot, or that raised this."""
    if error is None:
        is_failed = generation is not None and generation.state == "failed"
        return "failed" if is_failed else "completed"
    if isinstance(error, GenerationError):
        return "failed"
    if isinstance(error, PollTimeoutError):
        return "timeout"
    return "error" if isinstance(error, Exception) else "cancelled"


class Reporter:
    """Logs every poll, calls `on_poll`, and knows the observers.

    Args:
        on_poll: Called with each `PollEvent`. An exception in it is logged and dropped.

    Attributes:
        observers: Those that hear of the waits that begin from now on.
    """

    def __init__(self, on_poll: Callable[[PollEvent], None] | None) -> None:
        self.observers: tuple[Observer, ...] = ()
        self._on_poll = on_poll
        self._unknown_states: set[str] = set()

    def report(
        self,
        progress: Progress,
        answer: Generation | APIError,
        now: float,
        next_poll_at: Callable[[], float | None],
    ) -> None:
        """Report one poll.

        Args:
            progress: The generation's, with the answer recorded.
            answer: Of the API.
            now: The time of the answer.
            next_poll_at: Gives the time of the next poll; None if there will be none.
        """
        generation_id, attempt = progress.generation_id, progress.polls
        if isinstance(answer, Generation):
            self._log_state(answer, progress)
        elif progress.result is None:
            extra = fields(generation_id, generation=progress.latest, attempt=attempt, error=answer)
            logger.info("polling on after: %s", answer, extra=extra)
        if self._on_poll is None:
            return
        next_poll = next_poll_at()
        event = PollEvent(
            generation_id=generation_id,
            attempt=attempt,
            generation=answer if isinstance(answer, Generation) else None,
            error=None if isinstance(answer, Generation) else answer,
            elapsed=now - progress.started,
            next_delay=None if next_poll is None else max(0.0, next_poll - now),
        )
        try:
            self._on_poll(event)
        except Exception as error:
            logger.exception(
                "on_poll raised; generation %s is polled on",
                generation_id,
                extra=fields(
                    generation_id, generation=event.generation, attempt=attempt, error=error
                ),
            )

    def _log_state(self, generation: Generation, progress: Progress) -> None:
        generation_id, state = progress.generation_id, generation.state
        unreadable = (generation.model_extra or {}).get("unreadable_output")
        is_unknown = state not in KNOWN_STATES and state not in self._unknown_states
        if not (unreadable or is_unknown or logger.isEnabledFor(logging.DEBUG)):
            return  # most polls, and so with little work
        extra = fields(generation_id, generation=generation, attempt=progress.polls)
        logger.debug("generation %s: %s", generation_id, state, extra=extra)
        if unreadable and progress.result is not None:
            logger.warning(
                "generation %s: %d of its outputs cannot be read: see its unreadable_output",
                generation_id,
                len(unreadable),
                extra=extra,
            )
        if is_unknown and len(self._unknown_states) < MAX_UNKNOWN_STATES:
            self._unknown_states.add(state)
            logger.warning(
                "generation %s is in a state that luma-poll does not know, %r: polling on",
                generation_id,
                state,
                extra=extra,
            )
