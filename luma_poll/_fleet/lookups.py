"""The ends of submissions, looked up for all callers by one statement."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import anyio

from luma_poll._fleet.engine import FleetDatabaseError
from luma_poll._fleet.ledger import UNDER_WAY, Ledger
from luma_poll._logging import fields, logger


class Results:
    """The rows of all keys that callers wait for, as of the last look.

    A caller that finds them too old looks for all: a thousand callers cost one statement a second.
    """

    def __init__(self) -> None:
        self._wanted = Counter[str]()
        self._rows: dict[str, dict[str, Any]] = {}
        self._looked = -math.inf
        self._looking = False
        self._seen: set[str] = set()

    async def end(self, ledger: Ledger, key: str, interval: float) -> dict[str, Any] | None:
        """Return the row of a key as soon as it has ended; None if there is none.

        Args:
            ledger: The ledger with the rows.
            key: The key.
            interval: Seconds between two looks.
        """
        self._wanted[key] += 1
        try:
            first = True
            while True:
                if not self._looking and (
                    (first and key not in self._seen)
                    or anyio.current_time() - self._looked >= interval
                ):
                    await self._look(ledger)
                    first = False
                if key in self._seen:
                    row = self._rows.get(key)
                    if row is None or row["state"] not in UNDER_WAY:
                        return row
                await anyio.sleep(interval if key in self._seen else min(interval, 0.05))
        finally:
            self._wanted[key] -= 1
            if self._wanted[key] <= 0:
                del self._wanted[key]
                self._rows.pop(key, None)
                self._seen.discard(key)

    async def _look(self, ledger: Ledger) -> None:
        self._looking = True
        wanted = list(self._wanted)
        try:
            rows = await ledger.database.call(ledger.look, wanted)
        except FleetDatabaseError as error:
            if not error.retryable:
                raise
            logger.info("no results: %s", error, extra=fields(error=error))
            return
        finally:
            self._looking = False
            self._looked = anyio.current_time()
        self._rows = {key: rows[key] for key in wanted if key in rows and key in self._wanted}
        self._seen = {key for key in wanted if key in self._wanted}
