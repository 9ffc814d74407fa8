"""Random days of an API and its users, in virtual time: what must hold whatever happens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import anyio
import hypothesis.strategies as st
import pytest
import trio.testing
from hypothesis import HealthCheck, given, settings
from tenacity import wait_fixed

from luma_poll import (
    APIError,
    GenerationError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    Poller,
    PollTimeoutError,
    RateLimitError,
    ServerError,
)
from luma_poll.decisions import Deadline
from tests.fakes import snapshot
from tests.virtual_time import VirtualTimeLoop

EPSILON = 1e-6


@dataclass(frozen=True)
class Visit:
    """One user: waits for a generation from `begins` on, and may walk away."""

    generation: int
    begins: float
    timeout: float
    leaves_after: float | None
    watches: bool
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


KINDS = ["good"] * 6 + ["503", "429 soon", "429 late", "rubbish", "reset", "404", "hang", "empty"]

visits = st.builds(
    Visit,
    generation=st.integers(0, 1),
    begins=st.sampled_from([0.0, 0.0, 0.5, 3.0, 10.0, 30.0]),
    timeout=st.sampled_from([0.5, 3.0, 20.0, 60.0, 300.0]),
    leaves_after=st.sampled_from([None, None, None, 0.0, 0.7, 5.0, 25.0]),
    watches=st.booleans(),
    with_snapshot=st.booleans(),
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
    visits=st.lists(visits, min_size=1, max_size=6),
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
                    async for generation in poller.watch(subject, timeout=visit.timeout):
                        outcome.states.append(generation.state)
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


@pytest.mark.parametrize("live_it", [live_on_asyncio, live_on_trio])
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(day=days)
def test_a_day(live_it: Callable[[Day], Any], day: Day) -> None:
    """The invariants of a wait hold under any mix of answers, deadlines and departures."""
    api, outcomes, poller = live_it(day)
    assert repr(poller) == "Poller(generations=0)", "nothing is left behind"
    assert len(outcomes) == len(day.visits)
    for outcome in outcomes:
        check_outcome(day, api, outcome)
    check_requests(day, api, outcomes)


def check_outcome(day: Day, api: Api, outcome: Outcome) -> None:
    visit, result = outcome.visit, outcome.result
    left = visit.leaves_after is not None and result is None
    limit = min(visit.timeout, visit.leaves_after if left and visit.leaves_after else visit.timeout)
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
            and request.ends < outcome.ended - EPSILON
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


def is_the_end(answer: Any) -> bool:
    return getattr(answer, "state", "") == "failed" or bool(getattr(answer, "output", []))


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
        for before, after in pairwise(requests):
            assert before.ends is not None
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


def is_last_poll(outcome: Outcome, time: float) -> bool:
    deadline = Deadline(outcome.began, outcome.visit.timeout)
    return deadline.at - deadline.margin - EPSILON <= time <= deadline.at
