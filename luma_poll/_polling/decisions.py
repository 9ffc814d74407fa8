"""The rules of a wait, without I/O, without an event loop and without a clock.

`Progress` is the knowledge of one generation, `Deadline` the end of one wait. `decide` looks at
both and says what to do next: sleep, poll, return or raise. The poller performs it, and so can any
other driver, such as a test or a workflow engine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from luma_poll._api.answers import snapshot_retry_after
from luma_poll._polling.schedules import Schedule, next_delay, tell_end
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
"""Seconds during which a 404 is not believed after a snapshot was handed in: the id exists."""
OUTPUT_POLLS = 4
"""Answers of "completed" without any output after which that is an error."""
LAST_POLL_MARGIN = 1.0
"""Seconds before a deadline at which the last poll happens, so that its answer is in time..."""
LAST_POLL_SHARE = 0.1
"""...or this share of the timeout, if that is less."""


@dataclass(frozen=True)
class Sleep:
    """Do nothing until this time, unless an answer arrives before."""

    until: float


@dataclass(frozen=True)
class Poll:
    """Ask now. It is due since this time."""

    due: float


@dataclass(frozen=True)
class Return:
    """The generation has ended, with this last snapshot: completed with outputs, or failed."""

    generation: Generation


@dataclass(frozen=True)
class Raise:
    """The wait ends with this error."""

    error: LumaError


Decision: TypeAlias = Sleep | Poll | Return | Raise


@dataclass(frozen=True)
class Quiet:
    """The time until which the API asked us to stay away, and its answer that says so."""

    until: float = -math.inf
    error: APIStatusError | None = None


@dataclass(frozen=True)
class Deadline:
    """When one wait began, and when it ends. Times are in seconds, all on the same clock."""

    started: float
    timeout: float | None = None

    @property
    def at(self) -> float:
        """The deadline."""
        return math.inf if self.timeout is None else self.started + self.timeout

    @property
    def margin(self) -> float:
        """How long before the deadline the last poll happens."""
        return min(LAST_POLL_MARGIN, LAST_POLL_SHARE * (self.at - self.started))


@dataclass
class Progress:
    """The knowledge of one generation, and when to ask again.

    Attributes:
        generation_id: The generation.
        started: When it was first seen.
        born: When it was submitted, as far as known; else when it was first seen.
        due: When the schedule wants the next poll.
        polls: Requests begun.
        answers: Answers, those of the API and the snapshot that was handed in.
        latest: The last snapshot.
        trouble: The transient error that is the latest answer, if it is one.
        result: The end: the last snapshot, or the error to raise.
        last_poll: When the last request was sent that was not cut short.
        unfinished_at: When the last answer was asked for that said that it still runs.
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
    _poll_before: float = -math.inf
    _not_before: float = -math.inf
    _snapshot_at: float = -math.inf
    _without_output: int = 0

    def __post_init__(self) -> None:
        self.born = self.due = self.started

    def begin_poll(self, now: float) -> None:
        """Note that a request is sent."""
        self.polls += 1
        self._poll_before, self.last_poll = self.last_poll, now

    def abandon_poll(self) -> None:
        """Note that the request was cut short: the poll is as due as it was."""
        self.last_poll = self._poll_before

    def hand_in(self, snapshot: Generation, now: float) -> bool:
        """Take a snapshot that somebody else fetched: as the first answer, or as the end.

        Returns:
            True if it is news, and recorded.
        """
        self._snapshot_at = now
        is_news = self.latest is None or _is_end(snapshot)
        return is_news and self.record(snapshot, now, asked=now)

    def record(
        self, answer: Generation | APIError, now: float, *, asked: float | None = None
    ) -> bool:
        """Take an answer, which may be the end. `consult` says when to ask again.

        Args:
            answer: Of the API.
            now: The time.
            asked: When the answer was true; by default the time of the last poll.

        Returns:
            True if it is recorded: an answer after the end changes nothing.
        """
        if self.result is not None:
            return False
        self.answers += 1
        if isinstance(answer, Generation):
            self.latest, self.trouble = answer, None
            self.result = self._end_of(answer)
            self._note_age(answer, now, self.last_poll if asked is None else asked)
        elif answer.retryable or self._is_too_early(answer, now):
            self.trouble = answer
        else:
            self.result = answer
        if self.result is None:
            self._not_before = now + _least_delay(answer)
        return True

    def consult(self, schedule: Schedule, now: float) -> None:
        """Let the schedule set `due`, after an answer; or learn from it, if that was the end.

        A schedule is often random: a driver that replays answers sets `due` itself, from its log.
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

    def _is_too_early(self, answer: APIError, now: float) -> bool:
        return isinstance(answer, NotFoundError) and now - self._snapshot_at < NOT_FOUND_GRACE

    def poll_at(self, deadline: Deadline, quiet: Quiet) -> float:
        """Since when a poll is due for a wait with this deadline; inf if there will be none.

        It is the time at which the schedule, or the deadline, wants it. A quiet only delays it:
        whoever has been overdue for longer goes first when the quiet ends.
        """
        at = self.due
        last = deadline.at - deadline.margin
        # Where the schedule polls only after the deadline, there is one more poll just before it.
        # An answer of half a margin earlier counts as that one: it is nearly as fresh, and a
        # second request right after it would tell nothing. A whole margin would be too much: an
        # answer that old leaves out twice as much of the time as the last poll itself does.
        if at > last and self.last_poll < last - deadline.margin / 2:
            at = last
        at = max(at, self._not_before)
        return at if max(at, quiet.until) < deadline.at else math.inf

    def next_poll(self, deadlines: Iterable[Deadline], quiet: Quiet) -> float | None:
        """When the generation is polled for waits with these deadlines; None if it is not."""
        if self.result is not None:
            return None
        at = min((self.poll_at(deadline, quiet) for deadline in deadlines), default=math.inf)
        return None if at == math.inf else max(at, quiet.until)


def _least_delay(answer: Generation | APIError) -> float:
    """Seconds for which a successful answer asks to leave this generation alone.

    The same hint of an error is for all generations: a `Quiet`.
    """
    hint = snapshot_retry_after(answer) if isinstance(answer, Generation) else None
    return hint or 0.0


def _is_end(snapshot: Generation) -> bool:
    """A completed one without outputs may be ahead of its outputs."""
    return snapshot.state == "failed" or (snapshot.is_terminal and bool(snapshot.output))


def decide(
    progress: Progress,
    deadline: Deadline,
    quiet: Quiet,
    *,
    now: float,
    attempts: int,
    asks_for: Iterable[Deadline],
) -> Decision:
    """Say what a wait does now.

    Args:
        progress: What is known of the generation.
        deadline: Of this wait.
        quiet: How long the API wants to be left alone.
        now: The time.
        attempts: Requests sent for the generation since this wait began, for the error.
        asks_for: The deadlines of the waits for which this one asks, its own among them; none
            if another one asks.
    """
    if isinstance(progress.result, Generation):
        return Return(progress.result)
    if progress.result is not None:
        return Raise(_own_copy(progress.result))
    if now >= deadline.at or quiet.until >= deadline.at:
        return Raise(_timed_out(progress, deadline, quiet, now, attempts))
    waiting = (each for each in asks_for if now < each.at)
    at = min((progress.poll_at(each, quiet) for each in waiting), default=math.inf)
    return Poll(at) if at <= now else Sleep(min(at, deadline.at))


def _own_copy(error: LumaError) -> LumaError:
    """Many waits may raise the same end: each raises an error of its own."""
    own = copy.copy(error)
    own.__cause__ = error.__cause__
    return own


def _timed_out(
    progress: Progress, deadline: Deadline, quiet: Quiet, now: float, attempts: int
) -> PollTimeoutError:
    cause: APIError | None = progress.trouble
    why = "" if cause is None else f" (the last poll failed: {cause.message})"
    if now < deadline.at:
        cause = quiet.error
        why = f" (the API asks for {quiet.until - now:.0f} s of quiet, past the deadline)"
    error = PollTimeoutError(
        progress.generation_id,
        last_generation=progress.latest,
        elapsed=now - deadline.started,
        attempts=attempts,
        why=why,
    )
    error.__cause__ = cause
    return error
