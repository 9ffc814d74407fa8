"""Submissions that outlive their process: the file, and a Runner that keeps it."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tenacity import wait_fixed

from luma_poll import (
    APIConnectionError,
    BadRequestError,
    ConfigurationError,
    Generation,
    GenerationFailedError,
    Journal,
    JournalEntry,
    JournalError,
    OutputNotFoundError,
    Poller,
    Runner,
    RunResult,
    SubmissionUnknownError,
)
from luma_poll._journal import database, transitions
from luma_poll._journal.store import Store
from luma_poll.events import RunSubmitted
from tests.fakes import ID
from tests.running.fakes import FakeAccount, HeldAccount, leave_after

OTHER_ID = "0e7e4c5e-53f5-4b3c-8a83-2f1a3c9a5a11"
FAILED = {"state": "failed", "failure_code": "generation_failed", "output": []}
MODERATED = FAILED | {"failure_code": "content_moderated", "failure_reason": "flagged"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]:
    """Runs a function in a real event loop: threads do not live in virtual time."""
    return lambda function: anyio.run(function, backend=request.param)


Run = Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]


def api_of(**options: Any) -> FakeAccount:
    defaults: dict[str, Any] = {"duration": 0.02, "latency": 0.0, "clock": time.monotonic}
    return FakeAccount(**defaults | options)


def runner_of(api: FakeAccount, journal: Journal, **options: Any) -> Runner:
    return Runner(api, Poller(api, wait=wait_fixed(0.01)), journal=journal, **options)


def states(journal: Journal) -> dict[str, str]:
    return {entry.key: entry.state for entry in journal.entries()}


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.posix
def test_a_new_journal_is_empty_and_nobody_elses_business(path: Path) -> None:
    """Prompts are private: only its owner may read it."""
    with Journal(path) as journal:
        assert journal.entries() == []
        assert repr(journal) == f"Journal({str(path)!r})"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_process_at_a_time_holds_it(path: Path) -> None:
    """A second one gets a clear error, at once; so does a second one in the same process."""
    code = "import sys; from luma_poll import Journal; Journal(sys.argv[1])"
    with Journal(path):
        with pytest.raises(ConfigurationError, match="in use by another process"):
            Journal(path)
        child = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        assert "in use by another process" in child.stderr
    Journal(path).close()


@pytest.mark.parametrize("bad", [None, 7, object()])
def test_a_journal_is_given_by_a_path(bad: Any) -> None:
    """Not by a connection, for example."""
    with pytest.raises(ConfigurationError, match="path"):
        Journal(bad)


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    """A directory, a text, and the database of another program, none of which is changed."""
    text, foreign = tmp_path / "text.db", tmp_path / "foreign.db"
    text.write_text("this is a text, and not a database" * 100)
    with closing(sqlite3.connect(foreign, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE orders (id)")
    with pytest.raises(JournalError, match="not a journal, or is damaged"):
        Journal(text)
    with pytest.raises(ConfigurationError, match="another program"):
        Journal(foreign)
    with pytest.raises(ConfigurationError):
        Journal(tmp_path)
    with pytest.raises(ConfigurationError):
        Journal(tmp_path / "no" / "such" / "directory.db")
    with closing(sqlite3.connect(foreign, isolation_level=None)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("orders",)]


def test_a_newer_schema_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write into it would be to guess."""
    Journal(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {len(database.MIGRATIONS) + 1}")
    with pytest.raises(ConfigurationError, match="newer version of luma-poll"):
        Journal(path)


def test_an_older_schema_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all its entries, in one step: here to a schema with one more column."""
    with Journal(path) as journal:
        journal._store.begin("k", "f", {"prompt": "a fox"}, 1)
        journal._store.accept("k", 1, ID)
    later = (*database.MIGRATIONS, "ALTER TABLE entries ADD COLUMN colour TEXT")
    monkeypatch.setattr(database, "MIGRATIONS", later)
    with Journal(path) as journal:
        assert states(journal) == {"k": "running"}
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(later),)
        assert connection.execute("SELECT colour FROM entries").fetchall() == [(None,)]


FIRST_SCHEMA = """
CREATE TABLE entries (key TEXT PRIMARY KEY, fingerprint TEXT NOT NULL, request TEXT NOT NULL,
    state TEXT NOT NULL, attempt INTEGER NOT NULL, generation_id TEXT,
    submitted TEXT NOT NULL DEFAULT '[]', failure_code TEXT, failure_reason TEXT,
    updated_at TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO entries VALUES ('order-1', 'f1', '{"prompt": "a fox"}', 'running', 1, 'id-1',
    '["id-1"]', NULL, NULL, '2026-11-25T12:00:00+00:00');
INSERT INTO entries VALUES ('order-2', 'f2', '{"prompt": "an owl"}', 'submitting', 2, NULL,
    '["id-2"]', NULL, NULL, '2026-11-25T12:00:01+00:00');
PRAGMA user_version = 1;
PRAGMA application_id = 1280330289;
"""
"""A file as version 1 of the schema wrote it: releases to come must go on reading it."""


def test_a_file_of_the_first_schema_is_read(path: Path) -> None:
    """What was being submitted when its process died is unknown."""
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_SCHEMA)
    connection.close()
    with Journal(path) as journal:
        first, second = journal.entries()
        assert first == JournalEntry(
            key="order-1",
            request={"prompt": "a fox"},
            state="running",
            attempt=1,
            generation_id="id-1",
            failure_code=None,
            updated_at=datetime(2026, 11, 25, 12, tzinfo=UTC),
            submitted=("id-1",),
        )
        assert (second.state, second.attempt, second.generation_id) == ("unknown", 2, None)
        assert second.updated_at > first.updated_at


def test_a_closed_journal_says_so(path: Path) -> None:
    """To close it twice does nothing."""
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(ConfigurationError, match="is closed"):
        journal.entries()


def test_entries_by_state(path: Path) -> None:
    """A state that does not exist is refused rather than never found."""
    with Journal(path) as journal:
        journal._store.begin("a", "f", {}, 1)
        journal._store.begin("b", "f", {}, 1)
        journal._store.accept("b", 1, ID)
        assert [entry.key for entry in journal.entries("submitting")] == ["a"]
        assert [entry.key for entry in journal.entries("running")] == ["b"]
        assert journal.entries("unknown") == []
        with pytest.raises(ConfigurationError, match="submitting, running"):
            journal.entries("runing")  # type: ignore[arg-type]


def test_resolve_settles_only_what_is_unknown(path: Path) -> None:
    """By exactly one of the two; each mistake has its message."""
    with Journal(path) as journal:
        for key in ("by id", "again", "running"):
            journal._store.begin(key, "f", {}, 1)
        journal._store.accept("running", 1, ID)
    with Journal(path) as journal:
        journal.resolve("by id", generation_id=f" {OTHER_ID} ")
        journal.resolve("again", resubmit=True)
        assert states(journal) == {"by id": "running", "running": "running"}
        (entry,) = [entry for entry in journal.entries() if entry.key == "by id"]
        assert (entry.generation_id, entry.submitted) == (OTHER_ID, (OTHER_ID,))
        for key, message in (("running", "it is running"), ("nobody", "not in the journal")):
            with pytest.raises(ConfigurationError, match=message):
                journal.resolve(key, resubmit=True)
        for arguments in ({}, {"generation_id": ID, "resubmit": True}):
            with pytest.raises(ConfigurationError, match="either"):
                journal.resolve("again", **arguments)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="not a generation id"):
            journal.resolve("again", generation_id="..")


# --- a Runner that keeps it ----------------------------------------------------------------------


def test_a_key_is_submitted_once(path: Path, run: Run) -> None:
    """In the same process and in the next; its end comes with a fresh snapshot."""
    api = api_of()

    async def main() -> Generation:
        with Journal(path) as journal:
            return await runner_of(api, journal).run("a fox", key="order-17")

    first, second = run(main), run(main)
    assert first.id == second.id
    assert second.output[0].url
    assert len(api.accepted) == 1


def test_a_failure_is_given_again(path: Path, run: Run) -> None:
    """With its code and its reason, without a request."""
    api = api_of()
    api.answers = [MODERATED]

    async def main() -> RunResult:
        with Journal(path) as journal:
            return (await runner_of(api, journal).run_all(["a fox"]))[0]

    first, second = run(main), run(main)
    assert str(first.error) == str(second.error)
    assert type(first.error) is type(second.error)
    assert first.submitted == second.submitted == (api.accepted[0][1],)
    assert len(api.accepted) == 1


def test_a_completed_generation_without_output_is_never_submitted_again(
    path: Path, run: Run
) -> None:
    """Not in this run, and not in the next one: it is billed."""
    api = api_of()
    api.answers = [{"output": []}]

    async def main() -> RunResult:
        with Journal(path) as journal:
            runner = runner_of(api, journal, max_attempts=3)
            return (await runner.run_all(["a fox"]))[0]

    assert [type(run(main).error) for _ in range(2)] == [OutputNotFoundError] * 2
    assert len(api.accepted) == 1


def test_what_runs_is_waited_for_by_the_next_process(path: Path, run: Run) -> None:
    """Its id was recorded before it was waited for."""
    api = api_of(duration=0.3)

    async def leave() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            with leave_after(runner, RunSubmitted):
                await runner.run("a fox", key="k")

    async def again() -> Generation:
        with Journal(path) as journal:
            runner = runner_of(api, journal, max_running=1)
            generation = await runner.run("a fox", key="k")
            assert runner.outstanding == {}
            assert repr(runner) == "Runner(running=0, in_flight=0, waiting=0)"
            return generation

    run(leave)
    assert run(again).id == api.accepted[0][1]
    assert len(api.accepted) == 1


def test_the_same_key_with_other_parameters_is_an_error(path: Path, run: Run) -> None:
    """It may be a mistake, and the wrong picture would be delivered."""
    api = api_of()

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            await runner.run("a fox", key="k", model="uni-1")
            assert (await runner.run("a fox", key="k", model="uni-1")).state == "completed"
            with pytest.raises(ConfigurationError, match="other parameters"):
                await runner.run("an owl", key="k", model="uni-1")

    run(main)
    assert len(api.accepted) == 1


def test_a_url_that_is_signed_anew_is_the_same_parameter(path: Path, run: Run) -> None:
    """Otherwise no request with an input could be continued. A query that is a name counts."""
    api = api_of()
    url = "https://storage.example.com/in.png?X-Amz-Date=1&X-Amz-Signature="

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            for signature in ("5ec4e7", "0ther"):
                await runner.run("a fox", key="k", source={"url": url + signature})
            await runner.run("a fox", key="one", source={"url": "https://example.com/?image=1"})
            with pytest.raises(ConfigurationError, match="other parameters"):
                await runner.run("a fox", key="one", source={"url": "https://example.com/?image=2"})

    run(main)
    assert len(api.accepted) == 2
    assert "5ec4e7" not in path.read_bytes().decode(errors="replace")


def test_what_a_dead_process_submitted_is_unknown(path: Path, run: Run) -> None:
    """It is not submitted again until somebody says so; it can be settled in both ways."""
    api = api_of()
    with Journal(path) as journal:
        for key in ("a", "b"):
            params = {"prompt": key}
            journal._store.begin(key, store_fingerprint(params), params, 1)

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            with pytest.raises(SubmissionUnknownError, match="usage of the account") as caught:
                await runner.run("a", key="a")
            assert (caught.value.key, caught.value.request) == ("a", {"prompt": "a"})
            assert api.accepted == []
            generation = await api.create(prompt="a")
            journal.resolve("a", generation_id=generation.id)
            assert (await runner.run("a", key="a")).id == generation.id
            journal.resolve("b", resubmit=True)
            await runner.run("b", key="b")

    run(main)
    assert [params["prompt"] for _, _, params in api.accepted] == ["a", "b"]


def store_fingerprint(params: dict[str, Any]) -> str:
    from luma_poll._journal.fingerprint import fingerprint

    return fingerprint(params)


def test_the_same_key_at_the_same_time_is_submitted_once(path: Path, run: Run) -> None:
    """The second one waits for what the first one submitted."""
    api = api_of(latency=0.02)
    ids = []

    async def main() -> None:
        async def one(runner: Runner) -> None:
            ids.append((await runner.run("a fox", key="k")).id)

        with Journal(path) as journal:
            runner = runner_of(api, journal)
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(one, runner)
            assert repr(runner) == "Runner(running=0, in_flight=0, waiting=0)"

    run(main)
    assert len(ids) == 10
    assert len(set(ids)) == len(api.accepted) == 1


def test_requests_without_a_key_are_known_by_their_parameters(path: Path, run: Run) -> None:
    """And by how often they came before in the same batch; in any order of the parameters."""
    api = api_of()
    batches: list[list[Any]] = [
        ["a fox", "a fox", {"prompt": "an owl", "model": "uni-1"}],
        [{"model": "uni-1", "prompt": "an owl"}, "a fox", "a fox"],
        ["a fox", "a fox", "a fox"],
    ]

    async def main() -> list[int]:
        accepted = []
        with Journal(path) as journal:
            for batch in batches:
                results = await runner_of(api, journal).run_all(batch)
                assert all(result.ok for result in results)
                accepted.append(len(api.accepted))
        return accepted

    assert run(main) == [3, 3, 4]


def test_resubmission_continues_where_it_was(path: Path, run: Run) -> None:
    """All attempts of all processes count, and their ids are kept."""
    api = api_of()
    api.answers = [FAILED, FAILED, FAILED, FAILED]

    async def main(max_attempts: int) -> RunResult:
        with Journal(path) as journal:
            runner = runner_of(api, journal, max_attempts=max_attempts)
            return (await runner.run_all([{"prompt": "a fox", "key": "k"}]))[0]

    first = run(lambda: main(2))
    second = run(lambda: main(2))
    third = run(lambda: main(3))
    assert isinstance(first.error, GenerationFailedError)
    assert [len(each.submitted) for each in (first, second, third)] == [2, 2, 3]
    assert third.submitted[:2] == first.submitted
    with Journal(path) as journal:
        (entry,) = journal.entries()
    assert (entry.state, entry.attempt, len(entry.submitted)) == ("failed", 3, 3)


def test_what_was_certainly_not_accepted_leaves_no_trace(path: Path, run: Run) -> None:
    """A refusal, no connection, a full account: it may be submitted, later or again."""
    api = api_of(capacity=1, duration=0.2)
    api.answers = [BadRequestError("no", status_code=400)]

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            (result,) = await runner.run_all(["a fox"])
            assert isinstance(result.error, BadRequestError)
            assert journal.entries() == []
            api.answers = [APIConnectionError("refused", request_sent=False)]
            results = await runner.run_all(["a fox", "an owl", "a hare"])
            assert all(each.ok for each in results)
            assert api.refusals
            assert set(states(journal).values()) == {"completed"}

    run(main)


def test_what_may_have_been_accepted_is_unknown_at_once(path: Path, run: Run) -> None:
    """In the process that saw it, too."""
    api = api_of()
    api.answers = [APIConnectionError("reset", request_sent=True)]

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            with pytest.raises(APIConnectionError):
                await runner.run("a fox", key="k")
            assert states(journal) == {"k": "unknown"}
            with pytest.raises(SubmissionUnknownError):
                await runner.run("a fox", key="k")

    run(main)
    assert api.accepted == []


def test_a_client_that_breaks_leaves_an_unknown(path: Path, run: Run) -> None:
    """An exception that is none of the API's may come before or after it accepted."""
    api = api_of()
    api.answers = [LookupError("a bug of the client")]

    async def main() -> None:
        with Journal(path) as journal:
            with pytest.raises(LookupError):
                await runner_of(api, journal).run("a fox", key="k")
            assert states(journal) == {"k": "unknown"}

    run(main)


def test_a_cancellation_before_it_is_sent_leaves_no_trace(path: Path, run: Run) -> None:
    """One that comes while it is under way lets it end, and its id is recorded."""

    async def main() -> None:
        api = HeldAccount(duration=3600)
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await runner.run("a fox", key="never")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner.run, "an owl", key="under way"))
                await api.asked.wait()
                tasks.cancel_scope.cancel()
                api.let_go.set()
            assert states(journal) == {"under way": "running"}

    run(main)


