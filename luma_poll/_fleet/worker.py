"""One worker of a fleet: its heartbeat, its submissions and waits, and its callbacks."""

from __future__ import annotations

import json
import math
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
import httpx
from anyio.abc import TaskGroup
from standardwebhooks import Webhook

from luma_poll._fleet import callbacks
from luma_poll._fleet.ends import end_of, why_failed
from luma_poll._fleet.ledger import Alive, Ledger, Limits, Wait
from luma_poll._fleet.liveness import Watch
from luma_poll._fleet.sender import LOOK, Sender
from luma_poll._journal.steps import may_submit_again
from luma_poll._logging import fields, logger
from luma_poll._polling.poller import Poller, last_of, without_retries
from luma_poll._polling.schedules import Schedule
from luma_poll._running.resubmission import pause_before_next
from luma_poll._running.submitter import SupportsCreate
from luma_poll._tasks.backoff import backoff
from luma_poll._version import __version__
from luma_poll.errors import (
    AuthenticationError,
    InsufficientBalanceError,
    LumaError,
    OutputNotFoundError,
    PermissionDeniedError,
    PollTimeoutError,
)
from luma_poll.models import Generation

BEATS_PER_SEARCH = 5
"""Heartbeats between two searches for work that belongs to no living worker."""
LAST_LOOK = 10.0
"""The least seconds for a wait, even if its deadline came while no worker waited."""
FRESH = 5.0
"""Seconds after its submission for which a generation surely exists, and has not ended."""
LONGEST_END = 60.0
"""Seconds that a stopping worker gives its submissions: none of them takes longer."""
NO_SECRETS = 60.0
"""Seconds between two warnings that no worker can sign callbacks."""
_OF_THE_WORKER = (AuthenticationError, InsufficientBalanceError, PermissionDeniedError)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a worker, as given to `Fleet`."""

    open_client: Callable[[], AbstractAsyncContextManager[SupportsCreate]]
    limits: Limits
    wait: Schedule | None
    signers: Sequence[Webhook]
    allow_private: bool
    heartbeat: float
    patience: float
    share: int
    worker: str | None


def worker_id(name: str | None) -> str:
    """Return an id that no other worker has: in containers all have the same pid."""
    return f"{name or socket.gethostname()}-{uuid4().hex[:8]}"


@dataclass(eq=False)
class Worker:
    """The worker in one process, from the beginning of its block to the end."""

    ledger: Ledger
    settings: Settings
    ready: anyio.Event = field(default_factory=anyio.Event)
    drained: anyio.Event = field(default_factory=anyio.Event)

    def __post_init__(self) -> None:
        self.id = worker_id(self.settings.worker)
        self.client: SupportsCreate
        self.poller: Poller
        self._sender: Sender
        self._tasks: TaskGroup
        self._leaving = anyio.Event()
        self._waits: dict[str, tuple[Wait, anyio.CancelScope]] = {}
        self._calls: Counter[str] = Counter()
        self._calls_due = anyio.Event()
        self._others = Watch(self.settings.patience)
        self._alive: Alive | None = None
        self._beats = 0
        self.looked = -math.inf
        """When the event loop last turned, on anyio's clock; old if the loop hangs."""

    def leave(self) -> None:
        """Take on nothing more, finish the submissions under way, leave the rest to the others."""
        self._leaving.set()

    def wake(self) -> None:
        """Look for something to submit at once."""
        self._sender.wake()

    async def run(self) -> None:
        """Work until `leave`."""
        settings = self.settings
        async with (
            settings.open_client() as given,
            # For callbacks. No proxy of the environment, which would look up the host by itself,
            # past our check of its address. No connection is kept: a later callback may go to the
            # same address under another name.
            httpx.AsyncClient(
                trust_env=False,
                timeout=None,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            ) as http,
            anyio.create_task_group() as self._tasks,
        ):
            self.client = given
            client: Any = without_retries(given)
            self.poller = Poller(client, wait=settings.wait, max_rate=settings.limits.max_rate)
            self._sender = Sender(
                client,
                self.ledger,
                self.id,
                share=settings.share,
                patience=settings.patience,
                wait_for=self._begin_wait,
                waits=lambda: len(self._waits),
            )
            await self._join()
            sending = anyio.Event()
            self._tasks.start_soon(self._send, sending)
            self._tasks.start_soon(self._beat_forever)
            self._tasks.start_soon(self._tick)
            self._tasks.start_soon(self._call_forever, http)
            self.ready.set()
            await self._leaving.wait()
            # In order, and not by a cancellation: submissions under way get time for their answer.
            self._sender.leave()
            with anyio.move_on_after(LONGEST_END):
                await sending.wait()
            self._sender.abandon()
            # This ends the waits here. Their generations run on, and others will wait for them.
            self._tasks.cancel_scope.cancel()
        # Last, when this process does nothing more: from now on the others take what it had.
        await self._say_goodbye()

    async def _send(self, done: anyio.Event) -> None:
        try:
            await self._sender.send_forever()
        finally:
            done.set()

    async def _say_goodbye(self) -> None:
        try:
            await self.ledger.database.call(self.ledger.leave, self.id)
        except Exception as error:
            logger.warning(
                "could not sign off, so the others take over a little later: %s",
                error,
                extra=fields(error=error),
            )
        else:
            logger.info("worker %s has left the fleet", self.id, extra=fields())

    # Alive

    async def _join(self) -> None:
        """Become visible to the other workers, and give them time to make room."""
        call = self.ledger.database.call
        before, after = await call(self.ledger.set_limits, self.settings.limits)
        if before != after:
            logger.warning(
                "the limits of the fleet were %s, and are %s now", before, after, extra=fields()
            )
        alive = await self._beat()
        others = sorted(alive.beats.keys() - {self.id})
        logger.info(
            "worker %s of the fleet %r is ready: %s; %s; %s; %s",
            self.id,
            self.ledger.name,
            self.ledger.database.place,
            alive.limits,
            f"the others are {', '.join(others)}" if others else "there are no others",
            f"the fleet is {alive.mode}",
            extra=fields(),
        )
        if others:
            # Each of them polls at its share of the rate, and lowers it when it sees one more.
            await anyio.sleep(self.settings.heartbeat * 1.5)
            await self._beat()

    def _notes(self) -> dict[str, Any]:
        sender = self._sender
        return {
            "version": __version__,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "waits": len(self._waits),
            "submitting": len(sender.sending),
            "share": self.settings.share,
            "signs_callbacks": bool(self.settings.signers),
            "trouble": sender.trouble.why,
            "holds_back": sender.why or None,
        }

    async def _beat_forever(self) -> None:
        """Send heartbeats, and take over work that is left, until the worker leaves."""
        while True:
            # At random, so that workers that started together do not meet at the database.
            await anyio.sleep(self.settings.heartbeat * random.uniform(0.9, 1.0))
            try:
                await self._beat()
                await self._claim()
                if self._beats % BEATS_PER_SEARCH == 0:
                    await self._search()
            except Exception as error:  # of any kind: a worker that stops beating counts as dead
                logger.warning("no heartbeat: %s", error, extra=fields(error=error))

    async def _tick(self) -> None:
        """Prove that the event loop turns, even if the database is down."""
        while True:
            self.looked = anyio.current_time()
            await anyio.sleep(1.0)

    async def _beat(self) -> Alive:
        self._beats += 1
        call = self.ledger.database.call
        alive = await call(self.ledger.beat, self.id, self._notes())
        others = {name: beat for name, beat in alive.beats.items() if name != self.id}
        dead = self._others.look(others, anyio.current_time())
        rate = alive.limits.max_rate
        if rate is None or math.isinf(rate):
            self.poller._set_max_rate(None)
        else:
            self.poller._set_max_rate(rate / (1 + len(others) - len(dead)))
        before, self._alive = self._alive, alive
        if before is not None:
            self._report(before, alive)
        # Not on the list: normal at the first beat, later the others have taken its work.
        if alive.was_buried and before is not None:
            logger.warning("this worker was taken for dead, and joins again", extra=fields())
            await self._reconcile()
        for name in dead:
            # With the beat that was seen: one that has beaten since then stays alive.
            if (left := await call(self.ledger.bury, name, others[name])) is not None:
                logger.warning(
                    "worker %s is dead: it leaves %d running generations, and %d submissions that "
                    "the API may have accepted",
                    name,
                    *left,
                    extra=fields(),
                )
        if alive.mode == "draining" and not self._waits and not self._sender.sending:
            self.drained.set()
        return alive

    def _report(self, before: Alive, now: Alive) -> None:
        if before.limits != now.limits:
            logger.warning(
                "the limits of the fleet were %s, and are %s now",
                before.limits,
                now.limits,
                extra=fields(),
            )
        if before.mode != now.mode:
            why = f": {now.why}" if now.why else ""
            logger.warning("the fleet is %s%s", now.mode, why, extra=fields())
        for name in sorted(now.beats.keys() - before.beats.keys() - {self.id}):
            logger.info("worker %s has joined", name, extra=fields())
        for name in sorted(before.beats.keys() - now.beats.keys() - {self.id}):
            logger.info("worker %s has left", name, extra=fields())

    async def _claim(self) -> None:
        """Take over waits that no worker has, not all at once, so that the others get some, too."""
        some = max(20, self.settings.share // 4)
        for wait in await self.ledger.database.call(self.ledger.claim_waits, self.id, some):
            self._begin_wait(wait)

    async def _search(self) -> None:
        left, unknown = await self.ledger.database.call(self.ledger.sweep)
        if left or unknown:
            logger.warning(
                "%d running generations and %d submissions had no worker",
                left,
                unknown,
                extra=fields(),
            )
        await self._reconcile()

    async def _reconcile(self) -> None:
        """Make the waits and permits of this worker those that the database has for it."""
        # From before the question: what begins during it is not judged by the older answer.
        ours = dict(self._waits)
        sending = set(self._sender.sending)
        waits, permits = await self.ledger.database.call(self.ledger.owned, self.id)
        owned = {wait.key: wait for wait in waits}
        for wait in waits:
            self._begin_wait(wait)
        for key, (wait, scope) in ours.items():
            if key not in owned or owned[key].generation_id != wait.generation_id:
                scope.cancel()  # another worker waits for it, or it has ended
        # Permits that the database gave although its answer never arrived. Those in use now are
        # subtracted as well: one may have come into use during the question.
        unused = permits.keys() - sending - self._sender.sending - {self._sender._permit}
        if unused:
            await self.ledger.database.call(self.ledger.withdraw, sorted(unused))

    # Waits

    def _begin_wait(self, wait: Wait) -> None:
        known = self._waits.get(wait.key)
        if known is not None:
            if known[0].generation_id == wait.generation_id:
                return
            known[1].cancel()  # an operator gave another id, or it is the next attempt
        scope = anyio.CancelScope()
        self._waits[wait.key] = wait, scope
        self._tasks.start_soon(self._wait, wait, scope)

    async def _wait(self, wait: Wait, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                outcome = await self._outcome(wait)
                await self._record(wait, outcome)
        finally:
            # Unless a wait for another id has taken its place.
            if self._waits.get(wait.key, (None, None))[1] is scope:
                del self._waits[wait.key]
            self._sender.wake()  # there is room in this worker's share again

    async def _outcome(self, wait: Wait) -> Generation | LumaError:
        """Wait for the end of a generation; a refusal that concerns this worker is not its end."""
        began = anyio.current_time()
        left = math.inf if wait.timeout is None else max(wait.timeout - wait.age, LAST_LOOK)
        what: Any = wait.generation_id
        # A snapshot saves the first poll, and an early 404 is not believed after it.
        if wait.age < FRESH:
            left = math.inf if wait.timeout is None else wait.timeout
            what = Generation(id=wait.generation_id, state="queued")
        deadline, tries = began + left, 0
        while True:
            try:
                return await self._watch(what, deadline - anyio.current_time())
            except OutputNotFoundError as error:
                # Not the API's `output_not_found`, after which it may be submitted again: this one
                # has completed, and is billed.
                failed = {"state": "failed", "failure_code": "completed_without_output"}
                generation = error.generation or Generation(id=wait.generation_id, state="failed")
                return generation.model_copy(update=failed)
            except LumaError as error:
                if not isinstance(error, _OF_THE_WORKER):
                    return error
                # A 401, 402 or 403 is about the key or the balance, which may be mended in time.
                self._sender.note_refusal(error)
                tries += 1
                pause = backoff(tries, 5.0, 60.0)
                if anyio.current_time() + pause >= deadline:
                    return PollTimeoutError(
                        f"; the last of them was refused ({error.status_code})",
                        generation_id=wait.generation_id,
                        last_generation=None,
                        elapsed=wait.age + anyio.current_time() - began,
                        attempts=1,
                    )
            what = wait.generation_id  # the made-up snapshot is out of date
            await anyio.sleep(pause)

    async def _watch(self, what: Any, seconds: float) -> Generation:
        timeout = None if math.isinf(seconds) else max(seconds, 0.001)
        return await last_of(self.poller.watch(what, timeout=timeout))

    async def _record(self, wait: Wait, outcome: Generation | LumaError) -> None:
        ledger = self.ledger
        failure = why_failed(outcome) if isinstance(outcome, Generation) else None
        if failure is not None and may_submit_again(failure, wait.attempt, wait.max_attempts):
            pause = pause_before_next(failure, wait.attempt)
            await ledger.database.insist(
                f"{wait.key!r} is submitted again", ledger.try_again, wait, pause
            )
            return
        state, end = end_of(outcome)
        await ledger.database.insist(f"{wait.key!r} is {state}", ledger.end_wait, wait, state, end)
        self._calls_due.set()

    # Callbacks

    async def _call_forever(self, http: httpx.AsyncClient) -> None:
        """Deliver the callbacks that are due, whichever worker saw the end."""
        # `_calls_due` only knows of the ends seen here, so the pause is short.
        if not self.settings.signers:
            await self._warn_of_callbacks()
        while True:
            if not await self._call_some(http):
                self._calls_due = anyio.Event()
                with anyio.move_on_after(2 * LOOK):
                    await self._calls_due.wait()

    async def _call_some(self, http: httpx.AsyncClient) -> bool:
        room = callbacks.MOST_AT_ONCE - self._calls.total()
        if room <= 0:
            return False
        busy = dict(+self._calls)  # `+` drops the hosts without a call
        take = partial(
            self.ledger.due_callbacks, room, callbacks.MOST_TO_A_HOST, busy, callbacks.LEASE
        )
        try:
            due = await self.ledger.database.call(take)
        except Exception as error:
            logger.info("no callbacks: %s", error, extra=fields(error=error))
            return False
        for message in due:
            self._calls[message["host"]] += 1
            self._tasks.start_soon(self._call, http, message)
        return bool(due)

    async def _call(self, http: httpx.AsyncClient, message: Mapping[str, Any]) -> None:
        try:
            outcome = await callbacks.deliver(
                http,
                message["url"],
                message["id"],
                json.loads(message["event"]),
                self.settings.signers,
                allow_private=self.settings.allow_private,
            )
        finally:
            self._calls[message["host"]] -= 1
        state, pause = callbacks.next_try(outcome, message["tries"])
        if state == "given up":
            logger.error("gave up the callback of %r: %s", message["key"], outcome, extra=fields())
        await self.ledger.database.insist(
            f"the callback of {message['key']!r}: {outcome}",
            self.ledger.called,
            message["id"],
            state,
            outcome,
            pause,
        )

    async def _warn_of_callbacks(self) -> None:
        """Leave callbacks to workers that can sign them; warn if no worker can."""
        while True:
            await anyio.sleep(NO_SECRETS / 4)
            try:
                waiting = await self.ledger.database.call(self.ledger.waiting_callbacks)
            except Exception as error:
                logger.info("no callbacks: %s", error, extra=fields(error=error))
                continue
            notes = {} if self._alive is None else self._alive.notes
            signs = any(each.get("signs_callbacks") for each in notes.values())
            if waiting and not signs:
                logger.warning(
                    "%d callbacks wait for a worker with callback_secrets, and there is none",
                    waiting,
                    extra=fields(),
                )
                await anyio.sleep(NO_SECRETS)
