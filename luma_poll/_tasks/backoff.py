"""The backoff before another attempt. Pure."""

from __future__ import annotations

import random


def doubled(tries: int, first: float = 0.5, longest: float = 8.0) -> float:
    """Return the seconds to wait after so many attempts: `first`, then twice as long each time.

    The defaults are those of the official SDK.
    """
    return min(first * 2.0 ** min(tries - 1, 32), longest)  # a larger power may overflow


def backoff(tries: int, first: float = 0.5, longest: float = 8.0) -> float:
    """Return `doubled`, less up to a random quarter, so that many do not try at the same moment."""
    return doubled(tries, first, longest) * random.uniform(0.75, 1.0)
