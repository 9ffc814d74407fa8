"""The entries that a runner writes into its journal, in a thread; none without a journal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from luma_poll._api.outcomes import Accepted, NotAccepted, Outcome, Unknown
from luma_poll._arguments import shown
from luma_poll._journal.fingerprint import readable
from luma_poll._journal.steps import Step, Submit, next_step
from luma_poll._journal.store import Store
from luma_poll._logging import fields, logger
from luma_poll.errors import ConfigurationError, GenerationError, JournalError
from luma_poll.models import Generation

T = TypeVar("T")

RETRY = 1.0
"""Seconds between two tries to record an id."""


@dataclass(frozen=True)
class Record:
    """The identity of a request in the journal."""

    key: str
    fingerprint: str
    params: Mapping[str, Any]


class Recorder:
    """Reads and writes the entries of requests; belongs to one event loop.

    Args:
        store: The entries; None: there is no journal, and every request is submitted as it comes.
        base_url: The address of the client's API; None if the client does not know it.

    Raises:
        ConfigurationError: The journal is of another API, or closed.
    """

    def __init__(self, store: Store | None, base_url: object = None) -> None:
        self._store = store
        if store is not None and base_url is not None:
            store.claim(_normal(base_url))
        self.begin_loop()

    @property
    def is_on(self) -> bool:
        """True if there is a journal."""
        return self._store is not None

    def begin_loop(self) -> None:
        """Begin again in another event loop."""
        self._limiter: anyio.CapacityLimiter | None = None
        self._locks: dict[str, tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, record: Record | None) -> AsyncIterator[None]:
        """Let nobody else submit under this key meanwhile: the second one waits for the first."""
        if record is None:
            yield
            return
        lock, holders = self._locks.get(record.key, (None, 0))
        lock = lock or anyio.Lock()
        self._locks[record.key] = lock, holders + 1
        locks = self._locks
        try:
            async with lock:
                yield
        finally:
            _, holders = locks.pop(record.key)
            if holders > 1:
                locks[record.key] = lock, holders - 1

    async def next_step(
        self, record: Record | None, submitted: Sequence[str], max_attempts: int
    ) -> Step:
        """Decide how to proceed with a request after these attempts in this run."""
        if self._store is None or record is None:
            return Submit(len(submitted) + 1, tuple(submitted))
        found = await self._call(self._store.entry, record.key)
        if found is None:
            return next_step(None, max_attempts)
        entry, fingerprint = found
        return next_step(entry, max_attempts, same=fingerprint == record.fingerprint)

    async def begin(self, record: Record | None, attempt: int) -> None:
        """Record the intent, before anything is sent.

        Raises:
            JournalError: It cannot be written, so nothing may be sent.
        """
        if self._store is not None and record is not None:
            request = readable(record.params)
            store = self._store
            await self._call(store.begin, record.key, record.fingerprint, request, attempt)

    async def end(self, record: Record | None, attempt: int, outcome: Outcome) -> bool:
        """Record what became of it. False if that failed, which was logged.

        After an id that could not be recorded, `insist` must follow.
        """
        match outcome:
            case Accepted(generation):
                return await self._try("accept", record, attempt, generation.id)
            case NotAccepted():
                return await self._try("retract", record, attempt)
            case Unknown():
                return await self._try("lose", record, attempt)

    async def insist(self, record: Record | None, attempt: int, accepted: Accepted) -> None:
        """Try to record an id until it succeeds, or the journal is closed, which is logged."""
        recorded = False
        try:
            while not (recorded or self._store is None or self._store.is_closed):
                await anyio.sleep(RETRY)
                recorded = await self.end(record, attempt, accepted)
        finally:
            if not recorded:
                self._log_unrecorded(record, attempt, accepted.generation.id)

    def _log_unrecorded(self, record: Record | None, attempt: int, generation_id: str) -> None:
        logger.error(
            "generation %s was submitted, and its id is not in the journal: settle request %r",
            generation_id,
            record and record.key,
            extra=fields(generation_id, attempt=attempt),
        )

    async def finish(
        self, record: Record | None, generation: Generation, error: GenerationError | None
    ) -> None:
        """Record the end of a generation. Where that fails, the next process waits for it again."""
        if error is None or generation.state == "completed":  # without outputs: it is billed
            await self._try("end", record, generation.id, "completed", None, None)
        else:
            why = error.failure_code, error.failure_reason
            await self._try("end", record, generation.id, "failed", *why)

    async def _try(self, name: str, record: Record | None, *args: Any) -> bool:
        """Write, whoever cancels. False if it failed."""
        if self._store is None or record is None:
            return True
        with anyio.CancelScope(shield=True):
            try:
                await self._call(getattr(self._store, name), record.key, *args)
            except (JournalError, ConfigurationError) as error:  # the latter: it is closed
                logger.error(
                    "request %r (%s %s): %s",
                    record.key,
                    name,
                    args[-1],
                    error,
                    extra=fields(error=error),
                )
                return False
        return True

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._limiter)


def _normal(base_url: object) -> str:
    """Return an address as every client has it: without a last slash, or a port that is usual."""
    try:
        return str(httpx.URL(shown(base_url, str))).rstrip("/")
    except httpx.InvalidURL:
        return shown(base_url, str)
