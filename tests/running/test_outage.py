"""The API is away for a while: what that costs, and what is said meanwhile. On both loops."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from luma_poll import (
    APIConnectionError,
    AuthenticationError,
    RateLimitError,
    Runner,
    ServerError,
)
from luma_poll.typing import AnyRequest
from tests.running.fakes import FakeAccount

NO_CONNECTION = APIConnectionError("refused", request_sent=False)
BAD_GATEWAY = ServerError("HTTP 502", status_code=502, in_api_words=False)
LOGIN_PAGE = AuthenticationError("HTTP 401, a page", status_code=401, in_api_words=False)


class Outage(FakeAccount):
    """An account whose API answers with an error for a while.

    Args:
        error: That error.
        begins: Seconds from the first submission.
        lasts: Seconds.
    """

    def __init__(self, error: Exception, begins: float, lasts: float, **options: Any) -> None:
        super().__init__(**options)
        self.error, self.begins, self.lasts = error, begins, lasts
        self.asked: list[float] = []
        self._first: float | None = None

    def _answer(self, params: dict[str, Any], now: float) -> dict[str, Any]:
        self._first = now if self._first is None else self._first
        if 0 <= now - self._first - self.begins < self.lasts:
            self.asked.append(now)
            raise self.error
        return super()._answer(params, now)


def prompts(number: int) -> list[str]:
    return [f"prompt {each}" for each in range(number)]


@pytest.mark.parametrize("number", [40, pytest.param(400, marks=pytest.mark.no_cover)])
@pytest.mark.parametrize("latency", [0.02, 0.2])
@pytest.mark.parametrize(("lasts", "most"), [(30, 7), (120, 10), (600, 26)])
@pytest.mark.anyio
async def test_an_outage_costs_a_handful_whatever_the_size_of_the_batch(
    number: int, latency: float, lasts: float, most: int
) -> None:
    """One at a time asks, at a growing distance; those in flight when it began come on top."""
    api = Outage(BAD_GATEWAY, 8, lasts, capacity=10, latency=latency, duration=6)
    results = await Runner(api).run_all(prompts(number))
    lost = [result for result in results if result.error is not None]
    assert all(isinstance(result.error, ServerError) for result in lost)
    assert len(api.asked) == len(lost) <= most + 8
    pauses = [later - before for before, later in zip(api.asked, api.asked[1:], strict=False)]
    assert max(pauses) < 31
    assert len({prompt["prompt"] for _, _, prompt in api.accepted}) == number - len(lost)


@pytest.mark.anyio
async def test_nothing_is_lost_where_nothing_was_sent() -> None:
    """No connection for two minutes: every request is submitted afterwards."""
    api = Outage(NO_CONNECTION, 10, 120, capacity=20, duration=5)
    results = await Runner(api).run_all(prompts(60))
    assert all(result.ok for result in results)
    assert len(api.asked) < 8 + 120 / 5 + 5


@pytest.mark.anyio
async def test_an_api_that_is_never_reached_ends_the_run_after_half_a_minute() -> None:
    """Its address is likely wrong: ten minutes of silence would help nobody."""
    api = Outage(NO_CONNECTION, 0, 10_000)
    began = anyio.current_time()
    results = await Runner(api).run_all(prompts(200))
    assert all(isinstance(result.error, APIConnectionError) for result in results)
    assert 30 <= anyio.current_time() - began < 40
    assert len(api.asked) < 15


@pytest.mark.anyio
async def test_a_login_page_is_not_the_words_of_the_api() -> None:
    """A Wi-Fi's 401 for five seconds ends nothing."""
    api = Outage(LOGIN_PAGE, 5, 5, capacity=10, duration=5)
    results = await Runner(api).run_all(prompts(150))
    assert all(result.ok for result in results)


@pytest.mark.anyio
async def test_a_page_that_stays_is_believed() -> None:
    """Where no answer was the API's: the base URL may be that of something else."""
    api = Outage(LOGIN_PAGE, 0, 10_000)
    began = anyio.current_time()
    results = await Runner(api).run_all(prompts(20))
    assert all(isinstance(result.error, AuthenticationError) for result in results)
    assert anyio.current_time() - began < 60


@pytest.mark.anyio
async def test_what_may_run_counts_for_an_hour() -> None:
    """`max_running` is the account's, or a purse's: what was lost may be running."""
    api = FakeAccount(duration=10)
    api.answers = [BAD_GATEWAY, BAD_GATEWAY]
    began = anyio.current_time()
    results = await Runner(api, max_running=2).run_all(prompts(3))
    assert [result.ok for result in results] == [False, False, True]
    assert api.accepted[0][0] - began >= 3600


# --- what is said --------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_refusal_that_no_time_cures_is_said_each_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the API's words, with since when; until the run is ended."""
    words = "Daily generation quota exceeded. Upgrade your plan."
    refusal = RateLimitError(words, status_code=429, detail=words, retry_after=5)
    api = Outage(refusal, 0, 10_000)
    with caplog.at_level(logging.WARNING, logger="luma_poll"), anyio.move_on_after(200):
        await Runner(api).run_all(prompts(3))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert all("Daily generation quota exceeded" in line and "since" in line for line in said)
    assert "(0 s)" in said[0]


@pytest.mark.anyio
async def test_a_full_account_of_ours_is_no_standstill(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals are how its size is learned."""
    api = FakeAccount(capacity=3, duration=20)
    with caplog.at_level(logging.WARNING, logger="luma_poll"):
        results = await Runner(api).run_all(prompts(12))
    assert all(result.ok for result in results)
    assert api.refusals
    assert caplog.records == []


@pytest.mark.anyio
async def test_one_that_never_fits_lets_the_others_pass() -> None:
    """The account named neither its limit nor the weight; nothing of ours is in its way."""
    api = FakeAccount(capacity=2, text="Too many concurrent jobs", duration=5)
    requests: list[AnyRequest] = [{"prompt": "heavy", "model": "uni-1-max"}, *prompts(4)]
    done = []
    with anyio.move_on_after(1200):
        async with Runner(api).as_completed(requests) as results:
            async for result in results:
                done.append(result)
    assert len(done) == 4
    assert all(result.ok for result in done)


# --- cancelled -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_answer_of_a_cancelled_submission_is_noted() -> None:
    """A POST that is refused after Ctrl-C was not accepted, and observers learn it."""
    api = FakeAccount(latency=2)
    api.answers = [RateLimitError("slow down", status_code=429, retry_after=30)]
    steps: list[str] = []
    runner = Runner(api)
    runner.observe(lambda event: steps.append(type(event).__name__))
    with anyio.move_on_after(0.5):
        await runner.run("a red fox")
    assert steps == ["RunBegan", "RunSubmitting", "RunRefused", "RunEnded"]
