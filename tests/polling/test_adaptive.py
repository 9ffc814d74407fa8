"""What AdaptiveWait learns, from what, and that it is never a bad schedule."""

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import Future, RetryCallState, wait_fixed

from luma_poll import (
    DEFAULT_WAIT,
    AdaptiveWait,
    ConfigurationError,
    Generation,
    LumaClient,
    OutputNotFoundError,
    Poller,
    PollTimeoutError,
    ServerError,
)
from tests.fakes import ID, OUTPUT, FakeClient, snapshot

IMAGE = snapshot("processing", model="uni-1", type="image")
MODERATED = snapshot("failed", model="uni-1", type="image")
VIDEO = snapshot("processing", model="ray-3.2", type="video")
UNHEARD_OF = snapshot("processing", model="uni-9", type="image")
Schedule = Callable[[RetryCallState], float]


def delay_at(wait: Schedule, age: float, latest: Generation | Exception = IMAGE) -> float:
    """What the schedule says after an answer at this age."""
    nothing: Any = None
    state = RetryCallState(nothing, nothing, (), {})
    state.outcome = Future(1)
    if isinstance(latest, Exception):
        state.outcome.set_exception(latest)
    else:
        state.outcome.set_result(latest)
    state.start_time, state.outcome_timestamp = 0.0, age
    return float(wait(state))


def polls_until(wait: Schedule, age: float, latest: Generation = IMAGE) -> list[float]:
    """The ages at which it polls, the first one past `age` included."""
    polls = [0.0]
    while polls[-1] < age:
        polls.append(polls[-1] + delay_at(wait, polls[-1], latest))
    return polls


def taught(*ends: float, latest: Generation = IMAGE, wait: AdaptiveWait | None = None) -> Any:
    """A schedule that has seen generations end at these ages, by its own polls."""
    wait = wait or AdaptiveWait()
    for end in ends:
        *_, after, by = polls_until(wait, end, latest)
        wait.observe(latest, after=after, by=by)
    return wait


def log_normal(median: float, sigma: float, count: int, seed: int = 1) -> list[float]:
    draw = random.Random(seed)
    return [median * math.exp(draw.gauss(0, sigma)) for _ in range(count)]


def cost(wait: Schedule, ends: list[float], latest: Generation = IMAGE) -> float:
    """Mean seconds of delay, and 0.2 s for each poll."""
    runs = [(polls_until(wait, end, latest), end) for end in ends]
    return fmean(polls[-1] - end + 0.2 * len(polls) for polls, end in runs)


@pytest.fixture(autouse=True)
def _the_same_jitter_each_time() -> None:
    random.seed(1963)


# --- the schedule --------------------------------------------------------------------------------


@pytest.mark.no_cover
def test_it_begins_much_like_the_default_for_an_unknown_model() -> None:
    """With nothing learned it is hardly worse than DEFAULT_WAIT, whatever the durations."""
    for median in (3, 12, 30, 60, 170, 400):
        ends = log_normal(median, 0.4, 1000)
        ratio = cost(AdaptiveWait(), ends, UNHEARD_OF) / cost(DEFAULT_WAIT, ends)
        assert ratio < 1.15, median


@pytest.mark.no_cover
@pytest.mark.parametrize(("model", "median"), [("uni-1", 30), ("uni-1-max", 69), ("ray-3.2", 60)])
def test_it_begins_with_what_is_published_of_a_model(model: str, median: float) -> None:
    """Better than DEFAULT_WAIT if that is right, and not ruinous if it is far off."""
    latest = snapshot("processing", model=model, type="any")
    for factor, bound in ((1 / 3, 1.7), (1, 0.93), (3, 1.5)):
        ends = log_normal(factor * median, 0.35, 1000)
        assert cost(AdaptiveWait(), ends, latest) < bound * cost(DEFAULT_WAIT, ends), factor


@pytest.mark.parametrize("median", [4, 30, 90, 300])
def test_fifty_ends_are_enough_to_learn(median: float) -> None:
    """It is far better than DEFAULT_WAIT then."""
    wait = taught(*log_normal(median, 0.3, 50))
    ends = log_normal(median, 0.3, 300, seed=2)
    assert cost(wait, ends) < 0.85 * cost(DEFAULT_WAIT, ends)