def test_a_bad_request_is_not_recorded(path: Path, run: Run) -> None:
    """Parameters that are not JSON are refused before anything is written."""
    api = api_of()

    async def main() -> None:
        with Journal(path) as journal:
            (result,) = await runner_of(api, journal).run_all([{"prompt": "x", "seed": object()}])
            assert isinstance(result.error, ConfigurationError)
            assert journal.entries() == []

    run(main)
    assert api.accepted == []


def test_only_a_journal_is_a_journal() -> None:
    """A path would be guessed to work."""
    with pytest.raises(ConfigurationError, match="must be a Journal"):
        Runner(api_of(), journal="runs.db")  # type: ignore[arg-type]


# --- trouble with the disk -----------------------------------------------------------------------


def break_the_disk(monkeypatch: pytest.MonkeyPatch, method: str, times: int) -> list[int]:
    """Let a write fail so many times, as on a full disk; returns the count of its calls."""
    write, calls = getattr(transitions, method), [0]

    def fail(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] <= times:
            raise sqlite3.OperationalError("database or disk is full")
        return write(*args)

    monkeypatch.setattr(transitions, method, fail)
    monkeypatch.setattr("luma_poll._journal.recorder.RETRY", 0.01)
    return calls


def test_on_a_full_disk_nothing_is_sent(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent has to be on disk first; the error says so, and the next request may do better."""
    api = api_of()
    break_the_disk(monkeypatch, "begin", 1)

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            results = await runner.run_all(["a fox", "an owl"])
            assert isinstance(results[0].error, JournalError)
            assert results[1].ok
            assert repr(runner) == "Runner(running=0, in_flight=0, waiting=0)"

    run(main)
    assert len(api.accepted) == 1


def test_an_id_is_recorded_however_long_that_takes(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, with the id, and the callback is called without delay."""
    api, seen = api_of(), []
    break_the_disk(monkeypatch, "accept", 3)

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal, on_submit=lambda event: seen.append(event.run.request))
            await runner.run("a fox", key="k")
            assert states(journal) == {"k": "completed"}

    with caplog.at_level(logging.ERROR, "luma_poll"):
        run(main)
    assert len(api.accepted) == len(seen) == 1
    assert caplog.text.count(api.accepted[0][1]) == 1


