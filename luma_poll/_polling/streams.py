"""One stream of requests for each generation, shared by all waits for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio

from luma_poll._api.answers import as_generation
from luma_poll._api.translation import translate_error
from luma_poll._polling.decisions import Deadline, Decision, Progress, Quiet, decide
from luma_poll._polling.limits import RequestLimits
from luma_poll._polling.observers import Observers, outcome_of, tell
from luma_poll._polling.poll_log import PollLog
from luma_poll._polling.schedules import Schedule
from luma_poll._tasks.alarm import Alarm
from luma_poll._tasks.event_loops import LoopGuard
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


class Waiter(Alarm):
    """One wait for a generation, which sleeps until it has to decide again.

    Attributes:
        stream: The stream that it shares with the other waits for the generation.
        deadline: Its own.
        turn: While it asks, from queueing for a turn to the answer: the scope of that.
        wait: As its observers know it; None if there are none.
    """

    def __init__(self, stream: Stream, deadline: Deadline, wait: Wait | None) -> None:
        super().__init__()
        self.stream = stream
        self.deadline = deadline
        self.turn: anyio.CancelScope | None = None
        self.wait = wait
        self._polls_before = stream.progress.polls

    def decide(self, quiet: Quiet) -> Decision:
        """Say what to do now."""
        progress = self.stream.progress
        return decide(
            progress,
            self.deadline,
            quiet,
            now=anyio.current_time(),
            attempts=progress.polls - self._polls_before,
            asks_for=self.stream.deadlines_of(self),
        )

    def call_back(self) -> None:
        """Make it decide again, even while it queues for its turn or its request is under way."""
        self.wake()
        if self.turn is not None:
            self.turn.cancel()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Let others ask: the caller has the snapshot, and may keep it for as long as it likes."""
        latest = self.stream.progress.latest
        if self.wait is not None and latest is not None:
            tell(WaitStateChanged(self.wait, latest))
        self.stream.leave(self)
        try:
            yield
        finally:
            self.stream.enter(self)

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

    The waiter that stays longest asks for all. Its deadline is the last to cut a request short,
    so that no shorter one ever throws away an answer for which another would have stayed.

    Attributes:
        progress: What is known of the generation.
        waits: The waits that share the stream, those that are away included, in their order.
        asking: The waiter whose request is under way.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.waits: dict[Waiter, None] = {}
        self.asking: Waiter | None = None
        self._present = Heap[Waiter]()  # the longest first
        self._places: dict[Waiter, Any] = {}

    def deadlines_of(self, waiter: Waiter) -> Iterator[Deadline]:
        """The deadlines for which this waiter asks: those of all, or none if another one asks."""
        if self.asking is None and self._present.first() is waiter:
            yield from self.deadlines()

    def deadlines(self) -> Iterator[Deadline]:
        """The deadlines of those that are present."""
        return (waiter.deadline for waiter in self._present)

    def enter(self, waiter: Waiter) -> None:
        """Count a waiter among those that may ask."""
        longest = self._present.first()
        self._places[waiter] = self._present.push(-waiter.deadline.at, waiter)
        if longest is None or longest is self.asking:
            return  # a request that is under way is not begun again
        if self._present.first() is waiter:
            longest.call_back()  # it leaves its place in the queue to the one that stays longer
        else:
            longest.wake()  # it may have to ask earlier, for the sake of the newcomer's deadline

    def leave(self, waiter: Waiter) -> None:
        """Count it no longer: the next one asks."""
        self._present.remove(self._places.pop(waiter))
        longest = self._present.first()
        if longest is None or self.asking is not None:
            return
        if self.progress.due > anyio.current_time():
            longest.call_back()  # it may queue for a last poll that nobody needs any more
        else:
            longest.wake()  # and if it queues, it keeps its place

    def wake_all(self) -> None:
        """Wake everybody, after an answer."""
        for waiter in self._present:
            waiter.wake()

    def call_all_back(self) -> None:
        """Wake everybody, and end a request that is under way."""
        for waiter in self._present:
            waiter.call_back()


