"""Random days of an API and its users, in virtual time: what must hold whatever happens."""

import operator
import os
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import anyio
import hypothesis.strategies as st
import pytest
import trio.testing
from hypothesis import HealthCheck, given, settings
from tenacity import wait_fixed

from luma_poll import (
    APIError,
    Generation,
    GenerationError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    Poller,
    PollTimeoutError,
    RateLimitError,
    ServerError,
)
from luma_poll._polling.decisions import Deadline
from luma_poll._polling.streams import MOST_CUTS
from tests.fakes import FakeClient, snapshot
from tests.virtual_time import VirtualTimeLoop

EPSILON = 1e-6
DAYS = int(os.environ.get("RANDOM_DAYS", "300"))


@dataclass(frozen=True)
class Visit:
    """One user: waits for a generation from `begins` on, and may walk away."""

    generation: int
    begins: float
    timeout: float
    leaves_after: float | None
    watches: bool
    reads_for: float  # seconds that a watcher takes for each snapshot
    with_snapshot: bool


@dataclass(frozen=True)
class Day:
    """The truth about two generations, the answers of the API, and its users."""

    ends: tuple[tuple[float, str], tuple[float, str]]
    answers: list[tuple[str, float]]  # of the requests, one after the other: kind and latency
    visits: list[Visit]
    interval: float
    max_in_flight: int | None
    max_rate: float | None


@dataclass
class Request:
    generation: int
    begins: float
    ends: float | None = None
    answer: Any = None


@dataclass
class Outcome:
    visit: Visit
    began: float
    ended: float = 0.0
    result: Any = None
    states: list[str] = field(default_factory=list)
    away: list[tuple[float, float]] = field(default_factory=list)

    @property
    def left(self) -> bool:
        return self.result is None

    def waits_over(self, start: float, end: float) -> bool:
        """It is there, and not busy with a snapshot, all the time between these."""
        present = self.began <= start and end <= self.ended
        return present and not any(a < end and start < b for a, b in self.away)


KINDS = ["good"] * 6 + [
    "gateway",
    "gateway",
    "503",
    "429 soon",
    "429 late",
    "rubbish",
    "reset",
    "404",
    "hang",
    "empty",
]

visits = st.builds(
    Visit,
    generation=st.integers(0, 1),
    begins=st.sampled_from([0.0, 0.0, 0.5, 3.0, 10.0, 30.0]),
    timeout=st.sampled_from([0.5, 3.0, 20.0, 60.0, 300.0]),
    leaves_after=st.sampled_from([None, None, None, 0.0, 0.7, 5.0, 25.0]),
    watches=st.booleans(),
    reads_for=st.sampled_from([0.0, 0.0, 8.0]),
    with_snapshot=st.booleans(),
)
leavers = st.lists(
    st.builds(
        Visit,
        generation=st.just(0),
        begins=st.sampled_from([0.0, 0.2, 0.6, 3.0, 3.3, 10.2, 10.5, 30.1]),
        timeout=st.sampled_from([60.0, 300.0]),
        leaves_after=st.sampled_from([0.3, 0.7, 0.9, 1.5]),
        watches=st.just(False),
        reads_for=st.just(0.0),
        with_snapshot=st.just(False),
    ),
    max_size=8,
)
ends = st.tuples(
    st.sampled_from([0.0, 4.0, 19.5, 59.5, 100.0, 1e9]), st.sampled_from(["completed", "failed"])
)
days = st.builds(
    Day,
    ends=st.tuples(ends, ends),
    answers=st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from([0.0, 0.1, 0.9, 4.0])), max_size=25
    ),
    visits=st.builds(operator.add, st.lists(visits, min_size=1, max_size=6), st.just([]) | leavers),
    interval=st.sampled_from([0.3, 2.0, 7.0, 45.0]),
    max_in_flight=st.sampled_from([None, 1, 2]),
    max_rate=st.sampled_from([None, 30.0, 1.0]),
)


