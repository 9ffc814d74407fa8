"""A Runner's reads and writes of its journal, in a thread; nothing without a journal."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import httpx

from luma_poll._api.outcomes import Accepted, NotAccepted, Outcome, Unknown
from luma_poll._arguments import shown
from luma_poll._journal.fingerprint import fingerprint, older_fingerprint, readable
from luma_poll._journal.steps import Step, Submit, next_step
from luma_poll._journal.store import Store
from luma_poll._logging import fields, logger
from luma_poll._tasks.beside import tasks_beside
from luma_poll.errors import (
    ConfigurationError,
    GenerationError,
    JournalError,
    LumaError,
    OutputNotFoundError,
)

T = TypeVar("T")

RETRY = 1.0
"""Seconds between two attempts to write what could not be written."""
SAY_AGAIN = 60.0
"""Seconds between two log records about it."""


@dataclass(frozen=True)
class Record:
    """The identity of a request in the journal.

    Attributes:
        key: The key, given or made from the parameters.
        fingerprint: A digest of its parameters.
        params: Its parameters.
        is_named: True if the caller gave the key.
        older_key: The key that the rules of the first version make; often the same.
        older_fingerprint: The digest that those rules make.
    """

    key: str
    fingerprint: str
    params: Mapping[str, Any]
    is_named: bool = True
    older_key: str = ""
    older_fingerprint: str = ""


def identify(params: Mapping[str, Any], key: str | None, key_of: Callable[[str], str]) -> Record:
    """Return the identity of a request; this reads its files as a whole.

    Args:
        params: Its parameters, checked.
        key: The key that the caller gave, or None.
        key_of: Makes a key from a digest, a different one for each equal request.
    """
    digest, older = fingerprint(params), older_fingerprint(params)
    if key is not None:
        return Record(key, digest, params, True, key, older)
    made = key_of(digest)
    return Record(made, digest, params, False, made if older == digest else key_of(older), older)


class Recorder:
    """The access of one Runner to its journal, from one event loop at a time.

    Args:
        store: The entries; None without a journal, when every request is submitted as it comes.
        base_url: The base URL of the client; None if the client does not tell.

    Raises:
        ConfigurationError: The journal belongs to another base URL, or is closed.
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
        """Start over in another event loop."""
        self._limiter: anyio.CapacityLimiter | None = None
        self._locks: dict[str, tuple[anyio.Lock, int]] = {}
        self._say_at = -math.inf

    @asynccontextmanager
    async def hold(self, record: Record | None) -> AsyncIterator[None]:
        """Keep other runs from submitting this key meanwhile: they wait for this block to end."""
        if record is None:
            yield
            return
        lock, holders = self._locks.get(record.key, (None, 0))
        lock = lock or anyio.Lock()
        self._locks[record.key] = lock, holders + 1
        locks = self._locks  # `begin_loop` replaces it if another event loop takes over meanwhile
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
        """Decide how to proceed with a request.

        Args:
            record: Its identity.
            submitted: The ids of its attempts in this run.
            max_attempts: How often it may be submitted in all.
        """
        if self._store is None or record is None:
            return Submit(len(submitted) + 1, tuple(submitted))
        found = await self._call(self._store.find, record.key)
        # A journal of the first version has the key that its rules made. An entry of today under
        # that key belongs to another request.
        if found is None and record.older_key != record.key:
            found = await self._call(self._store.find, record.older_key)
            if found is not None and not found.is_older:
                found = None
        if found is None:
            return next_step(None, max_attempts)
        wanted = record.older_fingerprint if found.is_older else record.fingerprint
        same = found.fingerprint in (wanted, record.fingerprint)
        return next_step(found.entry, max_attempts, same=same)

    async def recorded(self, key: str) -> Mapping[str, Any] | None:
        """Return the parameters in the entry of a key, as kept for people; None without one."""
        if self._store is None:
            return None
        found = await self._call(self._store.find, key)
        return None if found is None else found.entry.request

    async def known(self, records: Sequence[Record]) -> set[str]:
        """Return the keys of the requests that have an entry."""
        if self._store is None:
            return set()
        keys = {key for record in records for key in (record.key, record.older_key)}
        found = await self._call(self._store.known, keys)
        return {record.key for record in records if not found.isdisjoint(_keys_of(record))}

    def warn_of_strangers(self) -> None:
        """Warn, once, that the journal has entries, but none for this batch."""
        store = self._store
        if store is None or store.was_empty or store.are_strangers_said:
            return
        store.are_strangers_said = True
        logger.warning(
            "journal %s has entries, but none for a request of this batch: all of it is "
            "submitted, and billed. If it was meant to continue an earlier batch, look for a "
            "parameter that has changed, such as the model",
            store.path,
            extra=fields(),
        )

    async def begin(
        self, record: Record | None, attempt: int, submission_id: str | None = None
    ) -> None:
        """Record the intent, before anything is sent.

        Raises:
            JournalError: It cannot be written, so nothing may be sent.
        """
        if self._store is not None and record is not None:
            request = readable(record.params)
            intent = record.key, record.fingerprint, request, attempt, submission_id
            await self._call(self._store.begin, *intent)

    async def end(self, record: Record | None, attempt: int, outcome: Outcome) -> None:
        """Record the outcome, now or as soon as the file can be written."""
        match outcome:
            case Accepted(generation):
                await self._keep("accept", record, attempt, generation.id)
            case NotAccepted():
                await self._keep("retract", record, attempt)
            case Unknown():
                await self._keep("lose", record, attempt)

    async def finish(
        self, record: Record | None, generation_id: str, error: GenerationError | None
    ) -> None:
        """Record the end of a generation. If that fails, the next process waits for it again."""
        # Completed without outputs is an error, but it is billed: no reason to submit again.
        is_billed = isinstance(error, OutputNotFoundError) and not error.retryable
        if error is None or is_billed:
            await self._keep("end", record, generation_id, "completed", None, None)
        else:
            why = error.failure_code, error.failure_reason
            await self._keep("end", record, generation_id, "failed", *why)

    async def miss(self, record: Record | None, generation_id: str) -> None:
        """Record that the API does not know the id."""
        await self._keep("miss", record, generation_id)

    async def writing_beside(self, work: Awaitable[T]) -> T:
        """Await `work`, and meanwhile keep trying to write what could not be written."""
        if self._store is None or not self._store.has_unwritten:
            return await work
        async with tasks_beside() as tasks:
            tasks.start_soon(self._insist)
            return await work

    async def _insist(self) -> None:
        """Try to write what could not be written, until it succeeds or the journal is closed."""
        store = self._store
        while store is not None and store.has_unwritten and not store.is_closed:
            await anyio.sleep(RETRY)
            with anyio.CancelScope(shield=True):
                try:
                    await self._call(store.flush)
                except (JournalError, ConfigurationError) as error:
                    self._say(error, "the outcome of submissions cannot be recorded yet")

    async def _keep(self, name: str, record: Record | None, *args: object) -> None:
        """Write, even if cancelled; what cannot be written now is written later."""
        if self._store is None or record is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._call(getattr(self._store, name), record.key, *args)
            except (JournalError, ConfigurationError) as error:  # the latter if it is closed
                if name == "accept":  # the id at least must reach the log
                    self._log_unrecorded(record.key, args, error)
                else:
                    self._say(error, f"request {record.key!r} ({name}) is not recorded yet")

    def _log_unrecorded(self, key: str, accepted: tuple[Any, ...], error: LumaError) -> None:
        attempt, generation_id = accepted
        logger.error(
            "generation %s was submitted, but its id is not in the journal yet: it is written as "
            "soon as possible; if the process ends before that, settle request %r. %s",
            generation_id,
            key,
            error,
            extra=fields(generation_id, attempt=attempt, error=error),
        )

    def _say(self, error: LumaError, what: str) -> None:
        """Log the first time, and then once a minute."""
        now = anyio.current_time()
        if now >= self._say_at:
            self._say_at = now + SAY_AGAIN
            logger.error("%s: %s", what, error, extra=fields(error=error))

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        # One thread at a time, so that changes are written in order. And not one of anyio's own
        # threads: an app that has used up those cannot hold up the record of a submission.
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._limiter)


def _keys_of(record: Record) -> tuple[str, str]:
    return record.key, record.older_key


def _normal(base_url: object) -> str:
    """Return a URL in one spelling: without a trailing slash or the default port."""
    try:
        return str(httpx.URL(shown(base_url, str))).rstrip("/")
    except httpx.InvalidURL:
        return shown(base_url, str)
