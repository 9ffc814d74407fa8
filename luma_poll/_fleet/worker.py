"""One worker of a fleet: its heartbeat, its waits, and what it takes over from the dead."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anyio
import httpx
from dbos import DBOS, WorkflowStatus
from dbos import error as dbos_errors

from luma_poll._api.answers import as_generation
from luma_poll._fleet.ledger import OUT_OF_REACH, Accepted, Late, Ledger
from luma_poll._fleet.liveness import LEFT, Watch
from luma_poll._fleet.submit_once import Submitter
from luma_poll._logging import fields, logger
from luma_poll._polling.poller import Poller, SupportsGenerations, without_retries
from luma_poll._polling.schedules import Schedule
from luma_poll.errors import LumaError, OutputNotFoundError
from luma_poll.models import Generation

T = TypeVar("T")

ACTIVE = ("ENQUEUED", "PENDING", "DELAYED")
BEATS_PER_SEARCH = 5
"""So often are workflows looked for whose worker has no row, not even that of a dead one."""
LAST_LOOK = 10.0
"""Seconds for a wait whose deadline came while nobody waited."""
FRESH = 5.0
"""Seconds after its submission in which a generation is known to exist, and to be unfinished."""
MOST_RESUMED_AT_ONCE = 1000


class Client(SupportsGenerations, Protocol):
    """A client that submits too: `LumaClient`, or the official `AsyncLuma`."""

    @property
    def generations(self) -> Any:
        """The generations of the API."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the parts of a fleet in the database.

    Attributes:
        generation: The workflow of a submission.
        callback: The workflow of a callback.
        queue: Where submissions wait for their turn.
        unlimited: A queue without limits.
        resumed: The queue of submissions that are taken over: one of the two.
    """

    generation: str
    callback: str
    queue: str
    unlimited: str
    resumed: str


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a dead worker is found.

    Attributes:
        heartbeat: Seconds between two beats.
        patience: Seconds without a beat after which a worker counts as dead.
    """

    heartbeat: float
    patience: float


