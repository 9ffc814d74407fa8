"""Fleets: many processes or machines, one account, on DBOS Transact and PostgreSQL.

Needs the extra `luma-poll[dbos]`, and asyncio. For one machine `luma_poll.Journal` is enough.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, fields
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from dbos import (
    DBOS,
    PortableWorkflowError,
    SetWorkflowID,
    WorkflowSerializationFormat,
    WorkflowStatus,
)
from dbos import error as dbos_errors
from dbos._dbos import _get_dbos_instance

from luma_poll._arguments import check_count, check_generation_id, check_positive, check_prompt
from luma_poll._client.client import LumaClient
from luma_poll._fleet import callbacks
from luma_poll._fleet.ends import as_json, event_of, from_json, why_failed
from luma_poll._fleet.ledger import NOTHING_ACCEPTED, OUT_OF_REACH, Accepted, Ledger
from luma_poll._fleet.settings import check_settings, fleet_config
from luma_poll._fleet.worker import ACTIVE, Client, Names, Pace, Worker, heal, open_worker
from luma_poll._journal.steps import may_submit_again
from luma_poll._polling.poller import MAX_RATE
from luma_poll._polling.schedules import Schedule
from luma_poll._running.resubmission import pause_before_next
from luma_poll.errors import ConfigurationError

__all__ = ["Fleet", "FleetHandle", "GenerationEnd", "fleet_config"]

T = TypeVar("T")
P = ParamSpec("P")

RESULT_INTERVAL = 1.0
"""Seconds between two looks for a result."""


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """How a generation ended. It has no URL: `client.generations.get(end.id)` gives fresh ones.

    Attributes:
        id: Of the last attempt.
        state: `completed` or `failed`.
        failure_code: Why it failed, for programs, or None.
        failure_reason: Why it failed, for people, or None.
        submitted: The ids, one for each attempt.
    """

    id: str
    state: str
    failure_code: str | None
    failure_reason: str | None
    submitted: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FleetHandle:
    """A submission, by its key."""

    key: str

    async def result(self) -> GenerationEnd:
        """Wait for its end, which may have been long ago and elsewhere.

        Raises:
            SubmissionUnknownError: It is not known whether the API accepted it. An answer that
                arrives late heals that: then a later call returns the end.
            PollTimeoutError: It had not ended in time, but may still do so.
            APIError: The API refused it for good.
            ConfigurationError: Nothing was submitted under this key.
        """
        if await _status(self.key) is None:
            raise ConfigurationError(f"nothing was submitted under the key {self.key!r}")
        handle: Any = await DBOS.retrieve_workflow_async(self.key, existing_workflow=False)
        while True:
            try:
                end = await handle.get_result(polling_interval_sec=RESULT_INTERVAL)
                # Only what is known here: a later release may say more.
                return GenerationEnd(
                    **{each.name: end[each.name] for each in fields(GenerationEnd)}
                )
            except OUT_OF_REACH:
                await asyncio.sleep(RESULT_INTERVAL)
            except PortableWorkflowError as error:
                if not isinstance(error.data, Mapping) or "fields" not in error.data:
                    raise
                failure = from_json(error.data)
                break
        raise failure


class Fleet:
    """Generations submitted by any process, and waited for by workers, over one account.

    Make it before `DBOS.launch()`: it registers its workflows. `async with fleet:` makes a process
    a worker; a process that only submits calls `DBOS.listen_queues([])` before the launch.

        fleet = Fleet()
        DBOS(config=fleet_config("postgresql://localhost/luma"))
        DBOS.launch()
        async with fleet:
            handle = await fleet.submit("a red fox in fresh snow", key="order-17")
            end = await handle.result()

    Args:
        open_client: Makes the client of a worker; by default from the environment.
        queue: The name of the fleet: all its processes have the same.
        max_running: Generations under way at once, over all processes; None for no limit.
        submissions_per_minute: Generations begun in any 60 seconds, over all processes; None for
            no limit. Further attempts (`max_attempts`) are not counted.
        max_rate: Polls per second, over all workers that are alive; None for no limit.
        wait: The schedule of the polls: a tenacity wait strategy; by default `DEFAULT_WAIT`.
        callback_secrets: Standard Webhooks secrets (`whsec_...`), each of which signs: two during
            a rotation. They stay in the memory of this process.
        allow_private_callbacks: Also call private, loopback and link-local addresses, and http.
        heartbeat: Seconds between two signs of life of a worker.
        patience: Seconds without one after which the others take over its work.

    Raises:
        ConfigurationError: An argument is unusable.
    """

    def __init__(
        self,
        open_client: Callable[[], AbstractAsyncContextManager[Client]] = LumaClient,
        *,
        queue: str = "luma",
        max_running: int | None = None,
        submissions_per_minute: int | None = None,
        max_rate: float | None = MAX_RATE,
        wait: Schedule | None = None,
        callback_secrets: Sequence[str] = (),
        allow_private_callbacks: bool = False,
        heartbeat: float = 2.0,
        patience: float = 6.0,
    ) -> None:
        self._open_client = open_client
        self._max_running = check_count("max_running", max_running)
        self._submissions_per_minute = check_count("submissions_per_minute", submissions_per_minute)
        self._max_rate = check_positive("max_rate", max_rate)
        self._schedule = wait
        self._signers = callbacks.check_secrets(callback_secrets)
        self._allow_private = allow_private_callbacks
        if not 0 < 2 * heartbeat <= patience:
            raise ConfigurationError("patience must be at least two heartbeats")
        self._pace = Pace(heartbeat, patience)
        unlimited = f"{queue}.unlimited"
        self._names = Names(
            generation=f"luma_poll.{queue}.generation",
            callback=f"luma_poll.{queue}.callback",
            queue=queue,
            unlimited=unlimited,
            # It was begun before: it does not wait for its turn in the minute once more.
            resumed=queue if submissions_per_minute is None else unlimited,
        )
        self._worker: Future[Worker] = Future()
        self._in_hand = Counter[str]()
        self._stack = AsyncExitStack()
        self._register()

    def _register(self) -> None:
        # Functions, for DBOS takes a bound method for one of a class of its own. Their names and
        # the order of their steps are in the database: see HISTORY.
        @_workflow(self._names.callback)
        @self._held
        async def call_back(url: str, message_id: str, event: dict[str, Any]) -> str:
            outcome = ""
            for pause in callbacks.PAUSES:
                if pause:
                    await DBOS.sleep_async(pause)
                outcome = await _step("deliver", self._deliver, url, message_id, event)
                if outcome in (callbacks.DELIVERED, callbacks.GONE):
                    return str(outcome)
            raise PortableWorkflowError(f"given up: {outcome}", "CallbackError")

        @_workflow(self._names.generation)
        @self._held
        async def generate(request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
            key = DBOS.workflow_id
            assert key is not None
            end: dict[str, Any] = {}
            submitted: list[str] = []
            max_attempts, timeout = options["max_attempts"], options["timeout"]
            for attempt in range(1, max_attempts + 1):
                end = await _step("submit", self._submit, key, attempt, request, timeout)
                if "type" not in end:
                    submitted.append(end["id"])
                    end = await _step("wait", self._wait_for, end["id"], end["at"], timeout)
                failure = why_failed(end)
                if failure is None or not may_submit_again(failure, attempt, max_attempts):
                    break
                if pause := pause_before_next(failure, attempt):
                    await DBOS.sleep_async(pause)
            if options["callback"] is not None:
                event = event_of(key, end, submitted)
                message_id = f"{key}:{event['data']['state']}:{event['data']['id'] or ''}"
                with SetWorkflowID(f"{message_id}:callback"):
                    await DBOS.start_workflow_async(
                        call_back, options["callback"], message_id, event
                    )
            if "type" in end:
                raise PortableWorkflowError(end["message"], end["type"], data=end)
            return end | {"submitted": submitted}

        self._generate = generate

    async def _submit(
        self, key: str, attempt: int, request: dict[str, Any], timeout: float
    ) -> dict[str, Any]:
        return as_json(
            await self._serve(lambda each: each.submitter.submit(key, attempt, request, timeout))
        )

    async def _wait_for(self, generation_id: str, at: float, timeout: float) -> dict[str, Any]:
        accepted = Accepted(generation_id, at)
        return as_json(await self._serve(lambda each: each.wait(accepted, timeout)))

    async def _deliver(self, url: str, message_id: str, event: dict[str, Any]) -> Any:
        return await self._serve(
            lambda each: callbacks.deliver(
                each.http,
                url,
                message_id,
                event,
                self._signers,
                allow_private=self._allow_private,
            )
        )

    def _held(self, workflow: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Any]:
        """The workflow, known to be in hand while it runs.

        DBOS does not wait for every kind of outage of its database to pass: it would record the
        error as the outcome. Left alone, the workflow is begun again.
        """

        @wraps(workflow)
        async def held(*args: P.args, **kwargs: P.kwargs) -> T:
            key = DBOS.workflow_id or ""
            self._in_hand[key] += 1
            try:
                return await workflow(*args, **kwargs)
            except OUT_OF_REACH as error:
                raise asyncio.CancelledError from error
            finally:
                self._in_hand[key] -= 1
                if not self._in_hand[key]:
                    del self._in_hand[key]

        return held

    async def _serve(self, work: Callable[[Worker], Any]) -> Any:
        """Let this process do some work, as soon as it is a worker."""
        worker = await asyncio.shield(asyncio.wrap_future(self._worker))
        return await worker.serve(work(worker))

    async def submit(
        self,
        prompt: str,
        *,
        key: str,
        max_attempts: int = 1,
        callback: str | None = None,
        timeout: float = 3600.0,
        **params: Any,
    ) -> FleetHandle:
        """Submit a generation, once for each key, from any process that has launched DBOS.

        Args:
            prompt: What to make.
            key: Names the submission for good: the same one again, with the same parameters, is
                the same submission. It is the id of the workflow.
            max_attempts: How often it may be submitted in all, each time newly billed, where it
                fails in a way that may pass. 1 never submits twice.
            callback: A URL that hears of the end: https, and a public address.
            timeout: Seconds that it may take from when the API has accepted it.
            params: The API's other parameters, as for `generations.create`. They are stored as
                they are.

        Returns:
            A handle, as soon as it is recorded. Nothing has been sent by then.

        Raises:
            ConfigurationError: An argument is unusable, or the key has other parameters.
        """
        check_prompt(prompt)
        if not isinstance(key, str) or not key.strip():
            raise ConfigurationError("key must be a text that is not blank")
        if check_count("max_attempts", max_attempts) is None:
            raise ConfigurationError("max_attempts must be a whole number from 1")
        if check_positive("timeout", timeout) is None:
            raise ConfigurationError("timeout must be a number above 0")
        if callback is not None:
            callbacks.check_url(callback, allow_private=self._allow_private)
        request = {"prompt": prompt} | {k: v for k, v in params.items() if v is not None}
        options = {"max_attempts": max_attempts, "callback": callback, "timeout": timeout}
        try:
            given = json.loads(json.dumps([request, options], allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"the parameters are not JSON: {error}") from None
        if not await self._enqueue(key, given):
            raise ConfigurationError(
                f"something else was submitted under the key {key!r}: a key belongs to one "
                "submission for good"
            )
        return self.handle(key)

    async def _enqueue(self, key: str, arguments: list[Any]) -> bool:
        """Make the workflow, unless it exists; False if there is another one of this id."""
        try:
            with SetWorkflowID(key):
                await DBOS.enqueue_workflow_async(self._names.queue, self._generate, *arguments)
        except dbos_errors.DBOSConflictingWorkflowError:
            return False
        status = await _status(key)
        return status is None or (status.input and list(status.input["args"])) == arguments

    def handle(self, key: str) -> FleetHandle:
        """The submission with this key, whoever made it and whenever."""
        return FleetHandle(key)

    async def unknown(self) -> list[str]:
        """The keys of which it is not known whether the API accepted their submission."""
        return await _in_thread((await self._open_ledger()).unknown)

    async def resolve(
        self, key: str, *, generation_id: str | None = None, resubmit: bool = False
    ) -> None:
        """Continue a submission that ended with an error, as somebody says who has looked.

        Args:
            key: Its key.
            generation_id: It was accepted, and this is its id: it is waited for (again).
            resubmit: It was not accepted: it is submitted again.

        Raises:
            ConfigurationError: Both or neither is given, or the submission has not ended with an
                error, or its id is known.
        """
        if (generation_id is not None) == resubmit:
            raise ConfigurationError("either generation_id or resubmit must be given")
        status = await _status(key)
        if status is None or status.status in ("SUCCESS", *ACTIVE):
            raise ConfigurationError(f"the submission {key!r} has not ended with an error")
        ledger = await self._open_ledger()
        known = NOTHING_ACCEPTED if generation_id is None else check_generation_id(generation_id)
        found = await _in_thread(ledger.resolve, key, known, known=generation_id is not None)
        if not found:
            raise ConfigurationError(
                f"the id of the submission {key!r} is known: give it as generation_id, to wait for "
                "it again"
            )
        await heal(await _in_thread(ledger.late), ledger, self._names)

    async def _open_ledger(self) -> Ledger:
        # DBOS shows its engine to nobody, and for a second one we would need the URL.
        database = _get_dbos_instance()._sys_db
        ledger = Ledger(database.engine, database.schema, self._names.queue)
        await _in_thread(ledger.create_tables)
        return ledger

    async def __aenter__(self) -> Self:
        """Make this process a worker.

        Raises:
            ConfigurationError: DBOS is configured in a way in which work would be lost.
        """
        check_settings()
        ledger = await self._open_ledger()
        await self._register_queues()
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._open_client())
            working = open_worker(
                client,
                ledger,
                self._names,
                self._pace,
                wait=self._schedule,
                max_rate=self._max_rate,
                in_hand=self._in_hand,
            )
            worker = await stack.enter_async_context(working)
            self._stack = stack.pop_all()
        self._worker.set_result(worker)
        return self

    async def _register_queues(self) -> None:
        rate = self._submissions_per_minute
        limiter: Any = None if rate is None else {"limit": rate, "period": 60}
        register = DBOS.register_queue_async
        polling: Any = {"polling_interval_sec": min(1.0, self._pace.heartbeat)}
        concurrency = self._max_running
        await register(
            self._names.queue, global_concurrency=concurrency, limiter=limiter, **polling
        )
        await register(self._names.unlimited, **polling)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Finish the submissions under way, and leave the waits to the other workers."""
        self._worker = Future()
        return await self._stack.__aexit__(exc_type, exc_value, traceback)


async def _step(name: str, work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    return await DBOS.run_step_async({"name": f"luma_poll.{name}"}, work, *args)


def _workflow(name: str) -> Callable[[Callable[..., Any]], Any]:
    return DBOS.workflow(
        name=name,
        max_recovery_attempts=None,  # DBOS would give up a workflow after so many processes died
        serialization_type=WorkflowSerializationFormat.PORTABLE,
    )


async def _status(key: str) -> WorkflowStatus | None:
    """Of the workflow with this id. Not as a step of a workflow that asks: it is no JSON."""
    asking = DBOS.get_workflow_status_async(key)
    return await asyncio.create_task(asking, context=contextvars.Context())


async def _in_thread(call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return await asyncio.to_thread(call, *args, **kwargs)
