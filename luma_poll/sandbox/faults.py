"""A bad day: a share of the answers to polls is replaced by faults."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Final, TypeAlias

import anyio
from starlette.responses import Response

RETRY_AFTER = 1  # seconds, with 429

_PAGE = b"<html><body><h1>Bad Gateway</h1></body></html>"
_JSON = "application/json"

# Status, media type and body.
HTTP_FAULTS: Final[Mapping[str, tuple[int, str, bytes]]] = {
    "408": (408, _JSON, b'{"detail":"Request timeout"}'),
    "429": (429, _JSON, b'{"detail":"Rate limit exceeded"}'),
    "500": (500, _JSON, b'{"detail":"Internal server error"}'),
    "502": (502, "text/html", _PAGE),
    "503": (503, _JSON, b'{"detail":"Service unavailable"}'),
    "504": (504, "text/html", b""),
    "html": (200, "text/html", _PAGE),
    "empty": (200, _JSON, b""),
    "null": (200, _JSON, b"null"),
    "array": (200, _JSON, b"[]"),
    "missing-fields": (200, _JSON, b'{"id":"182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"}'),
    "wrong-types": (200, _JSON, b'{"id":[],"state":{"completed":true},"output":7}'),
    "invalid-utf-8": (200, _JSON, b'{"id":"\xff\xfe","state":"completed"}'),
}
# These need a socket; without one only `hang` is possible.
SOCKET_FAULTS: Final = ("reset", "reset-body", "truncated", "garbage", "trickle", "hang")
Misbehave: TypeAlias = Callable[[str, int], None]
"""Lets a connection do this fault to its next answer; a cut comes after so many bytes of body."""
MISBEHAVE: Final = "luma_poll.sandbox.misbehave"
"""The name of a `Misbehave` in the state of a request, where the sandbox has the socket."""


class Faults:
    """Draws faults.

    Args:
        faults: The share of the answers that is replaced, by all kinds alike; or the share of
            each kind.
        seed: The same seed draws the same faults.

    Raises:
        ValueError: A share is not from 0 to 1, their sum is above 1, or a kind is unknown.
    """

    def __init__(
        self,
        faults: float | Mapping[str, float],
        seed: int | None,
        kinds: Collection[str] = (*HTTP_FAULTS, *SOCKET_FAULTS),
        name: str = "faults",
    ) -> None:
        if not isinstance(faults, Mapping):
            faults = dict.fromkeys(kinds, faults / len(kinds))
        if unknown := set(faults) - set(kinds):
            raise ValueError(f"{name}: unknown {sorted(unknown)}, valid: {', '.join(kinds)}")
        total = math.fsum(faults.values())
        if not all(0 <= share <= 1 for share in faults.values()) or not total <= 1 + 1e-9:
            raise ValueError(f"{name} must be shares from 0 to 1, of at most 1 in all")
        self._shares = faults
        self._random = Random(None if seed is None else f"{name} {seed}")
        self.served: Counter[str] = Counter()

    async def spoil(self, answer: Response, misbehave: Misbehave | None) -> Response:
        """The answer, or what the client gets in its place."""
        kind = self.draw()
        if kind in SOCKET_FAULTS and misbehave is None and kind != "hang":
            kind = None
        if kind is None:
            return answer
        self.served[kind] += 1
        if kind in HTTP_FAULTS:
            status, media_type, body = HTTP_FAULTS[kind]
            headers = {"Retry-After": str(RETRY_AFTER)} if status == 429 else None
            return Response(body, status, headers, media_type)
        if misbehave is None:
            await anyio.sleep_forever()
        else:
            misbehave(kind, 0)
        return answer

    def draw(self) -> str | None:
        """The kind of the next fault, or None."""
        point = self._random.random()
        for kind, share in self._shares.items():
            point -= share
            if point < 0:
                return kind
        return None