class Streams:
    """The streams of one poller, and the limits that hold for all their requests.

    All of it belongs to one event loop; the next one starts with a new one.

    Args:
        get: Fetches a snapshot by id.
        schedule: When to ask again.
        max_in_flight: Requests under way at the same time; None for no limit.
        max_rate: Requests started per second; None for no limit.

    Attributes:
        observers: The observers of its waits and polls.
    """

    def __init__(
        self,
        get: Callable[[str], Awaitable[Any]],
        schedule: Schedule,
        max_in_flight: int | None,
        max_rate: float | None,
    ) -> None:
        self._get = get
        self._schedule = schedule
        self._bounds = max_in_flight, max_rate
        self.observers = Observers()
        self._log = PollLog()
        self._loop = LoopGuard("Poller")
        self._begin()

    def _begin(self) -> None:
        self._limits = RequestLimits(*self._bounds)
        self._by_id: dict[str, Stream] = {}
        self._by_deadline = Heap[Waiter]()  # a quiet that outlasts a deadline ends that wait

    def __len__(self) -> int:
        return len(self._by_id)

    def summary(self) -> str:
        """The limits, and how much is under way, for the poller's repr."""
        most, rate = self._bounds
        under_way = f"in_flight={self._limits.in_flight}, generations={len(self)}"
        return f"max_in_flight={most}, max_rate={rate}, {under_way}"

    @property
    def quiet(self) -> Quiet:
        """How long the API asked for quiet."""
        return self._limits.quiet

    def set_max_rate(self, max_rate: float | None) -> None:
        """Let so many requests start per second from now on; None for no limit."""
        self._bounds = self._bounds[0], max_rate
        self._limits.set_max_rate(max_rate)

    @contextmanager
    def join(
        self, generation_id: str, snapshot: Generation | None, timeout: float | None
    ) -> Iterator[Waiter]:
        """Take part in the stream of a generation; a snapshot of it counts as an answer.

        Raises:
            ConfigurationError: Waits are under way in another event loop.
        """
        if self._loop.enter():
            self._begin()
        now = anyio.current_time()
        stream = self._by_id.get(generation_id)
        if stream is None:
            stream = self._by_id[generation_id] = Stream(Progress(generation_id, started=now))
        observers = self.observers.present
        wait = Wait(generation_id, timeout, observers) if observers else None
        waiter = Waiter(stream, Deadline(now, timeout), wait)
        by_deadline = self._by_deadline  # of this event loop, also when the wait is closed later
        entry = by_deadline.push(waiter.deadline.at, waiter)
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
            stream.leave(waiter)
            del stream.waits[waiter]
            by_deadline.remove(entry)
            if not stream.waits:
                self._forget(stream)

    async def poll(self, waiter: Waiter, due: float) -> None:
        """Send one request when its turn has come, and take its answer.

        It ends without one when the waiter is called back.
        """
        limits = self._limits  # of this event loop, also when the request is closed later
        with anyio.CancelScope(deadline=waiter.deadline.at) as waiter.turn:
            try:
                queued = await limits.acquire(due)
                try:
                    if waiter.turn.cancel_called:  # at the moment at which the turn came
                        return
                    answer = await self._ask(waiter, queued)
                finally:
                    limits.release()
                self._take(waiter, answer)
            finally:
                waiter.turn = None

    async def _ask(self, waiter: Waiter, queued: float) -> Generation | APIError:
        stream, progress, answer = waiter.stream, waiter.stream.progress, None
        stream.asking = waiter
        progress.begin_poll(anyio.current_time())
        if waiter.wait is not None:
            tell(PollBegan(waiter.wait, progress.polls, queued))
        try:
            answer = await self._fetch(progress.generation_id)
            return answer
        finally:
            stream.asking = None
            if answer is None:  # cut short: the next one asks, as if this request had not been
                if waiter.wait is not None:
                    now = _now(progress.last_poll)
                    _tell_poll(waiter, waiter.wait, None, now, quiet=0.0, next_poll=None)
                progress.abandon_poll()
                stream.wake_all()

    async def _fetch(self, generation_id: str) -> Generation | APIError:
        try:
            return as_generation(await self._get(generation_id), generation_id)
        except Exception as error:
            translated = translate_error(error, generation_id)
            if translated is None:
                raise
            if translated is not error:
                translated.__cause__ = error.with_traceback(None)
            # It is an answer now: without tracebacks it keeps no frames alive.
            return translated.with_traceback(None)

    def _take(self, waiter: Waiter, answer: Generation | APIError) -> None:
        stream, progress, now = waiter.stream, waiter.stream.progress, anyio.current_time()
        quiet = self._keep_quiet(answer, now)
        stream.wake_all()
        next_poll = None
        try:
            if progress.record(answer, now):
                progress.consult(self._schedule, now)
            if waiter.wait is not None:  # else nobody asks for it
                next_poll = progress.next_poll(stream.deadlines(), self.quiet)
        finally:  # also if the schedule raises: each poll that began has an end
            if waiter.wait is not None:
                _tell_poll(waiter, waiter.wait, answer, now, quiet=quiet, next_poll=next_poll)
        if progress.result is not None:
            self._forget(stream)
        self._log.report(progress, answer)

    def _hand_in(self, stream: Stream, snapshot: Generation, now: float) -> None:
        if not stream.progress.hand_in(snapshot, now):
            return
        stream.progress.consult(self._schedule, now)
        if stream.progress.result is not None:
            self._forget(stream)
            stream.call_all_back()  # what a request under way asks is known
        elif stream.asking is None:
            stream.call_all_back()  # a request that queues for its turn is no longer due
        else:
            stream.wake_all()

    def _keep_quiet(self, answer: Generation | APIError, now: float) -> float:
        """Heed `Retry-After` for all waits; those that it outlasts hear of it at once.

        Returns:
            Seconds by which it prolongs the quiet.
        """
        if not isinstance(answer, APIStatusError) or not answer.retryable:
            return 0.0
        until = now + (answer.retry_after or 0.0)
        before = max(now, self.quiet.until)
        if until <= before:
            return 0.0
        self._limits.quiet = Quiet(until, answer)
        for waiter in self._by_deadline.pop_up_to(until):
            if waiter.stream.asking is not waiter:  # an answer that is on its way still counts
                waiter.call_back()
        return until - before

    def _forget(self, stream: Stream) -> None:
        """Drop a stream that has ended: the next wait for the generation starts another one."""
        generation_id = stream.progress.generation_id
        if self._by_id.get(generation_id) is stream:
            del self._by_id[generation_id]


def _tell_poll(
    waiter: Waiter,
    wait: Wait,
    answer: Generation | APIError | None,
    now: float,
    *,
    quiet: float,
    next_poll: float | None,
) -> None:
    progress = waiter.stream.progress
    unfinished = progress.unfinished_at
    others = [each.wait for each in waiter.stream.waits if each is not waiter]
    tell(
        PollEnded(
            wait,
            progress.polls,
            tuple(filter(None, others)),
            duration=now - progress.last_poll,
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
    """The time, or the default where the event loop was closed in the middle of a wait."""
    try:
        return anyio.current_time()
    except RuntimeError:
        return default
