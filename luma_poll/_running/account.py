"""The capacity of the account, and when more may be submitted. Decided without I/O or a clock."""

from __future__ import annotations

import math
import re
from bisect import insort
from collections import Counter, deque
from contextlib import suppress
from typing import TypeAlias

from luma_poll._api.headers import RateLimit
from luma_poll._api.outcomes import NOT_SENT, Accepted, NotAccepted, Outcome, Unknown
from luma_poll._tasks.backoff import doubled
from luma_poll.errors import APIStatusError, RateLimitError

Kind: TypeAlias = tuple[object, ...]
"""The model and type of a request: requests of one kind weigh the same."""

WINDOW = 60.0
"""Seconds: the API counts the submissions of the last minute (rate-limits guide)."""
FIRST_PROBE = 15.0
"""Seconds after a refusal until we try more than the account is known to allow."""
LAST_PROBE = 30.0
"""The most seconds that this grows to while other programs may have caused the refusals."""
FULL_PROBE = 60.0
"""The same seconds if our own generations fill the account: the `Retry-After` of a full one."""

MOST_IN_FLIGHT = 8
"""Submissions at once without an answer: an outage that begins now can lose as many."""
FIRST_PAUSE = 0.5
"""Seconds after a submission without a clear answer until the next one; doubled each time."""
LONGEST_PAUSE = 30.0
"""The most seconds that this grows to: each further submission may be lost, and still billed."""
LONGEST_PAUSE_UNSENT = 5.0
"""The most seconds if nothing could be sent: trying costs nothing."""
FIRST_CONNECTION = 30.0
"""Seconds for which we try an API that was never reached: its address is probably wrong."""
LONGEST_RUN = 3600.0
"""Seconds: the API ends every generation within an hour (https://docs.agents.lumalabs.ai, FAQ)."""

SHORTEST_HINT = 1.0
"""Seconds: no `Retry-After` of the API is shorter."""

# "Concurrent generation capacity reached (limit=10 weight units; this request needs 3)", and
# "Concurrent generation limit reached (10)" are texts of the live API. A number in any other
# place of a text may mean anything, so it is not read.
_LIMIT = re.compile(r"\blimit(?:\s*=\s*|\s+reached\s*\(\s*)(\d{1,6})\b", re.IGNORECASE)
_NEEDS = re.compile(r"\bneeds\s+(\d{1,6})\b", re.IGNORECASE)


def is_full(error: APIStatusError) -> bool:
    """Return True for the 429 of a full account, which ends when one of its generations does.

    Any other 429 ends with time. The documented text differs from the live ones; all texts that
    were ever seen contain "concurren".
    """
    return "concurren" in (error.detail or "").lower()