def test_it_polls_when_the_end_is_near() -> None:
    """A long first delay, then short ones, then long ones again for what should have ended."""
    wait = taught(*log_normal(30, 0.2, 100))
    first, near, late = (delay_at(wait, age) for age in (0, 29, 200))
    assert first > 10
    assert near < 3
    assert late > 2 * near


def test_early_failures_and_late_ends_are_both_learned() -> None:
    """Two humps: it polls in both, and seldom between them."""
    wait = taught(*[2.0 + 0.1 * n for n in range(20)], latest=MODERATED)
    polls = polls_until(taught(*log_normal(100, 0.1, 100), wait=wait), 150)
    early = sum(poll <= 6 for poll in polls)
    between = sum(10 < poll < 70 for poll in polls)
    late = sum(80 <= poll <= 120 for poll in polls)
    assert early >= 2
    assert between <= 5
    assert late >= 6


def test_kinds_are_kept_apart() -> None:
    """What holds for images is not assumed of videos."""
    wait = taught(*log_normal(15, 0.2, 60))
    taught(*log_normal(200, 0.2, 60), latest=VIDEO, wait=wait)
    assert delay_at(wait, 14, IMAGE) < 2
    assert delay_at(wait, 14, VIDEO) > 20


def test_an_unknown_kind_takes_what_all_others_did() -> None:
    """A new model is more like the others than like nothing at all; so is an answer in error."""
    wait = taught(*log_normal(15, 0.2, 60))
    fresh = snapshot("processing", model="uni-9", type="image")
    assert delay_at(wait, 0, fresh) > 5 > 2 > delay_at(wait, 14, fresh)
    assert delay_at(wait, 14, ServerError("HTTP 503", status_code=503)) < 2


def test_old_observations_fade() -> None:
    """After a change of speed it learns the new one."""
    wait = taught(*log_normal(30, 0.2, 300))
    ends = log_normal(90, 0.2, 300, seed=3)
    before = cost(wait, ends)
    taught(*ends, wait=wait)
    assert cost(wait, ends) < 0.8 * before


def test_a_sudden_change_is_noticed() -> None:
    """After hundreds of slow ends, three fast ones are enough to poll as early as they ask for."""
    wait = taught(*log_normal(150, 0.3, 200))
    ends = log_normal(30, 0.3, 300, seed=4)
    before = cost(wait, ends)
    taught(*ends[:3], wait=wait)
    assert cost(wait, ends) < 0.4 * before
    assert delay_at(wait, 0) < 40


def test_one_early_failure_is_no_change() -> None:
    """What was learned outlives a single surprise."""
    wait = taught(*log_normal(60, 0.3, 100))
    ends = log_normal(60, 0.3, 300, seed=5)
    before = cost(wait, ends)
    taught(3, *ends[:5], wait=wait)
    assert cost(wait, ends) < 1.2 * before


def test_a_failure_that_is_seen_late_is_taken_to_be_early() -> None:
    """The first poll after 20 s found them: the next generations are asked within seconds."""
    wait = taught(*log_normal(30, 0.2, 40))
    assert sum(poll <= 8 for poll in polls_until(wait, 60)[1:]) == 0
    for _ in range(4):
        wait.observe(MODERATED, after=0, by=20)
    assert sum(poll <= 8 for poll in polls_until(wait, 60)[1:]) >= 1


def test_failures_do_not_tell_how_long_the_others_take() -> None:
    """However many fail at once, the polls for those that do not fail stay where they were."""
    ends = log_normal(60, 0.2, 300, seed=5)
    wait = taught(*ends[:60])
    before = cost(wait, ends)
    for end in ends[:30]:
        taught(3, latest=MODERATED, wait=wait)
        taught(end, wait=wait)
    late = [poll for poll in polls_until(wait, 90) if poll > 8]
    assert late[0] > 25
    assert cost(wait, ends) < 1.3 * before


def test_late_failures_are_learned_too() -> None:
    """Where most fail after two minutes, that is when it asks."""
    wait = AdaptiveWait()
    taught(*log_normal(120, 0.1, 40), latest=MODERATED, wait=wait)
    polls = polls_until(wait, 150)
    assert sum(90 <= poll <= 150 for poll in polls) > sum(poll < 90 for poll in polls)


