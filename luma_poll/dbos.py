"""Fleets: many processes or machines, one account, in the database of DBOS Transact.

Needs the extra `luma-poll[dbos]`, and asyncio. For one machine `luma_poll.Journal` is enough.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import anyio
import anyio.to_thread
import sqlalchemy as sa
from dbos import DBOS

from luma_poll._api.media_reference import LocalMedia
from luma_poll._api.parameters import CreateParams, explicit
from luma_poll._api.request_body import local_media, read_params_async, uploaded
from luma_poll._arguments import check_count, check_generation_id, check_positive
from luma_poll._client.client import LumaClient
from luma_poll._fleet import callbacks
from luma_poll._fleet.ends import from_json, to_json, unknown
from luma_poll._fleet.engine import Database, FleetDatabaseError
from luma_poll._fleet.ledger import STATES, FleetState, Ledger, Limits
from luma_poll._fleet.lookups import Results
from luma_poll._fleet.settings import database_of_dbos, fleet_config, is_in_workflow
from luma_poll._fleet.tables import check_name
from luma_poll._fleet.worker import Settings, Worker
from luma_poll._journal.fingerprint import fingerprint
from luma_poll._polling.poller import Poller
from luma_poll._polling.schedules import Schedule
from luma_poll._running.requests import Request, check_key
from luma_poll._running.submitter import SupportsCreate
from luma_poll._tasks.backoff import backoff
from luma_poll.errors import ConfigurationError, LumaError

__all__ = [
    "Fleet",
    "FleetDatabaseError",
    "FleetEntry",
    "FleetHandle",
    "FleetState",
    "FleetStatus",
    "GenerationEnd",
    "SubmissionCancelledError",
    "fleet_config",
]

P = ParamSpec("P")
T = TypeVar("T")

RESULT_INTERVAL = 1.0
"""Seconds between two looks for results."""
SUBMIT_TRIES = 10.0
"""Seconds for which `submit` tries to reach a database that is out of reach."""
MAX_KEY_BYTES = 2000
"""A longer key does not fit into an index."""
MAX_REQUEST_BYTES = 256 * 1024
"""Of the parameters as JSON: media is no matter for a database."""


class SubmissionCancelledError(LumaError):
    """An operator cancelled the submission before it was sent."""


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """How a generation ended. It has no URL: `client.generations.get(end.id)` gives fresh ones.

    Attributes:
        id: The id of the last attempt.
        state: `completed` or `failed`.
        failure_code: Why it failed, for programs, or None.
        failure_reason: Why it failed, for people, or None.
        submitted: The ids, one for each attempt.
    """

    id: str
    state: str
    failure_code: str | None
    failure_reason: str | None
    submitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetEntry:
    """A submission, as the fleet has it on record.

    Attributes:
        key: Its key.
        request: Its parameters, as they are sent; empty once they are forgotten.
        state: `queued`, `submitting`, `running`, `completed`, `failed`; `refused`: the API takes it
            not; `overdue`: its timeout has passed, but it may still end; `unknown`: it is not known
            whether the API accepted it; or `cancelled`.
        attempt: Which submission it is, from 1; 0 if none was sent.
        generation_id: The id of this attempt, if it is known.
        failure_code: Why it failed, or the name of the error, or None.
        updated_at: When the state changed (aware, UTC, by the database's clock).
        submitted: The ids of all attempts that are known.
        failure_reason: Why it failed, for people, or None.
    """

    key: str
    request: Mapping[str, Any]
    state: FleetState
    attempt: int
    generation_id: str | None
    failure_code: str | None
    updated_at: datetime
    submitted: tuple[str, ...] = ()
    failure_reason: str | None = None


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The state of a fleet, for operators.

    Attributes:
        fleet: Its name.
        mode: `running`, `paused` or `draining`.
        why: Somebody's words on it, or None.
        max_running: Generations under way at once, or None for no limit.
        submissions_per_minute: Submissions in any 60 seconds, or None for no limit.
        max_rate: Polls per second; inf for no limit.
        refusals: The 429s that submissions met, in all.
        counts: The submissions in each state.
        oldest_queued: Seconds that the oldest one has been queued, or None.
        callbacks: The callbacks in each state: `due`, `delivered`, `gone`, `given up`.
        workers: The workers that are alive, each as a mapping: `id`, `beat` and `since` (seconds
            ago), `version`, `host`, `pid`, `waits`, `submitting`, `share`, `signs_callbacks`,
            `trouble` (why the API does not serve it), `holds_back` (why nothing is submitted).
    """

    fleet: str
    mode: str
    why: str | None
    max_running: int | None
    submissions_per_minute: int | None
    max_rate: float
    refusals: int
    counts: Mapping[str, int]
    oldest_queued: float | None
    callbacks: Mapping[str, int]
    workers: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class FleetHandle:
    """A submission, by its key."""

    key: str
    _fleet: Fleet = field(repr=False, compare=False)

    async def result(self, *, timeout: float | None = None) -> GenerationEnd:
        """Wait for its end, which may have been long ago and elsewhere.

        While the database is out of reach, it waits. Waiting for many keys at once costs one
        statement a second, in each process.

        Args:
            timeout: Seconds to wait; None for no limit. The submission continues.

        Raises:
            TimeoutError: It has not ended within `timeout`.
            SubmissionUnknownError: It is not known whether the API accepted it. An answer that
                arrives late heals that: then a later call returns the end.
            PollTimeoutError: It had not ended in time, but may still do so.
            APIError: The API refused it for good.
            SubmissionCancelledError: An operator cancelled it before it was sent.
            ConfigurationError: Nothing was submitted under this key.
            FleetDatabaseError: The database refuses to say.
        """
        seconds = check_positive("timeout", timeout)
        with anyio.move_on_after(seconds):
            return await self._fleet._result(self.key)
        raise TimeoutError(
            f"the submission {self.key!r} has not ended within {seconds:g} s; it continues"
        )


class Fleet:
    """Generations submitted by any process, and waited for by workers, over one account.

    `async with fleet:` makes a process a worker. Without it a process only submits. The tables are
    in the database of DBOS, once that is launched, or in the one that `database` names.

        fleet = Fleet()
        DBOS(config=fleet_config("postgresql://localhost/luma"))
        DBOS.launch()
        async with fleet:
            handle = await fleet.submit("a red fox in fresh snow", key="order-17")
            end = await handle.result()

    A limit belongs to the fleet and is in its database: None leaves it as it is, another value sets
    it for all workers, which say so in their logs.

    Args:
        open_client: Makes the client of a worker; by default from the environment.
        queue: The name of the fleet: all its processes have the same, and its tables carry it.
        database: `postgresql://...` or `sqlite:///...`: then DBOS need not be launched.
        schema: The schema of the tables in that database, for PostgreSQL.
        max_running: Generations under way at once, over all processes.
        submissions_per_minute: Submissions in any 60 seconds, over all processes, refused ones and
            further attempts included.
        max_rate: Polls per second, over all workers that are alive; 30 in a new fleet, inf for no
            limit.
        wait: The schedule of the polls: a tenacity wait strategy; by default `DEFAULT_WAIT`.
        callback_secrets: Standard Webhooks secrets (`whsec_...`), each of which signs: two during
            a rotation. They stay in the memory of this process. A worker without any leaves the
            callbacks to the others.
        allow_private_callbacks: Also call private, loopback and link-local addresses, and http.
        heartbeat: Seconds between two signs of life of a worker.
        patience: Seconds without one after which the others take over its work.
        share: Generations that this worker waits for at most; the others are left to the others.
        worker: A name for this worker, to which a random part is added; by default the host's.

    Raises:
        ConfigurationError: An argument is unusable.
    """

    def __init__(
        self,
        open_client: Callable[[], AbstractAsyncContextManager[SupportsCreate]] = LumaClient,
        *,
        queue: str = "luma",
        database: str | None = None,
        schema: str = "dbos",
        max_running: int | None = None,
        submissions_per_minute: int | None = None,
        max_rate: float | None = None,
        wait: Schedule | None = None,
        callback_secrets: Sequence[str] = (),
        allow_private_callbacks: bool = False,
        heartbeat: float = 2.0,
        patience: float = 6.0,
        share: int = 500,
        worker: str | None = None,
    ) -> None:
        if not 0 < 2 * heartbeat <= patience:
            raise ConfigurationError("patience must be at least two heartbeats")
        if check_count("share", share) is None:
            raise ConfigurationError("share must be a whole number from 1")
        self._name = check_name(queue)
        self._given = database, schema
        limits = Limits(
            check_count("max_running", max_running),
            check_count("submissions_per_minute", submissions_per_minute),
            check_positive("max_rate", max_rate),
        )
        self._settings = Settings(
            open_client=open_client,
            limits=limits,
            wait=wait,
            signers=callbacks.check_secrets(callback_secrets),
            allow_private=allow_private_callbacks,
            heartbeat=heartbeat,
            patience=patience,
            share=share,
            worker=worker,
        )
        if database is not None:
            Database(database, self._name, schema).close()  # is it one?
        self._ledger: Ledger | None = None
        self._source: tuple[object, ...] = ()
        self._results = Results()
        self._worker: Worker | None = None
        self._working: asyncio.Task[None] | None = None

    @explicit
    async def submit(
        self,
        prompt: str,
        *,
        key: str,
        max_attempts: int = 1,
        callback: str | None = None,
        timeout: float | None = 3600.0,
        **params: Unpack[CreateParams],
    ) -> FleetHandle:
        """Submit a generation, once for each key, from any process, worker or not.

        In a workflow of DBOS this is a step.

        Args:
            prompt: A description of the image or video.
            key: Names the submission for good: the same one again, with the same parameters, is
                the same submission.
            max_attempts: How often it may be submitted in all, each time newly billed, where it
                fails in a way that may pass. 1 never submits twice.
            callback: A URL that is told of the end: https, and a public address.
            timeout: Seconds that it may take from when the API has accepted it; None for no limit.
            params: The API's other parameters, as for `generations.create`. They are stored as
                they are; a `Path`, bytes and the like are uploaded now, by a client that is opened
                for it.

        Returns:
            A handle, as soon as it is recorded. Nothing has been sent by then.

        Raises:
            ConfigurationError: An argument is unusable, or the key has other parameters.
            FleetDatabaseError: It is not known to be recorded: submit it again, with the same key.
        """
        checked = await read_params_async({"prompt": prompt, **params})
        options = self._options(key, max_attempts, callback, timeout)
        values = await self._values(checked, options)
        if not await self._as_step("luma_poll.submit", self._add, values):
            raise ConfigurationError(
                f"something else was submitted under the key {key!r}: a key belongs to one "
                "submission for good"
            )
        return self.handle(key)

    def _options(
        self, key: object, max_attempts: object, callback: str | None, timeout: object
    ) -> dict[str, Any]:
        name = check_key(key)
        if len(name.encode()) > MAX_KEY_BYTES:
            raise ConfigurationError(f"a key of a fleet has at most {MAX_KEY_BYTES} bytes")
        attempts = check_count("max_attempts", max_attempts)
        if attempts is None:
            raise ConfigurationError("max_attempts must be a whole number from 1")
        seconds = check_positive("timeout", timeout)
        if callback is not None:
            callbacks.check_url(callback, allow_private=self._settings.allow_private)
        return {
            "key": name,
            "max_attempts": attempts,
            "callback": callback,
            "timeout": None if seconds is None or math.isinf(seconds) else seconds,
        }

    async def _values(
        self, checked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The row of a submission. What is here is uploaded: it is nothing for a database."""
        named = {name: value for name, value in options.items() if name != "key"}
        digest = await anyio.to_thread.run_sync(
            fingerprint, {"request": dict(checked), "options": named}
        )
        request = dict(checked)
        if local_media(checked) and not await self._is_known(options["key"]):
            worker = self._worker
            if worker is not None and worker.ready.is_set():
                request = await uploaded(checked, _upload_of(worker.client), larger_than=0)
            else:
                async with self._settings.open_client() as client:
                    request = await uploaded(checked, _upload_of(client), larger_than=0)
        text = json.dumps(request if not local_media(request) else {}, allow_nan=False)
        if len(text) > MAX_REQUEST_BYTES:
            raise ConfigurationError(
                f"the parameters have {len(text):,} bytes, more than the database is for: give "
                "media as a Path or bytes, which are uploaded, or by its URL or file_id"
            )
        kind = json.dumps(Request(request, None).kind)
        return {**options, "digest": digest, "request": text, "kind": kind}

    async def _is_known(self, key: str) -> bool:
        return key in await self._ask(Ledger.look, [key])

    async def _add(self, values: Mapping[str, Any]) -> bool:
        added = await self._ask(Ledger.add, values)
        if self._worker is not None and self._worker.ready.is_set():
            self._worker.wake()
        return added

    async def _ask(
        self, work: Callable[Concatenate[Ledger, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self._reached(work, await self._open(), *args, **kwargs)

    async def _reached(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it in the database, which may be out of reach for some seconds."""
        database = self._database_now()
        with anyio.move_on_after(SUBMIT_TRIES) as patience:
            for tries in count(1):
                pause = backoff(tries, 0.1, SUBMIT_TRIES)
                try:
                    return await database.call(work, *args, **kwargs)
                except FleetDatabaseError as error:
                    late = anyio.current_time() + pause > patience.deadline
                    if not error.retryable or late:
                        raise
                await anyio.sleep(pause)
        raise FleetDatabaseError(f"the database has not answered within {SUBMIT_TRIES:g} s")

    def handle(self, key: str) -> FleetHandle:
        """Return the submission with this key, whoever made it and whenever."""
        return FleetHandle(check_key(key), self)

    async def _result(self, key: str) -> GenerationEnd:
        row = await self._as_step("luma_poll.result", self._end_of, key)
        if row is None:
            raise ConfigurationError(f"no submission has the key {key!r}")
        end = row["end"]
        match row["state"]:
            case "unknown":
                raise unknown(key, row["request"] or {})
            case "cancelled":
                raise SubmissionCancelledError(end["message"])
            case "completed" | "failed":
                return GenerationEnd(
                    id=end["id"],
                    state=end["state"],
                    failure_code=end["failure_code"],
                    failure_reason=end["failure_reason"],
                    submitted=tuple(row["submitted"]),
                )
        raise from_json(end)

    async def _end_of(self, key: str) -> dict[str, Any] | None:
        return await self._results.end(await self._open(), key, RESULT_INTERVAL)

    async def entries(self, state: FleetState | None = None) -> list[FleetEntry]:
        """Return the submissions, in their order.

        Args:
            state: One of the states of `FleetEntry`; None for all.

        Raises:
            ConfigurationError: There is no such state.
            FleetDatabaseError: The database cannot be used.
        """
        if state is not None and state not in STATES:
            raise ConfigurationError(f"a state is one of {', '.join(STATES)}, not {state!r}")
        return [_entry(row) for row in await self._ask(Ledger.entries, state)]

    async def resolve(
        self, *keys: str, generation_id: str | None = None, resubmit: bool = False
    ) -> None:
        """Continue submissions that ended with an error, after a look at the usage of the account.

            await fleet.resolve("order-17", generation_id="182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e")
            await fleet.resolve("order-18", "order-19", resubmit=True)

        Args:
            keys: Their keys.
            generation_id: It was accepted, with this id: it is waited for (again).
            resubmit: They were not accepted, or may be billed twice: they are submitted.

        Raises:
            ConfigurationError: One of them has not ended with an error, or its id is known, or not
                exactly one of the two is given. Then none of them continues.
            FleetDatabaseError: The database cannot be used.
        """
        if (generation_id is None) is not resubmit:
            raise ConfigurationError("resolve takes either generation_id or resubmit=True")
        known = None if generation_id is None else check_generation_id(generation_id)
        if known is not None and len(keys) != 1:
            raise ConfigurationError("an id is of one submission: give one key with generation_id")
        await self._ask(Ledger.resolve, [check_key(key) for key in keys], known)

    async def cancel(self, *keys: str) -> list[str]:
        """Cancel submissions that have not been sent; returns the keys of those that it met.

        Raises:
            FleetDatabaseError: The database cannot be used.
        """
        text = "the submission was cancelled before it was sent; nothing is running"
        end = json.dumps(to_json(SubmissionCancelledError(text)))
        return await self._ask(Ledger.cancel, [check_key(key) for key in keys], end)

    async def forget(self, before: datetime) -> int:
        """Delete the parameters of submissions that ended before a time; returns how many.

        Their keys stay taken, with a digest of the parameters and the end: the same key is never
        submitted again.

        Args:
            before: An aware time.

        Raises:
            ConfigurationError: The time has no zone.
            FleetDatabaseError: The database cannot be used.
        """
        if before.tzinfo is None:
            raise ConfigurationError("before must be an aware time: one with a zone")
        return await self._ask(Ledger.forget, before.timestamp())

    async def redeliver(self, *keys: str) -> int:
        """Deliver the callbacks of these submissions once more; returns how many there are.

        Raises:
            FleetDatabaseError: The database cannot be used.
        """
        return await self._ask(Ledger.redeliver, [check_key(key) for key in keys])

    async def pause(self, why: str | None = None) -> None:
        """Submit nothing more, in all workers. They continue to wait for what runs."""
        await self._ask(Ledger.set_mode, "paused", why)

    async def drain(self, why: str | None = None) -> None:
        """Submit nothing more. Each worker has `drained` when nothing of it runs."""
        await self._ask(Ledger.set_mode, "draining", why)

    async def resume(self) -> None:
        """End a pause, or a draining."""
        await self._ask(Ledger.set_mode, "running", None)

    async def set_limits(
        self,
        *,
        max_running: int | None = None,
        submissions_per_minute: int | None = None,
        max_rate: float | None = None,
        lift: Sequence[str] = (),
    ) -> None:
        """Change limits of the fleet, for all its workers.

        Args:
            max_running: As for `Fleet`; None: as it is.
            submissions_per_minute: As for `Fleet`; None: as it is.
            max_rate: As for `Fleet`; None: as it is.
            lift: The names of limits that end.
        """
        names = ("max_running", "submissions_per_minute", "max_rate")
        if any(name not in names for name in lift):
            raise ConfigurationError(f"lift has names of limits: {', '.join(names)}")
        limits = Limits(
            check_count("max_running", max_running),
            check_count("submissions_per_minute", submissions_per_minute),
            check_positive("max_rate", max_rate),
        )
        await self._ask(Ledger.set_limits, limits, lift=lift)

    async def status(self) -> FleetStatus:
        """Return the state of the fleet: its workers, limits and counts.

        Raises:
            FleetDatabaseError: The database cannot be used.
        """
        found = await self._ask(Ledger.status)
        limits: Limits = found.pop("limits")
        return FleetStatus(
            max_running=limits.max_running,
            submissions_per_minute=limits.submissions_per_minute,
            max_rate=limits.max_rate or 0.0,
            **found,
        )

    async def migrate(self) -> None:
        """Make the tables, which takes a user of the database that may do that.

        Raises:
            ConfigurationError: They are of a newer release.
            FleetDatabaseError: The database cannot be used.
        """
        self._ledger = None
        await self._open()

    async def drained(self) -> None:
        """Wait until this worker has nothing in hand, after `drain`.

        Raises:
            ConfigurationError: This process is no worker.
        """
        if self._worker is None:
            raise ConfigurationError("this process is no worker: use `async with fleet:`")
        await self._worker.drained.wait()

    def is_well(self, within: float = 30.0) -> bool:
        """Say if this worker has looked after itself within so many seconds, for health checks.

        It is about this process alone: a worker without its database is well, and waits for it.
        """
        worker = self._worker
        return worker is not None and anyio.current_time() - worker.looked <= within

    @property
    def name(self) -> str:
        """The name of the fleet."""
        return self._name

    @property
    def poller(self) -> Poller | None:
        """The poller of this worker, to be observed; None if this process is none.

        instrument(fleet.poller)                      # of luma_poll.opentelemetry
        """
        worker = self._worker
        return worker.poller if worker is not None and worker.ready.is_set() else None

    @property
    def worker_id(self) -> str | None:
        """The id of this worker; None if this process is none."""
        return None if self._worker is None else self._worker.id

    def _database_now(self) -> Database:
        """The database, as it is now: DBOS may have been launched again with another one."""
        database, schema = self._given
        url: str | sa.URL
        where: str | None
        url, where = (database, schema) if database is not None else database_of_dbos()
        source = str(url), where, os.getpid()
        if self._ledger is None or source != self._source:
            self._ledger = Ledger(Database(url, self._name, where), self._name)
            self._source, self._is_prepared = source, False
            self._results = Results()
        return self._ledger.database

    async def _open(self) -> Ledger:
        database = self._database_now()
        ledger = self._ledger
        assert ledger is not None
        if not self._is_prepared:
            await self._reached(ledger.prepare)
            self._is_prepared = ledger is self._ledger and database is ledger.database
        return ledger

    _is_prepared: bool = False

    async def _as_step(
        self,
        name: str,
        work: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Do it; in a workflow as a step, so that the workflow finds it the same when replayed."""
        if not is_in_workflow():
            return await work(*args, **kwargs)
        found: T = await DBOS.run_step_async({"name": name}, work, *args, **kwargs)
        return found

    async def __aenter__(self) -> Self:
        """Make this process a worker.

        Raises:
            ConfigurationError: There is no API key, or no database.
            FleetDatabaseError: The database cannot be used.
        """
        if self._worker is not None:
            raise ConfigurationError("this fleet is entered already: one worker for each Fleet")
        worker = self._worker = Worker(await self._open(), self._settings)
        try:
            # A task of its own: what the block raises, and who cancels it, is none of its business.
            working = self._working = asyncio.create_task(worker.run())
            ready = asyncio.create_task(worker.ready.wait())
            await asyncio.wait((working, ready), return_when=asyncio.FIRST_COMPLETED)
            ready.cancel()
            if not worker.ready.is_set():
                await working
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the submissions under way, and leave the waits to the other workers."""
        await self._stop()

    async def _stop(self) -> None:
        worker, working = self._worker, self._working
        self._worker = self._working = None
        if worker is not None and working is not None:
            worker.leave()
            with anyio.CancelScope(shield=True):
                await asyncio.wait((working,))
            error = None if working.cancelled() else working.exception()
            if error is not None and worker.ready.is_set():
                raise error


def _entry(row: Mapping[str, Any]) -> FleetEntry:
    end = json.loads(row["end"]) if row["end"] else {}
    return FleetEntry(
        key=row["key"],
        request=json.loads(row["request"]) if row["request"] else {},
        state=row["state"],
        attempt=row["attempt"],
        generation_id=row["generation_id"],
        failure_code=end.get("failure_code") or end.get("type"),
        updated_at=datetime.fromtimestamp(row["updated_at"], UTC),
        submitted=tuple(row["submitted"]),
        failure_reason=end.get("failure_reason") or end.get("message"),
    )


def _upload_of(client: object) -> Callable[[LocalMedia], Awaitable[str]] | None:
    """The upload of a client; None if it has none."""
    found: Callable[[LocalMedia], Awaitable[str]] | None = getattr(
        getattr(client, "files", None), "upload_once", None
    )
    return found