def test_an_id_that_cannot_be_recorded_is_logged_when_the_run_is_cancelled(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the words to settle it by; the next process calls it unknown."""
    api = api_of()
    calls = break_the_disk(monkeypatch, "accept", 10**9)

    async def main() -> None:
        with Journal(path) as journal:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(runner_of(api, journal).run, "a fox", key="k"))
                while calls[0] < 3:  # noqa: ASYNC110 (a thread counts)
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()

    with caplog.at_level(logging.ERROR, "luma_poll"):
        run(main)
    last = caplog.records[-1].getMessage()
    assert api.accepted[0][1] in last
    assert "'k'" in last
    with Journal(path) as journal:
        assert states(journal) == {"k": "unknown"}


def test_an_end_that_cannot_be_recorded_does_no_harm(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result is delivered; the next process waits for the same generation again."""
    api = api_of()
    break_the_disk(monkeypatch, "end", 1)

    async def main() -> str:
        with Journal(path) as journal:
            return (await runner_of(api, journal).run("a fox", key="k")).state

    assert [run(main), run(main)] == ["completed", "completed"]
    assert len(api.accepted) == 1


def fill(path: Path) -> None:
    """Leave no room on the disk that this file is on."""
    with suppress(OSError), path.open("wb", 0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path, run: Run) -> None:
    """SQLite itself says so; when there is room again, all continues."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        api = api_of()
        ballast = tmp_path / "ballast"

        async def main() -> None:
            with Journal(tmp_path / "runs.db") as journal:
                runner = runner_of(api, journal)
                await runner.run("a fox", key="k1")
                fill(ballast)
                with pytest.raises(JournalError, match="full"):
                    await runner.run("an owl " * 2000, key="k2")
                ballast.unlink()
                await runner.run("an owl " * 2000, key="k2")
                assert states(journal) == {"k1": "completed", "k2": "completed"}

        run(main)
        assert len(api.accepted) == 2
    finally:
        subprocess.run(["umount", str(tmp_path)], check=False)


# --- the transitions -----------------------------------------------------------------------------


class Transitions(RuleBasedStateMachine):
    """The store against a model in memory, over closings, deaths and writes in any order."""

    keys = st.sampled_from(["a", "b"])

    @initialize()
    def open(self) -> None:
        self.model: dict[str, tuple[str, int, list[str]]] = {}
        self.doubtful: set[str] = set()
        self.directory = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.directory.name) / "runs.db")
        self.ids = 0

    @rule(key=keys)
    def begin(self, key: str) -> None:
        state, attempt, ids = self.model.get(key, ("new", 0, []))
        if state in ("new", "failed"):
            self.store.begin(key, "f", {}, attempt + 1)
            self.model[key] = ("submitting", attempt + 1, ids)
            self.doubtful.discard(key)
        else:
            with pytest.raises(JournalError, match="nothing was sent"):
                self.store.begin(key, "f", {}, attempt + 1)

    @rule(key=keys)
    def accept(self, key: str) -> None:
        state, attempt, ids = self.model.get(key, ("new", 0, []))
        self.ids += 1
        self.store.accept(key, attempt, f"id-{self.ids}")
        if state in ("submitting", "unknown"):
            self.model[key] = ("running", attempt, [*ids, f"id-{self.ids}"])

    @rule(key=keys, behind=st.integers(1, 3))
    def accept_late(self, key: str, behind: int) -> None:
        _, attempt, _ = self.model.get(key, ("new", 0, []))
        self.store.accept(key, attempt - behind, "of an attempt that is over")

    @rule(key=keys)
    def lose(self, key: str) -> None:
        state, attempt, ids = self.model.get(key, ("new", 0, []))
        self.store.lose(key, attempt)
        if state == "submitting":
            self.model[key] = ("unknown", attempt, ids)

    @rule(key=keys)
    def retract(self, key: str) -> None:
        state, attempt, ids = self.model.get(key, ("new", 0, []))
        self.store.retract(key, attempt)
        if state == "submitting":
            self.model[key] = ("failed", attempt - 1, ids)
            if attempt == 1:
                del self.model[key]

    @rule(key=keys, state=st.sampled_from(["completed", "failed"]))
    def end(self, key: str, state: Any) -> None:
        before, attempt, ids = self.model.get(key, ("new", 0, []))
        self.store.end(key, ids[-1] if ids else "id-0", state, None, None)
        if before == "running":
            self.model[key] = (state, attempt, ids)

    @rule(key=keys)
    def miss(self, key: str) -> None:
        state, _, ids = self.model.get(key, ("new", 0, []))
        self.store.miss(key, ids[-1] if ids else "id-0")
        if state in ("running", "completed"):
            self.doubtful.add(key)

    @rule(key=keys, by_id=st.booleans())
    def resolve(self, key: str, by_id: bool) -> None:
        state, attempt, ids = self.model.get(key, ("new", 0, []))
        self.ids += 1
        found = f"id-by-hand-{self.ids}" if by_id else None
        if state != "unknown" and key not in self.doubtful:
            with pytest.raises(ConfigurationError, match="cannot be resolved: it is"):
                self.store.resolve([key], found)
            return
        self.store.resolve([key], found)
        if state != "unknown":  # in place of the wrong one
            ids = ids[:-1]
        if found is not None:
            self.model[key] = ("running", attempt, [*ids, found])
            self.doubtful.add(key)
            return
        self.doubtful.discard(key)
        self.model[key] = ("failed", attempt - 1, ids)
        if attempt == 1:
            del self.model[key]

    @invariant()
    def agrees(self) -> None:
        found = {
            entry.key: (entry.state, entry.attempt, list(entry.submitted))
            for entry in self.store.entries(None)
        }
        assert found == self.model
        for entry in self.store.entries(None):
            known = entry.state in ("running", "completed") or entry.state == "failed"
            assert (entry.generation_id is not None) == known

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


TestTransitions = Transitions.TestCase
TestTransitions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
