"""Event loops whose clock jumps: a wait of ten minutes takes milliseconds, to the exact second."""

import asyncio
import selectors
from typing import Any


class _JumpingSelector(selectors.SelectSelector):
    """Never blocks: where it would sleep, it moves the clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # no timer is set: only a thread can bring news now
            return super().select(10) or _hang()
        ready = super().select(0)
        if not ready:
            self.now += max(timeout, 0)
        return ready


def _hang() -> Any:
    raise RuntimeError("nothing left to wait for: the program hangs")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop in virtual time, from 1,000 s on: a clock may start anywhere."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)
        # A timer may fire this much before its time; the real clock's resolution is coarser.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual.now
