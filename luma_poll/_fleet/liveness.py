"""Which workers have died? Plain decisions, on what one worker has seen of the others."""

from __future__ import annotations

from collections.abc import Mapping

LEFT = 0
"""The beat of a worker that said that it stops."""


class Watch:
    """The beats of the other workers, as one worker has seen them.

    A worker is dead when its beat has not changed for `patience` seconds, by the clock of whoever
    watches: no two clocks are compared. Nor is anybody judged for a time in which the watcher saw
    nothing, because it was stopped itself or the database was out of reach.

    Args:
        patience: Seconds without a beat after which a worker counts as dead.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._seen: dict[str, tuple[int, float]] = {}  # beat, since when
        self._looked = -float("inf")

    def look(self, beats: Mapping[str, int], now: float) -> list[str]:
        """Take note of the beats; returns the workers that are dead.

        Args:
            beats: The beat of each worker, by its name.
            now: Seconds on any clock that is always the same one.
        """
        if now - self._looked > self._patience / 2:
            self._seen.clear()
        self._looked = now
        self._seen = {
            name: self._seen[name] if self._seen.get(name, (None,))[0] == beat else (beat, now)
            for name, beat in beats.items()
        }
        return [
            name
            for name, (beat, since) in self._seen.items()
            if beat == LEFT or now - since >= self._patience
        ]
