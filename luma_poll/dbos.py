"""Fleets: many processes or machines that share one account, through the database of DBOS Transact.

Needs the extra `luma-poll[dbos]`, and asyncio. On one machine, `luma_poll.Journal` is enough.
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
from luma_poll._arguments import (
    check_count,
    check_generation_id,
    check_number,
    check_positive,
    check_whole,
)
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
from luma_poll._tasks.threads import own_threads
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
"""Seconds for which `submit` tries to reach the database."""
MAX_KEY_BYTES = 2000
"""The most bytes of a key: a longer one does not fit into an index."""
MAX_REQUEST_BYTES = 256 * 1024
"""The most bytes of the parameters as JSON: media does not belong in a database."""


class SubmissionCancelledError(LumaError):
    """An operator cancelled the submission before it was sent."""


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """The end of a generation. It has no URL: `client.generations.get(end.id)` returns fresh ones.

    Attributes:
        id: The id of the last attempt.
        state: `completed` or `failed`.
        failure_code: The API's code for the failure, or None.
        failure_reason: The API's description of the failure, or None.
        submitted: The ids, one for each attempt.
    """

    id: str
    state: str
    failure_code: str | None
    failure_reason: str | None
    submitted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetEntry:
    """A submission, as the fleet has recorded it.

    Attributes:
        key: The key.
        request: The parameters, as they are sent; empty once they are forgotten.
        state: `queued`, `submitting`, `running`, `completed`, `failed`; `refused`: the API does not
            accept it; `overdue`: its timeout has passed, but it may still end; `unknown`: the API
            may have accepted it; or `cancelled`.
        attempt: The number of the submission, from 1; 0 if none was sent.
        generation_id: The id of this attempt, if it is known.
        failure_code: The API's code for the failure, or the name of the error, or None.
        updated_at: When the state changed (aware, UTC, by the database's clock).
        submitted: The known ids of all attempts.
        failure_reason: A description of the failure, or None.
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
        fleet: The name of the fleet.
        mode: `running`, `paused` or `draining`.
        why: The reason for the mode that an operator gave, or None.
        max_running: The most generations under way at once, or None for no limit.
        submissions_per_minute: The most submissions in any 60 seconds, or None for no limit.
        max_rate: The most polls per second; inf for no limit.
        refusals: How many submissions were refused with 429, in all.
        counts: The number of submissions in each state.
        oldest_queued: Seconds that the oldest queued one has waited, or None.
        callbacks: The number of callbacks in each state: `due`, `delivered`, `gone`, `given up`.
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
        """Wait for the end of the submission, in whatever process it comes or came.

        It keeps waiting while the database is out of reach. Waiting for many keys at once costs one
        statement a second, in each process.

        Args:
            timeout: Seconds to wait; None for no limit. It does not end the submission.

        Returns:
            The end of the generation, completed or failed.

        Raises:
            TimeoutError: It has not ended within `timeout`.
            SubmissionUnknownError: The API may have accepted it. If an answer arrives late after
                all, a later call returns the end.
            PollTimeoutError: Its own timeout has passed, but it may still end.
            APIError: The API refused it for good.
            SubmissionCancelledError: An operator cancelled it before it was sent.
            ConfigurationError: No submission has this key.
            FleetDatabaseError: The database refused the query.
        """
        seconds = check_positive("timeout", timeout)
        with anyio.move_on_after(seconds):
            return await self._fleet._result(self.key)
        raise TimeoutError(
            f"the submission {self.key!r} has not ended within {seconds:g} s; it continues"
        )


class Fleet:
    """A fleet: any process submits generations, and workers wait for them, all with one account.

    `async with fleet:` makes a process a worker; without it, a process only submits. The tables are
    in the database of DBOS, once DBOS is launched, or in the one that `database` names.

        fleet = Fleet()
        DBOS(config=fleet_config("postgresql://localhost/luma"))
        DBOS.launch()
        async with fleet:
            handle = await fleet.submit("a red fox in fresh snow", key="order-17")
            end = await handle.result()

    Limits belong to the fleet and are stored in its database. None leaves a limit unchanged; any
    other value sets it for all workers, which log the change.

    Args:
        open_client: A function that makes the client of a worker; by default `LumaClient`, which
            reads the environment.
        queue: The name of the fleet, the same in all its processes and part of its tables' names.
        database: `postgresql://...` or `sqlite:///...`, to do without launching DBOS.
        schema: The schema of the tables in that database, for PostgreSQL.
        max_running: The most generations under way at once, in all processes together.
        submissions_per_minute: The most submissions in any 60 seconds, in all processes together,
            including refused ones and further attempts.
        max_rate: The most polls per second, by all workers together; 30 in a new fleet, inf for no
            limit.
        wait: The schedule of the polls, as a tenacity wait strategy; by default `DEFAULT_WAIT`.
        callback_secrets: Standard Webhooks secrets (`whsec_...`). Callbacks are signed with each,
            so give two during a rotation. They stay in the memory of this process. A worker
            without any leaves the callbacks to the others.
        allow_private_callbacks: True to also call private, loopback and link-local addresses, and
            http.
        heartbeat: Seconds between two heartbeats of a worker.
        patience: Seconds without a heartbeat after which the others take over a worker's work.
        share: The most generations that this worker waits for; other workers take the rest.
        worker: A name for this worker, to which a random part is added; by default the host's name.

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
        if 2 * check_number("heartbeat", heartbeat) > check_number("patience", patience):
            raise ConfigurationError("patience must be at least two heartbeats")
        if math.isinf(heartbeat):
            raise ConfigurationError("heartbeat must be a number of seconds, not inf")
        check_whole("share", share)
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
            Database(database, self._name, schema).close()  # refuses a bad URL now
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
        """Submit a generation, once per key, from any process, worker or not.

        In a DBOS workflow this is a step.

        Args:
            prompt: A description of the image or video.
            key: The name of the submission, for good. Calling this again with the same key and
                parameters returns the same submission.
            max_attempts: How often it may be submitted in all. With 2 or more, it is submitted
                again, and billed again, after a retryable failure.
            callback: A URL that is called at the end: https, and a public address.
            timeout: Seconds that it may take after the API has accepted it; None for no limit.
            params: The API's other parameters, as for `generations.create`. They are stored in the
                database. A `Path`, bytes and the like are uploaded now, with a client of their own.

        Returns:
            A handle, as soon as the submission is recorded. Nothing has been sent by then.

        Raises:
            ConfigurationError: An argument is unusable, or the key has other parameters.
            FleetDatabaseError: It may not be recorded: call this again, with the same key.
        """
        checked = await read_params_async({"prompt": prompt, **params})
        options = self._options(key, max_attempts, callback, timeout)
        values = await self._values(checked, options)
        if not await self._as_step("luma_poll.submit", self._add, values):
            raise ConfigurationError(
                f"the key {key!r} was used for a submission with other parameters: a key belongs "
                "to one submission for good"
            )
        return self.handle(key)

    def _options(
        self, key: object, max_attempts: object, callback: str | None, timeout: object
    ) -> dict[str, Any]:
        name = check_key(key)
        if len(name.encode()) > MAX_KEY_BYTES:
            raise ConfigurationError(f"a key of a fleet has at most {MAX_KEY_BYTES} bytes")
        attempts = check_whole("max_attempts", max_attempts)
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
        """Return the row of a submission, with its local media uploaded."""
        named = {name: value for name, value in options.items() if name != "key"}
        digest = await anyio.to_thread.run_sync(
            fingerprint,
            {"request": dict(checked), "options": named},
            limiter=own_threads(),
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
                f"the parameters have {len(text):,} bytes, too many for the database: give media "
                "as a Path or bytes, which are uploaded, or by its URL or file_id"
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
        """Call a function of the database, which may be out of reach for some seconds."""
        database = self._database_now()
        with anyio.move_on_after(SUBMIT_TRIES) as patience:
            for tries in count(1):
                # Short to the end: a pause that reaches past the limit would end the tries early.
                pause = backoff(tries, 0.1, 1.0)
                try:
                    return await database.call(work, *args, **kwargs)
                except FleetDatabaseError as error:
                    late = anyio.current_time() + pause > patience.deadline
                    if not error.retryable or late:
                        raise
                await anyio.sleep(pause)
        raise FleetDatabaseError(f"the database has not answered within {SUBMIT_TRIES:g} s")

    def handle(self, key: str) -> FleetHandle:
        """Return a handle for the submission with this key, whichever process made it."""
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
        """Return the submissions, in the order they were made.

        Args:
            state: One of the states of `FleetEntry`; None for all.

        Raises:
            ConfigurationError: `state` is not one of these.
            FleetDatabaseError: The database cannot be used.
        """
        if state is not None and state not in STATES:
            raise ConfigurationError(f"a state is one of {', '.join(STATES)}, not {state!r}")
        return [_entry(row) for row in await self._ask(Ledger.entries, state)]

    async def resolve(
        self, *keys: str, generation_id: str | None = None, resubmit: bool = False
    ) -> None:
        """Settle submissions that ended with an error, after you looked at the account's usage.

            await fleet.resolve("order-17", generation_id="182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e")
            await fleet.resolve("order-18", "order-19", resubmit=True)

        Args:
            keys: The keys of the submissions.
            generation_id: The id that the API gave, for a single submission: workers wait for it
                (again).
            resubmit: True to submit them again, because they were not accepted, or because you
                accept a second bill.

        Raises:
            ConfigurationError: One of them cannot be settled, or the arguments contradict each
                other. Then none is settled.
            FleetDatabaseError: The database cannot be used.
        """
        if (generation_id is None) is not resubmit:
            raise ConfigurationError("resolve takes either generation_id or resubmit=True")
        known = None if generation_id is None else check_generation_id(generation_id)
        if known is not None and len(keys) != 1:
            raise ConfigurationError("a generation_id settles one submission: give one key with it")
        await self._ask(Ledger.resolve, [check_key(key) for key in keys], known)

    async def cancel(self, *keys: str) -> list[str]:
        """Cancel submissions that have not been sent; return the keys of those that it cancelled.

        Args:
            keys: The keys of the submissions.

        Raises:
            FleetDatabaseError: The database cannot be used.
        """
        text = "the submission was cancelled before it was sent; nothing is running"
        end = json.dumps(to_json(SubmissionCancelledError(text)))
        return await self._ask(Ledger.cancel, [check_key(key) for key in keys], end)

    async def forget(self, before: datetime) -> int:
        """Delete the parameters of submissions that ended before a time; return how many.

        Their keys, ends and a digest of their parameters stay, so that a key is never submitted
        again.

        Args:
            before: The time, as an aware datetime.

        Raises:
            ConfigurationError: The time has no zone.
            FleetDatabaseError: The database cannot be used.
        """
        if before.tzinfo is None:
            raise ConfigurationError("before must be an aware time: one with a zone")
        return await self._ask(Ledger.forget, before.timestamp())

    async def redeliver(self, *keys: str) -> int:
        """Deliver the callbacks of these submissions again; return how many there are.

        Args:
            keys: The keys of the submissions.

        Raises:
            FleetDatabaseError: The database cannot be used.
        """
        return await self._ask(Ledger.redeliver, [check_key(key) for key in keys])

    async def pause(self, why: str | None = None) -> None:
        """Stop submitting, in all workers. They keep waiting for what runs.

        Args:
            why: The reason, which the status and the logs show.
        """
        await self._ask(Ledger.set_mode, "paused", why)

    async def drain(self, why: str | None = None) -> None:
        """Stop submitting, in all workers. `drained` returns when a worker has nothing running.

        Args:
            why: The reason, which the status and the logs show.
        """
        await self._ask(Ledger.set_mode, "draining", why)

    async def resume(self) -> None:
        """Submit again, after `pause` or `drain`."""
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
            max_running: The most generations under way at once; None leaves it unchanged.
            submissions_per_minute: The most submissions in any 60 seconds; None leaves it
                unchanged.
            max_rate: The most polls per second; None leaves it unchanged.
            lift: The names of limits to remove.
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
        """Create the tables, as a database user that may do so.

        Raises:
            ConfigurationError: They belong to a newer release.
            FleetDatabaseError: The database cannot be used.
        """
        self._ledger = None
        await self._open()

    async def drained(self) -> None:
        """Wait until this worker has nothing under way, after `drain`.

        Raises:
            ConfigurationError: This process is not a worker.
        """
        if self._worker is None:
            raise ConfigurationError("this process is not a worker: use `async with fleet:`")
        await self._worker.drained.wait()

    def is_well(self, within: float = 30.0) -> bool:
        """Return True if this worker's event loop turned within so many seconds, for health checks.

        Only this process counts: a worker whose database is down is well, and waits for it.

        Args:
            within: The seconds.
        """
        worker = self._worker
        return worker is not None and anyio.current_time() - worker.looked <= within

    @property
    def name(self) -> str:
        """The name of the fleet."""
        return self._name

    @property
    def poller(self) -> Poller | None:
        """The poller of this worker, to observe it; None if this process is not a worker.

        For example `luma_poll.opentelemetry.instrument(fleet.poller)`.
        """
        worker = self._worker
        return worker.poller if worker is not None and worker.ready.is_set() else None

    @property
    def worker_id(self) -> str | None:
        """The id of this worker; None if this process is not a worker."""
        return None if self._worker is None else self._worker.id

    def _database_now(self) -> Database:
        """Return the present database: DBOS may have been launched again with another one."""
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
        """Call a function; in a workflow as a step, so that a replay gets the same result."""
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
            raise ConfigurationError("this Fleet is already a worker: make another Fleet")
        worker = self._worker = Worker(await self._open(), self._settings)
        try:
            # In a task of its own, which an exception or a cancellation of the block does not end.
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
    """Return the upload of a client, or None if it has none."""
    found: Callable[[LocalMedia], Awaitable[str]] | None = getattr(
        getattr(client, "files", None), "upload_once", None
    )
    return found
