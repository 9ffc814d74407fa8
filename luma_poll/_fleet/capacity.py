"""The Runner's knowledge of the account, shared by the workers through the database."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from luma_poll._running.account import Account, Kind

_CODED = {"tuple": tuple, "set": set, "deque": deque}


def account_of(facts: str, running: Mapping[Kind, int], in_flight: Mapping[Kind, int]) -> Account:
    """Return the account with the facts that the fleet has learned, and the counts of the database.

    Facts in the form of another release are dropped, and learned again.

    Args:
        facts: The JSON of `facts_of`, or any other text.
        running: The generations that run, by their kind.
        in_flight: The submissions under way, by their kind.
    """
    account = Account()
    try:
        known = _decoded(json.loads(facts))
        if known.keys() == vars(account).keys():
            window = account._window
            if known["_window"].keys() == vars(window).keys():
                vars(window).update(known.pop("_window"))
                vars(account).update(known)
    except (ValueError, TypeError, AttributeError, LookupError):
        pass
    # Without the counts in the facts: a worker that died has left them wrong.
    account._running, account._in_flight = Counter(running), Counter(in_flight)
    account._stale = min(account._stale, account.in_flight)
    units = sum(account.weight(kind) * number for kind, number in running.items())
    account._allowed = max(account._allowed, units)
    return account


def facts_of(account: Account) -> str:
    """Return what was learned about the account, as JSON."""
    # Grouped by second: every turn reads and writes them, and a minute may have thousands.
    recent = Counter[int]()
    for leaves, units in account._window._recent:
        recent[math.ceil(leaves)] += units
    window = {**vars(account._window), "_recent": deque(sorted(recent.items()))}
    fields = {**vars(account), "_window": window}
    fields |= {"_running": Counter(), "_in_flight": Counter()}
    return json.dumps(_coded(fields))


def _coded(value: Any) -> Any:
    if isinstance(value, Mapping):
        plain = all(isinstance(name, str) for name in value) and not isinstance(value, Counter)
        if plain:
            return {name: _coded(item) for name, item in value.items()}
        kind = "Counter" if isinstance(value, Counter) else "dict"
        return {"": kind, "of": [[_coded(each), _coded(item)] for each, item in value.items()]}
    for name, kind_of in _CODED.items():
        if isinstance(value, kind_of):
            return {"": name, "of": [_coded(each) for each in value]}
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "" not in value:
        return {name: _decoded(item) for name, item in value.items()}
    items = [_decoded(each) for each in value["of"]]
    if value[""] in _CODED:
        return _CODED[value[""]](items)
    pairs = dict(items)
    return Counter(pairs) if value[""] == "Counter" else pairs
