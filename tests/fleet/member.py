"""A process of a fleet, which does what its parent says."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from tenacity import wait_fixed

import luma_poll.dbos
from luma_poll import LumaClient, LumaError
from luma_poll._fleet import callbacks, worker
from luma_poll.dbos import Fleet

STATEMENTS: list[None] = []
SUBMITTED: list[None] = []


@event.listens_for(Engine, "before_cursor_execute")
def count_statement(_: Any, __: Any, statement: str, *___: Any) -> None:
    STATEMENTS.append(None)
    if statement.startswith("INSERT") and "_posts" in statement:
        SUBMITTED.append(None)


class Member:
    def __init__(self, settings: dict[str, Any], parent: socket.socket) -> None:
        self._settings = settings
        self._parent = parent
        self.fleet = Fleet(
            self._open_client,
            database=settings["database"],
            wait=wait_fixed(settings.get("poll_every", 0.1)),
            **{"heartbeat": 0.2, "patience": 0.8, **settings.get("fleet", {})},
        )

    def _open_client(self) -> LumaClient:
        key = self._settings.get("key", "luma-api-fleet")
        return LumaClient(key, base_url=self._settings["base_url"])

    async def run(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._parent, limit=2**24)
        async with self.fleet if self._settings["worker"] else contextlib.nullcontext():
            self._say({"ready": self.fleet.worker_id})
            listening = asyncio.create_task(self._listen(reader))
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listening.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await listening

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        tasks = set()
        while line := await reader.readline():
            tasks.add(asyncio.create_task(self._answer(json.loads(line))))

    async def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any]
        try:
            answer = {"value": await getattr(self, message["call"])(**message["arguments"])}
        except LumaError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        self._say({"number": message["number"]} | answer)

    def _say(self, what: dict[str, Any]) -> None:
        self._writer.write(json.dumps(what).encode() + b"\n")

    async def submit(self, **arguments: Any) -> str:
        return (await self.fleet.submit(**arguments)).key

    async def submit_many(self, count: int, prompt: str, prefix: str, **others: Any) -> None:
        for first in range(0, count, 50):
            numbers = range(first, min(first + 50, count))
            await asyncio.gather(
                *(
                    self.fleet.submit(f"{prompt} {n}", key=f"{prefix}-{n}", **others)
                    for n in numbers
                )
            )

    async def result(self, key: str) -> dict[str, Any]:
        return dataclasses.asdict(await self.fleet.handle(key).result())

    async def results(self, prefix: str, count: int) -> list[dict[str, Any]]:
        """How each of them ended: a mapping, with `error` in the place of an end."""

        async def result(number: int) -> dict[str, Any]:
            try:
                return await self.result(f"{prefix}-{number}")
            except LumaError as error:
                return {"error": type(error).__name__, "message": str(error)}

        return list(await asyncio.gather(*map(result, range(count))))

    async def keys(self, state: str | None) -> list[str]:
        given: Any = state
        return [each.key for each in await self.fleet.entries(given)]

    async def resolve(self, keys: list[str], **arguments: Any) -> None:
        await self.fleet.resolve(*keys, **arguments)

    async def operate(self, method: str, *arguments: Any, **others: Any) -> Any:
        return await getattr(self.fleet, method)(*arguments, **others)

    async def counts(self) -> dict[str, int]:
        return dict((await self.fleet.status()).counts)

    async def mine(self) -> list[str]:
        """The generations that this process waits for."""
        assert self.fleet._worker is not None
        return list(self.fleet._worker._waits)

    async def usage(self) -> dict[str, float]:
        status = await asyncio.to_thread(Path("/proc/self/status").read_text)
        memory = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        import resource  # POSIX

        spent = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "threads": threading.active_count(),
            "mb": int(memory.split()[1]) / 1024,
            "cpu": spent.ru_utime + spent.ru_stime,
            "statements": len(STATEMENTS),
            "submissions": len(SUBMITTED),
            "now": time.monotonic(),
        }


def run(settings: dict[str, Any], parent: socket.socket) -> None:
    """Be a member until the parent hangs up or SIGTERM comes."""
    log = os.open(settings["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(
        format="%(asctime)s %(process)d %(message)s",
        level=settings.get("level", "WARNING"),
        force=True,
    )
    setattr(worker, "__version__", settings.get("version", "1"))  # noqa: B010
    luma_poll.dbos.RESULT_INTERVAL = settings.get("result_every", 0.2)
    callbacks.PAUSES = tuple(settings.get("pauses", callbacks.PAUSES))
    asyncio.run(Member(settings, parent).run())
