"""One request on its way, with everything that is known about it so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from luma_poll._journal.recorder import Record
from luma_poll._journal.steps import WaitFor
from luma_poll._polling.observers import tell
from luma_poll._running.batch import Batch
from luma_poll._running.requests import AnyRequest, Request
from luma_poll.errors import GenerationError
from luma_poll.events import (
    Run as RunInfo,
)
from luma_poll.events import (
    RunEnded,
    RunEvent,
    RunFailed,
    RunFound,
    RunStateChanged,
    RunSubmitted,
)
from luma_poll.models import Generation

ACCEPTED = (RunSubmitted, RunFound, RunStateChanged, RunFailed, RunEnded)
"""Events about an attempt that already has an id."""


@dataclass(eq=False)
class Run:
    """One request on its way.

    Attributes:
        info: The run, as its observers know it.
        batch: The batch that it belongs to.
        place: Its place in the queue.
        request: The request, checked.
        record: Its identity in the journal.
        found: The journal's entry for it, if it was submitted before.
        submitted: The ids of its attempts.
        latest: The latest snapshot.
        deadline: When all its attempts must have ended, on anyio's clock; inf before the first
            submission is accepted, and if there is no timeout.
        failure: The failure of its latest attempt.
        refusals: How often its submission was refused with nothing of ours under way.
    """

    info: RunInfo
    batch: Batch
    place: float
    request: Request = field(init=False)
    record: Record | None = None
    found: WaitFor | None = None
    submitted: list[str] = field(default_factory=list)
    latest: Generation | None = None
    deadline: float = math.inf
    failure: GenerationError | None = None
    refusals: int = 0
    _has_had_turn: bool = False

    @property
    def key(self) -> str | None:
        """Its key: the journal's, else the one that was given."""
        if self.record is not None:
            return self.record.key
        request: Request | None = vars(self).get("request")  # None before it is checked
        return None if request is None else request.key

    @property
    def given(self) -> AnyRequest:
        """The request, as it was given."""
        return self.info.request

    def begin_timeout(self, now: float) -> None:
        """Start the timeout now, unless it has started."""
        self.deadline = min(self.deadline, now + self.batch.seconds)

    def take_next(self) -> None:
        """Let the batch take its next request, at this one's first turn only."""
        if not self._has_had_turn:
            self._has_had_turn = True
            self.batch.take_next()

    def tell(self, step: type[RunEvent], *details: object) -> None:
        """Send the observers an event.

        Args:
            step: The class of the event.
            details: Its further fields, after run, attempt and snapshot.
        """
        if not self.info.observers:
            return
        # Once an attempt has an id, `submitted` includes it.
        is_counted = issubclass(step, ACCEPTED)
        attempt = max(1, len(self.submitted) + (not is_counted))
        tell(step(self.info, attempt, self.latest, *details))

    def see(self, snapshot: Generation) -> None:
        """Keep a snapshot, and tell the observers if the state has changed."""
        is_news = self.latest is None or (self.latest.id, self.latest.state) != (
            snapshot.id,
            snapshot.state,
        )
        self.latest = snapshot
        if is_news:
            self.tell(RunStateChanged)
