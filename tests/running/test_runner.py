"""Prompts in, generations out: through public names, in virtual time, on asyncio and trio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import luma_agents
import pytest
from tenacity import wait_fixed

from luma_poll import (
    AdaptiveWait,
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ContentModeratedError,
    GenerationFailedError,
    GenerationRateLimitedError,
    InsufficientBalanceError,
    LumaClient,
    PermissionDeniedError,
    Poller,
    PollEvent,
    PollTimeoutError,
    RateLimitError,
    Runner,
    RunResult,
    ServerError,
    SubmissionLimitError,
    UnprocessableEntityError,
)
from luma_poll.events import RunSubmitted
from luma_poll.typing import AnyRequest
from tests.fakes import OUTPUT
from tests.running.fakes import FakeAccount
from tests.virtual_time import VirtualTimeLoop

FAILED = {"state": "failed", "failure_code": "generation_failed", "output": []}
THROTTLED = FAILED | {"failure_code": "rate_limited"}
MODERATED = FAILED | {"failure_code": "content_moderated"}


def status(error_class: type[Any], code: int) -> Any:
    return error_class("refused", status_code=code, detail="refused")


def prompts(number: int) -> list[str]:
    return [f"prompt {each}" for each in range(number)]


# --- one request ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_prompt_becomes_a_generation() -> None:
    """One submission, with the parameters as given; the result is the completed generation."""
    api = FakeAccount()
    generation = await Runner(api).run("a red fox", model="uni-1", aspect_ratio=None)
    assert generation.state == "completed"
    assert generation.output[0].url
    assert [params for _, _, params in api.accepted] == [{"prompt": "a red fox", "model": "uni-1"}]


@pytest.mark.anyio
async def test_a_key_is_not_sent() -> None:
    """It is the caller's name for the request."""
    api = FakeAccount()
    await Runner(api).run("a red fox", key="order-17")
    await Runner(api).run_all([{"prompt": "a red fox", "key": "order-18"}])
    assert [params for _, _, params in api.accepted] == [{"prompt": "a red fox"}] * 2


@pytest.mark.anyio
async def test_a_failure_is_raised_and_not_submitted_again() -> None:
    """The default is never to submit twice."""
    api = FakeAccount()
    api.answers = [FAILED]
    with pytest.raises(GenerationFailedError) as caught:
        await Runner(api).run("a red fox")
    assert caught.value.generation_id == api.accepted[0][1]
    assert len(api.accepted) == 1


@pytest.mark.anyio
async def test_a_timeout_counts_from_the_accepted_submission() -> None:
    """To wait for room costs nothing of it."""
    api = FakeAccount(capacity=1, duration=50)
    runner = Runner(api)
    results = await runner.run_all(prompts(3), timeout=60)
    assert [result.ok for result in results] == [True, True, True]
    began = anyio.current_time()
    with pytest.raises(PollTimeoutError, match="may still finish"):
        await runner.run("too slow", timeout=20)
    assert 19 < anyio.current_time() - began < 21
    assert list(runner.outstanding) == [api.accepted[-1][1]]


@pytest.mark.anyio
async def test_fail_after_bounds_the_wait_for_room_too() -> None:
    """A cancelled request that has not been submitted never is."""
    api = FakeAccount(capacity=1, duration=500)
    runner = Runner(api)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, "the first")
        await anyio.sleep(1)
        with pytest.raises(TimeoutError), anyio.fail_after(5):
            await runner.run("the second")
        tasks.cancel_scope.cancel()
    assert [params["prompt"] for _, _, params in api.accepted] == ["the first"]
    assert repr(runner) == "Runner(running=0, in_flight=0, waiting=0)"


@pytest.mark.parametrize(
    "params",
    [{"prompt": ""}, {"prompt": "  "}, {"prompt": None}, {"prompt": 3}, {"key": ""}, {"key": 7}],
)
@pytest.mark.anyio
async def test_a_bad_request_is_refused_before_it_is_sent(params: dict[str, Any]) -> None:
    """At once, even where there is no room; of a batch it is the result of its own."""
    api = FakeAccount()
    with pytest.raises(ConfigurationError):
        await Runner(api).run(**{"prompt": "a red fox"} | params)
    results = await Runner(api).run_all([{"prompt": "a red fox"} | params, "a grey owl"])
    assert isinstance(results[0].error, ConfigurationError)
    assert results[1].ok
    assert len(api.accepted) == 1


