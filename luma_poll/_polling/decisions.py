"""The rules of a wait, without I/O, an event loop or a clock.

`Progress` is the knowledge of one generation, `Deadline` the end of one wait. `decide` looks at
both and returns what to do next: sleep, poll, return or raise. The poller does it, and so can any
other driver, such as a test or a workflow engine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from luma_poll._api.answers import snapshot_retry_after
from luma_poll._polling.schedules import Schedule, next_delay, tell_end
from luma_poll._tasks.heap import Entry, Heap
from luma_poll.errors import (
    APIError,
    APIStatusError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    PollTimeoutError,
)
from luma_poll.models import LONGEST_AGE, MAX_CLOCK_ERROR, Generation

NOT_FOUND_GRACE = 10.0
"""Seconds for which a 404 is not believed after a snapshot was handed in: the id exists."""
BELIEVED_AFTER = 3
"""Refusals in a row, not in the API's own words, after which they are believed..."""
BELIEVED_AFTER_SECONDS = 10.0
"""...if this many seconds lie between: a gateway that restarts refuses for a moment."""
STOPPED = 1.0
"""Seconds: a wait that wakes later than this after its deadline was stopped with its process."""
TIME_TO_ASK_AGAIN = 10.0
"""Seconds that such a wait gets for one more poll."""
OUTPUT_POLLS = 4
"""Answers of "completed" without any output, after which they are an error."""
LAST_POLL_MARGIN = 1.0
"""Seconds before a deadline when the last poll is sent, so that its answer is in time..."""
LAST_POLL_SHARE = 0.1
"""...or this share of the timeout, if it is less."""


@dataclass(frozen=True)
class Sleep:
    """The decision to do nothing until this time, unless an answer arrives before."""

    until: float


@dataclass(frozen=True)
class Poll:
    """The decision to ask now; the poll has been due since this time."""

    due: float


@dataclass(frozen=True)
class Return:
    """The decision to end: the last snapshot has completed with outputs, or failed."""

    generation: Generation


@dataclass(frozen=True)
class Raise:
    """The decision to end with this error."""

    error: LumaError


Decision: TypeAlias = Sleep | Poll | Return | Raise


@dataclass(frozen=True)
class Quiet:
    """The time until which the API asked us to send nothing, and the answer that said so."""

    until: float = -math.inf
    error: APIStatusError | None = None


@dataclass(frozen=True)
class Deadline:
    """The beginning and the end of one wait. Times are in seconds, all on the same clock.

    Attributes:
        started: When the wait began.
        timeout: Seconds that it may take; None for no limit.
        stopped_until: When the process continued, if it was stopped past the deadline. The
            generation may have ended meanwhile, so the wait asks once more. Else None.
    """

    started: float
    timeout: float | None = None
    stopped_until: float | None = None

    @property
    def at(self) -> float:
        """The deadline."""
        if self.stopped_until is not None:
            return self.stopped_until + TIME_TO_ASK_AGAIN
        return math.inf if self.timeout is None else self.started + self.timeout

    @property
    def margin(self) -> float:
        """The seconds before the deadline at which the last poll is sent."""
        if self.stopped_until is not None:
            return TIME_TO_ASK_AGAIN
        return min(LAST_POLL_MARGIN, LAST_POLL_SHARE * (self.at - self.started))

    @property
    def last_poll_at(self) -> float:
        """The time of one more poll, if the schedule wants none before the deadline."""
        return self.at - self.margin

    def is_served_by(self, poll: float) -> bool:
        """Return True if a poll at this time makes the last one superfluous.

        An answer from half a margin earlier is nearly as fresh, so a second request right after it
        would tell nothing. A whole margin would be too much: an answer that old misses twice as
        much of the time before the deadline as the last poll itself does.
        """
        return poll >= self.last_poll_at - self.margin / 2

    def after_a_stop(self, now: float, last_poll: float) -> Deadline:
        """Return the deadline of a wait that wakes so late that its process must have been stopped.

        Returns:
            A deadline with time to ask once more, or this one if there is no need.
        """
        if now < self.at or self.stopped_until is not None or self.is_served_by(last_poll):
            return self
        return replace(self, stopped_until=now)


