"""The generations whose end has not been seen."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from luma_poll._running.account import LONGEST_RUN, Account, Kind
from luma_poll._running.requests import AnyRequest


@dataclass(slots=True)
class _Awaited:
    """A generation that the account counts as running, and how many runs wait for it."""

    kind: Kind
    runs: int = 0


class Outstanding:
    """The generations whose end has not been seen, and those that runs wait for.

    The account counts each of these once, however many runs wait for it.

    Args:
        account: The account, which is told when a generation stops counting.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        # An OrderedDict: taking the oldest from the front of a plain dict is slow.
        self._unfinished = OrderedDict[str, tuple[float, AnyRequest]]()
        self._awaited: dict[str, _Awaited] = {}
        # Those for which no run waits, and when each has ended for certain.
        self._left: dict[str, float] = {}

    @property
    def requests(self) -> dict[str, AnyRequest]:
        """The ids whose end has not been seen, with their requests; each for an hour at most."""
        return {generation_id: request for generation_id, (_, request) in self._unfinished.items()}

    @property
    def left(self) -> list[str]:
        """The ids for which no run waits, but which still count as running."""
        return list(self._left)

    def begin_loop(self, now: float) -> None:
        """Drop the waits of another event loop, whose clock may have differed; keep the ids."""
        self._awaited.clear()
        self._left.clear()
        for generation_id, request in self.requests.items():
            self._unfinished[generation_id] = now, request

    def add(self, generation_id: str, given: AnyRequest, kind: Kind, now: float) -> bool:
        """Note that a run waits for it; return False if another run already does."""
        awaited = self._awaited.setdefault(generation_id, _Awaited(kind))
        awaited.runs += 1
        if awaited.runs > 1:
            return False
        self.stop_counting(generation_id)
        self._unfinished[generation_id] = now, given
        self._unfinished.move_to_end(generation_id)
        while now - next(iter(self._unfinished.values()))[0] >= LONGEST_RUN:
            oldest, _ = self._unfinished.popitem(last=False)
            self._left.pop(oldest, None)
        return True

    def leave(self, generation_id: str, *, ended: bool) -> None:
        """Note that it has ended, or that a run stops waiting for it."""
        if ended:
            self._unfinished.pop(generation_id, None)
            self.stop_counting(generation_id)
        awaited = self._awaited.get(generation_id)
        if awaited is None:
            return
        awaited.runs -= 1
        if not ended and awaited.runs:
            return
        del self._awaited[generation_id]
        if generation_id not in self._unfinished:  # it has ended, or its hour is over
            self._account.finish(awaited.kind)
            return
        until = self._unfinished[generation_id][0] + LONGEST_RUN
        self._left[generation_id] = until
        self._account.abandon(awaited.kind, until)

    def stop_counting(self, generation_id: str) -> None:
        """Let nothing wait for its end: it was seen, or cannot be. It keeps its id."""
        if (until := self._left.pop(generation_id, None)) is not None:
            self._account.recall(until)
