"""What a fleet of three workers survives: real processes, sockets and PostgreSQL.

    python -m tests.benchmarks.fleet_storms
    python -m tests.benchmarks.fleet_storms outage rotation

Each storm prints a row: the keys, how they ended, those that were submitted twice, those that the
API has accepted and the fleet does not know, those in no list, and those that were not called back.
All of it is on this machine, and each storm ends by itself.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
from dbos import DBOS
from standardwebhooks import Webhook
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from tenacity import wait_fixed

from luma_poll import LumaClient, Poller, Runner
from luma_poll.dbos import fleet_config
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app
from tests.fleet.processes import Api, Postgres, Process, Processes, postgres_server, tally, until

SECRET = "whsec_" + "c3Rvcm1z" * 4
LONGEST = 300.0


class World:
    """A fleet of three workers, an API with faults, a database with faults, a receiver."""

    def __init__(self, server: Postgres, database: str, api: "FaultyApi", hook: str) -> None:
        self.server = server
        self.database = database
        self.api = api
        self.hook = hook
        self.keys = 0
        self.attempts = 1
        self.began = 0.0
        self.processes: Processes
        self.caller: Process
        self.workers: list[Process] = []
        self.called: dict[str, list[str]] = {}
        self.notes: list[str] = []

    async def submit(self, count: int, prompt: str = "sandbox:duration=2", **others: Any) -> None:
        self.keys, self.began = count, time.monotonic()
        self.attempts = others.get("max_attempts", 1)
        await self.caller.call(
            "submit_many", count=count, prompt=prompt, prefix="k", callback=self.hook, **others
        )

    def connections(self) -> list[int]:
        """The processes of the server that serve this fleet."""
        folder = str(self.server._folder)
        postmaster = int(Path(folder, "data", "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
        return [pid for pid, line in lines.items() if line.startswith("postgres: postgres luma")]

    async def sql(self, *statements: str) -> None:
        name = self.database.partition("@/")[2].partition("?")[0]
        psql = str(self.server._programs / "psql"), "-h", str(self.server._folder)
        for statement in statements:
            await asyncio.to_thread(
                subprocess.run,
                [*psql, "-U", "postgres", "-d", name, "-tAc", statement],
                check=False,
                capture_output=True,
                timeout=30,
                cwd="/",
                env={**os.environ, "PGOPTIONS": "-c default_transaction_read_only=off"},
            )

    async def accepted(self, number: int) -> None:
        """Wait until so many submissions have been made."""
        await until(lambda: len(self.api.submissions) >= number)

    async def fail(self, fault: Callable[[Scope], Response | None], seconds: float) -> None:
        """Let the API answer so for a while."""
        self.api.fault = fault
        await asyncio.sleep(seconds)
        self.api.fault = no_fault

    async def replace(self, number: int, **options: Any) -> None:
        """Start a worker, and stop another one after it has joined."""
        new = await self.processes.start(**options)
        await asyncio.sleep(2)
        await self.workers[number].stop()
        self.workers[number] = new


def no_fault(scope: Scope) -> None:
    """Leave the answer to the sandbox."""


class FaultyApi(Api):
    """A sandbox in front of which something answers now and then."""

    def __init__(self, sandbox: Sandbox, **options: Any) -> None:
        super().__init__(sandbox, **options)
        self.fault: Callable[[Scope], Response | None] = no_fault
        self.refused = 0

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (answer := self.fault(scope)) is not None:
            await answer(scope, receive, send)
            return

        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 429:
                self.refused += 1
            await send(message)

        await super()._app(scope, receive, counting)


@contextlib.asynccontextmanager
async def world(
    database: str | None = None, *, sandbox: Sandbox | None = None, **settings: Any
) -> AsyncIterator[World]:
    api = FaultyApi(sandbox or Sandbox(speed=1), answers_after=0.1)
    called: dict[str, list[str]] = {}

    async def receiver(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        event = Webhook(SECRET).verify(await request.body(), dict(request.headers))
        called.setdefault(event["data"]["key"], []).append(event["data"]["state"])
        await Response(status_code=204)(scope, receive, send)

    fleet = {
        "heartbeat": 1.0,
        "patience": 3.0,
        "callback_secrets": [SECRET],
        "allow_private_callbacks": True,
        **settings.pop("fleet", {}),
    }
    with postgres_server() as server:
        url = database or server.new_database()
        async with (
            api.serve() as base_url,
            serve_app(receiver, "127.0.0.1", 0) as hook,
            Processes(url, base_url, fleet=fleet, poll_every=0.5, **settings) as processes,
        ):
            made = World(server, url, api, f"{hook}/hook")
            made.processes, made.called = processes, called
            made.caller = await processes.start(worker=False)
            await made.caller.call("operate", method="migrate")
            made.workers = [await processes.start() for _ in range(3)]
            yield made


async def report(title: str, made: World) -> None:
    while True:
        counts = await made.caller.call("counts")
        if counts["queued"] + counts["submitting"] + counts["running"] == 0:
            break
        await asyncio.sleep(0.5)
    took = time.monotonic() - made.began
    ends = await made.caller.call("results", prefix="k", count=made.keys)
    entries = set(await made.caller.call("keys", state=None))
    unknown = set(await made.caller.call("keys", state="unknown"))
    known = {id_ for end in ends if "error" not in end for id_ in end["submitted"]}
    twice = [ids for ids in made.api.accepted.values() if len(ids) > made.attempts]
    lost = [
        prompt
        for prompt, ids in made.api.accepted.items()
        if not set(ids) <= known and f"k-{prompt.rpartition(' ')[2]}" not in unknown
    ]
    nowhere = {f"k-{number}" for number in range(made.keys)} - entries
    with anyio.move_on_after(20):
        await until(lambda: len(made.called) >= made.keys)
    uncalled = made.keys - len(made.called)
    print(
        f"| {title} | {made.keys} | {dict(tally(ends))} | {len(twice)} | {len(lost)} | "
        f"{len(nowhere)} | {uncalled} | {took:.0f} s | {'; '.join(made.notes)} |",
        flush=True,
    )


STORMS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}


def storm(
    title: str, **settings: Any
) -> Callable[[Callable[[World], Coroutine[Any, Any, None]]], None]:
    """Make a storm of what happens to a world, which is reported on afterwards."""

    def add(happens: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        async def run() -> None:
            async with world(**settings) as made:
                await happens(made)
                await report(title, made)

        STORMS[happens.__name__] = run

    return add


@storm("8 workers killed")
async def kills(made: World) -> None:
    """A worker is killed every two seconds, and another one started."""
    await made.submit(80)
    for _ in range(8):
        await asyncio.sleep(2)
        await made.workers.pop(0).kill()
        made.workers.append(await made.processes.start())


@storm("read-only for 8 s")
async def failover(made: World) -> None:
    """The server answers that it is read-only, for eight seconds."""
    await made.submit(80)
    await made.accepted(20)
    reload = "SELECT pg_reload_conf()"
    await made.sql("ALTER SYSTEM SET default_transaction_read_only = on", reload)
    await asyncio.sleep(8)
    await made.sql("ALTER SYSTEM RESET default_transaction_read_only", reload)


@storm("pg_terminate_backend every second, 15 s")
async def terminate(made: World) -> None:
    """All connections are ended every second."""
    await made.submit(80)
    for _ in range(15):
        await asyncio.sleep(1)
        await made.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'luma-poll'"
        )


async def pooler() -> None:
    """Through pgbouncer in transaction mode, with three connections to the server."""
    program = shutil.which("pgbouncer") or "/usr/sbin/pgbouncer"
    with postgres_server() as server, tempfile.TemporaryDirectory() as folder:
        url = server.new_database()
        name = url.partition("@/")[2].partition("?")[0]
        os.chmod(folder, 0o777)
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n{name} = host={server._folder} dbname={name} user=postgres\n"
            f"[pgbouncer]\nlisten_addr =\nunix_socket_dir = {folder}\nlisten_port = 6432\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n"
            f"pidfile = {folder}/pid\nlogfile = {folder}/log\n"
        )
        command = [*server._as, program, str(config)]
        bouncer = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await asyncio.sleep(1)
            pooled = f"postgresql://postgres@/{name}?host={folder}&port=6432"
            async with world(pooled) as made:
                await made.submit(80)
                await report("pgbouncer, transaction mode", made)
        finally:
            with contextlib.suppress(ProcessLookupError):
                bouncer.terminate()
            await bouncer.wait()


STORMS["pooler"] = pooler


@storm("connections frozen for 35 s")
async def frozen(made: World) -> None:
    """The connections of the moment freeze for 35 seconds."""
    await made.submit(60)
    await made.accepted(15)
    pids = await asyncio.to_thread(made.connections)
    for number, seconds in ((signal.SIGSTOP, 35), (signal.SIGCONT, 0)):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        await asyncio.sleep(seconds)
    made.notes.append(f"{len(pids)} connections")


@storm("PostgreSQL stopped for 40 s")
async def outage(made: World) -> None:
    """PostgreSQL is stopped for 40 seconds."""
    await made.submit(80)
    await made.accepted(20)
    await asyncio.to_thread(made.server.stop)
    await asyncio.sleep(40)
    await asyncio.to_thread(made.server.start)


@storm("SIGSTOP past the patience, max_attempts=2")
async def stopped(made: World) -> None:
    """A worker is stopped past the patience, twice, with second attempts allowed."""
    await made.submit(40, "sandbox:duration=3 sandbox:fail=generation_failed", max_attempts=2)
    for worker in made.workers[:2]:
        await asyncio.sleep(2)
        worker.signal(signal.SIGSTOP)
        await asyncio.sleep(8)
        worker.signal(signal.SIGCONT)


@storm("502 for 20 s")
async def gateway(made: World) -> None:
    """Everything is answered with a gateway's 502, for 20 seconds."""
    await made.submit(150)
    await made.accepted(20)
    await made.fail(lambda _: Response("<h1>502 Bad Gateway</h1>", status_code=502), 20)


