"""The file of a journal: copied, moved, forked or damaged, it never says that it is empty."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luma_poll import ConfigurationError, Journal, JournalError, Runner
from luma_poll._journal import database
from tests.fakes import ID
from tests.journal.test_journal import path, states
from tests.running.fakes import FakeAccount

__all__ = ["path"]  # a fixture

OTHER_ID = "0e7e4c5e-53f5-4b3c-8a83-2f1a3c9a5a11"


def submit(journal: Journal, key: str, generation_id: str | None = None) -> None:
    """Note a submission, as a Runner does it."""
    journal._store.begin(key, "f", {"prompt": key}, 1)
    journal._store.accept(key, 1, generation_id or f"id-{key}")


# --- one file ------------------------------------------------------------------------------------


def test_a_copy_of_the_one_file_is_the_journal(path: Path, tmp_path: Path) -> None:
    """Made while the journal is in use: it has all that was committed, and is locked as before."""
    copy = tmp_path / "copy.db"
    with Journal(path) as journal:
        for number in range(50):
            submit(journal, f"k{number}")
            shutil.copy(path, copy)
            with Journal(copy) as copied:
                assert len(copied.entries("running")) == number + 1


def test_a_journal_that_is_moved_while_it_is_open_is_whole(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under its new name, with what came later, too; that is said, once."""
    with Journal(path) as journal:
        submit(journal, "before")
        path.rename(tmp_path / "moved.db")
        submit(journal, "after")
        submit(journal, "later")
    with Journal(tmp_path / "moved.db") as journal:
        assert len(journal.entries("running")) == 3
    assert [record.getMessage() for record in caplog.records if "moved" in record.getMessage()] == [
        f"journal {path} was moved while in use, and is still written in its new place: a "
        "process that opens the old path begins a new journal, and submits again"
    ]


@pytest.mark.posix
def test_nothing_is_sent_for_a_journal_that_was_deleted(path: Path) -> None:
    """Its entries would be gone with the process."""
    with Journal(path) as journal:
        path.unlink()
        with pytest.raises(JournalError, match="was deleted while in use: nothing was sent"):
            submit(journal, "k")


def test_a_closed_journal_is_a_single_file(path: Path) -> None:
    """The file beside it, which counts only in the middle of a write, is gone."""
    with Journal(path) as journal:
        submit(journal, "k")
    assert os.listdir(path.parent) == [path.name]


KILLED = """
import os, signal, sys
from luma_poll import Journal
journal = Journal(sys.argv[1])
for number in range(20):
    journal._store.begin(f"k{number}", "f", {}, 1)
    journal._store.accept(f"k{number}", 1, f"id-{number}")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.posix
def test_the_one_file_of_a_killed_process_is_the_journal(path: Path, tmp_path: Path) -> None:
    """Without any other that it left."""
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False, timeout=50)
    other = tmp_path / "elsewhere" / "runs.db"
    other.parent.mkdir()
    shutil.move(path, other)
    with Journal(other) as journal:
        assert len(journal.entries("running")) == 20


def test_a_new_file_is_never_half_of_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it makes one leaves nothing under the name."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "_publish", fail)
    with pytest.raises(KeyboardInterrupt):
        Journal(path)
    assert os.listdir(path.parent) == []


def test_a_file_system_without_hard_links_has_journals(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT, and some network shares."""

    def fail(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    with Journal(path) as journal:
        submit(journal, "k")
    assert os.listdir(path.parent) == [path.name]


def test_two_threads_that_make_the_same_journal_make_one(path: Path) -> None:
    """One has it, the other is told."""
    opened: list[Journal] = []
    refused: list[Exception] = []
    barrier = threading.Barrier(4)

    def open_it() -> None:
        barrier.wait()
        try:
            opened.append(Journal(path))
        except ConfigurationError as error:
            refused.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(opened), len(refused)) == (1, 3)
    opened[0].close()


# --- what is no whole journal --------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 99])
def test_a_file_that_is_cut_off_is_refused(path: Path, size: int) -> None:
    """An empty journal has many bytes: to take an empty file for one would be to pay again."""
    path.write_bytes(b"\0" * size)
    with pytest.raises(JournalError, match=rf"cut off \({size} bytes\)"):
        Journal(path)
    assert path.stat().st_size == size


