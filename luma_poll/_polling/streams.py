"""One stream of requests for each generation, shared by all waits for it.

The states of a waiter:

    join ─> present ────────── decide ── Return, Raise ─> end
             │   ^             │    │ ^
        away │   │ back  Sleep │    │ └─────────────────────────────────┐
             v   │             v    └─ Poll ─> queueing ────> asking    │
            away             asleep               │             │       │
                               │ woken, or        │ called      │ answered, or
                               │ it is time       │ back        │ called back
                               └──────────────────┴─────────────┴───────┘

- away: its caller processes a snapshot, for as long as it likes. Meanwhile another waiter asks.
- asleep: it sleeps until its next poll. If another waiter asks, it sleeps until news or its own
  deadline.
- queueing: it waits for its turn under the limits. It is called back by news, and by a newcomer
  that stays longer and asks in its place.
- asking: its request is under way, and its answer wakes everyone for whom it is news. If the waiter
  leaves, the request is cut short, and another waiter asks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import anyio

from luma_poll._api.answers import as_generation
from luma_poll._api.translation import translate_to_keep
from luma_poll._polling.decisions import (
    STOPPED,
    Deadline,
    Deadlines,
    Decision,
    Progress,
    Quiet,
    decide,
)
from luma_poll._polling.limits import RequestLimits
from luma_poll._polling.observers import Observers, outcome_of, tell
from luma_poll._polling.poll_log import PollLog
from luma_poll._polling.schedules import Schedule
from luma_poll._tasks.alarm import Alarm
from luma_poll._tasks.event_loops import PerLoop
from luma_poll._tasks.heap import Heap
from luma_poll.errors import APIError, APIStatusError
from luma_poll.events import (
    PollBegan,
    PollEnded,
    Wait,
    WaitBegan,
    WaitEnded,
    WaitStateChanged,
)
from luma_poll.models import Generation

MOST_CUTS = 2
"""Requests of others that were cut short, after which a waiter asks for itself."""


class Waiter(Alarm):
    """One wait for a generation, which sleeps until it has to decide again.

    Attributes:
        stream: The stream that it shares with the other waits for the generation.
        deadline: Its own deadline.
        turn: The cancel scope of its poll, from queueing to the answer; None when it has none.
        wait: The wait, as its observers know it; None without observers.
        cuts: How many requests of the stream had been cut short when it came.
    """

    def __init__(
        self, stream: Stream, deadline: Deadline, ends: Heap[Waiter], wait: Wait | None
    ) -> None:
        super().__init__()
        self.stream = stream
        self.deadline = deadline
        self.turn: anyio.CancelScope | None = None
        self.wait = wait
        self.cuts = 0
        self.is_called_back = False
        self._polls_before = stream.progress.polls
        self._ends = ends  # of the event loop in which it began
        self._end = ends.push(deadline.at, self)

    def decide(self, quiet: Quiet) -> Decision:
        """Return what to do now."""
        stream = self.stream
        return decide(
            stream.progress,
            self.deadline,
            quiet,
            now=anyio.current_time(),
            attempts=stream.progress.polls - self._polls_before,
            asks_for=stream.deadlines if stream.is_asked_by(self) else None,
            is_asking=bool(stream.asking),
        )

    async def sleep(self, until: float) -> None:
        """Sleep until this time, or until it is woken."""
        await super().sleep(until)
        self.look_at_the_clock(until)

    def look_at_the_clock(self, expected: float) -> None:
        """Extend the deadline for one more poll, if the process was stopped past it.

        A laptop that slept through the deadline wakes to a generation that may have ended.
        """
        now = anyio.current_time()
        if now - expected < STOPPED:
            return
        deadline = self.deadline.after_a_stop(now, self.stream.progress.last_poll)
        if deadline is not self.deadline:
            self.stream.leave(self)  # its places in the heaps are ordered by the old deadline
            self._ends.remove(self._end)
            self.deadline = deadline
            self._end = self._ends.push(deadline.at, self)
            self.stream.enter(self)

    def call_back(self) -> None:
        """Make it decide again, even if it queues for its turn or its request is under way."""
        self.wake()
        self.is_called_back = True
        if self.turn is not None:
            self.turn.cancel()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let another waiter ask while the caller processes a snapshot, however long it takes."""
        latest = self.stream.progress.latest
        if self.wait is not None and latest is not None:
            tell(WaitStateChanged(self.wait, latest))
        self.stream.leave(self)
        try:
            yield
        finally:
            self.stream.enter(self)

    def end(self) -> None:
        """Leave the stream for good."""
        self.stream.leave(self)
        del self.stream.waits[self]
        self._ends.remove(self._end)

    def tell_end(self, wait: Wait, error: BaseException | None) -> None:
        """Tell the observers that it has ended, and how."""
        progress = self.stream.progress
        tell(
            WaitEnded(
                wait,
                outcome_of(progress.latest, error),
                progress.latest,
                error if isinstance(error, Exception) else None,
                duration=_now(self.deadline.started) - self.deadline.started,
                polls=progress.polls - self._polls_before,
            )
        )