@pytest.mark.parametrize(
    ("after", "by"),
    [(math.nan, math.nan), (math.inf, math.inf), (-5, -5), (20, 10), (0, math.inf), (1e9, 2e9)],
)
def test_nonsense_is_survived(after: float, by: float) -> None:
    """Impossible intervals do no lasting harm: the schedule still learns what follows."""
    wait = taught(*log_normal(30, 0.2, 40))
    wait.observe(IMAGE, after=after, by=by)
    ends = log_normal(30, 0.2, 200, seed=6)
    taught(*ends[:10], wait=wait)
    assert cost(wait, ends) < cost(DEFAULT_WAIT, ends)


def test_a_dearer_request_means_fewer() -> None:
    """`request_cost` is the seconds of delay that one is worth."""
    counts = [len(polls_until(AdaptiveWait(cost), 120)) for cost in (0.05, 0.2, 1.0)]
    assert counts[0] > 1.6 * counts[1] > 2.5 * counts[2]


def test_jitter_keeps_a_fleet_out_of_step() -> None:
    """The same state, different delays, around the same middle."""
    delays = [delay_at(AdaptiveWait(), 0) for _ in range(200)]
    assert len(set(delays)) == 200
    assert max(delays) / min(delays) < 1.5
    assert fmean(delays) == pytest.approx((max(delays) + min(delays)) / 2, rel=0.05)


Seconds = st.floats(0, 1e7)


@given(
    observed=st.lists(st.tuples(Seconds, Seconds), max_size=30),
    age=st.one_of(st.floats(-1e3, 1e9), st.just(math.nextafter(3600, 0))),
    cost=st.floats(1e-3, 1e3),
)
def test_a_delay_is_within_its_bounds(
    observed: list[tuple[float, float]], age: float, cost: float
) -> None:
    """Whatever has been observed, however old a generation is."""
    wait = AdaptiveWait(cost, shortest=2, longest=30)
    for after, longer in observed:
        wait.observe(IMAGE, after=after, by=after + longer)
    assert 2 <= delay_at(wait, age) <= 30


def test_it_is_a_tenacity_strategy_like_any_other() -> None:
    """It adds up with others."""
    wait: Any = AdaptiveWait() + wait_fixed(100)
    assert 100 < delay_at(wait, 0) < 130


@pytest.mark.no_cover
def test_memory_is_bounded() -> None:
    """Thousands of kinds are no leak: the least recently observed are forgotten."""
    wait = AdaptiveWait()
    for number in range(1000):
        wait.observe(snapshot(model=f"m{number}"), after=10, by=12)
    kinds = [entry["model"] for entry in json.loads(wait.to_json())["kinds"]]
    assert kinds == [f"m{number}" for number in range(936, 1000)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"request_cost": 0}, "request_cost"),
        ({"request_cost": math.nan}, "request_cost"),
        ({"request_cost": None}, "request_cost"),
        ({"shortest": -1}, "shortest"),
        ({"longest": math.inf}, "longest"),
        ({"longest": "60"}, "longest"),
        ({"shortest": 20, "longest": 10}, "shortest"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    """At once, not in the first wait."""
    with pytest.raises(ConfigurationError, match=named):
        AdaptiveWait(**arguments)


# --- saved and restored --------------------------------------------------------------------------


def test_what_was_learned_survives_a_restart() -> None:
    """The same document, and the same delays."""
    few = 9  # more are not planned for at each end, but at once after a restart
    wait = taught(*log_normal(30, 0.3, few))
    taught(*log_normal(90, 0.3, few), latest=VIDEO, wait=wait)
    again = AdaptiveWait.from_json(wait.to_json(), request_cost=0.2)
    assert again.to_json() == wait.to_json()
    for age in (0.0, 25.0, 90.0):
        delays = []
        for each in (wait, again):
            random.seed(7)
            delays.append(delay_at(each, age))
        assert delays[0] == pytest.approx(delays[1], rel=1e-3)


def test_it_goes_on_learning_after_a_restart() -> None:
    """What is restored is no different from what was learned here."""
    again = AdaptiveWait.from_json(taught(*log_normal(30, 0.3, 40)).to_json())
    before = again.to_json()
    again.observe(IMAGE, after=20, by=22)
    assert again.to_json() != before


WEIGHTS = (
    f"{'0.0, ' * 57}"
    "0.000552, 0.00409, 0.021633, 0.081706, 0.240338, 0.565843, 1.085649, 1.764, 2.559017, "
    "3.469371, 4.382296, 4.935711, 4.788823, 3.997203, 2.924816, 1.905926, 1.122679, "
    "0.627828, 0.360689, 0.212117, 0.111903, 0.046961, 0.014745, 0.003441, 0.000581, "
    f"{', '.join(['0.0'] * 40)}"
)
SAVED_BEFORE = (
    f'{{"version": 1, "all": [{WEIGHTS}], "kinds": [{{"model": "uni-1", "type": "image", '
    f'"weights": [{WEIGHTS}]}}]}}'
)
"""By the first AdaptiveWait, which counted no failures: forty ends around 100 s."""


def test_a_text_that_was_saved_before_failures_were_counted_still_loads() -> None:
    """Nothing that it had learned is lost, and what is saved again is the same and more."""
    wait = AdaptiveWait.from_json(SAVED_BEFORE)
    ends = log_normal(100, 0.2, 300)
    assert cost(wait, ends) < 0.75 * cost(AdaptiveWait(), ends)
    before, again = json.loads(SAVED_BEFORE), json.loads(wait.to_json())
    assert again["all"] == before["all"]
    assert again["kinds"][0].items() >= before["kinds"][0].items()


FRESH = json.loads(AdaptiveWait().to_json())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ("{}", "version"),
        (json.dumps(FRESH | {"version": 2}), "version 2, not 1"),
        (json.dumps(FRESH | {"all": [1, 2]}), "weights"),
        (json.dumps(FRESH | {"all": [-1.0] * 122}), "weights"),
        (json.dumps(FRESH | {"kinds": [{"model": "m"}]}), "type"),
        (json.dumps(FRESH | {"kinds": [{"model": [], "type": "t", "weights": [0.0] * 122}]}), ""),
        (json.dumps(FRESH).replace("0.0", "NaN", 1), "weights"),
        (None, ""),
    ],
)
def test_what_is_no_such_document_is_refused(text: Any, why: str) -> None:
    """The message tells what is wrong with it."""
    with pytest.raises(ConfigurationError, match=f"to_json.*{why}"):
        AdaptiveWait.from_json(text)