def test_a_journal_cut_off_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    """At each page, and in the middle of one."""
    with Journal(path) as journal:
        for number in range(200):
            submit(journal, f"k{number}")
    content, cut = path.read_bytes(), tmp_path / "cut.db"
    for size in range(100, len(content), 2048):
        cut.write_bytes(content[:size])
        with pytest.raises(JournalError):
            Journal(cut)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=64)), min_size=1),
)
def test_damage_is_an_error_of_the_journal(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, bytes]]
) -> None:
    """Never one of SQLite's or Python's own; nor a crash while it is used."""
    path = tmp_path_factory.mktemp("damaged") / "runs.db"
    path.write_bytes(WHOLE())
    content = bytearray(path.read_bytes())
    for place, garbage in damage:
        place %= len(content) - len(garbage)
        content[place : place + len(garbage)] = garbage
    path.write_bytes(content)
    try:
        with Journal(path) as journal:
            journal.entries()
            journal.entry("k1")
            submit(journal, "new")
    except JournalError:
        pass
    except ConfigurationError as error:  # the damage is to the number of its version
        assert "newer version" in str(error)  # noqa: PT017


def _whole() -> Callable[[], bytes]:
    made: list[bytes] = []

    def content() -> bytes:
        if not made:
            import tempfile

            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "runs.db"
                with Journal(path) as journal:
                    for number in range(40):
                        submit(journal, f"k{number}")
                made.append(path.read_bytes())
        return made[0]

    return content


WHOLE = _whole()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entries SET request = 'no JSON'",
        "UPDATE entries SET request = '[]'",
        "UPDATE entries SET submitted = '{'",
        "UPDATE entries SET state = 'dreaming'",
        "UPDATE entries SET updated_at = 'yesterday'",
        "UPDATE entries SET updated_at = 7",
        "DROP TABLE entries",
    ],
)
def test_a_row_that_we_did_not_write_is_damage(path: Path, change: str) -> None:
    """Whoever edited it is told."""
    with Journal(path) as journal:
        submit(journal, "k")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(change)
    with pytest.raises(JournalError), Journal(path) as journal:
        journal.entries()


@pytest.mark.posix
@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_the_database_of_another_program_is_not_touched(path: Path, mode: str) -> None:
    """Not a byte of it, nor of its permissions, nor of the files beside it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE orders (id)")
        path.chmod(0o644)
        before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
        with pytest.raises(ConfigurationError, match="another program"):
            Journal(path)
        assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        connection.execute("INSERT INTO orders VALUES (1)")  # its locks are its own still


def test_a_lost_file_is_not_begun_again_beside_what_it_left(path: Path) -> None:
    """The file in the middle of whose write its process died, and which somebody moved since."""
    beside = path.with_name(path.name + "-journal")
    beside.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\0" * 504)
    with pytest.raises(JournalError, match=r"is missing, but runs\.db-journal is there"):
        Journal(path)
    assert not path.exists()
    beside.write_bytes(b"\0" * 512)  # what a process leaves that was killed between two writes
    Journal(path).close()


# --- its owner, and its holder -------------------------------------------------------------------


@pytest.mark.posix
def test_a_journal_that_others_could_read_is_hidden(path: Path, tmp_path: Path) -> None:
    """By whatever name it is opened."""
    Journal(path).close()
    path.chmod(0o666)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with Journal(link) as journal:
        submit(journal, "k")
        assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    with Journal(path) as journal:
        assert states(journal) == {"k": "running"}


@pytest.mark.posix
def test_a_link_to_no_file_makes_the_file(path: Path, tmp_path: Path) -> None:
    """Where it leads to, and readable by its owner alone."""
    link = tmp_path / "link.db"
    link.symlink_to(path)
    Journal(link).close()
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


TAKE = "import sys; from luma_poll import Journal; Journal(sys.argv[1])"


def refusal(path: Path) -> str:
    """What another process is told that opens it."""
    command = [sys.executable, "-c", TAKE, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50).stderr


@pytest.mark.posix
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a lock belongs to the process")
def test_a_copy_by_its_holder_does_not_unlock_it(path: Path, tmp_path: Path) -> None:
    """POSIX drops the locks of a process when it closes the file by any descriptor."""
    with Journal(path) as journal:
        shutil.copy(path, tmp_path / "backup.db")
        assert "in use by another process" in refusal(path)
        with pytest.raises(ConfigurationError, match="in use"):
            Journal(path)
        assert "in use by another process" in refusal(path)
        submit(journal, "k")


@pytest.mark.posix
def test_every_name_of_the_file_is_held(path: Path, tmp_path: Path) -> None:
    """A symbolic link, a hard link, a relative path."""
    with Journal(path):
        os.symlink(path, tmp_path / "symbolic.db")
        os.link(path, tmp_path / "hard.db")
        for name in ("symbolic.db", "hard.db"):
            assert "in use by another process" in refusal(tmp_path / name)
            with pytest.raises(ConfigurationError, match="in use"):
                Journal(tmp_path / name)


HOLD = """
import sys, time
from luma_poll import Journal
with Journal(sys.argv[1]) as journal:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_an_opening_waits_for_the_process_before(path: Path) -> None:
    """As in a deploy, where the next one begins while the one before still ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None  # noqa: PT018
        assert child.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match="in use by another process"):
            Journal(path, wait=0.2)
        ended: list[float] = []

        def end() -> None:
            time.sleep(0.3)
            ended.append(time.monotonic())
            child.communicate("end\n")

        thread = threading.Thread(target=end)
        thread.start()
        with Journal(path, wait=30):
            assert ended, "it was still held"
        thread.join()


@pytest.mark.parametrize("bad", [-1, None, "30", float("nan"), True])
def test_the_wait_is_a_number_of_seconds(path: Path, bad: object) -> None:
    """From 0, which is not to wait."""
    with pytest.raises(ConfigurationError, match="wait"):
        Journal(path, wait=bad)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.posix
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_as_such(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Rather than as one that another process has."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.fcntl", fail)
    monkeypatch.setattr("fcntl.lockf", fail)
    with pytest.raises(ConfigurationError, match="file system without locks"):
        Journal(path)


@pytest.mark.posix
def test_the_locks_of_posix_are_enough_elsewhere(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MacOS has none that belong to a descriptor."""
    monkeypatch.delattr("fcntl.F_OFD_SETLK", raising=False)
    with Journal(path) as journal:
        assert "in use by another process" in refusal(path)
        with pytest.raises(ConfigurationError, match="twice in this one"):
            Journal(path)
        assert "in use by another process" in refusal(path)
        submit(journal, "k")
    Journal(path).close()


