"""The capacity of the account: may something be submitted now? Decided without I/O or a clock."""

from __future__ import annotations

import math
import re
from collections import Counter, deque
from typing import TypeAlias

from luma_poll._api.headers import RateLimit
from luma_poll._api.outcomes import NOT_SENT, Accepted, NotAccepted, Outcome, Unknown
from luma_poll.errors import APIStatusError, RateLimitError

Kind: TypeAlias = tuple[object, ...]
"""Requests of one kind (model and type) weigh the same."""

WINDOW = 60.0
"""Seconds: the API counts the submissions of the last minute (rate-limits guide)."""
FIRST_PROBE = 15.0
"""Seconds after a refusal until more is tried than the account is known to allow."""
LAST_PROBE = 30.0
"""The most that this grows to, after refusals of which others on the account may be the reason."""
FULL_PROBE = 60.0
"""Seconds until then where ours alone fill the account: the `Retry-After` of a full one."""

MOST_IN_FLIGHT = 8
"""Submissions without an answer: so many an outage can cost that begins now."""
FIRST_PAUSE = 0.5
"""Seconds after a submission without a clear answer until one more asks; doubled each time."""
LONGEST_PAUSE = 30.0
"""The most that this grows to: the one that asks may be billed, or not."""
LONGEST_PAUSE_UNSENT = 5.0
"""The most that it grows to where nothing could be sent: to ask costs nothing."""
FIRST_CONNECTION = 30.0
"""Seconds for which an API that was never reached is tried: its address is likely wrong."""
LONGEST_RUN = 3600.0
"""Seconds: the API ends every generation within an hour (https://docs.agents.lumalabs.ai, FAQ)."""

SHORTEST_HINT = 1.0
"""Seconds: no `Retry-After` of the API is shorter."""

# "Concurrent generation capacity reached (limit=10 weight units; this request needs 3)", and
# "Concurrent generation limit reached (10)", as seen live. Other numbers may mean anything.
_LIMIT = re.compile(r"\blimit(?:\s*=\s*|\s+reached\s*\(\s*)(\d{1,6})\b", re.IGNORECASE)
_NEEDS = re.compile(r"\bneeds\s+(\d{1,6})\b", re.IGNORECASE)


def is_full(error: APIStatusError) -> bool:
    """True for the 429 of a full account, which an end ends; false for one that time ends.

    The documented text is not the live one: "concurren" is in all that were seen.
    """
    return "concurren" in (error.detail or "").lower()


