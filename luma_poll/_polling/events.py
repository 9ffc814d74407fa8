"""Polls as events: for metrics, for progress, and in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from luma_poll._polling.decisions import Progress
from luma_poll.errors import APIError
from luma_poll.models import Generation

logger = logging.getLogger("luma_poll")

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


class Reporter:
    """Logs every poll, and calls `on_poll`.

    Args:
        on_poll: Called with each `PollEvent`. An exception in it is logged and dropped.
    """

    def __init__(self, on_poll: Callable[[PollEvent], None] | None) -> None:
        self._on_poll = on_poll
        self._unknown_states: set[str] = set()

    def report(
        self, progress: Progress, answer: Generation | APIError, now: float, next_poll: float | None
    ) -> None:
        """Report one poll.

        Args:
            progress: The generation's, with the answer recorded.
            answer: Of the API.
            now: The time of the answer.
            next_poll: The time of the next poll; None if there will be none.
        """
        if isinstance(answer, Generation):
            self._log_state(answer, progress)
        elif progress.result is None:
            logger.info("polling on after: %s", answer)
        if self._on_poll is None:
            return
        event = PollEvent(
            generation_id=progress.generation_id,
            attempt=progress.polls,
            generation=answer if isinstance(answer, Generation) else None,
            error=None if isinstance(answer, Generation) else answer,
            elapsed=now - progress.started,
            next_delay=None if next_poll is None else max(0.0, next_poll - now),
        )
        try:
            self._on_poll(event)
        except Exception:
            logger.exception("on_poll raised; generation %s is polled on", progress.generation_id)

    def _log_state(self, generation: Generation, progress: Progress) -> None:
        generation_id, state = progress.generation_id, generation.state
        logger.debug("generation %s: %s", generation_id, state)
        unreadable = (generation.model_extra or {}).get("unreadable_output")
        if unreadable and progress.result is not None:
            logger.warning(
                "generation %s: %d of its outputs cannot be read: see its unreadable_output",
                generation_id,
                len(unreadable),
            )
        if state in KNOWN_STATES or state in self._unknown_states:
            return
        if len(self._unknown_states) < MAX_UNKNOWN_STATES:
            self._unknown_states.add(state)
            logger.warning(
                "generation %s is in a state that luma-poll does not know, %r: polling on",
                generation_id,
                state,
            )
