"""Faults that replace a share of the answers."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias

import anyio
from starlette.responses import Response

RETRY_AFTER = 1  # seconds, with 429

_PAGE = b"<html><body><h1>Bad Gateway</h1></body></html>"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to spoil an answer.

    Attributes:
        kind: The name of the fault in `faults=`, and in the counters.
        answer: The status, media type and body that are sent instead of the answer.
        ending: The way in which the connection ends early: with FIN or with RST.
        after: The bytes of the body that are sent before that; None to send not even the head.
        needs_socket: True if it can only be served on a socket.
    """

    kind: str
    answer: tuple[int, str, bytes] | None = None
    ending: Literal["close", "reset"] | None = None
    after: int | None = None
    needs_socket: bool = False

    def response(self) -> Response | None:
        """Return the answer that replaces the right one, or None."""
        if self.answer is None:
            return None
        status, media_type, body = self.answer
        headers = {"Retry-After": str(RETRY_AFTER)} if status == 429 else None
        return Response(body, status, headers, media_type)


def by_kind(*faults: Fault) -> Mapping[str, Fault]:
    """Return the faults by their names."""
    return {fault.kind: fault for fault in faults}


HTTP_FAULTS: Final = by_kind(
    Fault("408", (408, _JSON, b'{"detail":"Request timeout"}')),
    Fault("429", (429, _JSON, b'{"detail":"Rate limit exceeded"}')),
    Fault("500", (500, _JSON, b'{"detail":"Internal server error"}')),
    Fault("502", (502, "text/html", _PAGE)),
    Fault("503", (503, _JSON, b'{"detail":"Service unavailable"}')),
    Fault("504", (504, "text/html", b"")),
    Fault("html", (200, "text/html", _PAGE)),
    Fault("empty", (200, _JSON, b"")),
    Fault("null", (200, _JSON, b"null")),
    Fault("array", (200, _JSON, b"[]")),
    Fault("missing-fields", (200, _JSON, b'{"id":"182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"}')),
    Fault("wrong-types", (200, _JSON, b'{"id":[],"state":{"completed":true},"output":7}')),
    Fault("invalid-utf-8", (200, _JSON, b'{"id":"\xff\xfe","state":"completed"}')),
)
_BEGUN = len(b'{"id": "')
SOCKET_FAULTS: Final = by_kind(
    Fault("reset", ending="reset", needs_socket=True),
    Fault("reset-body", ending="reset", after=_BEGUN, needs_socket=True),
    Fault("truncated", ending="close", after=_BEGUN, needs_socket=True),
    Fault("garbage", ending="close", needs_socket=True),
    Fault("trickle", needs_socket=True),
    Fault("hang"),
)
ALL_FAULTS: Final = {**HTTP_FAULTS, **SOCKET_FAULTS}

Misbehave: TypeAlias = Callable[[Fault], None]
"""A function that applies a fault to a connection's next answer."""
MISBEHAVE: Final = "luma_poll.sandbox.misbehave"
"""The name of a `Misbehave` in the state of a request, if the sandbox has the socket."""


class Faults:
    """Faults drawn at random.

    Args:
        faults: The share of answers to replace, divided equally among all kinds; or the share
            of each kind.
        seed: A number that makes the draws repeatable, or None.
        kinds: The faults to choose from, by name.
        name: The name of the argument in error messages.

    Raises:
        ValueError: A share is not from 0 to 1, their sum is above 1, or a kind is unknown.
    """

    def __init__(
        self,
        faults: float | Mapping[str, float],
        seed: int | None,
        kinds: Mapping[str, Fault] = ALL_FAULTS,
        name: str = "faults",
    ) -> None:
        if not isinstance(faults, Mapping):
            faults = dict.fromkeys(kinds, faults / len(kinds))
        if unknown := set(faults) - set(kinds):
            raise ValueError(f"{name}: unknown {sorted(unknown)}, valid: {', '.join(kinds)}")
        total = math.fsum(faults.values())
        if not all(0 <= share <= 1 for share in faults.values()) or not total <= 1 + 1e-9:
            raise ValueError(f"{name} must be shares from 0 to 1, of at most 1 in all")
        self._shares = [(kinds[kind], share) for kind, share in faults.items()]
        self._random = Random(None if seed is None else f"{name} {seed}")
        self.served: Counter[str] = Counter()

    async def spoil(self, answer: Response, misbehave: Misbehave | None) -> Response:
        """Return the answer, or the fault that replaces it."""
        fault = self.take(misbehave is not None)
        if fault is None:
            return answer
        if response := fault.response():
            return response
        if misbehave is None:
            await anyio.sleep_forever()
        else:
            misbehave(fault)
        return answer

    def take(self, has_socket: bool) -> Fault | None:
        """Draw a fault and count it as served; return None without one, or if it needs a socket."""
        fault = self.draw()
        if fault is None or (fault.needs_socket and not has_socket):
            return None
        self.served[fault.kind] += 1
        return fault

    def draw(self) -> Fault | None:
        """Draw a fault, or None."""
        point = self._random.random()
        for fault, share in self._shares:
            point -= share
            if point < 0:
                return fault
        return None