KEYS = st.sampled_from(["version", "all", "kinds", "model", "type", "weights"])
DOCUMENTS = st.recursive(
    st.none() | st.just(1) | st.floats() | st.text(),
    lambda of: st.lists(of) | st.dictionaries(KEYS, of),
)


@given(DOCUMENTS)
def test_no_document_does_any_harm(document: Any) -> None:
    """It is refused, or it is one."""
    try:
        wait = AdaptiveWait.from_json(json.dumps(document))
    except ConfigurationError:
        return
    assert 0.5 <= delay_at(wait, 10) <= 60


# --- in a poller, in virtual time ----------------------------------------------------------------


class Factory(FakeClient):
    """Generation `n` takes as long as the n-th duration, from when it is first asked about."""

    def __init__(self, durations: list[float]) -> None:
        super().__init__()
        self.durations = durations
        self.began: dict[str, float] = {}

    async def get(self, generation_id: str) -> Generation:
        now = anyio.current_time()
        self.calls.append((now, generation_id))
        age = now - self.began.setdefault(generation_id, now)
        ended = age >= self.durations[int(generation_id)]
        return snapshot("completed" if ended else "processing", id=generation_id, model="uni-9")


async def cost_of_waits(poller: Poller, client: Factory, ids: range) -> float:
    polls, late = len(client.calls), 0.0
    for number in ids:
        began = anyio.current_time()
        await poller.wait(str(number))
        late += anyio.current_time() - began - client.durations[number]
    return (late + 0.2 * (len(client.calls) - polls)) / len(ids)


@pytest.mark.no_cover
@pytest.mark.anyio
async def test_a_poller_teaches_it() -> None:
    """The waits after the first hundred cost much less than the first ten."""
    client = Factory(log_normal(40, 0.15, 200))
    wait = AdaptiveWait()
    poller = Poller(client, wait=wait, max_rate=None)
    first = await cost_of_waits(poller, client, range(10))
    await cost_of_waits(poller, client, range(10, 100))
    assert await cost_of_waits(poller, client, range(100, 200)) < 0.8 * first