class Deadlines:
    """The deadlines for which one wait asks. Adding, removing and looking cost O(log n)."""

    def __init__(self, deadlines: Iterable[Deadline] = ()) -> None:
        self._by_last_poll = Heap[Deadline]()
        self._by_end = Heap[Deadline]()
        for deadline in deadlines:
            self.add(deadline)

    def add(self, deadline: Deadline) -> tuple[Entry[Deadline], Entry[Deadline]]:
        """Add a deadline; return its places, for `remove`."""
        return (
            self._by_last_poll.push(deadline.last_poll_at, deadline),
            self._by_end.push(-deadline.at, deadline),
        )

    def remove(self, places: tuple[Entry[Deadline], Entry[Deadline]]) -> None:
        """Remove a deadline."""
        self._by_last_poll.remove(places[0])
        self._by_end.remove(places[1])

    @property
    def end(self) -> float:
        """The latest deadline; -inf without any."""
        latest = self._by_end.first()
        return -math.inf if latest is None else latest.at

    def last_poll_at(self, before: float, not_before: float, now: float) -> float:
        """Return when the next last poll is due; inf if there is none.

        Args:
            before: When the latest request that was answered was sent.
            not_before: The time before which no request is sent.
            now: The time.
        """
        while (deadline := self._by_last_poll.first()) is not None:
            at = max(deadline.last_poll_at, not_before)
            if not deadline.is_served_by(before) and now < deadline.at and at < deadline.at:
                return at
            # Dropped for good: `before`, `not_before` and `now` only ever grow.
            self._by_last_poll.drop_first()
        return math.inf


@dataclass
class Progress:
    """The knowledge of one generation, and when to ask again.

    Attributes:
        generation_id: The id of the generation.
        started: When it was first seen.
        born: When it was submitted, if that is known; else when it was first seen.
        due: When the schedule wants the next poll.
        polls: The number of requests begun.
        answers: The number of answers from the API, and of snapshots handed in.
        latest: The latest snapshot.
        trouble: The latest answer, if it is a transient error.
        result: The end: the last snapshot, or the error to raise. None before.
        last_poll: When the latest request that was answered was sent.
        unanswered: When the latest request was sent, while it has no answer; else None.
        unfinished_at: When the latest request was sent whose answer said that it still runs.
    """

    generation_id: str
    started: float
    born: float = field(init=False)
    due: float = field(init=False)
    polls: int = 0
    answers: int = 0
    latest: Generation | None = None
    trouble: APIError | None = None
    result: Generation | LumaError | None = None
    unfinished_at: float | None = None
    last_poll: float = -math.inf
    unanswered: float | None = None
    _not_before: float = -math.inf
    _snapshot_at: float = -math.inf
    _without_output: int = 0
    _refusals: int = 0  # in a row, all by the API or all by something in between
    _refused_since: float = -math.inf

    def __post_init__(self) -> None:
        self.born = self.due = self.started

    def begin_poll(self, now: float) -> None:
        """Note that a request is sent. If it is cut short, the poll stays due."""
        self.polls += 1
        self.unanswered = now

    def hand_in(self, snapshot: Generation, now: float) -> bool:
        """Take a snapshot that the caller has, as the first answer or as the end.

        Returns:
            True if it is news, and recorded.
        """
        self._snapshot_at = now
        is_news = self.latest is None or _is_end(snapshot)
        return is_news and self._record(snapshot, now, asked=now)

    def record(
        self, answer: Generation | APIError, now: float, *, asked: float | None = None
    ) -> bool:
        """Take the answer to a request, which may be the end.

        Call `consult` next, which decides when to ask again.

        Args:
            answer: The answer.
            now: The time.
            asked: When the request was sent; by default when the latest one was.

        Returns:
            True if it is recorded: an answer after the end changes nothing.
        """
        if self.unanswered is not None:
            self.last_poll = self.unanswered if asked is None else asked
            self.unanswered = None
        return self._record(answer, now, asked=self.last_poll)

    def _record(self, answer: Generation | APIError, now: float, asked: float) -> bool:
        if self.result is not None:
            return False
        self.answers += 1
        if isinstance(answer, Generation):
            self.latest, self.trouble = answer, None
            self.result = self._end_of(answer)
            self._note_age(answer, now, asked)
        elif answer.retryable or self._is_doubtful(answer, now):
            self.trouble = answer
        else:
            self.result = answer
        if self.result is None:
            self._not_before = now + _least_delay(answer)
        return True

    def consult(self, schedule: Schedule, now: float) -> None:
        """Let the schedule set `due` after an answer, or learn from it if that was the end.

        A schedule is often random: a driver that replays answers sets `due` from its own log.
        """
        answer = self.trouble or self.latest
        if answer is not None and self.result is None:
            delay = next_delay(schedule, answer, attempt=self.answers, born=self.born, now=now)
            self.due = now + delay
        elif isinstance(self.result, Generation) and self.unfinished_at is not None:
            after, by = self.unfinished_at - self.born, now - self.born
            tell_end(schedule, self.result, after=after, by=by)

    def _end_of(self, answer: Generation) -> Generation | OutputNotFoundError | None:
        if _is_end(answer):
            return answer
        if not answer.is_terminal:
            return None
        self._without_output += 1
        return None if self._without_output < OUTPUT_POLLS else OutputNotFoundError(answer)

    def _note_age(self, answer: Generation, now: float, asked: float) -> None:
        if answer.age is not None and answer.age < LONGEST_AGE + MAX_CLOCK_ERROR:
            self.born = min(self.born, now - answer.age)
        if not answer.is_terminal:
            self.unfinished_at = asked

    def _is_doubtful(self, answer: APIError, now: float) -> bool:
        """Return True for a refusal that may not be the API's, or may pass: it must be repeated."""
        if not isinstance(answer, APIStatusError):
            return False
        before = self.trouble
        in_a_row = (
            isinstance(before, APIStatusError)
            and not before.retryable
            and before.in_api_words is answer.in_api_words
        )
        if not in_a_row:
            self._refusals, self._refused_since = 0, now
        self._refusals += 1
        if not answer.in_api_words:
            # A gateway, a proxy or a CDN has answered, not the API. Its restart must not end the
            # wait for a generation that has been paid for.
            since = now - self._refused_since
            return self._refusals < BELIEVED_AFTER or since < BELIEVED_AFTER_SECONDS
        if not isinstance(answer, NotFoundError):
            return False
        if now - self._snapshot_at < NOT_FOUND_GRACE:
            return True
        return self.latest is not None and self._refusals < 2  # it has been seen to exist

    def poll_at(self, deadlines: Deadlines, quiet: Quiet, now: float) -> float:
        """Return since when a poll is due for these deadlines; inf if there will be none.

        It is the time at which the schedule, or a deadline, wants it; or that of the last request
        if that was cut short, so that those who were due by then go first. A quiet only delays it:
        the one that has been overdue for longer goes first when the quiet ends.
        """
        # If the schedule's next poll comes only after a deadline, one more is sent just before it.
        last = deadlines.last_poll_at(self.last_poll, self._not_before, now)
        at = min(max(self.due, self._not_before), last)
        if self.unanswered is not None:
            at = max(at, self.unanswered)
        return at if max(at, quiet.until) < deadlines.end else math.inf

    def next_poll(self, deadlines: Deadlines, quiet: Quiet, now: float) -> float | None:
        """Return when the generation is polled for these deadlines; None if it is not."""
        if self.result is not None:
            return None
        at = self.poll_at(deadlines, quiet, now)
        return None if at == math.inf else max(at, quiet.until)