@pytest.mark.parametrize("request_", [None, 7, b"bytes", ["a list"], {1: "one"}, {}])
@pytest.mark.anyio
async def test_what_is_no_request_is_a_result_of_its_own(request_: Any) -> None:
    """A generator that yields nonsense once loses nothing else."""
    api = FakeAccount()
    results = await Runner(api).run_all([request_, "a grey owl"])
    assert isinstance(results[0].error, ConfigurationError)
    assert results[0].request == request_
    assert results[1].ok


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_running": 0},
        {"max_running": 1.5},
        {"max_attempts": 0},
        {"max_attempts": None},
        {"max_submissions": -1},
        {"poller": "no"},
        {"on_submit": 3},
    ],
)
def test_a_bad_argument_is_refused(arguments: dict[str, Any]) -> None:
    """Before anything is sent."""
    with pytest.raises(ConfigurationError):
        Runner(FakeAccount(), **arguments)


def test_none_is_offered_only_if_it_is_taken() -> None:
    """The message of a refused value names those that work."""
    for refused in (0, None):
        with pytest.raises(ConfigurationError, match=rf"from 1, not {refused}$"):
            Runner(FakeAccount(), max_attempts=refused)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"from 1, or None, not 0$"):
        Runner(FakeAccount(), max_running=0)
    with pytest.raises(ConfigurationError, match=r"above 0, not None$"):
        AdaptiveWait(shortest=None)  # type: ignore[arg-type]


