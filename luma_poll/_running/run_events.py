"""Runs as events: for progress and for telemetry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from luma_poll._logging import fields, logger
from luma_poll._running.requests import AnyRequest
from luma_poll.models import Generation

Step: TypeAlias = Literal[
    "begun", "found", "submitting", "refused", "unreachable", "submitted", "failed", "ended"
]


@dataclass(frozen=True)
class RunEvent:
    """A step of one run.

    Attributes:
        run: The run's number, from 0, in its runner.
        step: `begun`: it waits for its turn. `found`: the journal has it, with an id.
            `submitting`: its turn has come. `refused`: a 429; it waits again. `unreachable`: no
            connection; it waits again. `submitted`: there is an id. `failed`: the generation
            failed, and will be submitted again. `ended`: it has its result, or was cancelled.
        request: As it was given.
        attempt: Which submission it is, from 1.
        generation: The latest snapshot, or None.
        error: Of a step that failed; None for an end that was a success or a cancellation.
        cancelled: True for an end by cancellation.
        generation_id: The id of the latest attempt, if there is one.
        has_completed: True if the journal says that it has completed: it is fetched again.
    """

    run: int
    step: Step
    request: AnyRequest
    attempt: int
    generation: Generation | None = None
    error: Exception | None = None
    cancelled: bool = False
    generation_id: str | None = None
    has_completed: bool = False


RunObserver: TypeAlias = Callable[[RunEvent], object]
"""Is called with each event, in the task of the run, or of its submission."""


class RunReporter:
    """Calls `on_submit` and the observers; what they raise is logged and dropped.

    Attributes:
        observers: Those that hear of the runs that begin from now on, to the end of each.
    """

    def __init__(self, on_submit: Callable[[AnyRequest, Generation], object] | None) -> None:
        self.observers: tuple[RunObserver, ...] = ()
        self._on_submit = on_submit
        self._observers_of: dict[int, tuple[RunObserver, ...]] = {}

    def report(self, event: RunEvent) -> None:
        """Report a step."""
        generation = event.generation
        for observer in self._listening(event):
            try:
                observer(event)
            except Exception as error:
                extra = fields(generation=generation, attempt=event.attempt, error=error)
                logger.exception("an observer of a Runner raised", extra=extra)
        if event.step == "submitted" and generation is not None and self._on_submit is not None:
            try:
                self._on_submit(event.request, generation)
            except Exception as error:
                extra = fields(generation=generation, attempt=event.attempt, error=error)
                logger.exception(
                    "on_submit raised; generation %s runs on", generation.id, extra=extra
                )

    def _listening(self, event: RunEvent) -> tuple[RunObserver, ...]:
        """The observers of a run: those of its begin."""
        if event.step == "begun" and self.observers:
            self._observers_of[event.run] = self.observers
        if event.step == "ended":
            return self._observers_of.pop(event.run, ())
        return self._observers_of.get(event.run, ())