def _least_delay(answer: Generation | APIError) -> float:
    """Return the seconds for which a successful answer asks us not to poll this generation.

    The `Retry-After` of an error applies to all generations: see `Quiet`.
    """
    hint = snapshot_retry_after(answer) if isinstance(answer, Generation) else None
    return hint or 0.0


def _is_end(snapshot: Generation) -> bool:
    """Return True for the last snapshot. A completed one without outputs may still get them."""
    return snapshot.state == "failed" or (snapshot.is_terminal and bool(snapshot.output))


def decide(
    progress: Progress,
    deadline: Deadline,
    quiet: Quiet,
    *,
    now: float,
    attempts: int,
    asks_for: Deadlines | None,
    is_asking: bool = False,
) -> Decision:
    """Return what a wait does now.

    Args:
        progress: The knowledge of the generation.
        deadline: The deadline of this wait.
        quiet: The quiet that the API asked for.
        now: The time.
        attempts: Requests sent for the generation since this wait began, for the error.
        asks_for: The deadlines of the waits for which this one asks, including its own; None
            if another one asks.
        is_asking: True if a request for the generation is under way.
    """
    if isinstance(progress.result, Generation):
        return Return(progress.result)
    if progress.result is not None:
        return Raise(_own_copy(progress.result))
    # A quiet past the deadline ends the wait now, unless an answer is still on its way.
    is_out_of_time = now >= deadline.at or (quiet.until >= deadline.at and not is_asking)
    stopped = deadline.stopped_until
    if is_out_of_time or (stopped is not None and progress.last_poll >= stopped):
        return Raise(_timed_out(progress, deadline, quiet, now, attempts))
    if asks_for is None:
        return Sleep(deadline.at)
    at = progress.poll_at(asks_for, quiet, now)
    return Poll(at) if at <= now else Sleep(min(at, deadline.at))


def _own_copy(error: LumaError) -> LumaError:
    """Return a copy of an error that many waits may raise, each with its own traceback."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


def _timed_out(
    progress: Progress, deadline: Deadline, quiet: Quiet, now: float, attempts: int
) -> PollTimeoutError:
    cause: APIError | None = progress.trouble
    why = "" if cause is None else f" (the last poll failed: {cause.message})"
    if progress.unanswered is not None:
        why = f" (the last request, sent {now - progress.unanswered:.1f} s before, had no answer)"
    if now < deadline.at and quiet.until >= deadline.at:
        cause = quiet.error
        why = f" (the API asks for {quiet.until - now:.0f} s of quiet, past the deadline)"
    error = PollTimeoutError(
        why,
        generation_id=progress.generation_id,
        last_generation=progress.latest,
        elapsed=now - deadline.started,
        attempts=attempts,
    )
    error.__cause__ = cause
    return error