class Api:
    """Answers as the day says; writes down every request."""

    def __init__(self, day: Day) -> None:
        self.generations = self
        self.day = day
        self.answers = iter(day.answers)
        self.requests: list[Request] = []

    async def get(self, generation_id: str) -> Any:
        request = Request(int(generation_id), anyio.current_time())
        self.requests.append(request)
        kind, latency = next(self.answers, ("good", 0.0))
        try:
            await anyio.sleep(1e6 if kind == "hang" else latency)
            request.answer = self.answer(kind, request.generation)
        finally:
            request.ends = anyio.current_time()
        if isinstance(request.answer, BaseException):
            raise request.answer
        return request.answer

    def answer(self, kind: str, generation: int) -> Any:
        at, state = self.day.ends[generation]
        errors: dict[str, Any] = {
            "503": ServerError("HTTP 503", status_code=503),
            "429 soon": RateLimitError("HTTP 429", status_code=429, retry_after=5.0),
            "429 late": RateLimitError("HTTP 429", status_code=429, retry_after=100.0),
            "404": NotFoundError("HTTP 404", status_code=404),
            "gateway": NotFoundError("HTTP 404", status_code=404, in_api_words=False),
            "reset": ConnectionResetError("reset"),
            "rubbish": "<html>",
        }
        if kind in errors:
            return errors[kind]
        if anyio.current_time() - self.began < at:
            return snapshot("processing", id=str(generation))
        output: dict[str, Any] = {"output": []} if kind == "empty" and state == "completed" else {}
        return snapshot(state, id=str(generation), **output)

    began = 0.0


async def read(outcome: Outcome, generation: Generation) -> None:
    """Take some time over a snapshot."""
    outcome.states.append(generation.state)
    began = anyio.current_time()
    try:
        await anyio.sleep(outcome.visit.reads_for)
    finally:
        outcome.away.append((began, anyio.current_time()))


async def live(day: Day) -> tuple[Api, list[Outcome], Poller]:
    api = Api(day)
    api.began = anyio.current_time()
    poller = Poller(
        api,
        wait=wait_fixed(day.interval),
        max_in_flight=day.max_in_flight,
        max_rate=day.max_rate,
    )
    outcomes: list[Outcome] = []

    async def visit_it(visit: Visit) -> None:
        await anyio.sleep(visit.begins)
        outcome = Outcome(visit, anyio.current_time())
        outcomes.append(outcome)
        subject: Any = str(visit.generation)
        if visit.with_snapshot:
            subject = snapshot("queued", id=subject)
        with anyio.CancelScope() as scope:
            if visit.leaves_after is not None:
                scope.deadline = anyio.current_time() + visit.leaves_after
            try:
                if visit.watches:
                    async with aclosing(poller.watch(subject, timeout=visit.timeout)) as snapshots:
                        async for generation in snapshots:
                            await read(outcome, generation)
                    outcome.result = generation.raise_for_failure().output
                else:
                    outcome.result = await poller.wait(subject, timeout=visit.timeout)
            except LumaError as error:
                outcome.result = error
        outcome.ended = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        for visit in day.visits:
            tasks.start_soon(visit_it, visit)
    return api, outcomes, poller


def live_on_asyncio(day: Day) -> Any:
    return anyio.run(live, day, backend_options={"loop_factory": VirtualTimeLoop})