def test_what_cannot_submit_is_refused() -> None:
    """So are a synchronous client and an async callback."""

    async def on_submit(event: Any) -> None: ...

    with pytest.raises(ConfigurationError, match=r"has no generations\.create"):
        Runner(object())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="AsyncLuma"):
        Runner(luma_agents.Luma(auth_token="luma-api-x"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="not async"):
        Runner(FakeAccount(), on_submit=on_submit)


@pytest.mark.parametrize("requests", ["a prompt", b"bytes", {"prompt": "one"}, 7, None])
@pytest.mark.anyio
async def test_a_batch_is_an_iterable_of_requests(requests: Any) -> None:
    """A lone prompt would be one request per letter."""
    with pytest.raises(ConfigurationError, match="iterable"):
        await Runner(FakeAccount()).run_all(requests)
    with pytest.raises(ConfigurationError, match="timeout"):
        await Runner(FakeAccount()).run_all([], timeout=-1)


# --- as many at once as the account allows -------------------------------------------------------


@pytest.mark.parametrize("text", ["concurrent: full (limit=5)", "Too many concurrent jobs"])
@pytest.mark.anyio
async def test_a_full_account_is_used_to_its_limit(text: str) -> None:
    """All are delivered, in the order given; the account is full all the time; few refusals."""
    api = FakeAccount(capacity=5, duration=30, text=text)
    began = anyio.current_time()
    results = await Runner(api).run_all(prompts(40))
    assert [result.request for result in results] == prompts(40)
    assert all(result.ok for result in results)
    assert len({result.submitted[0] for result in results}) == 40
    assert len(api.accepted) == 40
    assert api.most_running == 5
    assert anyio.current_time() - began < 1.06 * 40 / 5 * 30
    assert len(api.refusals) < 30


@pytest.mark.anyio
async def test_heavy_requests_are_neither_starved_nor_lost() -> None:
    """They keep their places in the queue, each until as many units are free as it needs."""
    api = FakeAccount(capacity=4, duration=20)
    requests = [
        {"prompt": str(each), "model": "uni-1-max" if each % 3 == 0 else "uni-1"}
        for each in range(18)
    ]
    results = await Runner(api).run_all(requests)
    assert all(result.ok for result in results)
    order = [int(params["prompt"]) for _, _, params in api.accepted]
    assert all(abs(place - number) <= 2 for place, number in enumerate(order))


@pytest.mark.anyio
async def test_max_running_holds() -> None:
    """Whatever the account allows; no refusal is met."""
    api = FakeAccount(capacity=10)
    results = await Runner(api, max_running=3).run_all(prompts(12))
    assert all(result.ok for result in results)
    assert (api.most_running, api.refusals) == (3, [])


@pytest.mark.anyio
async def test_what_timed_out_counts_for_max_running_until_it_ends() -> None:
    """It is asked for while the next one waits, so that this waits no longer than it must."""
    api = FakeAccount(duration=100)
    runner = Runner(api, max_running=2)
    late = await runner.run_all(prompts(2), timeout=10)
    assert all(isinstance(result.error, PollTimeoutError) for result in late)
    assert all(result.ok for result in await runner.run_all(prompts(4), timeout=300))
    assert api.most_running == 2
    assert 100 < api.accepted[2][0] - api.accepted[0][0] < 130
    assert runner.outstanding == {}


@pytest.mark.anyio
async def test_what_was_cancelled_counts_for_max_running_for_an_hour_at_most() -> None:
    """Its end may never be seen; the API ends every generation within an hour."""
    api = FakeAccount(duration=9000)
    runner = Runner(api, max_running=1)
    with anyio.move_on_after(10):
        await runner.run("a fox")
    api.duration = 10
    assert (await runner.run("an owl")).state == "completed"
    assert 3600 < api.accepted[1][0] - api.accepted[0][0] < 3610


@pytest.mark.parametrize("error", [status(AuthenticationError, 401), KeyError("a client's bug")])
@pytest.mark.anyio
async def test_what_cannot_be_asked_for_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """If its end cannot be seen, the next is submitted, and shows what the matter is."""
    api = FakeAccount(duration=100)
    runner = Runner(api, max_running=2)
    await runner.run_all(prompts(2), timeout=10)
    left = set(runner.outstanding)

    async def refuse(generation_id: str) -> None:
        raise error

    monkeypatch.setattr(api, "get", refuse)
    api.answers = [status(AuthenticationError, 401)] * 2
    with anyio.fail_after(60):
        (result,) = await runner.run_all(prompts(1))
    assert isinstance(result.error, AuthenticationError)
    assert result.submitted == ()
    assert set(runner.outstanding) == left


@pytest.mark.anyio
async def test_runs_and_batches_share_what_is_learned() -> None:
    """One runner is one queue, first come, first served."""
    api = FakeAccount(capacity=2, duration=10)
    runner, ended = Runner(api), []

    async def run(prompt: str) -> None:
        await runner.run(prompt)
        ended.append(prompt)

    async with anyio.create_task_group() as tasks:
        for prompt in prompts(6):
            tasks.start_soon(run, prompt)
    assert len(ended) == 6
    assert api.most_running == 2


@pytest.mark.anyio
async def test_the_minute_of_the_account_is_kept() -> None:
    """Paced by what the answers tell is left: the API does not have to refuse."""
    api = FakeAccount(capacity=100, per_minute=6, duration=5)
    results = await Runner(api).run_all(prompts(20))
    assert all(result.ok for result in results)
    assert api.refusals == []


@pytest.mark.anyio
async def test_a_minute_that_nobody_tells_of_is_waited_out() -> None:
    """Each 429 is one refusal, for all; none is lost."""
    api = FakeAccount(capacity=100, per_minute=6, duration=5, headers=False)
    results = await Runner(api).run_all(prompts(20))
    assert all(result.ok for result in results)
    assert len(api.refusals) < 30


@pytest.mark.anyio
async def test_others_on_the_account_only_take_their_share() -> None:
    """What they free is noticed by trying again, no later than the Retry-After."""
    api = FakeAccount(capacity=4, duration=20)
    api.occupy(4, seconds=100)
    began = anyio.current_time()
    results = await Runner(api).run_all(prompts(4))
    assert all(result.ok for result in results)
    assert anyio.current_time() - began < 100 + 60 + 2 * 20


@pytest.mark.anyio
async def test_a_request_that_never_fits_is_refused() -> None:
    """The account says so itself: the error is its result, and the others are not held up."""
    api = FakeAccount(capacity=2, duration=10)
    requests: list[AnyRequest] = [{"prompt": "heavy", "model": "uni-1-max"}, *prompts(3)]
    results = await Runner(api).run_all(requests)
    assert isinstance(results[0].error, RateLimitError)
    assert all(result.ok for result in results[1:])


@pytest.mark.anyio
async def test_requests_are_taken_as_there_is_room() -> None:
    """An endless generator is taken no further than to the one that waits."""
    api, taken = FakeAccount(capacity=3, duration=100), []

    def endless() -> Iterator[str]:
        for number in range(10**9):
            taken.append(number)
            yield f"prompt {number}"

    async with Runner(api).as_completed(endless()) as results:
        async for result in results:
            assert result.ok
            break
    assert len(taken) <= 3 + 4 + 1  # those that run, those that were refused, the next


@pytest.mark.anyio
async def test_requests_may_come_from_an_async_generator() -> None:
    """It is closed at the end, and what it raises comes after the results."""
    closed = []

    async def requests() -> AsyncIterator[str]:
        try:
            yield "a red fox"
            await anyio.sleep(1)
            yield "a grey owl"
            raise LookupError("the source broke")
        finally:
            closed.append(True)

    seen = []

    async def collect() -> None:
        async with Runner(FakeAccount()).as_completed(requests()) as results:
            async for result in results:
                seen.append(result.request)

    with pytest.raises(LookupError):
        await collect()
    assert sorted(map(str, seen)) == ["a grey owl", "a red fox"]
    assert closed == [True]


# --- never twice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        APIConnectionError("reset", request_sent=True),
        APITimeoutError("no answer", request_sent=True),
        status(ServerError, 503),
    ],
)
@pytest.mark.anyio
async def test_what_may_have_been_accepted_is_not_submitted_again(error: APIError) -> None:
    """Its result is that error, which says what to look at; the others go on."""
    api = FakeAccount()
    api.answers = [error]
    results = await Runner(api, max_attempts=5).run_all(prompts(3))
    assert [result.ok for result in results] == [False, True, True]
    assert isinstance(results[0].error, APIError)
    assert results[0].error.may_have_been_accepted
    assert "before you submit it again" in results[0].error.__notes__[0]
    assert results[0].submitted == ()
    assert len(api.accepted) == 2


