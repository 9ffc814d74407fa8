"""What the tests of a fleet are made of: processes, a PostgreSQL server and a slow API."""

import asyncio
import contextlib
import glob
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
from starlette.types import Message, Receive, Scope, Send

from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app
from tests.fleet import member

PATIENT = {"patience": 10.0}
"""For tests in which nobody dies: a busy machine delays beats."""
FORKS: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
FORKS.set_forkserver_preload(["tests.fleet.member"])


class Api:
    """A sandbox on a real socket, whose answers to submissions take their time."""

    def __init__(self, sandbox: Sandbox, *, answers_after: float = 0.0) -> None:
        self.sandbox = sandbox
        self.answers_after = answers_after
        self.released = anyio.Event()
        self.accepted: dict[str, list[str]] = {}
        """The ids that each prompt was given: one, if all is well."""
        self.submissions: list[float] = []
        self.polls: list[float] = []

    @property
    def twice(self) -> dict[str, list[str]]:
        return {prompt: ids for prompt, ids in self.accepted.items() if len(ids) > 1}

    def has_had(self, submissions: int) -> bool:
        return len(self.submissions) >= submissions

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        async with serve_app(self._app, "127.0.0.1", 0) as origin:
            yield f"{origin}/v1"

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            self.polls.append(anyio.current_time())
            await self.sandbox.app(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        messages: list[Message] = []

        async def hand_in() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def keep(message: Message) -> None:
            messages.append(message)

        self.submissions.append(anyio.current_time())
        await self.sandbox.app(scope, hand_in, keep)
        answer = json.loads(b"".join(each.get("body", b"") for each in messages))
        if "id" in answer:
            self.accepted.setdefault(json.loads(body)["prompt"], []).append(answer["id"])
        with anyio.move_on_after(self.answers_after):
            await self.released.wait()
        for message in messages:
            await send(message)


class Process:
    """A member of a fleet."""

    def __init__(self, settings: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        self._process = FORKS.Process(target=member.run, args=(settings, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.name = ""

    async def start(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._socket, limit=2**24)
        self._writer = writer
        line = await reader.readline()
        assert line, "the process has died: see FLEET_LOG"
        self.name = json.loads(line)["ready"]
        self._reading = asyncio.create_task(self._read(reader))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                answer = json.loads(line)
                if not (future := self._answers[answer["number"]]).done():
                    future.set_result(answer)
        for future in self._answers.values():
            future.cancel()

    async def call(self, call: str, **arguments: Any) -> Any:
        """Call a method of the member; an error of ours is a dictionary."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"number": number, "call": call, "arguments": arguments}
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\n")
        answer = await self._answers[number]
        return answer.get("value") if "error" not in answer else answer

    def signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self._end()

    async def stop(self) -> None:
        """SIGTERM, as a deploy does it."""
        self.signal(signal.SIGTERM)
        await self._end()

    async def _end(self) -> None:
        await asyncio.to_thread(self._process.join)
        if self._reading is not None:
            await self._reading
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()


class Processes:
    """The members of one fleet, all of which are dead at the end."""

    def __init__(self, database: str, base_url: str, **settings: Any) -> None:
        log = os.environ.get("FLEET_LOG", os.devnull)
        self._settings = {"database": database, "base_url": base_url, "log": log, **settings}
        self._started: list[Process] = []

    async def start(self, *, worker: bool = True, **settings: Any) -> Process:
        fleet = self._settings.get("fleet", {}) | settings.pop("fleet", {})
        process = Process({**self._settings, "worker": worker, **settings, "fleet": fleet})
        self._started.append(process)
        await process.start()
        return process

    async def __aenter__(self) -> "Processes":
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._started:
            process.signal(signal.SIGKILL)
        for process in self._started:
            await process._end()


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, of the newest version that is installed."""
    if os.name != "posix":
        return None
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    program = found[-1] if found else shutil.which("initdb")
    return None if program is None else Path(program).parent


class Postgres:
    """A server of our own, in a folder of its own, behind a socket in it.

    It does not run as root: then the user `postgres` has it.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="luma-pg-"))
        self._as = []
        if os.geteuid() == 0:
            import pwd

            user = pwd.getpwnam("postgres")
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._as = ["runuser", "-u", "postgres", "--"]
        self._numbers = count()
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "--no-sync")
        self.start()

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._programs / program), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, timeout=50)

    def start(self) -> None:
        settings = f"-k {self._folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        log = str(self._folder / "log")
        # Its log goes to a file: the pipes of the command would stay open with the server.
        self._run("pg_ctl", "-D", self._data, "-w", "-l", log, "-o", settings, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def new_database(self) -> str:
        name = f"luma{next(self._numbers)}"
        self._run("createdb", "-h", str(self._folder), "-U", "postgres", name)
        return f"postgresql://postgres@/{name}?host={self._folder}"


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server until the block ends.

    Raises:
        RuntimeError: PostgreSQL is not installed.
    """
    programs = postgres_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    server = Postgres(programs)
    try:
        yield server
    finally:
        server.remove()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something is so."""
    while True:
        if condition():
            return
        await asyncio.sleep(0.01)


def tally(outcomes: list[dict[str, Any]]) -> Counter[str]:
    """How many ended how."""
    return Counter(each.get("error") or each["state"] for each in outcomes)


async def results(of: Process, prefix: str, count: int) -> list[dict[str, Any]]:
    ends: list[dict[str, Any]] = await of.call("results", prefix=prefix, count=count)
    return ends


async def settled(of: Process, prefix: str, count: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The results, and the keys that are unknown; an answer may still be late on a busy machine."""
    while True:
        ends = await results(of, prefix, count)
        unknown = await of.call("keys", state="unknown")
        if len(unknown) == tally(ends)["SubmissionUnknownError"]:
            return ends, unknown
        await asyncio.sleep(0.2)