class Account:
    """The account's capacity, as far as we know it, and how much of it is in use.

    Weights are in the API's units: a generation weighs 1 unless an answer reported otherwise. The
    account allows at least what it was seen to run. More is tried like TCP's slow start: one
    submission at first, then as many more at once as were accepted; after a refusal one, and only
    after a pause.

    Args:
        max_running: The most generations at once, whatever the account allows; None for no limit.
        max_submissions: The most submissions in all; None for no limit.
    """

    def __init__(self, max_running: int | None = None, max_submissions: int | None = None) -> None:
        self._max_running = math.inf if max_running is None else max_running
        self._submissions_left = math.inf if max_submissions is None else max_submissions
        self._running = Counter[Kind]()
        self._in_flight = Counter[Kind]()
        self._weights: dict[Kind, int] = {}
        self._told: set[Kind] = set()  # kinds whose weight a refusal named: it is certain
        self._limit: int | None = None  # of the whole account, if the last refusal named it
        self._allowed = 0  # units of ours that were seen to run at once
        self._extra = 1  # units beyond these that may be in flight
        # Submissions in flight that were sent before the last refusal. Their answers are about
        # the same moment as that refusal, so they neither confirm nor disprove it.
        self._stale = 0
        self._probe_at = -math.inf
        self._probe_interval = FIRST_PROBE
        self._quiet_until = -math.inf
        # In an outage everything pauses, and one submission at a time asks whether it is over.
        # Otherwise each waiting request would run into the outage, and fail for it.
        self._asked = 0  # submissions in a row without a clear answer
        self._asked_before = 0  # in flight since before the last of these: the same outage
        self._first_failure = math.inf
        self._was_reached = False
        # The times when the generations of lost submissions have ended for certain, if they run.
        self._lost = deque[float]()
        self._window = _Window()

    @property
    def running(self) -> int:
        """Our generations that have not ended, as far as we know."""
        return self._running.total()

    @property
    def in_flight(self) -> int:
        """Submissions whose answer has not come yet."""
        return self._in_flight.total()

    @property
    def is_exhausted(self) -> bool:
        """True when `max_submissions` is reached."""
        return self._submissions_left <= 0

    def weight(self, kind: Kind) -> int:
        """Return the units that a request of this kind takes, as far as we know."""
        return self._weights.get(kind, 1)

    def may_submit_at(self, kind: Kind) -> float:
        """Return when a request of this kind may be submitted, if nothing changes until then.

        Returns:
            Seconds on the clock of the other methods' `now`; inf if something has to end first.
        """
        most = 1 if self._asked else min(MOST_IN_FLIGHT, self._submissions_left)
        if self.in_flight >= max(most, 1):
            return math.inf
        # A lost submission may run unseen, so it counts here until it has ended for certain.
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
        # Alone it may be tried whatever it weighs: only the answer shows if the account takes it.
        if self.in_flight and total > self._allowed + self._extra:
            return math.inf
        return max(earliest, self._probe_at)

    def begin(self, kind: Kind) -> None:
        """Note that a request is being submitted; `end` must follow."""
        self._in_flight[kind] += 1

    def end(self, kind: Kind, outcome: Outcome, now: float) -> None:
        """Note the outcome of a submission."""
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
        """The end of the pause that holds for every submission, on the clock of `now`."""
        return self._quiet_until

    def gives_up(self, now: float) -> bool:
        """Return True if the API was tried for long enough, and never reached."""
        return not self._was_reached and now - self._first_failure >= FIRST_CONNECTION

    def _pause(self, now: float, longest: float, was_old: bool) -> None:
        """Let everything pause; what was sent before the pause does not extend it."""
        self._first_failure = min(self._first_failure, now)
        if was_old and self._asked:
            return
        pause = doubled(self._asked + 1, FIRST_PAUSE, longest)
        self._quiet_until = max(self._quiet_until, now + pause)
        self._asked, self._asked_before = self._asked + 1, self.in_flight

    def _accept(self, kind: Kind, now: float, rate_limit: RateLimit | None) -> None:
        alone, is_stale = self.in_flight == 1, self._stale > 0
        self._settle(kind)
        self._running[kind] += 1
        self._submissions_left -= 1
        fall = self._window.accept(now, self.weight(kind), rate_limit)
        if fall is not None and alone and kind not in self._told:
            # Submissions of other programs make the window fall further: the least is the weight.
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
            return  # it was sent before the last refusal: no second sign of a full account
        running = self._units(self._running)
        total = running + self._units(self._in_flight) + self.weight(kind)
        if self._limit is not None and total > self._limit:
            # Our own fill the account: the refusal says so, and an early probe would learn nothing.
            self._allowed, interval = self._limit, FULL_PROBE
        else:
            # Others share the account, or the refusal named no limit: what runs is what fits.
            self._allowed, interval = running, self._probe_interval
            self._probe_interval = min(2 * self._probe_interval, LAST_PROBE)
        self._extra, self._stale = 1, self.in_flight
        wanted = error.retry_after or 0.0
        self._probe_at = now + (min(wanted, interval) if wanted >= SHORTEST_HINT else interval)

    def cannot_fit(self, kind: Kind) -> bool:
        """Return True if refusals named the weight of such a request, and a limit below it."""
        return self._limit is not None and kind in self._told and self.weight(kind) > self._limit

    def _lose(self, kind: Kind, now: float) -> None:
        self._settle(kind)
        self._submissions_left -= 1
        self._lost.append(now + LONGEST_RUN)  # it may run, and without an id we cannot see its end
        self._occupy(kind)

    def adopt(self, kind: Kind) -> None:
        """Note that a generation runs that an earlier process submitted."""
        self._running[kind] += 1  # it runs, so the account allows at least this much
        self._allowed = max(self._allowed, self._units(self._running))

    def finish(self, kind: Kind) -> None:
        """Note that a generation has ended."""
        self._running[kind] -= 1

    def abandon(self, kind: Kind, until: float) -> None:
        """Note that no run waits for a generation: it still occupies the account, unseen.

        Args:
            kind: The kind of its request.
            until: When it has ended for certain.
        """
        self._running[kind] -= 1
        self._occupy(kind)
        insort(self._lost, until)

    def recall(self, until: float) -> None:
        """Note that a run waits for an abandoned generation again, or that it has ended."""
        with suppress(ValueError):  # its time is over, so it was removed already
            self._lost.remove(until)

    @property
    def is_held_up(self) -> bool:
        """True if `max_running` is reached only because of generations that may run unseen."""
        next_one = self.running + self.in_flight + 1
        return next_one <= self._max_running < next_one + len(self._lost)

    def begin_loop(self) -> None:
        """Start over with nothing running, in an event loop whose clock may differ.

        The capacity and the weights that were learned remain.
        """
        self._submissions_left -= self.in_flight  # their answers are lost: they count as accepted
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
        if is_lighter:  # `_allowed` was counted with the old, larger weight, so it is too much
            self._allowed = min(self._allowed, self._units(self._running))
            self._extra = 1


