"""The generations whose end has not been seen."""

from __future__ import annotations

from luma_poll._running.account import Account, Kind
from luma_poll._running.requests import AnyRequest

LONGEST_RUN = 3600.0
"""Seconds: the API ends every job within an hour (https://docs.agents.lumalabs.ai, FAQ)."""


class Outstanding:
    """The generations whose end has not been seen, and those that the account counts as running.

    Args:
        account: Hears of each that stops counting.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._unfinished: dict[str, tuple[float, AnyRequest]] = {}
        self._counted: set[str] = set()

    @property
    def requests(self) -> dict[str, AnyRequest]:
        """The ids whose end has not been seen, with their requests; each for an hour at most."""
        return {generation_id: request for generation_id, (_, request) in self._unfinished.items()}

    def __contains__(self, generation_id: str) -> bool:
        return generation_id in self._counted

    def begin_loop(self) -> None:
        """Count nothing that ran in another event loop."""
        self._counted.clear()

    def add(self, generation_id: str, given: AnyRequest, now: float) -> None:
        """Note one that the account counts from now on."""
        self._counted.add(generation_id)
        for old, (since, _) in list(self._unfinished.items()):
            if now - since < LONGEST_RUN:
                break  # those behind it are younger
            del self._unfinished[old]
        self._unfinished[generation_id] = now, given

    def leave(self, generation_id: str, kind: Kind, *, ended: bool) -> None:
        """Note that one has ended, or that nobody waits for it any more."""
        if generation_id in self._counted:
            self._counted.remove(generation_id)
            if ended:
                self._account.end(kind)
            else:
                self._account.abandon(kind)
        if ended:
            self._unfinished.pop(generation_id, None)