def live_on_trio(day: Day) -> Any:
    # Not anyio.run: before anyio 4.14 it keeps the clock to itself.
    return trio.run(live, day, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.no_cover
@pytest.mark.timeout(max(120, DAYS / 2))
@pytest.mark.parametrize("live_it", [live_on_asyncio, live_on_trio])
@settings(
    max_examples=DAYS,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(day=days)
def test_a_day(live_it: Callable[[Day], Any], day: Day) -> None:
    """The invariants of a wait hold under any mix of answers, deadlines and departures."""
    api, outcomes, poller = live_it(day)
    assert repr(poller).endswith("generations=0)"), "nothing is left behind"
    assert len(outcomes) == len(day.visits)
    for outcome in outcomes:
        check_outcome(day, api, outcome)
    check_requests(day, api, outcomes)
    for outcome in outcomes:
        check_liveness(day, api, outcome, outcomes)
    check_nothing_is_wasted(api, outcomes)
    if day.max_in_flight is None and day.max_rate is None:
        for outcome in outcomes:
            check_who_stays_is_served(day, api, outcome)


def check_outcome(day: Day, api: Api, outcome: Outcome) -> None:
    visit, result = outcome.visit, outcome.result
    left = visit.leaves_after is not None and outcome.left
    limit = min(visit.timeout, visit.leaves_after if left and visit.leaves_after else visit.timeout)
    limit += sum(end - start for start, end in outcome.away)
    assert outcome.ended - outcome.began <= limit + EPSILON, "a wait ends by its deadline"

    seen = [
        request
        for request in api.requests
        if request.generation == visit.generation
        and request.ends is not None
        and outcome.began - EPSILON <= request.ends <= outcome.ended + EPSILON
    ]
    answers = [request.answer for request in seen]
    _, state = day.ends[visit.generation]
    if isinstance(result, list):
        assert state == "completed"
        assert result, "outputs are never empty"
        assert any(getattr(answer, "output", None) for answer in answers)
    elif isinstance(result, OutputNotFoundError):
        assert state == "completed"
    elif isinstance(result, GenerationError):
        assert state == "failed"
    elif isinstance(result, PollTimeoutError):
        finished = [
            request
            for request in seen
            if (
                getattr(request.answer, "state", "") == "failed"
                or getattr(request.answer, "output", [])
            )
            and request.ends is not None
            # Who comes at the tick of an answer may find that it has ended, and ask again.
            and outcome.began + EPSILON < request.ends < outcome.ended - EPSILON
            and outcome.waits_over(request.ends, outcome.ended)
        ]
        assert not finished, "a finished answer in time is never thrown away"
        quiet = isinstance(result.__cause__, RateLimitError)
        on_time = outcome.ended - outcome.began >= visit.timeout - EPSILON
        assert on_time or quiet, "it does not give up early, unless the API asks for more quiet"
        assert result.generation_id == str(visit.generation)
    elif isinstance(result, APIError):
        assert isinstance(result, NotFoundError), "only a permanent error ends a wait"
    else:
        assert left, "only who walks away has no result"
    if outcome.states and not isinstance(result, (APIError, PollTimeoutError)) and not left:
        assert outcome.states[-1] == state
    assert all(a != b for a, b in pairwise(outcome.states))


def check_requests(day: Day, api: Api, outcomes: list[Outcome]) -> None:
    under_way: list[float] = []
    last_start = -1e9
    for request in api.requests:
        assert request.ends is not None, "no request is left under way"
        under_way = [end for end in under_way if end > request.begins + EPSILON] + [request.ends]
        assert day.max_in_flight is None or len(under_way) <= day.max_in_flight
        if day.max_rate is not None:
            assert request.begins - last_start >= 1 / day.max_rate - 0.05 - EPSILON
        last_start = request.begins

    for generation in range(2):
        requests = [request for request in api.requests if request.generation == generation]
        waits = [outcome for outcome in outcomes if outcome.visit.generation == generation]
        for number, (before, after) in enumerate(pairwise(requests)):
            assert before.ends is not None
            cuts = max(
                len(cuts_in_a_row(requests[:number], before.begins)),
                len(cuts_in_a_row(requests[: number + 1], after.begins)),
            )
            if before.ends > after.begins - EPSILON and cuts >= MOST_CUTS:
                continue  # those that have seen so many ask by themselves
            assert before.ends <= after.begins + EPSILON, "one request under way per id"
            if after.begins - before.ends >= day.interval - EPSILON:
                continue
            cut_short = before.answer is None
            anew = any(before.ends - EPSILON <= w.began <= after.begins + EPSILON for w in waits)
            last_poll = any(is_last_poll(wait, after.begins) for wait in waits)
            assert cut_short or anew or last_poll, "it does not poll before it is due"

    for request in api.requests:
        if isinstance(request.answer, RateLimitError):
            assert request.ends is not None
            quiet_until = request.ends + (request.answer.retry_after or 0)
            too_early = [
                other
                for other in api.requests
                if request.ends + EPSILON < other.begins < quiet_until - EPSILON
            ]
            assert not too_early, "Retry-After holds for every wait"


def cuts_in_a_row(before: list[Request], until: float) -> list[Request]:
    """Those of these requests that were cut short until then, since the last answer."""
    ended = [r for r in before if r.ends is not None and r.ends <= until + EPSILON]
    ended.sort(key=lambda request: (request.ends, request.answer is not None))
    answered = [number for number, request in enumerate(ended) if request.answer is not None]
    return ended[answered[-1] + 1 if answered else 0 :]


def check_who_stays_is_served(day: Day, api: Api, outcome: Outcome) -> None:
    """After two requests that others have cut short, there is one that they cannot cut."""
    requests = [r for r in api.requests if r.generation == outcome.visit.generation]
    seen = 0
    for request in sorted(requests, key=lambda each: each.ends or 0.0):
        assert request.ends is not None
        if request.answer is not None:
            seen = 0
        elif outcome.waits_over(request.begins, request.ends + EPSILON):
            seen += 1
            under_way = sum(
                other.begins < request.ends + EPSILON
                and other is not request
                and (other.ends or 0.0) > request.ends - EPSILON
                for other in requests
            )
            quiet = blocked(day, api, request.ends - EPSILON, request.ends + EPSILON)
            assert seen <= MOST_CUTS or under_way or quiet, "it asks by itself"


def check_liveness(day: Day, api: Api, outcome: Outcome, outcomes: list[Outcome]) -> None:
    """While somebody waits, what is due is asked as soon as the limits and the API let it."""
    requests = [r for r in api.requests if r.generation == outcome.visit.generation]
    handed_in = [
        other.began
        for other in outcomes
        if other.visit.with_snapshot and other.visit.generation == outcome.visit.generation
    ]
    # Two generations share the rate: a request of the other one, also one that is cut short.
    slack = EPSILON + (0.0 if day.max_rate is None else 2 / day.max_rate)
    answers = [*handed_in, *(request.begins for request in requests)]
    is_first = all(at >= outcome.began for at in answers) and not outcome.visit.with_snapshot
    idle_since, due = outcome.began, outcome.began + (0.0 if is_first else day.interval)
    answered = -float("inf")
    for request in [*requests, Request(outcome.visit.generation, outcome.ended, outcome.ended)]:
        assert request.ends is not None
        if request.begins > idle_since and outcome.waits_over(idle_since, request.begins):
            # A snapshot may be the first answer, from which the schedule counts.
            news = [at + day.interval for at in handed_in if answered <= at < request.begins]
            due = max([due, *news])
            late = request.begins - due
            if late > slack:
                late -= blocked(day, api, due, request.begins)
            assert late <= slack, f"it is asked {late} s after it is due"
        if request.answer is not None:
            answered = request.ends
        if request.ends >= outcome.began:
            idle_since = request.ends
            # Cut short, it is as due as it was.
            due = request.ends + day.interval if request.answer else max(due, request.ends)

    deadline = Deadline(outcome.began, outcome.visit.timeout)
    last = deadline.at - deadline.margin
    if (
        not isinstance(outcome.result, PollTimeoutError)
        or not outcome.waits_over(last - deadline.margin, outcome.ended)
        or abs(outcome.ended - deadline.at) > EPSILON
    ):
        return
    asked = any(
        request.ends is not None
        and request.ends > last - deadline.margin / 2 - EPSILON
        and request.begins < deadline.at
        and (request.answer is not None or request.ends > deadline.at - EPSILON)
        for request in requests
    )
    if not asked:
        free = deadline.margin - blocked(day, api, last, deadline.at)
        assert free <= slack, "it is asked once more before the deadline"


def blocked(day: Day, api: Api, start: float, end: float) -> float:
    """The seconds between these in which no request may start: all slots are taken, or quiet."""
    near = [r for r in api.requests if r.begins < end and max(times_of(r)) > start]
    edges = sorted({start, end, *[t for r in near for t in times_of(r) if start < t < end]})
    slots = day.max_in_flight or float("inf")
    return sum(
        b - a
        for a, b in pairwise(edges if start < end else [])
        if any(times_of(r)[1] <= a < quiet_until(r) for r in near)
        or sum(r.begins <= a and times_of(r)[1] >= b for r in near) >= slots
    )


def quiet_until(request: Request) -> float:
    retry_after = getattr(request.answer, "retry_after", None)
    return (request.ends or 0.0) + (retry_after or 0.0)


def times_of(request: Request) -> tuple[float, float, float]:
    assert request.ends is not None
    return request.begins, request.ends, quiet_until(request)


def check_nothing_is_wasted(api: Api, outcomes: list[Outcome]) -> None:
    """No deadline cuts short a request for which somebody else would have stayed longer."""
    for request in api.requests:
        if request.answer is not None:
            continue
        assert request.ends is not None
        waits = [o for o in outcomes if o.visit.generation == request.generation]
        if any(o.left and abs(o.ended - request.ends) < EPSILON for o in waits):
            continue  # nobody can know who will walk away
        before = [
            r
            for r in api.requests
            if r.generation == request.generation and r.begins < request.begins - EPSILON
        ]
        if cuts_in_a_row(before, request.begins):
            continue  # somebody has left: then the one asks that has been there longest
        stay = [
            o
            for o in waits
            if o.began < request.begins - EPSILON
            and o.waits_over(request.begins - EPSILON, request.ends + EPSILON)
        ]
        assert not stay, "the one that stays longest asks"


@pytest.mark.no_cover
@pytest.mark.anyio
async def test_a_crowd() -> None:
    """Under a binding rate and many 429s, everybody is polled about as often as everybody else."""
    polled: dict[str, list[float]] = {f"{number}": [] for number in range(600)}
    answers = count(1)

    class Crowd:
        @property
        def generations(self) -> "Crowd":
            return self

        async def get(self, generation_id: str) -> Any:
            polled[generation_id].append(anyio.current_time())
            if next(answers) % 63 == 0:
                raise RateLimitError("HTTP 429", status_code=429, retry_after=5.0)
            return snapshot("processing", id=generation_id)

    began = anyio.current_time()
    results = await Poller(Crowd(), wait=wait_fixed(20), max_rate=30).wait_all(polled, timeout=600)
    assert all(isinstance(result.error, PollTimeoutError) for result in results)
    counts = [len(times) for times in polled.values()]
    assert min(counts) >= 5
    assert max(counts) - min(counts) <= 3
    gaps = [b - a for times in polled.values() for a, b in pairwise([began, *times, began + 600])]
    assert max(gaps) < 150, "fair is once in about 70 s"


@pytest.mark.anyio
async def test_who_takes_over_keeps_the_place_in_the_queue() -> None:
    """The one that queued gives up; the other one goes on where it stood, not at the end."""
    client = FakeClient("completed")
    poller = Poller(client, max_rate=1)

    async def come_later(number: int) -> None:
        await anyio.sleep(0.2)
        await poller.wait(f"{number}")

    async def give_up() -> None:
        with anyio.move_on_after(0.5):
            await poller.wait("shared", timeout=900)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(poller.wait, "first")
        await anyio.sleep(0.1)
        tasks.start_soon(give_up)
        tasks.start_soon(poller.wait, "shared")
        for number in range(5):
            tasks.start_soon(come_later, number)
    assert [generation_id for _, generation_id in client.calls][:2] == ["first", "shared"]


def is_last_poll(outcome: Outcome, time: float) -> bool:
    deadline = Deadline(outcome.began, outcome.visit.timeout)
    return deadline.at - deadline.margin - EPSILON <= time <= deadline.at
