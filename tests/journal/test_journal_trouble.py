"""A journal among odd keys, odd paths, forks and mistakes: nothing is lost or repeated."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import luma_agents
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luma_poll import (
    APIConnectionError,
    ConfigurationError,
    GenerationFailedError,
    Journal,
    JournalError,
    Runner,
    RunResult,
    SubmissionUnknownError,
)
from luma_poll._journal.fingerprint import fingerprint
from luma_poll._journal.store import Store
from tests.journal.test_journal import FAILED, Run, api_of, path, run, runner_of, states
from tests.running.fakes import FakeAccount, HeldAccount

__all__ = ["path", "run"]  # fixtures

URL = "https://storage.example.com/in.png"


def count_gets(api: FakeAccount) -> list[str]:
    """Keep the id of each poll."""
    asked, get = [], api.get

    async def counted(generation_id: str) -> Any:
        asked.append(generation_id)
        return await get(generation_id)

    api.get = counted  # type: ignore[method-assign]
    return asked


# --- keys and parameters -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["x" * 1000, "ü𝄞\u202e", "a/b\\c\n", "'; DROP TABLE entries; --", " k "]
)
def test_any_text_is_a_key(path: Path, run: Run, key: str) -> None:
    """As it is: SQL, white space and control characters mean nothing."""
    api = api_of()

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal)
            first = await runner.run("a fox", key=key)
            assert (await runner.run("a fox", key=key)).id == first.id
            assert states(journal) == {key: "completed"}

    run(main)
    assert len(api.accepted) == 1


@pytest.mark.parametrize("key", ["a\ud800b", "x" * 1001, "\0"])
def test_a_key_that_cannot_be_written_is_refused(path: Path, run: Run, key: str) -> None:
    """As any other unusable argument, in a message of bearable length."""
    api = api_of()

    async def main() -> None:
        with Journal(path) as journal:
            with pytest.raises(ConfigurationError, match="a key") as caught:
                await runner_of(api, journal).run("a fox", key=key)
            assert len(str(caught.value)) < 200

    run(main)
    assert api.accepted == []


@given(
    st.text("abc ", min_size=1, max_size=8),
    st.text("abc ", min_size=1, max_size=8),
    st.sampled_from(["url", "data"]),
)
def test_a_signature_hides_no_other_parameter(one: str, other: str, name: str) -> None:
    """It ends with its URL: the prompt behind it in the JSON tells two requests apart."""

    def of(prompt: str, signature: str) -> str:
        source = {name: f"{URL}?X-Amz-Date=1&X-Amz-Signature={signature}"}
        return fingerprint({"prompt": prompt, "image_ref": [source], "model": "uni-1"})

    assert of(one, "1") == of(one, "2")
    assert (of(one, "1") == of(other, "1")) is (one == other)


# --- resubmission over several processes ---------------------------------------------------------


def test_the_ids_of_all_processes_are_in_the_result(path: Path, run: Run) -> None:
    """Of a success, too: the first attempt was another process's."""
    api = api_of()
    api.answers = [FAILED]

    async def main(max_attempts: int) -> RunResult:
        with Journal(path) as journal:
            runner = runner_of(api, journal, max_attempts=max_attempts)
            return (await runner.run_all([{"prompt": "a fox", "key": "k"}]))[0]

    assert not run(lambda: main(1)).ok
    second = run(lambda: main(2))
    assert second.ok
    assert second.submitted == tuple(generation_id for _, generation_id, _ in api.accepted)


def test_an_unknown_second_attempt_does_not_forget_the_first(path: Path, run: Run) -> None:
    """To say that it may be submitted again takes back that attempt alone."""
    api = api_of()
    api.answers = [FAILED, APIConnectionError("reset", request_sent=True)]

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal, max_attempts=2)
            request = {"prompt": "a fox", "key": "k"}
            (lost,) = await runner.run_all([request])
            assert isinstance(lost.error, APIConnectionError)
            (entry,) = journal.entries("unknown")
            assert (entry.attempt, entry.failure_code, len(entry.submitted)) == (2, None, 1)
            journal.resolve("k", resubmit=True)
            (again,) = await runner.run_all([request])
            assert again.ok
            assert again.submitted == tuple(generation_id for _, generation_id, _ in api.accepted)

    run(main)
    assert len(api.accepted) == 2