class _Window:
    """The submissions of the last minute, as far as the answers report them."""

    def __init__(self) -> None:
        self._remaining: int | None = None
        self._answered = -math.inf
        self._share: int | None = None  # units of ours that were in it when it was full
        self._refused = -math.inf
        self._may_ask = False  # True for one submission, after the time that a refusal named
        # Our submissions that were in it at the last answer: when each leaves it, and its weight.
        self._recent = deque[tuple[float, int]]()
        self._used = 0  # units of these

    def accept(self, now: float, weight: int, rate_limit: RateLimit | None) -> int | None:
        """Note an accepted submission; return its weight, if the window's fall shows it."""
        before, number = self._remaining, len(self._recent)
        while self._recent and self._recent[0][0] <= now:
            self._used -= self._recent.popleft()[1]
        none_left = len(self._recent) == number
        self._recent.append((now + WINDOW, weight))
        self._used += weight
        self._answered, self._may_ask = now, False
        self._remaining = None if rate_limit is None else rate_limit.remaining
        # If others of ours left the window meanwhile, its fall is smaller than the weight.
        if before is None or self._remaining is None or not none_left:
            return None
        fall = before - self._remaining
        return fall if fall > 0 else None

    def room_at(self, weight: int, in_flight: int) -> float:
        """Return when there is room for so many units; -inf if there is now, or nothing tells."""
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
        return -math.inf  # others fill it, so only a refusal can tell until when

    def refuse(self, now: float) -> None:
        """Note a refusal because the window was full."""
        self._refused, self._may_ask = now, True
        self._share = sum(units for leaves, units in self._recent if leaves > now)

    def _room(self) -> float:
        if self._remaining is not None:
            return self._remaining
        if self._share is None:
            return math.inf
        # A refusal shows our share at that time. Others may use less since, so the share grows
        # by one unit per minute without a refusal.
        return self._share + max(0.0, self._answered - self._refused) // WINDOW - self._used
