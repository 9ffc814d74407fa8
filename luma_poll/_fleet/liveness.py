"""The decision which workers have died, by what one worker has seen of the others."""

from __future__ import annotations

from collections.abc import Mapping

LEFT = 0
"""The beat of a worker that has said that it stops."""


class Watch:
    """The beats of the other workers, as one worker has seen them.

    A worker is dead when its beat has not changed for `patience` seconds by the watcher's own
    clock: no two clocks are compared. After a gap in which the watcher itself saw nothing (it was
    paused, or the database was down), it starts to count again for every worker.

    Args:
        patience: Seconds without a beat after which a worker counts as dead.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._seen: dict[str, tuple[int, float]] = {}  # the beat, and since when it is this one
        self._looked = -float("inf")

    def look(self, beats: Mapping[str, int], now: float) -> list[str]:
        """Note the beats; return the workers that are dead.

        Args:
            beats: The beat of each worker, by its name.
            now: The time in seconds, by the same clock in every call.
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