# --- forks ---------------------------------------------------------------------------------------

FORKED = """
import multiprocessing, os, signal, sys
from luma_poll import Journal
with Journal(sys.argv[1]) as journal:
    journal._store.begin("one", "f", {}, 1)
    journal._store.accept("one", 1, "id-one")
    HOW
    journal._store.begin("two", "f", {}, 1)
    journal._store.accept("two", 1, "id-two")
    os.kill(os.getpid(), signal.SIGKILL)
"""
WAYS = {
    "exit": "if os.fork() == 0: sys.exit(0)\n    os.wait()",
    "end of the with": "if os.fork() == 0: raise SystemExit\n    os.wait()",
    "closed": "if os.fork() == 0: journal.close(); os._exit(0)\n    os.wait()",
    "freed": "if os.fork() == 0: journal._store = None; sys.exit(0)\n    os.wait()",
    "twice": "if os.fork() == 0:\n        os.fork(); sys.exit(0)\n    os.wait()",
    "process": "p = multiprocessing.get_context('fork').Process(target=abs, args=(1,))\n"
    "    p.start(); p.join()",
    "pool": "multiprocessing.get_context('fork').Pool(2).map(abs, [1])",
    "in the middle of a write": """with journal._store._transaction() as cursor:
        cursor.execute("UPDATE entries SET state = 'completed'")
        if os.fork() == 0: sys.exit(0)
        os.wait()
    journal._store.end("one", "id-one", "completed", None, None)""",
}


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("way", WAYS)
def test_a_fork_does_not_touch_the_file(path: Path, way: str) -> None:
    """However it ends: what its parent writes later is there after a kill of that."""
    code = FORKED.replace("HOW", WAYS[way])
    child = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    with Journal(path, wait=5) as journal:
        assert set(states(journal)) == {"one", "two"}
        assert journal.entries("submitting") == journal.entries("unknown") == []


