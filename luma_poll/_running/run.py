"""One request on its way: all that is known of it by now."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from luma_poll._journal.recorder import Record
from luma_poll._journal.steps import WaitFor
from luma_poll._running.batch import Batch
from luma_poll._running.requests import AnyRequest, Request
from luma_poll._running.run_events import RunEvent, Step
from luma_poll.errors import GenerationError
from luma_poll.models import Generation


@dataclass(eq=False)
class Run:
    """One request on its way.

    Attributes:
        number: Of the run, in its runner.
        given: The request, as it was given.
        batch: That it is one of.
        place: In the queue.
        request: The request, checked.
        record: Its identity in the journal.
        found: What the journal says of it, if it was submitted before.
        submitted: The ids of its attempts.
        latest: The latest snapshot.
        deadline: Of all its attempts, from the first accepted submission on; inf for none.
        failure: Of its latest attempt.
    """

    number: int
    given: AnyRequest
    batch: Batch
    place: float
    request: Request = field(init=False)
    record: Record | None = None
    found: WaitFor | None = None
    submitted: list[str] = field(default_factory=list)
    latest: Generation | None = None
    deadline: float = math.inf
    failure: GenerationError | None = None
    _has_had_turn: bool = False

    def begin_timeout(self, now: float) -> None:
        """Let the timeout count from now on, unless it does already."""
        self.deadline = min(self.deadline, now + self.batch.seconds)

    def take_next(self) -> None:
        """Let the batch take its next request: only this one's first turn counts."""
        if not self._has_had_turn:
            self._has_had_turn = True
            self.batch.take_next()

    def event(
        self, step: Step, error: Exception | None = None, *, cancelled: bool = False
    ) -> RunEvent:
        """A step of it, for those who observe the runner."""
        attempt = len(self.submitted) + (step not in ("submitted", "found", "failed", "ended"))
        return RunEvent(
            self.number,
            step,
            self.given,
            attempt,
            self.latest,
            error,
            cancelled,
            self.submitted[-1] if self.submitted else None,
            self.found is not None and not self.found.running,
        )