@pytest.mark.anyio
async def test_without_a_connection_a_submission_is_tried_again() -> None:
    """The API has certainly not seen it."""
    api = FakeAccount()
    api.answers = [APIConnectionError("refused", request_sent=False)] * 6
    results = await Runner(api).run_all(prompts(3))
    assert all(result.ok for result in results)
    assert len(api.accepted) == 3


@pytest.mark.anyio
async def test_without_a_connection_it_ends_after_the_timeout() -> None:
    """Counted from its first try; the requests after it have tries of their own."""
    api = FakeAccount()
    api.answers = [{}, *[APIConnectionError("refused", request_sent=False)] * 10_000]
    began = anyio.current_time()
    first, *results = await Runner(api).run_all(prompts(6), timeout=60)
    assert first.ok
    assert all(isinstance(result.error, APIConnectionError) for result in results)
    assert 60 <= anyio.current_time() - began < 120


@pytest.mark.anyio
async def test_a_retryable_failure_is_submitted_again_where_the_user_said_so() -> None:
    """Each attempt has an id, and all of them are kept."""
    api = FakeAccount()
    api.answers = [FAILED, FAILED]
    (result,) = await Runner(api, max_attempts=3).run_all(["a red fox"])
    assert result.ok
    assert result.submitted == tuple(generation_id for _, generation_id, _ in api.accepted)
    assert len(result.submitted) == 3


@pytest.mark.anyio
async def test_no_more_attempts_than_allowed() -> None:
    """The result is the last failure."""
    api = FakeAccount()
    api.answers = [FAILED] * 3
    (result,) = await Runner(api, max_attempts=2).run_all(["a red fox"])
    assert isinstance(result.error, GenerationFailedError)
    assert result.error.generation_id == result.submitted[-1]
    assert len(api.accepted) == 2