class Stream:
    """The one stream of requests for a generation.

    The waiter with the latest deadline asks for all. Any other would cut its request short at its
    own deadline, and throw away an answer that the one with the latest would have waited for.

    A waiter may also leave before its deadline, cancelled. So after one has left in the middle of
    its request, the waiter that came first asks until there is an answer: it has shown that it
    stays, and those that come and go cannot take its place. A waiter that has seen two requests cut
    short stops relying on others, and asks for itself: four do so at once, and one more for each
    that leaves in the middle. So thousands do not all ask, and however many leave together, the
    next ones are twice as many.

    Attributes:
        progress: The knowledge of the generation.
        waits: The waits that share the stream, in the order they came, including those away.
        turns: The waiters that queue for a turn or whose request is under way.
        asking: The waiters whose request is under way.
        deadlines: The deadlines of the waiters that are present.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.waits: dict[Waiter, None] = {}
        self.turns: dict[Waiter, None] = {}
        self.asking: set[Waiter] = set()
        self.deadlines = Deadlines()
        self._by_end = Heap[Waiter]()  # the latest deadline first
        # In the order they came. Not a dict: finding its first key is slow after many removals.
        self._places: OrderedDict[Waiter, Any] = OrderedDict()
        self._cuts = self._cuts_before_answer = 0
        self._has_been_left = False  # True if a waiter left while it asked, since the last answer

    def _first(self) -> Waiter | None:
        """Return the waiter that asks for all, or None."""
        if self._has_been_left:
            return next(iter(self._places), None)
        return self._by_end.first()

    def is_asked_by(self, waiter: Waiter) -> bool:
        """Return True if this waiter asks, for all or, after too many cuts, for itself."""
        if self._has_lost_patience(waiter) and len(self.turns) < self._most_at_once:
            return True
        return not self.asking and self._first() is waiter

    @property
    def _most_at_once(self) -> int:
        """The most requests under way; each cut since the last answer allows one more."""
        return self._cuts - self._cuts_before_answer + MOST_CUTS

    def _has_lost_patience(self, waiter: Waiter) -> bool:
        return self._cuts - max(waiter.cuts, self._cuts_before_answer) >= MOST_CUTS

    def enter(self, waiter: Waiter) -> None:
        """Add a waiter to those that may ask."""
        waiter.cuts = self._cuts
        before = self._first()
        places = self._by_end.push(-waiter.deadline.at, waiter), self.deadlines.add(waiter.deadline)
        self._places[waiter] = places
        if before is None or self.asking:
            return  # the answer to a request under way serves the newcomer, too
        if self._first() is waiter:
            before.call_back()  # if it queues, it leaves the poll to the one that stays longer
        else:
            before.wake()  # the newcomer's deadline may need a poll before it planned one

    def leave(self, waiter: Waiter) -> None:
        """Remove a waiter from those that may ask, and wake the next one that asks."""
        place, deadline_places = self._places.pop(waiter)
        self._by_end.remove(place)
        self.deadlines.remove(deadline_places)
        self._wake_impatient()
        first = self._first()
        if first is None or self.asking:
            return
        if self.progress.due > anyio.current_time():
            first.call_back()  # it may queue for a last poll that only the one that left needed
        else:
            first.wake()  # its poll is due by the schedule: if it queues, it keeps its place

    def note_answer(self) -> None:
        """Note an answer: the cuts before it no longer count."""
        self._cuts_before_answer, self._has_been_left = self._cuts, False

    def note_cut(self, *, has_left: bool) -> None:
        """Note that a request was cut short, although others may have waited for its answer."""
        self._cuts += 1
        self._has_been_left |= has_left  # it leaves the stream now, which wakes the next ones

    def _wake_impatient(self) -> None:
        """Wake the waiters that ask for themselves now."""
        # They are the ones that came first, because they have seen the most cuts.
        for waiter in islice(self._places, self._most_at_once):
            if not self._has_lost_patience(waiter):
                return
            waiter.wake()

    def wake_first(self) -> None:
        """Wake the waiter that asks, after an answer that changes nothing for the others."""
        first = self._first()
        if first is not None:
            first.wake()

    def wake_all(self) -> None:
        """Wake every waiter, after news."""
        for waiter in self._places:
            waiter.wake()

    def call_back(self, waiters: Iterable[Waiter]) -> None:
        """Make these waiters decide again, even if they queue or their requests are under way."""
        for waiter in list(waiters):
            waiter.call_back()


@dataclass
class _Loop:
    """The streams of one poller in one event loop, and their limits."""

    limits: RequestLimits
    by_id: dict[str, Stream] = field(default_factory=dict)
    # All waiters by deadline, to find those that a new quiet outlasts: it ends their waits.
    ends: Heap[Waiter] = field(default_factory=Heap)


class Streams:
    """The streams of one poller, and the limits that hold for all their requests.

    They belong to one event loop; another one starts without any.

    Args:
        get: Fetches a snapshot by id.
        schedule: Decides when to ask again.
        max_in_flight: The most requests under way at the same time; None for no limit.
        max_rate: The most requests started per second; None for no limit.

    Attributes:
        observers: The observers of its waits and polls.
    """

    def __init__(
        self,
        get: Callable[[str], Awaitable[object]],
        schedule: Schedule,
        max_in_flight: int | None,
        max_rate: float | None,
    ) -> None:
        self._get = get
        self._schedule = schedule
        self._bounds = max_in_flight, max_rate
        self.observers = Observers()
        self._log = PollLog()
        self._loop = PerLoop("Poller", lambda: _Loop(RequestLimits(*self._bounds)))

    def __len__(self) -> int:
        return len(self._loop.kept.by_id)

    def summary(self) -> str:
        """Return the limits, and how much is under way, for the poller's repr."""
        most, rate = self._bounds
        under_way = f"in_flight={self._limits.in_flight}, generations={len(self)}"
        return f"max_in_flight={most}, max_rate={rate}, {under_way}"

    @property
    def _limits(self) -> RequestLimits:
        return self._loop.kept.limits

    @property
    def quiet(self) -> Quiet:
        """The latest quiet that the API asked for."""
        return self._limits.quiet

    def set_max_rate(self, max_rate: float | None) -> None:
        """Change how many requests may start per second; None for no limit."""
        self._bounds = self._bounds[0], max_rate
        self._limits.set_max_rate(max_rate)

    @contextmanager
    def join(
        self, generation_id: str, snapshot: Generation | None, timeout: float | None
    ) -> Iterator[Waiter]:
        """Join the stream of a generation, with a snapshot of it that counts as an answer, if any.

        Raises:
            ConfigurationError: Waits are under way in another event loop.
        """
        loop = self._loop.enter()
        now = anyio.current_time()
        stream = loop.by_id.get(generation_id)
        if stream is None:
            stream = loop.by_id[generation_id] = Stream(Progress(generation_id, started=now))
        observers = self.observers.present
        wait = Wait(generation_id, timeout, observers) if observers else None
        waiter = Waiter(stream, Deadline(now, timeout), loop.ends, wait)
        stream.waits[waiter] = None
        stream.enter(waiter)
        try:
            if wait is not None:
                tell(WaitBegan(wait, snapshot, len(stream.waits)))
            if snapshot is not None:
                self._hand_in(stream, snapshot, now)
            yield waiter
        except BaseException as error:
            if wait is not None:
                waiter.tell_end(wait, error)
            raise
        else:
            if wait is not None:
                waiter.tell_end(wait, None)
        finally:
            waiter.end()
            if not stream.waits:
                self._forget(stream)

    async def poll(self, waiter: Waiter, due: float) -> None:
        """Send one request when its turn has come, and take its answer.

        It returns without an answer if the waiter is called back.
        """
        limits = self._limits  # the ones it acquires: another event loop may take over meanwhile
        waiter.is_called_back = False
        with anyio.CancelScope(deadline=waiter.deadline.at) as waiter.turn:
            waiter.stream.turns[waiter] = None
            try:
                queued = await limits.acquire(due)
                began = anyio.current_time()
                try:
                    answer = await self._ask(waiter, began, queued)
                finally:
                    limits.release()
                self._take(waiter, answer, began)
            finally:
                waiter.turn = None
                waiter.stream.turns.pop(waiter, None)
        waiter.look_at_the_clock(waiter.deadline.at)

    async def _ask(self, waiter: Waiter, began: float, queued: float) -> Generation | APIError:
        stream, progress, answer = waiter.stream, waiter.stream.progress, None
        stream.asking.add(waiter)
        progress.begin_poll(began)
        if waiter.wait is not None:
            tell(PollBegan(waiter.wait, progress.polls, queued))
        try:
            answer = await self._fetch(progress.generation_id)
            return answer
        finally:
            stream.asking.discard(waiter)
            if answer is None:  # cut short: the next waiter asks as if nothing had been sent
                now = _now(began)
                if waiter.wait is not None:
                    _tell_poll(
                        waiter, waiter.wait, None, now, quiet=0.0, next_poll=None, began=began
                    )
                # A waiter that was called back leaves because there is another answer already.
                if not waiter.is_called_back:
                    stream.note_cut(has_left=now < waiter.deadline.at)
                # While it asked, the others counted on its answer, even past a quiet. Now those
                # whose deadline comes before the end of the quiet must give up.
                if self.quiet.until > now:
                    stream.wake_all()

    async def _fetch(self, generation_id: str) -> Generation | APIError:
        try:
            return as_generation(await self._get(generation_id), generation_id)
        except Exception as error:
            answer = translate_to_keep(error, generation_id)  # perhaps for an hour
            if answer is None:
                raise
            return answer

    def _take(self, waiter: Waiter, answer: Generation | APIError, began: float) -> None:
        stream, progress, now = waiter.stream, waiter.stream.progress, anyio.current_time()
        quiet = self._keep_quiet(answer, now)
        state = progress.latest and progress.latest.state
        is_news, next_poll = progress.record(answer, now, asked=began), None
        stream.note_answer()
        stream.turns.pop(waiter, None)
        stream.call_back(stream.turns)  # any other turn asks for what is known now
        has_ended = progress.result is not None
        has_changed = (progress.latest and progress.latest.state) != state
        # If nothing has changed, waking only the one that asks next spares thousands of watchers.
        # But after a quiet all must look whether it outlasts their deadlines.
        if has_ended or has_changed or self.quiet.until > now:
            stream.wake_all()
        else:
            stream.wake_first()
        try:
            if is_news:
                progress.consult(self._schedule, now)
            if waiter.wait is not None:  # only observers need it
                next_poll = progress.next_poll(stream.deadlines, self.quiet, now)
        finally:  # even if the schedule raises, observers see an end for each poll that began
            if waiter.wait is not None:
                _tell_poll(
                    waiter, waiter.wait, answer, now, quiet=quiet, next_poll=next_poll, began=began
                )
        if has_ended:
            self._forget(stream)
        self._log.report(progress, answer)

    def _hand_in(self, stream: Stream, snapshot: Generation, now: float) -> None:
        if not stream.progress.hand_in(snapshot, now):
            return
        stream.progress.consult(self._schedule, now)
        stream.wake_all()
        if stream.progress.result is not None:
            self._forget(stream)
            stream.call_back(stream.turns)  # it has ended: the answer of any request is known
        # Else its wait shows it to its caller now, and `leave` calls back what is no longer due.

    def _keep_quiet(self, answer: Generation | APIError, now: float) -> float:
        """Apply a `Retry-After` to all waits; those with an earlier deadline decide again at once.

        Returns:
            The seconds by which it prolongs the quiet.
        """
        if not isinstance(answer, APIStatusError) or not answer.retryable:
            return 0.0
        until = now + (answer.retry_after or 0.0)
        before = max(now, self.quiet.until)
        if until <= before:
            return 0.0
        self._limits.quiet = Quiet(until, answer)
        for waiter in self._loop.kept.ends.pop_up_to(until):
            if not waiter.stream.asking:  # else an answer is on its way, and still counts
                waiter.call_back()
        return until - before

    def _forget(self, stream: Stream) -> None:
        """Drop a stream that has ended: the next wait for the generation starts another one."""
        generation_id, by_id = stream.progress.generation_id, self._loop.kept.by_id
        if by_id.get(generation_id) is stream:
            del by_id[generation_id]


def _tell_poll(
    waiter: Waiter,
    wait: Wait,
    answer: Generation | APIError | None,
    now: float,
    *,
    quiet: float,
    next_poll: float | None,
    began: float,
) -> None:
    progress = waiter.stream.progress
    unfinished = progress.unfinished_at
    others = [each.wait for each in waiter.stream.waits if each is not waiter]
    tell(
        PollEnded(
            wait,
            progress.polls,
            tuple(filter(None, others)),
            duration=now - began,
            answer=answer,
            quiet=quiet,
            is_end=answer is not None and progress.result is answer,
            age=now - progress.born,
            unfinished=None if unfinished is None else now - unfinished,
            elapsed=now - progress.started,
            next_delay=None if next_poll is None else max(0.0, next_poll - now),
        )
    )


def _now(default: float) -> float:
    """Return the time, or the default if the event loop was closed in the middle of a wait."""
    try:
        return anyio.current_time()
    except RuntimeError:
        return default
