"""One request on its way: all that is known of it by now."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from luma_poll._journal.recorder import Record
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
        submitted: The ids of its attempts.
        latest: The latest snapshot.
        deadline: Of all its attempts, from the first accepted submission on; inf for none.
        failure: Of its latest attempt.
        refusals: Of its submission, with nothing of ours under way.
    """

    number: int
    given: AnyRequest
    batch: Batch
    place: float
    request: Request = field(init=False)
    record: Record | None = None
    submitted: list[str] = field(default_factory=list)
    latest: Generation | None = None
    deadline: float = math.inf
    failure: GenerationError | None = None
    refusals: int = 0
    _has_had_turn: bool = False

    @property
    def key(self) -> str | None:
        """Its key: of the journal's record, else the one that was given."""
        if self.record is not None:
            return self.record.key
        request: Request | None = vars(self).get("request")  # None before it is checked
        return None if request is None else request.key

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
        attempt = len(self.submitted) + (step not in ("submitted", "failed", "ended"))
        return RunEvent(self.number, step, self.given, attempt, self.latest, error, cancelled)