@storm("502 for 20 s, on submissions alone")
async def posts(made: World) -> None:
    """Submissions alone are answered with a gateway's 502, for 20 seconds."""
    await made.submit(150)
    await made.accepted(20)
    bad = Response("Bad Gateway", status_code=502)
    await made.fail(lambda scope: bad if scope["method"] == "POST" else None, 20)


@storm("401 for 25 s")
async def rotation(made: World) -> None:
    """The key is refused for 25 seconds, while generations run."""
    await made.submit(150, "sandbox:duration=10")
    await made.accepted(50)
    await made.fail(lambda _: JSONResponse({"detail": "Invalid API key"}, status_code=401), 25)


@storm("a fourth worker with a revoked key")
async def revoked(made: World) -> None:
    """One of the workers has a key that is revoked."""

    def fault(scope: Scope) -> Response | None:
        if dict(scope["headers"]).get(b"authorization") == b"Bearer luma-api-revoked":
            return JSONResponse({"detail": "API key has been revoked"}, status_code=401)
        return None

    made.api.fault = fault
    await made.processes.start(key="luma-api-revoked")
    await made.submit(80)


@storm("4 at once, 60 of 3 s", sandbox=Sandbox(speed=1, max_concurrent=4))
async def full(made: World) -> None:
    """An account of four at once, 60 generations of three seconds; beside one Runner."""
    api = FaultyApi(Sandbox(speed=1, max_concurrent=4))
    async with api.serve() as base_url, LumaClient("luma-api-one", base_url=base_url) as client:
        began = time.monotonic()
        runner = Runner(client, Poller(client, wait=wait_fixed(0.5)))
        await runner.run_all([f"sandbox:duration=3 {n}" for n in range(60)])
        alone = time.monotonic() - began
    await made.submit(60, "sandbox:duration=3")
    made.notes.append(f"one Runner {alone:.0f} s with {api.refused} refusals")
    await until(lambda: len(made.api.accepted) >= 60)
    made.notes.append(f"{made.api.refused} refusals")


