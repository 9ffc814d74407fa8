"""Runs as events: for progress and for telemetry."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from luma_poll._running.requests import AnyRequest
from luma_poll.models import Generation

logger = logging.getLogger("luma_poll")

Step: TypeAlias = Literal[
    "begun", "submitting", "refused", "unreachable", "submitted", "failed", "ended"
]


@dataclass(frozen=True)
class RunEvent:
    """A step of one run.

    Attributes:
        run: The run's number, from 0, in its runner.
        step: `begun`: it waits for its turn. `submitting`: its turn has come. `refused`: a 429;
            it waits again. `unreachable`: no connection; it waits again. `submitted`: there is an
            id. `failed`: the generation failed, and will be submitted again. `ended`: it has its
            result, or was cancelled.
        request: As it was given.
        attempt: Which submission it is, from 1.
        generation: The latest snapshot, or None.
        error: Of a step that failed; None for an end that was a success or a cancellation.
        cancelled: True for an end by cancellation.
    """

    run: int
    step: Step
    request: AnyRequest
    attempt: int
    generation: Generation | None = None
    error: Exception | None = None
    cancelled: bool = False


class RunReporter:
    """Calls `on_submit` and the observers; what they raise is logged and dropped."""

    def __init__(self, on_submit: Callable[[AnyRequest, Generation], object] | None) -> None:
        self._on_submit = on_submit
        self.observers: list[Callable[[RunEvent], None]] = []

    def report(self, event: RunEvent) -> None:
        """Report a step."""
        for observer in self.observers:
            try:
                observer(event)
            except Exception:
                logger.exception("an observer of a Runner raised")
        generation = event.generation
        if event.step == "submitted" and generation is not None and self._on_submit is not None:
            try:
                self._on_submit(event.request, generation)
            except Exception:
                logger.exception("on_submit raised; generation %s runs on", generation.id)