class Account:
    """The knowledge of the account's capacity, and how much of it is in use.

    Weights are in the API's units: a generation weighs 1 unless an answer reported otherwise. More
    than was seen to be allowed is tried in the manner of TCP's slow start: one submission at
    first, then as many more at once as were accepted; after a refusal one, and only after a pause.

    Args:
        max_running: Generations at once, whatever the account allows; None for no limit.
        max_submissions: Submissions in all; None for no limit.
    """

    def __init__(self, max_running: int | None = None, max_submissions: int | None = None) -> None:
        self._max_running = math.inf if max_running is None else max_running
        self._submissions_left = math.inf if max_submissions is None else max_submissions
        self._running = Counter[Kind]()
        self._in_flight = Counter[Kind]()
        self._weights: dict[Kind, int] = {}
        self._told: set[Kind] = set()  # those whose weight a refusal named
        self._limit: int | None = None  # of the whole account, where the last refusal named it
        self._allowed = 0  # units of ours that were seen to run at once
        self._extra = 1  # units beyond that may be in flight
        self._stale = 0  # submissions in flight from before the last refusal: they prove little
        self._probe_at = -math.inf
        self._probe_interval = FIRST_PROBE
        self._quiet_until = -math.inf
        # In an outage everything pauses, and one submission at a time asks if it is over: a fault
        # of the service must not be booked on each request.
        self._asked = 0  # submissions in a row without a clear answer
        self._asked_before = 0  # in flight since before the last of them: they say no more than it
        self._first_failure = math.inf
        self._was_reached = False
        self._lost = deque[float]()  # when each that may run, unseen, has certainly ended
        self._window = _Window()

    @property
    def running(self) -> int:
        """Generations of ours that have not ended, as far as known."""
        return self._running.total()

    @property
    def in_flight(self) -> int:
        """Submissions whose answer has not come."""
        return self._in_flight.total()

    @property
    def is_exhausted(self) -> bool:
        """True when `max_submissions` is reached."""
        return self._submissions_left <= 0

    def weight(self, kind: Kind) -> int:
        """The units that a request of this kind takes, as far as known."""
        return self._weights.get(kind, 1)

    def may_submit_at(self, kind: Kind) -> float:
        """When a request of this kind may be submitted, if nothing changes until then.

        Returns:
            Seconds on the clock of the other methods' `now`; inf if something has to end first.
        """
        most = 1 if self._asked else min(MOST_IN_FLIGHT, self._submissions_left)
        if self.in_flight >= max(most, 1):
            return math.inf
        too_many = self.running + self.in_flight + len(self._lost) + 1 - self._max_running
        if too_many > len(self._lost):
            return math.inf
        weight, in_flight = self.weight(kind), self._units(self._in_flight)
        total = self._units(self._running) + in_flight + weight
        earliest = max(self._quiet_until, self._window.room_at(weight, in_flight))
        if too_many > 0:
            earliest = max(earliest, self._lost[int(too_many) - 1])
        if total <= self._allowed:
            return earliest
        if self.in_flight and total > self._allowed + self._extra:
            return math.inf
        return max(earliest, self._probe_at)

    def begin(self, kind: Kind) -> None:
        """Note that a request is being submitted; `end` must follow."""
        self._in_flight[kind] += 1

    def end(self, kind: Kind, outcome: Outcome, now: float) -> None:
        """Note what became of it."""
        was_old = self._asked_before > 0
        self._asked_before = max(0, self._asked_before - 1)
        while self._lost and self._lost[0] <= now:
            self._lost.popleft()
        match outcome:
            case Accepted():
                self._accept(kind, now, outcome.rate_limit)
            case NotAccepted(RateLimitError() as error):
                self._refuse(kind, now, error)
            case NotAccepted():
                self._settle(kind)
            case Unknown():
                self._lose(kind, now)
        if isinstance(outcome, Unknown):
            self._pause(now, LONGEST_PAUSE, was_old)
        elif isinstance(outcome, NotAccepted) and outcome.may_pass and not outcome.is_refusal:
            self._pause(now, LONGEST_PAUSE_UNSENT, was_old)
        elif outcome != NOT_SENT and not was_old:
            self._asked, self._was_reached = 0, True
            self._first_failure = math.inf

    @property
    def quiet_until(self) -> float:
        """When the pause ends that holds for every submission, on the clock of `now`."""
        return self._quiet_until

    def gives_up(self, now: float) -> bool:
        """True if the API was tried long enough, and never reached."""
        return not self._was_reached and now - self._first_failure >= FIRST_CONNECTION

    def _pause(self, now: float, longest: float, was_old: bool) -> None:
        """Let everything pause; those that were sent before the pause make it no longer."""
        self._first_failure = min(self._first_failure, now)
        if was_old and self._asked:
            return
        pause = min(FIRST_PAUSE * 2.0 ** min(self._asked, 10), longest)
        self._quiet_until = max(self._quiet_until, now + pause)
        self._asked, self._asked_before = self._asked + 1, self.in_flight

    def _accept(self, kind: Kind, now: float, rate_limit: RateLimit | None) -> None:
        alone, is_stale = self.in_flight == 1, self._stale > 0
        self._settle(kind)
        self._running[kind] += 1
        self._submissions_left -= 1
        fall = self._window.accept(now, self.weight(kind), rate_limit)
        if fall is not None and alone and kind not in self._told:
            # Others on the account make the window fall by more: the least is the weight.
            self._weigh(kind, min(fall, self._weights.get(kind, fall)))
        units = self._units(self._running)
        if units > self._allowed:
            self._allowed = units
            if not is_stale:
                self._extra += self.weight(kind)
                self._probe_interval = FIRST_PROBE

    def _refuse(self, kind: Kind, now: float, error: RateLimitError) -> None:
        is_stale = self._stale > 0
        self._settle(kind)
        if not is_full(error):
            pause = max(error.retry_after or 0.0, SHORTEST_HINT)
            self._quiet_until = max(self._quiet_until, now + pause)
            self._window.refuse(now)
            return
        self._learn(kind, error.detail or "")
        if is_stale:
            return  # it was sent together with the one before: no second sign of a full account
        running = self._units(self._running)
        total = running + self._units(self._in_flight) + self.weight(kind)
        if self._limit is not None and total > self._limit:
            # Ours alone fill it. To try for more before long would be to doubt its own words.
            self._allowed, interval = self._limit, FULL_PROBE
        else:
            # Others share the account, or it named no limit: what runs is what fits.
            self._allowed, interval = running, self._probe_interval
            self._probe_interval = min(2 * self._probe_interval, LAST_PROBE)
        self._extra, self._stale = 1, self.in_flight
        wanted = error.retry_after or 0.0
        self._probe_at = now + (min(wanted, interval) if wanted >= SHORTEST_HINT else interval)

    def cannot_fit(self, kind: Kind) -> bool:
        """True where the account named both a limit and the weight of such a request above it."""
        return self._limit is not None and kind in self._told and self.weight(kind) > self._limit

    def _lose(self, kind: Kind, now: float) -> None:
        self._settle(kind)
        self._submissions_left -= 1
        self._lost.append(now + LONGEST_RUN)  # it may run, and nothing tells of its end
        self._occupy(kind)

    def adopt(self, kind: Kind) -> None:
        """Note that a generation runs that an earlier process submitted."""
        self._running[kind] += 1
        self._allowed = max(self._allowed, self._units(self._running))

    def finish(self, kind: Kind) -> None:
        """Note that a generation has ended."""
        self._running[kind] -= 1

    def abandon(self, kind: Kind) -> None:
        """Note that nobody waits for a generation any more: it still occupies the account."""
        self._running[kind] -= 1
        self._occupy(kind)

    def begin_loop(self) -> None:
        """Begin again with nothing running, in an event loop whose clock may be another one.

        The capacity and the weights that were learned remain.
        """
        self._submissions_left -= self.in_flight  # they may have been accepted
        self._running.clear()
        self._in_flight.clear()
        self._stale = self._asked = self._asked_before = 0
        self._first_failure = math.inf
        self._lost.clear()
        self._quiet_until = self._probe_at = -math.inf
        self._window = _Window()

    def _settle(self, kind: Kind) -> None:
        self._in_flight[kind] -= 1
        self._stale = max(0, self._stale - 1)

    def _occupy(self, kind: Kind) -> None:
        self._allowed = max(0, self._allowed - self.weight(kind))

    def _units(self, generations: Counter[Kind]) -> int:
        return sum(self.weight(kind) * number for kind, number in generations.items())

    def _learn(self, kind: Kind, detail: str) -> None:
        limit, needs = _LIMIT.search(detail), _NEEDS.search(detail)
        self._limit = int(limit[1]) if limit else None
        if needs:
            self._weigh(kind, max(1, int(needs[1])))
            self._told.add(kind)

    def _weigh(self, kind: Kind, weight: int) -> None:
        is_lighter = weight < self.weight(kind)
        self._weights[kind] = weight
        if is_lighter:  # what was proven was counted in units that were too small
            self._allowed = min(self._allowed, self._units(self._running))
            self._extra = 1