@storm("30 a minute, a death, a deploy", fleet={"submissions_per_minute": 30})
async def minute(made: World) -> None:
    """30 a minute, with a death and a deploy."""
    await made.submit(75, "sandbox:duration=1")
    await made.accepted(20)
    await made.workers[0].kill()
    made.workers[0] = await made.processes.start()
    await made.accepted(30)
    for number in range(3):
        await made.replace(number)
    await made.accepted(75)
    times = made.api.submissions
    most = max(sum(first <= at < first + 60 for at in times) for first in times)
    made.notes.append(f"at most {most} in any 60 s")


@storm("a rolling upgrade, two versions at once")
async def upgrade(made: World) -> None:
    """Workers of another version replace the old ones, one by one."""
    await made.submit(80)
    for number in range(3):
        await made.replace(number, version="9.9.9")


DONE: list[int] = []


@DBOS.workflow()
async def theirs(number: int) -> int:
    DONE.append(number)
    return number


@storm("another fleet and another app beside it")
async def neighbours(made: World) -> None:
    """Another fleet and the user's own queue in the same database."""
    DBOS(config=fleet_config(made.database, name="theirs"))
    DBOS.launch()
    await DBOS.register_queue_async("their-queue")
    other = await made.processes.start(fleet={"queue": "shop", "patience": 6.0})
    await made.submit(40)
    for number in range(12):
        await DBOS.enqueue_workflow_async("their-queue", theirs, number)
    for number in range(20):
        await other.call("submit", prompt=f"another fox {number}", key=f"k-{number}")
    await other.call("results", prefix="k", count=20)
    with anyio.move_on_after(30):
        await until(lambda: len(DONE) >= 12)
    counts = await other.call("counts")
    made.notes.append(
        f"{len(DONE)} of 12 workflows by their app, {counts['completed']} of 20 of the other fleet"
    )
    made.api.accepted = {
        prompt: ids for prompt, ids in made.api.accepted.items() if "another" not in prompt
    }


async def bounded(storm: Callable[[], Awaitable[None]]) -> None:
    with anyio.fail_after(LONGEST):
        await storm()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storms", nargs="*", choices=[[], *STORMS])
    print("| storm | keys | ends | twice | lost | in no list | not called | took | |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in parser.parse_args().storms or STORMS:
        try:
            asyncio.run(bounded(STORMS[name]))
            DBOS.destroy()  # not in the event loop, whose threads it takes with it
        except Exception as error:
            print(f"| {name} | {json.dumps(str(error))[:200]} {type(error).__name__} |", flush=True)


if __name__ == "__main__":
    main()
