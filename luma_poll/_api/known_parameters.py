"""The names of all known parameters, and the nearest one to an unknown name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, get_args, get_type_hints, is_typeddict

from luma_poll._api.parameters import CreateParams


def unknown_names(
    params: Mapping[str, object], extra: Collection[str] = ()
) -> Iterator[tuple[str, str | None]]:
    """Yield each unknown name with the nearest known one, or None.

    Args:
        params: Parameters of a submission; `prompt` and `key` count as known.
        extra: Further names that count as known, at the top level.
    """
    yield from _unknown("", params, CreateParams, ("prompt", "key", *extra))


def _unknown(
    place: str, value: object, kind: type, extra: Collection[str] = ()
) -> Iterator[tuple[str, str | None]]:
    if isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _unknown(f"{place[:-1]}[{number}].", item, kind)
    if not isinstance(value, Mapping):
        return
    known = _fields_of(kind)
    for name, item in value.items():
        if name in known:
            if (inner := known[name]) is not None:
                yield from _unknown(f"{place}{name}.", item, inner)
        elif name not in extra:
            nearest = get_close_matches(str(name), [*known, *extra], 1)
            yield f"{place}{name}", f"{place}{nearest[0]}" if nearest else None


@cache
def _fields_of(kind: type) -> Mapping[str, type | None]:
    """Return the keys of a TypedDict, each with the TypedDict that its value is, or None."""
    return {name: _typed_dict_in(hint) for name, hint in get_type_hints(kind).items()}


def _typed_dict_in(hint: Any) -> type | None:
    if is_typeddict(hint):
        found: type = hint
        return found
    inner = (_typed_dict_in(each) for each in get_args(hint))
    return next((each for each in inner if each is not None), None)