@pytest.mark.anyio
async def test_only_an_end_that_was_seen_to_come_teaches() -> None:
    """A deadline, a cancellation, an end of unknown age and an error say nothing."""
    wait = AdaptiveWait()
    nothing = wait.to_json()
    with pytest.raises(PollTimeoutError):
        await Poller(FakeClient("processing"), wait=wait).wait(ID, timeout=50)
    with anyio.move_on_after(50):
        await Poller(FakeClient("processing"), wait=wait).wait(ID)
    await Poller(FakeClient("completed"), wait=wait).wait(ID)
    await Poller(FakeClient(), wait=wait).wait(snapshot("completed"))
    early = snapshot("completed", output=[])
    with pytest.raises(OutputNotFoundError):
        await Poller(FakeClient(early), wait=wait).wait(ID)
    assert wait.to_json() == nothing


class Recorder:
    """A schedule of 10 s that writes down what it is told."""

    def __init__(self) -> None:
        self.ages: list[float] = []
        self.told: list[tuple[str, float, float]] = []

    def __call__(self, state: RetryCallState) -> float:
        self.ages.append(round(state.seconds_since_start or 0.0, 3))
        return 10

    def observe(self, generation: Generation, *, after: float, by: float) -> None:
        self.told.append((generation.state, round(after, 3), round(by, 3)))


@pytest.mark.anyio
async def test_an_end_lies_between_two_polls() -> None:
    """After the sending of the last one in vain, and by the answer to the next."""
    recorder = Recorder()
    client = FakeClient("queued", "processing", ServerError("503", status_code=503), "completed")
    client.latency = 2
    await Poller(client, wait=recorder).wait(ID)
    assert client.times == [0, 12, 24, 36]
    assert recorder.told == [("completed", 12, 38)]


@pytest.mark.anyio
async def test_a_failure_is_an_end_and_is_told_once() -> None:
    """However many wait for it."""
    recorder = Recorder()
    client = FakeClient("queued", snapshot("failed", failure_code="content_moderated"))
    results = await Poller(client, wait=recorder).wait_all([ID] * 5)
    assert not any(result.ok for result in results)
    assert recorder.told == [("failed", 0, 10)]


@pytest.mark.anyio
async def test_a_snapshot_from_create_is_known_to_be_unfinished() -> None:
    """So the first poll may already be the end of an interval."""
    recorder = Recorder()
    await Poller(FakeClient("completed"), wait=recorder).wait(snapshot("queued"))
    assert recorder.told == [("completed", 0, 10)]


@pytest.mark.anyio
async def test_age_counts_from_created_at_by_the_clock_of_the_server() -> None:
    """A wait that begins late knows how old the generation is; clocks may differ by years."""
    began = anyio.current_time()

    def answer(request: httpx.Request) -> httpx.Response:
        second = int(anyio.current_time() - began) + 100
        date = f"Wed, 08 Apr 2020 12:{second // 60:02}:{second % 60:02} GMT"
        state = "completed" if second >= 120 else "processing"
        fields = {"id": ID, "state": state, "created_at": "2020-04-08T12:00:00Z", "output": OUTPUT}
        return httpx.Response(200, json=fields, headers={"Date": date})

    recorder = Recorder()
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with http, LumaClient("key", http_client=http) as client:
        await Poller(client, wait=recorder).wait(ID)
    assert recorder.ages == [100, 110]
    assert recorder.told == [("completed", 110, 120)]


@pytest.mark.anyio
async def test_an_age_that_no_generation_reaches_is_not_believed() -> None:
    """A `created_at` that is hours off slows no poll down: the age counts from the first sight."""

    def answer(request: httpx.Request) -> httpx.Response:
        state = "completed" if len(recorder.ages) == 2 else "processing"
        fields = {"id": ID, "state": state, "created_at": "2020-04-08T04:00:00Z", "output": OUTPUT}
        return httpx.Response(200, json=fields, headers={"Date": "Wed, 08 Apr 2020 12:00:00 GMT"})

    recorder = Recorder()
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with http, LumaClient("key", http_client=http) as client:
        await Poller(client, wait=recorder).wait(ID)
    assert recorder.ages == [0, 10]
    assert recorder.told == [("completed", 10, 20)]


@pytest.mark.no_cover
@pytest.mark.anyio
async def test_a_rise_of_polls_is_no_march() -> None:
    """A hundred waits that begin together do not poll together."""
    client = FakeClient("processing")
    poller = Poller(client, wait=AdaptiveWait(), max_rate=None, max_in_flight=None)
    await poller.wait_all(map(str, range(100)), timeout=60)
    later = sorted(time for time in client.times if 20 < time < 50)
    assert max(b - a for a, b in pairwise(later)) < 1
