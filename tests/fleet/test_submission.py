"""The permit to submit, and the one submission that it allows."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from luma_poll import (
    APIConnectionError,
    APITimeoutError,
    ConfigurationError,
    InsufficientBalanceError,
    InvalidResponseError,
    SubmissionUnknownError,
)
from luma_poll._fleet import submit_once as submission
from luma_poll._fleet.ledger import NOTHING_ACCEPTED, Accepted, Late, Ledger, Permit, Unknown
from luma_poll._fleet.submit_once import Submitter

REQUEST = {"prompt": "a fox"}
ACCEPTED = Accepted("id-1", 1000.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/ledger.db")
    ledger = Ledger(engine, None, "luma")
    ledger.create_tables()
    yield ledger
    engine.dispose()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def test_a_permit_is_given_once(ledger: Ledger) -> None:
    """Another call is told that it is unknown, until there is an id; another attempt is another."""
    assert ledger.claim("k", 1, "mine") == Permit()
    assert ledger.claim("k", 1, "another's") == Unknown()
    assert ledger.claim("k", 2, "another's") == Permit()
    assert ledger.unknown() == ["k"]
    assert ledger.accept("k", 1, "mine", ACCEPTED)
    assert ledger.claim("k", 1, "another's") == ACCEPTED


def test_a_lost_answer_of_the_database_loses_no_permit(ledger: Ledger) -> None:
    """The call that inserted the row asks again, and has it."""
    assert ledger.claim("k", 1, "mine") == ledger.claim("k", 1, "mine") == Permit()
    assert ledger.unknown() == []


def test_a_permit_that_was_given_back_is_given_again(ledger: Ledger) -> None:
    """To anybody; whoever had it before can record nothing any more."""
    ledger.claim("k", 1, "mine")
    assert ledger.release("k", 1, "mine")
    assert ledger.claim("k", 1, "another's") == Permit()
    assert not ledger.accept("k", 1, "mine", ACCEPTED)


def test_an_id_that_arrives_late_is_news(ledger: Ledger) -> None:
    """Until somebody has been told."""
    ledger.claim("k", 1, "mine")
    ledger.claim("k", 1, "another's")
    assert ledger.late() == []
    ledger.accept("k", 1, "mine", ACCEPTED)
    assert ledger.late() == [Late("k", 1, "id-1")]
    assert ledger.healed(ledger.late()[0])
    assert ledger.late() == []


def test_of_several_only_one_takes_over(ledger: Ledger) -> None:
    """And nobody from a worker that beats again."""
    assert ledger.beat("one") == {"one": 1}
    assert ledger.beat("two") == {"one": 1, "two": 1}
    assert ledger.beat("one") == {"one": 2, "two": 1}
    assert not ledger.bury("one", 1)
    assert [ledger.bury("one", 2), ledger.bury("one", 2)] == [True, False]
    ledger.leave("two")
    assert ledger.beat("three") == {"two": 0, "three": 1}


class Api:
    """Answers submissions from a script, then with an id."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.requests: list[dict[str, Any]] = []

    async def create(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)
        return {"id": "id-1", "state": "queued"}


async def submit(api: Api, ledger: Ledger, threads: ThreadPoolExecutor, timeout: float = 60) -> Any:
    return await Submitter(api.create, ledger, threads).submit("k", 1, REQUEST, timeout)


@pytest.mark.asyncio
async def test_no_connection_is_tried_again(
    ledger: Ledger, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API has certainly seen nothing; but not for longer than the timeout."""
    monkeypatch.setattr(submission, "LONGEST_PAUSE", 0.01)
    refused = APIConnectionError("refused", request_sent=False)
    api = Api(refused, refused)
    assert (await submit(api, ledger, threads)).generation_id == "id-1"
    assert api.requests == [REQUEST] * 3
    ledger.resolve("k", NOTHING_ACCEPTED, known=True)
    assert await submit(Api(refused), ledger, threads, timeout=0) is refused


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "refusal",
    [InsufficientBalanceError("HTTP 402", status_code=402), ConfigurationError("not JSON")],
)
async def test_a_refusal_gives_the_permit_back(
    refusal: Exception, ledger: Ledger, threads: ThreadPoolExecutor
) -> None:
    """It may be submitted when somebody says so."""
    assert await submit(Api(refusal), ledger, threads) is refusal
    assert ledger.claim("k", 1, "another's") == Permit()


@pytest.mark.asyncio
@pytest.mark.parametrize("failure", [APITimeoutError("no answer"), KeyError("id"), OSError()])
async def test_anything_else_is_unknown(
    failure: Exception, ledger: Ledger, threads: ThreadPoolExecutor
) -> None:
    """And sent once, however often the step is run."""
    api = Api(failure)
    for _ in range(2):
        assert isinstance(await submit(api, ledger, threads), SubmissionUnknownError)
    assert len(api.requests) == 1
    assert ledger.unknown() == ["k"]


@pytest.mark.asyncio
async def test_an_id_in_an_unreadable_answer_is_kept(
    ledger: Ledger, threads: ThreadPoolExecutor
) -> None:
    """It was accepted: polls tell the rest."""
    unreadable = InvalidResponseError("not a generation", generation_id="id-2")
    assert (await submit(Api(unreadable), ledger, threads)).generation_id == "id-2"
    assert ledger.unknown() == []


@pytest.mark.asyncio
async def test_an_id_is_recorded_however_long_it_takes(
    ledger: Ledger,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the database is out of reach, the log has it."""
    accept, outages = ledger.accept, [sa.exc.OperationalError("", {}, OSError()) for _ in range(3)]

    def accept_later(*args: Any) -> bool:
        if outages:
            raise outages.pop()
        return accept(*args)

    monkeypatch.setattr(submission, "LONGEST_DATABASE_PAUSE", 0.01)
    monkeypatch.setattr(ledger, "accept", accept_later)
    assert (await submit(Api(), ledger, threads)).generation_id == "id-1"
    assert isinstance(ledger.claim("k", 1, "another's"), Accepted)
    assert caplog.text.count("id-1") == 3


@pytest.mark.asyncio
async def test_an_id_for_which_nobody_waits_is_told(
    ledger: Ledger,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody had it submitted again while the first submission was still under way."""
    monkeypatch.setattr(ledger, "accept", lambda *_: False)
    await submit(Api(), ledger, threads)
    assert "generation id-1 of 'k' runs, but is not waited for" in caplog.text