LIVES_ON = """
import os, signal, sys, time
from luma_poll import Journal
journal = Journal(sys.argv[1])
if os.fork() == 0:
    os.close(0); os.close(1); os.close(2)
    time.sleep(30)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_that_outlives_its_parent_does_not_hold_the_journal(path: Path) -> None:
    """The next process may have it at once."""
    subprocess.run([sys.executable, "-c", LIVES_ON, str(path)], check=False, timeout=50)
    Journal(path).close()


# --- whose it is, and settling by hand -----------------------------------------------------------


def test_ids_are_compared_as_uuids(path: Path) -> None:
    """Not by their spelling: a person may give one in capitals."""
    with Journal(path) as journal:
        submit(journal, "a", ID)
        journal._store.end("a", ID.upper(), "completed", None, None)
        assert states(journal) == {"a": "completed"}
        journal._store.begin("b", "f", {}, 1)
        journal._store.lose("b", 1)
        for spelling in (ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}"):
            with pytest.raises(ConfigurationError, match="belongs to request 'a'"):
                journal.resolve("b", generation_id=spelling)
        assert states(journal)["b"] == "unknown"


def test_a_wrong_id_can_be_corrected(path: Path) -> None:
    """By the right one, or by none; also after the wrong one ended."""
    with Journal(path) as journal:
        for key in ("a", "b", "c"):
            journal._store.begin(key, "f", {}, 1)
            journal._store.lose(key, 1)
        journal.resolve("a", generation_id="a typo")
        journal.resolve("a", generation_id=ID)
        found = journal.entry("a")
        assert found is not None
        assert (found.generation_id, found.submitted) == (ID, (ID,))
        journal.resolve("b", generation_id="another typo")
        journal.resolve("b", resubmit=True)
        assert journal.entry("b") is None
        journal.resolve("c", generation_id=OTHER_ID)
        journal._store.end("c", OTHER_ID, "completed", None, None)
        journal.resolve("c", resubmit=True)
        assert journal.entry("c") is None


def test_what_the_api_no_longer_knows_can_be_settled(path: Path) -> None:
    """A generation that runs or has completed cannot: it would be paid for twice."""
    with Journal(path) as journal:
        submit(journal, "gone", ID)
        submit(journal, "runs", OTHER_ID)
        journal._store.miss("gone", ID)
        with pytest.raises(ConfigurationError, match="'runs' cannot be resolved: it is running"):
            journal.resolve("gone", "runs", resubmit=True)
        assert len(journal.entries()) == 2, "all or none"
        assert journal.resolve("gone", resubmit=True) == ["gone"]
        assert states(journal) == {"runs": "running"}


def test_all_that_is_unknown_is_settled_at_once(path: Path) -> None:
    """And nothing else; a call without keys is a mistake, as those of a filter may be none."""
    with Journal(path) as journal:
        submit(journal, "runs")
        for key in ("a", "b", "c"):
            journal._store.begin(key, "f", {}, 1)
            journal._store.lose(key, 1)
        for arguments in ((), ("a",)):
            with pytest.raises(ConfigurationError, match="keys, or all_unknown"):
                journal.resolve(*arguments, resubmit=True, all_unknown=bool(arguments))
        with pytest.raises(ConfigurationError, match="settles one request, not 3"):
            journal.resolve(generation_id=ID, all_unknown=True)
        assert sorted(journal.resolve(resubmit=True, all_unknown=True)) == ["a", "b", "c"]
        assert journal.resolve(resubmit=True, all_unknown=True) == []
        assert states(journal) == {"runs": "running"}


class ClientOf:
    """A client of some address, whose account is a fake."""

    def __init__(self, base_url: object) -> None:
        self.base_url = base_url
        self.generations = FakeAccount()


def test_a_journal_is_of_one_address_of_the_api(path: Path) -> None:
    """Its ids mean nothing to another one: not in the same process, and not in the next."""
    ours, sandbox = "https://agents.lumalabs.ai/v1", "http://127.0.0.1:8765/v1"
    with Journal(path) as journal:
        assert journal.base_url is None
        Runner(ClientOf(sandbox), journal=journal)
        with pytest.raises(ConfigurationError, match="Use another journal"):
            Runner(ClientOf(ours), journal=journal)
    with Journal(path) as journal:  # nothing was submitted: it is of none
        Runner(ClientOf(ours), journal=journal)
        submit(journal, "k")
    with Journal(path) as journal:
        assert journal.base_url == ours
        with pytest.raises(ConfigurationError, match="Use another journal"):
            Runner(ClientOf(sandbox), journal=journal)
        Runner(ClientOf(httpx.URL("https://AGENTS.lumalabs.ai:443/v1/")), journal=journal)
        Runner(FakeAccount(), journal=journal)  # it has no address
        journal.move_to("https://luma.gateway.example.com/v1/")
        Runner(ClientOf("https://luma.gateway.example.com/v1"), journal=journal)
    with Journal(path) as journal:
        assert journal.base_url == "https://luma.gateway.example.com/v1"
        for bad in ("", "nonsense", "https://u:p@example.com"):
            with pytest.raises(ConfigurationError):
                journal.move_to(bad)


def test_without_locks_of_our_own_there_are_those_of_sqlite(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which has no fcntl."""
    monkeypatch.setattr(database, "fcntl", None)
    monkeypatch.delattr(os, "link")
    with Journal(path) as journal:
        assert "in use by another process" in refusal(path)
        submit(journal, "k")
    with Journal(path) as journal:
        assert states(journal) == {"k": "running"}
