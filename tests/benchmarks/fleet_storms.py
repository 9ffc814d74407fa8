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
        self.processes: Processes
        self.caller: Process
        self.workers: list[Process] = []
        self.called: dict[str, list[str]] = {}
        self.notes: list[str] = []

    async def submit(self, count: int, prompt: str = "sandbox:duration=2", **others: Any) -> None:
        self.keys = count
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

    def sql(self, *statements: str) -> None:
        name = self.database.partition("@/")[2].partition("?")[0]
        for statement in statements:
            subprocess.run(
                [
                    *(str(self.server._programs / "psql"), "-h", str(self.server._folder)),
                    *("-U", "postgres", "-d", name, "-tAc", statement),
                ],
                check=False,
                capture_output=True,
                timeout=30,
                cwd="/",
                env={**os.environ, "PGOPTIONS": "-c default_transaction_read_only=off"},
            )


class FaultyApi(Api):
    """A sandbox in front of which something answers now and then."""

    def __init__(self, sandbox: Sandbox, **options: Any) -> None:
        super().__init__(sandbox, **options)
        self.fault: Callable[[Scope], Response | None] = lambda _: None
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


async def report(name: str, made: World, began: float) -> None:
    while True:
        counts = await made.caller.call("counts")
        if counts["queued"] + counts["submitting"] + counts["running"] == 0:
            break
        await asyncio.sleep(0.5)
    took = time.monotonic() - began
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
        f"| {name} | {made.keys} | {dict(tally(ends))} | {len(twice)} | {len(lost)} | "
        f"{len(nowhere)} | {uncalled} | {took:.0f} s | {'; '.join(made.notes)} |",
        flush=True,
    )


async def some(made: World, number: int) -> None:
    await until(lambda: len(made.api.submissions) >= number)


async def failover() -> None:
    """The server answers that it is read-only, for eight seconds."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(80)
        await some(made, 20)
        await asyncio.to_thread(
            made.sql,
            "ALTER SYSTEM SET default_transaction_read_only = on",
            "SELECT pg_reload_conf()",
        )
        await asyncio.sleep(8)
        await asyncio.to_thread(
            made.sql,
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )
        await report("read-only for 8 s", made, began)


async def terminate() -> None:
    """All connections are ended every second."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(80)
        for _ in range(15):
            await asyncio.sleep(1)
            await asyncio.to_thread(
                made.sql,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'luma-poll'",
            )
        await report("pg_terminate_backend every second, 15 s", made, began)


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
                began = time.monotonic()
                await made.submit(80)
                await report("pgbouncer, transaction mode", made, began)
        finally:
            with contextlib.suppress(ProcessLookupError):
                bouncer.terminate()
            await bouncer.wait()


async def frozen() -> None:
    """The connections of the moment freeze for 35 seconds."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(60)
        await some(made, 15)
        pids = await asyncio.to_thread(made.connections)
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(35)
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        made.notes.append(f"{len(pids)} connections")
        await report("connections frozen for 35 s", made, began)


async def outage() -> None:
    """PostgreSQL is stopped for 40 seconds."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(80)
        await some(made, 20)
        await asyncio.to_thread(made.server.stop)
        await asyncio.sleep(40)
        await asyncio.to_thread(made.server.start)
        await report("PostgreSQL stopped for 40 s", made, began)


async def stopped() -> None:
    """A worker is stopped past the patience, twice, with second attempts allowed."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(40, "sandbox:duration=3 sandbox:fail=generation_failed", max_attempts=2)
        for worker in made.workers[:2]:
            await asyncio.sleep(2)
            worker.signal(signal.SIGSTOP)
            await asyncio.sleep(8)
            worker.signal(signal.SIGCONT)
        await report("SIGSTOP past the patience, max_attempts=2", made, began)


async def kills() -> None:
    """A worker is killed every two seconds, and another one started."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(80)
        for _ in range(8):
            await asyncio.sleep(2)
            await made.workers.pop(0).kill()
            made.workers.append(await made.processes.start())
        await report("8 workers killed", made, began)


async def gateway() -> None:
    """Everything is answered with a gateway's 502, for 20 seconds."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(150)
        await some(made, 20)
        made.api.fault = lambda _: Response("<h1>502 Bad Gateway</h1>", status_code=502)
        await asyncio.sleep(20)
        made.api.fault = lambda _: None
        await report("502 for 20 s", made, began)


async def posts() -> None:
    """Submissions alone are answered with a gateway's 502, for 20 seconds."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(150)
        await some(made, 20)

        def fault(scope: Scope) -> Response | None:
            return Response("Bad Gateway", status_code=502) if scope["method"] == "POST" else None

        made.api.fault = fault
        await asyncio.sleep(20)
        made.api.fault = lambda _: None
        await report("502 for 20 s, on submissions alone", made, began)


