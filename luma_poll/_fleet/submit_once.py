"""Submissions that are made at most once, whoever dies and whoever comes back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

import anyio

from luma_poll._api.answers import as_generation
from luma_poll._api.translation import translate_error
from luma_poll._fleet.ledger import OUT_OF_REACH, Accepted, Ledger, Permit, Unknown
from luma_poll._logging import fields, logger
from luma_poll._running.account import is_full
from luma_poll.errors import (
    APIError,
    ConfigurationError,
    InvalidResponseError,
    LumaError,
    RateLimitError,
    SubmissionUnknownError,
)

T = TypeVar("T")
Request: TypeAlias = Mapping[str, Any]

MOST_AT_ONCE = 8
"""Submissions under way, or waiting for room after a refusal, in one worker."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries to reach the API."""
LONGEST_END = 60.0
"""Seconds that a worker which stops waits for the submissions under way."""
LONGEST_DATABASE_PAUSE = 5.0
"""Seconds between two tries to reach the database."""


class Gate:
    """Where submissions wait after the API has refused one for the time being."""

    def __init__(self) -> None:
        self._opens = -math.inf
        self._opens_at_an_end = False
        self._news = anyio.Event()

    def close(self, seconds: float, *, until_an_end: bool) -> None:
        """Let nothing pass for some seconds, or until a generation of this worker ends."""
        self._opens = max(self._opens, anyio.current_time() + seconds)
        self._opens_at_an_end = until_an_end

    def a_generation_ended(self) -> None:
        """There is room for another one, if that is what was lacking."""
        if self._opens_at_an_end:
            self._opens = -math.inf
            self._news.set()
            self._news = anyio.Event()

    async def wait(self) -> None:
        """Wait until it is open."""
        while (closed := self._opens - anyio.current_time()) > 0:
            with anyio.move_on_after(closed):
                await self._news.wait()


class Submitter:
    """Submits with a permit from the ledger, which is given once.

    Args:
        create: The client's `generations.create`, which sends once.
        ledger: Gives the permits and keeps the ids.
        threads: Run the calls of the ledger.
    """

    def __init__(
        self, create: Callable[..., Awaitable[Any]], ledger: Ledger, threads: ThreadPoolExecutor
    ) -> None:
        self._create = create
        self._ledger = ledger
        self.threads = threads
        self._slots = anyio.CapacityLimiter(MOST_AT_ONCE)
        self._under_way: set[asyncio.Task[Any]] = set()
        self.gate = Gate()

    async def submit(
        self, key: str, attempt: int, request: Request, timeout: float
    ) -> Accepted | LumaError:
        """Submit, when there is room, unless it has been submitted before.

        Args:
            key: The key.
            attempt: Which attempt, from 1.
            request: The parameters of `create`.
            timeout: Seconds for which it is tried to reach the API.
        """
        permit = uuid4().hex
        began = anyio.current_time()
        for tries in count():
            async with self._slots:
                await self.gate.wait()
                # A task of its own, which no cancellation ends: once it is sent, an answer is
                # waited for and recorded, so that a deploy leaves nothing unknown.
                attempted = asyncio.ensure_future(self._try(key, attempt, permit, request))
                self._under_way.add(attempted)
                attempted.add_done_callback(self._under_way.discard)
                outcome = await asyncio.shield(attempted)
            if isinstance(outcome, Unknown):
                return _unknown(key, request)
            if not isinstance(outcome, APIError) or not outcome.retryable:
                return outcome
            if isinstance(outcome, RateLimitError):
                self.gate.close(max(outcome.retry_after or 5.0, 1.0), until_an_end=is_full(outcome))
            elif anyio.current_time() - began < timeout:
                await anyio.sleep(min(2.0**tries, LONGEST_PAUSE))
            else:
                return outcome
        raise AssertionError("unreachable")

    async def _try(
        self, key: str, attempt: int, permit: str, request: Request
    ) -> Accepted | Unknown | LumaError:
        found = await self.reach(self._ledger.claim, key, attempt, permit)
        if not isinstance(found, Permit):
            return found
        try:
            generation_id = await self._submitted(request)
        except Exception as error:
            failure = error if isinstance(error, LumaError) else translate_error(error)
            if failure is not None and _was_certainly_not_accepted(failure):
                await self.reach(self._ledger.release, key, attempt, permit)
                return failure
            extra = fields(attempt=attempt, error=failure or error)
            logger.warning(
                "it is not known whether the API accepted %r: %s",
                key,
                failure or error,
                extra=extra,
            )
            await self.reach(self._ledger.give_up, key, attempt, permit)
            return Unknown()
        accepted = Accepted(generation_id, time.time())
        recorded = await self.reach(
            self._ledger.accept, key, attempt, permit, accepted, label=f"{key!r} is {generation_id}"
        )
        if not recorded:  # somebody said that it may be submitted again, while it was under way
            extra = fields(generation_id, attempt=attempt)
            logger.error(
                "generation %s of %r runs, but is not waited for", generation_id, key, extra=extra
            )
        return accepted

    async def _submitted(self, request: Request) -> str:
        """Submit it; returns the id, also from an answer of which nothing else is readable."""
        try:
            return as_generation(await self._create(**request)).id
        except Exception as error:
            failure = translate_error(error)
            if isinstance(failure, InvalidResponseError) and failure.generation_id is not None:
                return failure.generation_id
            raise

    async def reach(self, call: Callable[..., T], *args: Any, label: str = "") -> T:
        """Call the ledger, again and again until the database answers: it never gives up."""
        for tries in count():
            try:
                return await self._in_thread(call, *args)
            except OUT_OF_REACH as error:
                what = label or call.__name__
                extra = fields(error=error)
                logger.warning(
                    "the database is out of reach (%s): %s", what, type(error).__name__, extra=extra
                )
                await anyio.sleep(min(0.2 * 2**tries, LONGEST_DATABASE_PAUSE))
        raise AssertionError("unreachable")

    async def _in_thread(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.threads, call, *args)

    async def settle(self) -> None:
        """Wait, for `LONGEST_END` at most, until what is under way has an answer on record."""
        if self._under_way:
            _, left = await asyncio.wait(set(self._under_way), timeout=LONGEST_END)
            if left:
                logger.error(
                    "the worker stops with %d submissions without an answer",
                    len(left),
                    extra=fields(),
                )


def _unknown(key: str, request: Request) -> SubmissionUnknownError:
    return SubmissionUnknownError(
        f"submission {key!r}: it is not known whether the API accepted it. It may be running and "
        "be billed: look at the usage of the account, then resolve it.",
        key=key,
        request=request,
    )


def _was_certainly_not_accepted(failure: LumaError) -> bool:
    if isinstance(failure, APIError):
        return not failure.may_have_been_accepted
    return isinstance(failure, ConfigurationError)