@dataclass(eq=False)
class Worker:
    """The part of a fleet that one process is, from the beginning of its block to the end.

    Attributes:
        loop: The event loop in which all of it runs.
        submitter: Submits.
        poller: Waits.
        http: Sends callbacks.
        in_hand: The workflows that this process runs.
    """

    ledger: Ledger
    names: Names
    pace: Pace
    max_rate: float | None
    submitter: Submitter
    poller: Poller
    http: httpx.AsyncClient
    in_hand: Counter[str]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _beats: int = 0
    _stopped: bool = False

    def __post_init__(self) -> None:
        self._id = DBOS.executor_id
        self._leaving = anyio.Event()
        self._others = Watch(self.pace.patience)
        self._homeless = Watch(self.pace.heartbeat * BEATS_PER_SEARCH * 2.5)
        self._dropped = Watch(self.pace.heartbeat * BEATS_PER_SEARCH * 2.5)

    async def serve(self, work: Coroutine[Any, Any, T]) -> T:
        """Run some work in the worker's event loop; it is cancelled when the worker stops."""
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._attend(work), self.loop)
        )

    async def _attend(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        if self._stopped:
            work.close()
            raise asyncio.CancelledError
        self._tasks.add(task)
        try:
            return await work
        finally:
            self._tasks.discard(task)

    async def wait(self, accepted: Accepted, timeout: float) -> Generation | LumaError:
        """Wait for a generation, until `timeout` seconds after it was accepted.

        Returns:
            The last snapshot, or why there is none.
        """
        # Wall clocks, for the deadline outlives processes and machines.
        age = max(0.0, time.time() - accepted.at)
        what: Any = accepted.generation_id
        left = max(timeout - age, LAST_LOOK)
        if age < FRESH:
            what = as_generation({"id": accepted.generation_id, "state": "queued"})
            left = timeout
        last = None
        try:
            watching = self.poller.watch(what, timeout=left)
            async with aclosing(watching) as snapshots:
                async for snapshot in snapshots:
                    last = snapshot
        except OutputNotFoundError as error:
            fields = {"state": "failed", "failure_code": error.failure_code}
            return error.generation.model_copy(update=fields)
        except LumaError as error:
            return error
        finally:
            self.submitter.gate.a_generation_ended()
        assert last is not None, "watch ends with a terminal snapshot"
        return last

    async def join(self) -> None:
        """Become visible to the others, and leave them the time to make room."""
        others = await self._beat()
        if others:
            await anyio.sleep(self.pace.heartbeat * 1.5)
            await self._beat()

    async def beat_forever(self) -> None:
        """Beat, and do what the others of the fleet need, until the worker leaves."""
        while True:
            with anyio.move_on_after(self.pace.heartbeat):
                await self._leaving.wait()
                return
            try:
                await self._beat()
                await self.heal()
                if self._beats % BEATS_PER_SEARCH == 0:
                    await self._search()
            except OUT_OF_REACH as error:
                logger.warning(
                    "no heartbeat: the database is out of reach (%s)",
                    type(error).__name__,
                    extra=fields(error=error),
                )
            except Exception as error:  # whatever: a worker that does not beat is a dead one
                logger.exception("no heartbeat", extra=fields(error=error))

    async def _beat(self) -> int:
        """One beat; returns how many others are alive."""
        self._beats += 1
        beats = await self._in_thread(self.ledger.beat, self._id)
        others = {name: beat for name, beat in beats.items() if name != self._id}
        dead = self._others.look(others, self.loop.time())
        if self.max_rate is not None:
            self.poller._set_max_rate(self.max_rate / (1 + len(others) - len(dead)))
        for name in dead:
            if await self._in_thread(self.ledger.bury, name, others[name]):
                how = "has stopped" if others[name] == LEFT else "is dead"
                logger.warning("worker %s %s: taking over what it left", name, how, extra=fields())
                await self._take_over(await self._pending(name))
        return len(others) - len(dead)

    async def _search(self) -> None:
        """Take over what no worker has in hand.

        That is what is left of processes that died before their first beat, or while they took
        over; and what DBOS dropped in this one, when the database went out of reach.
        """
        everybody = (await self._in_thread(self.ledger.beat, self._id)).keys()
        pending = await self._pending()
        owners = {each.executor_id or "" for each in pending}
        homeless = {name: 1 for name in owners if name not in everybody}
        for name in self._homeless.look(homeless, self.loop.time()):
            logger.warning("worker %s is unknown: taking over what it left", name, extra=fields())
            await self._take_over(await self._pending(name))
        mine = [each for each in pending if each.executor_id == self._id]
        idle = {each.workflow_id: 1 for each in mine if not self.in_hand[each.workflow_id]}
        if dropped := self._dropped.look(idle, self.loop.time()):
            logger.warning(
                "%d workflows were dropped: beginning them again", len(dropped), extra=fields()
            )
            await self._take_over([each for each in mine if each.workflow_id in dropped])

    async def _take_over(self, left: Sequence[WorkflowStatus]) -> None:
        names = self.names
        # A callback may pause for days, and is not a generation that runs.
        for workflow, queue in (
            (names.generation, names.resumed),
            (names.callback, names.unlimited),
        ):
            ids = [each.workflow_id for each in left if each.name == workflow]
            for first in range(0, len(ids), MOST_RESUMED_AT_ONCE):
                some = ids[first : first + MOST_RESUMED_AT_ONCE]
                await DBOS.resume_workflows_async(some, queue_name=queue)

    async def _pending(self, executor_id: str | None = None) -> Sequence[WorkflowStatus]:
        return await DBOS.list_workflows_async(
            status="PENDING",
            name=[self.names.generation, self.names.callback],
            executor_id=executor_id,
            load_input=False,
            load_output=False,
        )

    async def heal(self) -> None:
        """Let workflows that ended as unknown continue with what has become known since."""
        await heal(await self._in_thread(self.ledger.late), self.ledger, self.names)

    async def _in_thread(self, call: Any, *args: Any) -> Any:
        return await self.loop.run_in_executor(self.submitter.threads, call, *args)

    async def stop(self) -> None:
        """Finish the submissions under way, and end the waits."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await self.submitter.settle()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def leave(self, beating: asyncio.Task[None]) -> None:
        """Tell the others, after the last beat: one that came later would contradict it."""
        self._leaving.set()
        await beating
        try:
            await self._in_thread(self.ledger.leave, self._id)
        except OUT_OF_REACH:
            logger.warning(
                "the others will take over a little later: the database is out of reach",
                extra=fields(),
            )


async def heal(late: Sequence[Late], ledger: Ledger, names: Names) -> None:
    """Run the workflows again whose submission was unknown, and is known now."""
    for each in late:
        status = await DBOS.get_workflow_status_async(each.key)
        if status is not None and status.status in ACTIVE:
            continue  # it has not ended as unknown yet, or is at it again
        if status is not None and status.status == "ERROR":
            try:
                # To its first step: what the ledger knows is not submitted again.
                await DBOS.rewind_workflow_async(each.key, queue_name=names.resumed)
            except dbos_errors.DBOSException:
                continue  # another process does the same at the same moment
        await asyncio.get_running_loop().run_in_executor(None, ledger.healed, each)


@asynccontextmanager
async def open_worker(
    client: Client,
    ledger: Ledger,
    names: Names,
    pace: Pace,
    *,
    wait: Schedule | None,
    max_rate: float | None,
    in_hand: Counter[str],
) -> AsyncIterator[Worker]:
    """A worker that beats until the block ends."""
    client = without_retries(client)
    async with AsyncExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(3, thread_name_prefix="luma-poll"))
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=None))
        submitter = Submitter(client.generations.create, ledger, threads)
        poller = Poller(client, wait=wait, max_rate=max_rate)
        worker = Worker(ledger, names, pace, max_rate, submitter, poller, http, in_hand)
        await worker.join()
        # No task group, which would wrap what the user's block raises. It raises nothing itself.
        beating = asyncio.create_task(worker.beat_forever())
        try:
            yield worker
        finally:
            with anyio.CancelScope(shield=True):
                await worker.stop()
                await worker.leave(beating)
