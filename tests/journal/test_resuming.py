"""A journal is continued: what it has comes first, and is paid once, whatever the rest meets."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import luma_agents
import pytest
import respx

from luma_poll import (
    APIConnectionError,
    InsufficientBalanceError,
    Journal,
    JournalError,
    LumaClient,
    NotFoundError,
    PollTimeoutError,
    Runner,
    RunResult,
    SubmissionUnknownError,
)
from luma_poll._journal import transitions
from luma_poll._journal.fingerprint import fingerprint, older_fingerprint
from luma_poll._journal.recorder import Recorder
from luma_poll.events import Event, RunBegan, RunFound, RunSubmitted
from tests.api.test_media_reference import PNG, WEBP
from tests.journal.test_journal import (
    FAILED,
    Run,
    api_of,
    break_the_disk,
    path,
    run,
    runner_of,
    states,
)
from tests.running.fakes import FakeAccount, leave_after

__all__ = ["path", "run"]  # fixtures

OLD = [f"prompt {number}" for number in range(6)]
BROKE = InsufficientBalanceError("HTTP 402", status_code=402, detail="add funds")


def leave(api: FakeAccount, path: Path, run: Run, requests: list[Any] = OLD) -> None:
    """Let a process submit these, and end before they do."""

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            with leave_after(runner, RunSubmitted, len(requests)):
                await runner.run_all(requests)
        assert len(api.accepted) == len(requests)

    duration, api.duration = api.duration, 3600
    run(main)
    api.duration = duration
    api.end_in(duration)


def resume(api: FakeAccount, path: Path, run: Run, requests: list[Any], **options: Any) -> Any:
    """Run these in the next process; returns the results."""

    async def main() -> list[RunResult]:
        with Journal(path) as journal:
            return await runner_of(api, journal, **options).run_all(requests)

    return run(main)


# --- what it has comes first ---------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_refusal_of_a_new_one_withholds_nothing_that_runs(
    path: Path, run: Run, place: int
) -> None:
    """Before, among and after it: 402 is the result of what was not sent alone."""
    api = api_of(duration=0.5)
    leave(api, path, run)
    api.answers = [BROKE]
    requests = [*OLD[:place], "new", *OLD[place:], "another new one"]
    results = resume(api, path, run, requests)
    assert [result.request for result in results] == requests
    for result in results:
        is_new = "new" in result.request
        assert result.ok is not is_new
        assert isinstance(result.error, InsufficientBalanceError) is is_new
    assert len(api.accepted) == len(OLD)


def test_a_refusal_withholds_nothing_of_an_iterator_either(path: Path, run: Run) -> None:
    """Whose requests are taken one by one."""
    api = api_of(duration=0.5)
    leave(api, path, run)
    api.answers = [BROKE]
    results = resume(api, path, run, iter(["new", *OLD]))  # type: ignore[arg-type]
    assert [result.ok for result in results] == [False, *[True] * len(OLD)]


def test_a_full_account_withholds_nothing(path: Path, run: Run) -> None:
    """What has completed is delivered while a new one that comes before it waits for a slot."""
    api = api_of(capacity=len(OLD), duration=0.02)
    resume(api, path, run, OLD)
    api.occupy(len(OLD), 3600)

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            done: list[str] = []
            with anyio.fail_after(10):
                async with runner.as_completed(["new", *OLD]) as results:
                    async for result in results:
                        done.append(str(result.request))
                        if len(done) == len(OLD):
                            break
            assert sorted(done) == OLD

    run(main)


def test_each_that_is_found_is_an_event(path: Path, run: Run) -> None:
    """With its id, and whether it runs: a table shows what earlier processes submitted."""
    api = api_of(duration=0.5)
    leave(api, path, run, OLD[:2])
    seen: list[Event] = []

    async def main(requests: list[str]) -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            runner.observe(seen.append)
            await runner.run_all(requests)

    run(lambda: main(["new", *OLD[:2]]))
    found = [event for event in seen if isinstance(event, RunFound)]
    assert [event.generation_id for event in found] == [each for _, each, _ in api.accepted[:2]]
    assert all(event.running for event in found)
    begun = [event.run.request for event in seen if isinstance(event, RunBegan)]
    assert begun == [*OLD[:2], "new"]
    assert len([event for event in seen if isinstance(event, RunSubmitted)]) == 1
    seen.clear()
    run(lambda: main(OLD[:2]))
    assert [event.running for event in seen if isinstance(event, RunFound)] == [False, False]


def test_what_runs_is_outstanding_after_an_interruption_of_the_next_run(
    path: Path, run: Run
) -> None:
    """All of it, although the first of the requests is new and waits for a slot."""
    api = api_of(capacity=len(OLD), duration=30)
    leave(api, path, run)

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal, max_running=len(OLD))
            with leave_after(runner, RunFound, len(OLD)):
                await runner.run_all(["new", *OLD])
            assert set(runner.outstanding.values()) == set(OLD)

    run(main)


# --- many that have completed, in virtual time ---------------------------------------------------


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and write without a thread, as the virtual clock would run on meanwhile."""

    async def call(self: Recorder, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    async def run_sync(function: Callable[..., Any], *args: Any, limiter: object) -> Any:
        return function(*args)

    monkeypatch.setattr(Recorder, "_call", call)
    monkeypatch.setattr("luma_poll._running.batch.anyio.to_thread.run_sync", run_sync)


def complete(journal: Journal, api: FakeAccount, prompts: list[str]) -> None:
    """Let these have completed long ago."""
    connection = journal._store._database.connection
    connection.execute("BEGIN")
    for number, prompt in enumerate(prompts):
        digest, generation_id = fingerprint({"prompt": prompt}), f"id-{number}"
        connection.execute(
            "INSERT INTO entries (key, fingerprint, request, state, attempt, generation_id, "
            "submitted, updated_at, rules) VALUES (?, ?, '{}', 'completed', 1, ?, ?, ?, 2)",
            (
                digest[:32],
                digest,
                generation_id,
                f'["{generation_id}"]',
                "2026-01-01T00:00:00+00:00",
            ),
        )
        api._jobs[generation_id] = (-99.0, -98.0, 1, {})
        api._endings[generation_id] = {}
    connection.execute("COMMIT")


@pytest.mark.no_cover
@pytest.mark.anyio
@pytest.mark.usefixtures("inline")
async def test_a_thousand_completed_ones_take_their_time_and_a_new_one_does_not_starve(
    path: Path,
) -> None:
    """Each has the time of its own request; the new one is seen to end while they are fetched."""
    api, prompts = FakeAccount(duration=5), [f"old {number}" for number in range(1000)]
    ended: dict[str, float] = {}
    with Journal(path) as journal:
        complete(journal, api, prompts)
        runner = Runner(api, journal=journal)
        begun = anyio.current_time()
        async with runner.as_completed([*prompts, "new"], timeout=20) as results:
            async for result in results:
                assert result.ok, result.error
                ended[str(result.request)] = anyio.current_time() - begun
    assert len(ended) == 1001
    assert ended["new"] < 15
    assert max(ended.values()) > 30  # 30 requests a second, whatever the timeout of each


@pytest.mark.anyio
@pytest.mark.usefixtures("inline")
async def test_a_completed_one_that_cannot_be_fetched_says_so(path: Path) -> None:
    """That it has completed, and that the same command fetches it: not that it may finish."""
    api = FakeAccount(latency=60)
    with Journal(path) as journal:
        complete(journal, api, ["old"])
        (result,) = await Runner(api, journal=journal).run_all(["old"], timeout=20)
        assert isinstance(result.error, PollTimeoutError)
        assert "completed earlier, but could not be fetched again" in str(result.error)
        assert "with the same journal" in str(result.error)
        assert "may still finish" not in str(result.error)
        assert list(result.submitted) == ["id-0"]


def test_an_id_that_the_api_does_not_know_can_be_settled(path: Path, run: Run) -> None:
    """The error names the key, and how; then it is submitted once more."""
    api = api_of(duration=0.01)
    resume(api, path, run, [{"prompt": "a fox", "key": "k"}])
    get = api.get

    async def forgotten(generation_id: str) -> Any:
        raise NotFoundError("HTTP 404", status_code=404, detail="Generation not found")

    api.get = forgotten  # type: ignore[method-assign]
    (result,) = resume(api, path, run, [{"prompt": "a fox", "key": "k"}])
    assert isinstance(result.error, NotFoundError)
    assert "request 'k' in the journal" in str(result.error)
    assert "Journal.resolve" in str(result.error)
    api.get = get  # type: ignore[method-assign]
    with Journal(path) as journal:
        journal.resolve("k", resubmit=True)
    (result,) = resume(api, path, run, [{"prompt": "a fox", "key": "k"}])
    assert result.ok
    assert len(api.accepted) == 2


# --- the disk is full ----------------------------------------------------------------------------


def test_a_full_disk_withholds_no_result(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The id is logged once, at once; what cannot be written is said again at the end."""
    api = api_of()
    break_the_disk(monkeypatch, "accept", 10**9)
    with caplog.at_level(logging.ERROR, "luma_poll"):
        results = resume(api, path, run, [{"prompt": "a fox", "key": "k"}])
    assert results[0].ok
    ((_, generation_id, _),) = api.accepted
    messages = [record.getMessage() for record in caplog.records]
    assert sum("its id is not in the journal yet" in message for message in messages) == 1
    assert generation_id in messages[0]
    assert "settle request 'k'" in messages[-2]


def test_what_could_not_be_written_is_written_before_the_next(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failed write is made good by any other, in the order in which they came."""
    api = api_of()
    break_the_disk(monkeypatch, "accept", 1)

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            await runner.run("a fox", key="k1")
            await runner.run("an owl", key="k2")
            assert states(journal) == {"k1": "completed", "k2": "completed"}

    run(main)


def test_a_retract_that_failed_is_made_good(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left a key "in use by another Runner", and an `unknown` for what was never sent."""
    api = api_of()
    api.answers = [APIConnectionError("refused", request_sent=False)]
    break_the_disk(monkeypatch, "retract", 1)
    (result,) = resume(api, path, run, [{"prompt": "a fox", "key": "k"}])
    assert result.ok
    assert len(api.accepted) == 1
    with Journal(path) as journal:
        assert states(journal) == {"k": "completed"}


def test_on_a_disk_that_stays_full_nothing_more_is_sent(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the new intent itself could be written: what was before comes first."""
    api = api_of()
    break_the_disk(monkeypatch, "end", 10**9)

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            assert (await runner.run("a fox", key="k1")).state == "completed"
            with pytest.raises(JournalError, match="full"):
                await runner.run("an owl", key="k2")

    run(main)
    assert len(api.accepted) == 1


@pytest.mark.anyio
@pytest.mark.usefixtures("inline")
async def test_a_full_disk_is_said_once_a_minute(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside a wait of ten minutes: not each second, and not never."""

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(transitions, "accept", full)
    api = FakeAccount(duration=595)
    with caplog.at_level(logging.ERROR, "luma_poll"), Journal(path) as journal:
        await Runner(api, journal=journal).run("a fox", timeout=None)
        said = [each.getMessage() for each in caplog.records]
    assert len([text for text in said if "cannot be recorded yet" in text]) == 10


# --- a batch that may be meant to continue -------------------------------------------------------


@pytest.mark.parametrize("given", [list, iter])
def test_a_batch_of_which_the_journal_has_nothing_is_warned_of(
    path: Path, run: Run, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    """The same command with another model pays for everything again: once it is said."""
    api = api_of()
    resume(api, path, run, OLD)
    assert "none for a request of this batch" not in caplog.text, "it was empty"
    resume(api, path, run, given([*OLD, "new"]))
    assert "none for a request of this batch" not in caplog.text, "it has the most of them"
    resume(api, path, run, given([{"prompt": "x", "key": "named"}]))
    assert "none for a request of this batch" not in caplog.text, "a name of its own is no accident"
    resume(api, path, run, given([{"prompt": prompt, "model": "uni-1"} for prompt in OLD]))
    assert caplog.text.count("none for a request of this batch: all of it is submitted") == 1


def test_entries_by_the_older_rules_are_found(path: Path, run: Run) -> None:
    """By both of their keys: a URL with a token was kept without its whole query."""
    api = api_of(duration=0.01)
    source = {"url": "https://img.example.com/get?id=1&token=abc"}
    params = {"prompt": "at night", "source": source}
    digest = older_fingerprint(params)
    assert digest != fingerprint(params)
    with Journal(path) as journal:
        for key in ("named", digest[:32]):
            journal._store.begin(key, digest, params, 1)
            generation = run(lambda: api.create(prompt="x"))
            journal._store.accept(key, 1, generation.id)
        journal._store._database.connection.execute("UPDATE entries SET rules = 1")
    results = resume(api, path, run, [params, {**params, "key": "named"}])
    assert [result.ok for result in results] == [True, True]
    assert len(api.accepted) == 2


# --- a handle for what is unknown ----------------------------------------------------------------


def test_an_unknown_has_a_handle(path: Path, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The `X-Request-Id` that it carried: in the journal, in the error, and in the log."""
    api = api_of()
    api.answers = [APIConnectionError("reset", request_sent=True)]
    (result,) = resume(api, path, run, [{"prompt": "a fox", "key": "k"}])
    assert isinstance(result.error, APIConnectionError)
    handle = result.error.submission_id
    assert handle
    assert f"X-Request-Id {handle}" in caplog.text
    with Journal(path) as journal:
        (entry,) = journal.entries("unknown")
        assert entry.request_id == handle
    (result,) = resume(api, path, run, [{"prompt": "a fox", "key": "k"}])
    assert isinstance(result.error, SubmissionUnknownError)
    assert result.error.submission_id == handle


@pytest.mark.parametrize("official", [False, True])
def test_the_handle_is_sent(
    path: Path, run: Run, respx_mock: respx.MockRouter, official: bool
) -> None:
    """By our client and by the official SDK, another one for each submission."""
    route = respx_mock.post("https://api.example.com/v1/generations").respond(503, json={})

    async def main() -> None:
        base_url = "https://api.example.com/v1"
        client: Any = (
            luma_agents.AsyncLuma(auth_token="luma-api-x", base_url=base_url)
            if official
            else LumaClient("luma-api-x", base_url=base_url)
        )
        with Journal(path) as journal:
            runner = Runner(client, journal=journal)
            async with runner.as_completed([{"prompt": "a", "key": "a"}]) as results:
                async for result in results:
                    assert not result.ok
            (entry,) = journal.entries()
            assert route.calls.last.request.headers["X-Request-Id"] == entry.request_id

    run(main)


def test_a_second_attempt_has_a_handle_of_its_own(path: Path, run: Run) -> None:
    """The entry has that of the latest."""
    api = api_of()
    api.answers = [FAILED]
    handles = []

    async def main() -> None:
        with Journal(path) as journal:
            for attempts in (1, 2):
                await runner_of(api, journal, max_attempts=attempts).run_all(["a fox"])
                handles.append(journal.entries()[0].request_id)

    run(main)
    assert len(set(handles)) == 2


def test_what_is_sent_is_what_was_looked_up(path: Path, run: Run) -> None:
    """Although the caller changes a mapping of the list before its turn has come."""
    api = api_of(capacity=1)
    shared = {"url": "https://img.example.com/1.png"}
    requests = [{"prompt": f"{number}", "source": shared} for number in range(3)]

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal, on_submit=lambda *_: shared.update(url="changed"))
            assert all(result.ok for result in await runner.run_all(requests))

    run(main)
    sources = [params["source"]["url"] for _, _, params in api.accepted]
    assert sources == ["https://img.example.com/1.png"] * 3


# --- files that are gone -------------------------------------------------------------------------


def test_a_file_is_needed_only_for_what_was_not_submitted(
    path: Path, run: Run, tmp_path: Path
) -> None:
    """The journal has a digest of its bytes; a key that it does not have needs the file."""
    api = api_of(duration=0.5)
    picture = tmp_path / "in.png"
    picture.write_bytes(PNG)
    requests = [{"prompt": "a fox", "key": "k", "image_ref": [picture, {"url": "https://a/b"}]}]
    leave(api, path, run, requests)
    picture.unlink()
    (resumed,) = resume(api, path, run, requests)
    assert (resumed.ok, len(api.accepted)) == (True, 1)
    other, missing = resume(
        api, path, run, [{**requests[0], "prompt": "an owl"}, {**requests[0], "key": "new"}]
    )
    assert "other parameters" in str(other.error)
    assert "cannot be read" in str(missing.error)
    picture.write_bytes(WEBP)
    (changed,) = resume(api, path, run, requests)
    assert "other parameters" in str(changed.error)
    assert len(api.accepted) == 1