@pytest.mark.anyio
async def test_a_failure_that_would_come_again_is_final() -> None:
    """Moderation would refuse the same prompt again, and perhaps the account."""
    api = FakeAccount()
    api.answers = [MODERATED]
    (result,) = await Runner(api, max_attempts=5).run_all(["a red fox"])
    assert isinstance(result.error, ContentModeratedError)
    assert len(api.accepted) == 1


@pytest.mark.anyio
async def test_an_upstream_that_throttles_is_given_time() -> None:
    """`rate_limited` asks to submit again later, not at once."""
    api = FakeAccount(duration=1)
    api.answers = [THROTTLED]
    (result,) = await Runner(api, max_attempts=2).run_all(["a red fox"])
    assert result.ok
    first, second = (when for when, _, _ in api.accepted)
    assert second - first > 1 + 5


@pytest.mark.anyio
async def test_the_deadline_is_over_all_attempts() -> None:
    """When it comes while the next attempt waits for room, the last failure is the result."""
    api = FakeAccount(capacity=1, duration=10)
    api.answers = [FAILED]
    runner = Runner(api, max_attempts=2)
    async with runner.as_completed(["a red fox"], timeout=100) as results:
        await anyio.sleep(5)
        api.occupy(1, seconds=1000)
        began = anyio.current_time()
        result = await anext(aiter(results))
    assert isinstance(result.error, GenerationFailedError)
    assert 90 < anyio.current_time() - began < 100


@pytest.mark.anyio
async def test_the_deadline_comes_before_a_pause_ends() -> None:
    """A failure that asks for more patience than is left is the result."""
    api = FakeAccount(duration=1)
    api.answers = [THROTTLED] * 5
    (result,) = await Runner(api, max_attempts=5).run_all(["a red fox"], timeout=5)
    assert isinstance(result.error, GenerationRateLimitedError)
    assert len(api.accepted) == 1


# --- refusals that end all -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error_class", "code"),
    [(AuthenticationError, 401), (InsufficientBalanceError, 402), (PermissionDeniedError, 403)],
)
@pytest.mark.anyio
async def test_a_refusal_of_the_account_ends_all_submitting(
    error_class: type[APIError], code: int
) -> None:
    """What runs is delivered; the rest get the error without being sent."""
    api = FakeAccount(capacity=2, duration=10)
    api.answers = [{}, {}, status(error_class, code)]
    results = await Runner(api, max_running=2).run_all(prompts(8))
    refused = [result for result in results if not result.ok]
    assert len(refused) >= 5  # one may have been under way together with the refused one
    assert all(isinstance(result.error, error_class) for result in refused)
    assert len(api.accepted) == 8 - len(refused)
    assert all(result.submitted == () for result in refused)


@pytest.mark.anyio
async def test_it_ends_all_that_wait_and_not_what_comes_later() -> None:
    """A runner that lives on is of use again when funds were added."""
    api = FakeAccount(capacity=1, duration=10)
    runner, errors = Runner(api, max_running=1), []

    async def run(prompt: str) -> None:
        try:
            await runner.run(prompt)
        except InsufficientBalanceError as error:
            errors.append(error)

    api.answers = [{}, status(InsufficientBalanceError, 402)]
    async with anyio.create_task_group() as tasks:
        for prompt in prompts(5):
            tasks.start_soon(run, prompt)
    assert len(errors) == 4
    assert len(set(map(id, errors))) == 4
    assert (await runner.run("later")).state == "completed"


@pytest.mark.parametrize(
    ("error_class", "code"), [(BadRequestError, 400), (UnprocessableEntityError, 422)]
)
@pytest.mark.anyio
async def test_a_refused_request_is_its_own_result(error_class: type[APIError], code: int) -> None:
    """The others may fare better."""
    api = FakeAccount()
    api.answers = [status(error_class, code)]
    results = await Runner(api).run_all(prompts(3))
    assert isinstance(results[0].error, error_class)
    assert [result.ok for result in results] == [False, True, True]


