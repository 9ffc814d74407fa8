"""The warning in the log while submissions do not go through: at once, then every minute."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from urllib.parse import urlsplit

from luma_poll._api.outcomes import Accepted, NotAccepted, Outcome, Unknown
from luma_poll._logging import fields, logger

REPEAT = 60.0
"""Seconds between two warnings."""


class Standstill:
    """The warnings of one Runner whose submissions do not go through.

    Args:
        base_url: The client's base URL, or None.
    """

    def __init__(self, base_url: object) -> None:
        self._host = urlsplit(base_url).hostname if isinstance(base_url, str) else None
        self.begin_loop()

    def begin_loop(self) -> None:
        """Start over in another event loop, whose clock may differ."""
        self._began = self._said = -math.inf
        self._since: datetime | None = None

    def note(self, outcome: Outcome, now: float, next_try: float, *, running: int) -> None:
        """Note the outcome of a submission, and warn if it did not go through.

        Args:
            outcome: The outcome.
            now: The time, in seconds on the clock.
            next_try: When the next may be sent, on the same clock.
            running: Our generations under way: with some, a refusal is a full account and normal.
        """
        if isinstance(outcome, Accepted):
            if self._since is not None:
                logger.info("submissions go through again", extra=fields())
            self.begin_loop()
        elif isinstance(outcome, Unknown) or _holds_up(outcome, running):
            if self._since is None:
                self._began, self._since = now, datetime.now(UTC)
            if now - self._said >= REPEAT:
                self._said = now
                self._warn(outcome.error, now, next_try)

    def _warn(self, error: Exception, now: float, next_try: float) -> None:
        since = f"{self._since:%H:%M:%S} UTC" if self._since else ""
        logger.warning(
            "no submission to %s has gone through since %s (%.0f s): %s Next try in %.1f s.",
            self._host or "the API",
            since,
            now - self._began,
            f"{type(error).__name__}: {error}".rstrip(".") + ".",
            max(next_try - now, 0.0),
            extra=fields(error=error),
        )


def _holds_up(outcome: NotAccepted, running: int) -> bool:
    if outcome.is_refusal:
        return running == 0
    return outcome.may_pass