class _Window:
    """The submissions of the last minute, as far as the answers report them."""

    def __init__(self) -> None:
        self._remaining: int | None = None
        self._answered = -math.inf
        self._share: int | None = None  # units of ours that were in it when it was full
        self._refused = -math.inf
        self._may_ask = False  # once, when the time comes that a refusal named
        # Ours that were in it at the last answer: when each leaves it, and its weight.
        self._recent = deque[tuple[float, int]]()
        self._used = 0  # units of these

    def accept(self, now: float, weight: int, rate_limit: RateLimit | None) -> int | None:
        """Note an accepted submission; returns its weight, if the window's fall shows it."""
        before, number = self._remaining, len(self._recent)
        while self._recent and self._recent[0][0] <= now:
            self._used -= self._recent.popleft()[1]
        none_left = len(self._recent) == number
        self._recent.append((now + WINDOW, weight))
        self._used += weight
        self._answered, self._may_ask = now, False
        self._remaining = None if rate_limit is None else rate_limit.remaining
        if before is None or self._remaining is None or not none_left:
            return None
        fall = before - self._remaining
        return fall if fall > 0 else None

    def room_at(self, weight: int, in_flight: int) -> float:
        """When there is room for so many units; -inf where that is not known, or there is."""
        if self._may_ask and not in_flight:
            return -math.inf
        weight += in_flight
        room = self._room()
        if room >= weight:
            return -math.inf
        for leaves, units in self._recent:
            room += units
            if room >= weight:
                return leaves
        return -math.inf  # others fill it: a refusal says until when

    def refuse(self, now: float) -> None:
        """Note that it was full."""
        self._refused, self._may_ask = now, True
        self._share = sum(units for leaves, units in self._recent if leaves > now)

    def _room(self) -> float:
        if self._remaining is not None:
            return self._remaining
        if self._share is None:
            return math.inf
        # What is learned from a refusal is forgotten slowly: one more is tried after each minute.
        return self._share + max(0.0, self._answered - self._refused) // WINDOW - self._used