@pytest.mark.anyio
async def test_max_submissions_is_a_guard_for_the_purse() -> None:
    """Over all runs and attempts; nothing is sent beyond."""
    api = FakeAccount()
    runner = Runner(api, max_submissions=3, max_attempts=2)
    api.answers = [FAILED]
    results = await runner.run_all(prompts(4))
    assert len(api.accepted) == 3
    assert sum(isinstance(result.error, SubmissionLimitError) for result in results) >= 1
    with pytest.raises(SubmissionLimitError, match="nothing was sent"):
        await runner.run("one more")


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_leaving_the_block_stops_submitting_and_tells_what_runs() -> None:
    """The ids stay known, with their requests."""
    api = FakeAccount(capacity=3, duration=100)
    runner = Runner(api)
    async with runner.as_completed(prompts(10)):
        await anyio.sleep(10)
    accepted = len(api.accepted)
    await anyio.sleep(200)
    assert len(api.accepted) == accepted == 3
    assert runner.outstanding == {
        generation_id: params["prompt"] for _, generation_id, params in api.accepted
    }


@pytest.mark.anyio
async def test_a_submission_under_way_runs_to_its_end() -> None:
    """Whoever cancels it: the answer has an id that must not be forgotten."""
    api, seen = FakeAccount(latency=4), []
    runner = Runner(api, on_submit=lambda event: seen.append(event.generation.id))
    with anyio.move_on_after(1):
        await runner.run("a red fox")
    assert seen == [generation_id for _, generation_id, _ in api.accepted]
    assert list(runner.outstanding) == seen


def test_native_cancellation_does_not_cut_a_submission_short() -> None:
    """Asyncio's own cancel, twice, as an impatient framework does."""
    api, seen = FakeAccount(latency=4), []

    async def main() -> None:
        runner = Runner(api, on_submit=lambda event: seen.append(event.generation.id))
        task = asyncio.create_task(runner.run("a red fox"))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as loop:
        loop.run(main())
    assert seen == [generation_id for _, generation_id, _ in api.accepted]
    assert len(seen) == 1


@pytest.mark.anyio
async def test_submitted_forgets_after_an_hour() -> None:
    """The API ends every job within it; a runner may live for months."""
    api = FakeAccount(duration=10_000)
    runner = Runner(api)
    for prompt in prompts(3):
        with pytest.raises(PollTimeoutError):
            await runner.run(prompt, timeout=2000)
    assert list(runner.outstanding.values()) == ["prompt 1", "prompt 2"]


# --- callbacks -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_on_submit_hears_of_an_id_before_it_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it raises is logged, with the id, and dropped."""
    api, seen = FakeAccount(), []

    def on_submit(event: RunSubmitted) -> None:
        seen.append((event.run.request, event.generation.state))
        raise LookupError("the database is down")

    with caplog.at_level(logging.ERROR, "luma_poll"):
        results = await Runner(api, on_submit=on_submit).run_all(
            ["a red fox", {"prompt": "an owl"}]
        )
    assert seen == [("a red fox", "queued"), ({"prompt": "an owl"}, "queued")]
    assert all(result.ok for result in results)
    assert all(generation_id in caplog.text for _, generation_id, _ in api.accepted)


@pytest.mark.anyio
async def test_on_state_hears_each_change_of_each_run() -> None:
    """From the first state to the last: a progress display needs nothing else."""
    api, seen = FakeAccount(), []
    api.answers = [MODERATED, {}]
    runner = Runner(api, on_state=lambda event: seen.append((event.run.request, event.state)))
    await runner.run_all(["a fox", "an owl"])
    of_fox = [state for request, state in seen if request == "a fox"]
    of_owl = [state for request, state in seen if request == "an owl"]
    assert (of_fox[0], of_fox[-1]) == ("queued", "failed")
    assert (of_owl[0], of_owl[-1]) == ("queued", "completed")
    assert len(set(of_owl)) == len(of_owl)


@pytest.mark.anyio
async def test_an_observer_of_a_runner_hears_its_poller_too() -> None:
    """One seam for both; nothing more is heard after its end."""
    api, seen = FakeAccount(), []
    runner = Runner(api)
    stop = runner.observe(lambda event: seen.append(type(event).__name__))
    await runner.run("a fox")
    stop()
    await runner.run("an owl")
    assert (seen[0], seen[-1]) == ("RunBegan", "RunEnded")
    assert [seen.count(name) for name in ("RunSubmitted", "WaitBegan", "RunEnded")] == [1, 1, 1]