async def rotation() -> None:
    """The key is refused for 25 seconds, while generations run."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(150, "sandbox:duration=10")
        await some(made, 50)
        made.api.fault = lambda _: JSONResponse({"detail": "Invalid API key"}, status_code=401)
        await asyncio.sleep(25)
        made.api.fault = lambda _: None
        await report("401 for 25 s", made, began)


async def revoked() -> None:
    """One of the workers has a key that is revoked."""
    async with world() as made:

        def fault(scope: Scope) -> Response | None:
            if dict(scope["headers"]).get(b"authorization") == b"Bearer luma-api-revoked":
                return JSONResponse({"detail": "API key has been revoked"}, status_code=401)
            return None

        made.api.fault = fault
        await made.processes.start(key="luma-api-revoked")
        began = time.monotonic()
        await made.submit(80)
        await report("a fourth worker with a revoked key", made, began)


async def full() -> None:
    """An account of four at once, 60 generations of three seconds; beside one Runner."""
    api = FaultyApi(Sandbox(speed=1, max_concurrent=4))
    async with api.serve() as base_url, LumaClient("luma-api-one", base_url=base_url) as client:
        began = time.monotonic()
        runner = Runner(client, Poller(client, wait=wait_fixed(0.5)))
        await runner.run_all([f"sandbox:duration=3 {n}" for n in range(60)])
        alone = time.monotonic() - began
    async with world(sandbox=Sandbox(speed=1, max_concurrent=4)) as made:
        began = time.monotonic()
        await made.submit(60, "sandbox:duration=3")
        made.notes.append(f"one Runner {alone:.0f} s with {api.refused} refusals")
        await until(lambda: len(made.api.accepted) >= 60)
        made.notes.append(f"{made.api.refused} refusals")
        await report("4 at once, 60 of 3 s", made, began)


async def minute() -> None:
    """30 a minute, with a death and a deploy."""
    async with world(fleet={"submissions_per_minute": 30}) as made:
        began = time.monotonic()
        await made.submit(75, "sandbox:duration=1")
        await some(made, 20)
        await made.workers[0].kill()
        made.workers[0] = await made.processes.start()
        await some(made, 30)
        for number in range(3):
            new = await made.processes.start()
            await made.workers[number].stop()
            made.workers[number] = new
        await some(made, 75)
        times = made.api.submissions
        most = max(sum(first <= at < first + 60 for at in times) for first in times)
        made.notes.append(f"at most {most} in any 60 s")
        await report("30 a minute, a death, a deploy", made, began)


async def upgrade() -> None:
    """Workers of another version replace the old ones, one by one."""
    async with world() as made:
        began = time.monotonic()
        await made.submit(80)
        for number in range(3):
            new = await made.processes.start(version="9.9.9")
            await asyncio.sleep(2)
            await made.workers[number].stop()
            made.workers[number] = new
        await report("a rolling upgrade, two versions at once", made, began)


DONE: list[int] = []


@DBOS.workflow()
async def theirs(number: int) -> int:
    DONE.append(number)
    return number


async def neighbours() -> None:
    """Another fleet and the user's own queue in the same database."""
    async with world() as made:
        DBOS(config=fleet_config(made.database, name="theirs"))
        DBOS.launch()
        await DBOS.register_queue_async("their-queue")
        other = await made.processes.start(fleet={"queue": "shop", "patience": 6.0})
        began = time.monotonic()
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
            f"{len(DONE)} of 12 workflows by their app, {counts['completed']} of 20 of the"
            " other fleet"
        )
        made.api.accepted = {
            prompt: ids for prompt, ids in made.api.accepted.items() if "another" not in prompt
        }
        await report("another fleet and another app beside it", made, began)


Storm = Callable[[], Coroutine[Any, Any, None]]
STORMS: dict[str, Storm] = {
    each.__name__: each
    for each in (
        kills,
        failover,
        terminate,
        pooler,
        frozen,
        outage,
        stopped,
        gateway,
        posts,
        rotation,
        revoked,
        full,
        minute,
        upgrade,
        neighbours,
    )
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