def test_a_failure_that_is_not_recorded_is_not_waited_for_in_a_circle(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on a full disk, nor where a generation that had completed is no longer available."""
    api = api_of()
    asked = count_gets(api)

    def full(*_: Any) -> None:
        raise JournalError("the disk is full")

    async def main() -> None:
        with Journal(path) as journal:
            runner = runner_of(api, journal, max_attempts=3)
            generation = await runner.run("a fox", key="completed")
            api.end_otherwise(generation.id, FAILED)
            with anyio.fail_after(5), pytest.raises(GenerationFailedError):
                await runner.run("a fox", key="completed", timeout=None)
            monkeypatch.setattr(Store, "end", full)
            api.answers = [FAILED]
            with anyio.fail_after(5), pytest.raises(GenerationFailedError):
                await runner.run("an owl", key="unrecorded", timeout=None)

    run(main)
    assert len(api.accepted) == 2
    assert len(asked) < 20


# --- a journal in wrong hands --------------------------------------------------------------------


def test_a_second_runner_is_told_to_share(path: Path, run: Run) -> None:
    """Nothing is sent for a key that another Runner of this process is submitting."""

    async def main() -> None:
        api = HeldAccount()
        with Journal(path) as journal:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner_of(api, journal).run_all, [{"prompt": "a", "key": "k"}])
                await api.asked.wait()
                with pytest.raises(SubmissionUnknownError, match="share one Runner"):
                    await runner_of(api, journal).run("a", key="k")
                api.duration = 0.02
                api.let_go.set()
        assert len(api.accepted) == 1

    run(main)


def test_a_journal_that_is_closed_under_a_submission(
    path: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The id is logged, with the words to settle it by, and the generation is waited for."""
    results: list[RunResult] = []

    async def main() -> str:
        api = HeldAccount(duration=0.02, latency=0.0)
        journal = Journal(path)
        runner = runner_of(api, journal)

        async def run_one() -> None:
            results.extend(await runner.run_all([{"prompt": "a fox", "key": "k"}]))

        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run_one)
                await api.asked.wait()
                journal.close()
                api.let_go.set()
        with pytest.raises(ConfigurationError, match="is closed"):
            await runner.run("an owl")
        ((_, generation_id, _),) = api.accepted
        return generation_id

    with caplog.at_level(logging.ERROR, "luma_poll"):
        generation_id = run(main)
    assert results[0].ok
    messages = [record.getMessage() for record in caplog.records]
    assert any(generation_id in message and "settle request 'k'" in message for message in messages)
    with Journal(path) as journal:
        assert states(journal) == {"k": "unknown"}


@pytest.mark.parametrize("name", [":memory:", "file:x?mode=memory", "ü.db", "relative.db"])
def test_every_path_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names that mean something to SQLite, too: a journal in memory would forget."""
    monkeypatch.chdir(tmp_path)
    with Journal(name) as journal:
        journal._store.begin("k", "f", {}, 1)
    with Journal(name) as journal:
        assert states(journal) == {"k": "unknown"}
    assert (tmp_path / name).exists()


@pytest.mark.parametrize("bad", ["", "a\0b", b"bytes.db"])
def test_a_path_that_cannot_be_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Any
) -> None:
    """With our error."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="journal"):
        Journal(bad)
    assert list(tmp_path.iterdir()) == []


FORKED = """
import os, sys
from luma_poll import ConfigurationError, Journal
journal = Journal(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        journal.entries()
    except ConfigurationError as error:
        os._exit(7 if "parent process" in str(error) else 8)
    os._exit(9)
_, status = os.waitpid(child, 0)
journal.entries()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_share_it(path: Path) -> None:
    """Two would each believe to hold it alone, and submit everything twice."""
    child = subprocess.run([sys.executable, "-c", FORKED, str(path)], check=False, timeout=50)
    assert child.returncode == 7


def test_a_runner_without_a_journal_takes_any_key() -> None:
    """Within the same limits."""

    async def main() -> None:
        with pytest.raises(ConfigurationError, match="at most 1000"):
            await Runner(api_of()).run("a fox", key="x" * 1001)

    anyio.run(main)


def test_a_parameter_that_the_client_does_not_take_is_the_callers_mistake(
    path: Path, run: Run
) -> None:
    """Certainly not sent: with the official SDK, whose parameters are fixed, it left an unknown."""
    client: Any = luma_agents.AsyncLuma(auth_token="luma-api-x", base_url="http://127.0.0.1:9")

    async def main() -> None:
        with Journal(path) as journal:
            runner = Runner(client, journal=journal)
            with pytest.raises(ConfigurationError, match="'aspect'"):
                await runner.run("a fox", key="k", aspect="16:9")  # type: ignore[call-arg]
            assert journal.entries() == []
            assert repr(runner) == "Runner(running=0, in_flight=0, waiting=0)"

    run(main)
