"""The log of polls: states, unknown states once, and errors after which polling continues."""

from __future__ import annotations

import logging

from luma_poll._logging import fields, logger
from luma_poll._polling.decisions import Progress
from luma_poll.errors import APIError
from luma_poll.models import Generation

KNOWN_STATES = frozenset({"queued", "processing", "completed", "failed"})
MAX_UNKNOWN_STATES = 100
"""Unknown states that are remembered, so that each is logged once; more are not logged."""


class PollLog:
    """The log records of one poller's polls."""

    def __init__(self) -> None:
        self._unknown_states: set[str] = set()

    def report(self, progress: Progress, answer: Generation | APIError) -> None:
        """Log one poll.

        Args:
            progress: The generation's progress, with the answer recorded.
            answer: The API's answer.
        """
        generation_id, attempt = progress.generation_id, progress.polls
        if isinstance(answer, Generation):
            self._log_state(answer, progress)
        elif progress.result is None:
            extra = fields(generation_id, generation=progress.latest, attempt=attempt, error=answer)
            logger.info("polling on after: %s", answer, extra=extra)

    def _log_state(self, generation: Generation, progress: Progress) -> None:
        generation_id, state = progress.generation_id, generation.state
        unreadable = (generation.model_extra or {}).get("unreadable_output")
        is_unknown = state not in KNOWN_STATES and state not in self._unknown_states
        if not (unreadable or is_unknown or logger.isEnabledFor(logging.DEBUG)):
            return  # true of most polls, so this costs little
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