@pytest.mark.anyio
async def test_a_result_raises_its_error() -> None:
    """As a `PollResult` does."""
    api = FakeAccount()
    api.answers = [MODERATED, {}]
    moderated, fine = await Runner(api).run_all(prompts(2))
    with pytest.raises(ContentModeratedError):
        _ = moderated.outputs
    assert moderated.generation is not None
    assert moderated.generation.state == "failed"
    assert fine.outputs[0].url == OUTPUT[0]["url"]
    assert RunResult("a red fox", None).outputs == []


@pytest.mark.anyio
async def test_the_users_poller_is_used() -> None:
    """With its schedule, its limits and its timeout."""
    api = FakeAccount(duration=100)
    events: list[PollEvent] = []
    poller = Poller(api, timeout=15, on_poll=events.append)
    with pytest.raises(PollTimeoutError):
        await Runner(api, poller).run("a red fox")
    assert {event.generation_id for event in events} == {api.accepted[0][1]}


# --- real clients --------------------------------------------------------------------------------


class Server:
    """The API over HTTP: refuses the first submission, and completes the others at once."""

    def __init__(self) -> None:
        self.posts = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        fields = {"id": "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e", "created_at": "now", "model": "m"}
        if request.method == "GET":
            return httpx.Response(200, json=fields | {"state": "completed", "output": OUTPUT})
        self.posts += 1
        if self.posts == 1:
            return httpx.Response(
                429, json={"detail": "Rate limit exceeded"}, headers={"Retry-After": "1"}
            )
        if self.posts == 3:
            return httpx.Response(503)
        return httpx.Response(201, json=fields | {"state": "queued", "output": []})


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.asyncio  # in real time: the SDK looks up its headers in a thread
async def test_the_clients_own_retries_of_a_submission_are_off(official: bool) -> None:
    """Those of the SDK repeat a POST that may have been accepted, and sleep through refusals."""
    server = Server()
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(server))
    client: Any = (luma_agents.AsyncLuma if official else LumaClient)(
        auth_token="luma-api-x", http_client=http_client
    )
    runner = Runner(client, Poller(client, wait=wait_fixed(0.01)))
    assert (await runner.run("a red fox")).state == "completed"
    with pytest.raises(ServerError) as caught:
        await runner.run("a grey owl")
    assert caught.value.may_have_been_accepted
    assert server.posts == 3
    await http_client.aclose()


def test_a_runner_outlives_its_event_loop() -> None:
    """What ran in the one before is no longer its business."""
    api = FakeAccount(capacity=5, duration=1)
    runner = Runner(api)

    async def leave() -> None:
        with anyio.move_on_after(0.5):
            await runner.run("a red fox")

    for _ in range(2):
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as loop:
            loop.run(leave())
            assert loop.run(runner.run("a grey owl")).state == "completed"
    assert len(api.accepted) == 4


# --- an iterable that raises ---------------------------------------------------------------------


@pytest.mark.anyio
async def test_an_iterable_that_raises_takes_no_result_along() -> None:
    """What was paid is on the exception: the results as an attribute, the ids in its note."""
    api = FakeAccount(duration=5)

    def rows() -> Iterator[str]:
        yield "a red fox"
        yield "a grey owl"
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    with pytest.raises(UnicodeDecodeError) as caught:
        await Runner(api).run_all(rows())
    found: list[RunResult] = vars(caught.value)["results"]
    assert [(result.request, result.ok) for result in found] == [
        ("a red fox", True),
        ("a grey owl", True),
    ]
    assert all(generation_id in caught.value.__notes__[0] for _, generation_id, _ in api.accepted)


@pytest.mark.anyio
async def test_a_result_has_its_key() -> None:
    """To be told apart by."""
    results = await Runner(FakeAccount()).run_all([{"prompt": "a fox", "key": "order-17"}, "owl"])
    assert [result.key for result in results] == ["order-17", None]
