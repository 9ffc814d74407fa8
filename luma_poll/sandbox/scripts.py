"""Scripts: tokens in a prompt, such as `sandbox:duration=3`, that control its generation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_OUTPUTS = 100
MAX_SIZE = 100 * 1024**3  # bytes

TOKEN_PREFIX = "sandbox:"


@dataclass(frozen=True, slots=True)
class Script:
    """The tokens in a prompt.

    Attributes:
        fail: The failure code with which it ends; None to complete.
        duration: Seconds from submission to the end, before `speed`; None for a random time.
        outputs: The number of outputs; None for the usual one of its type.
        size: The bytes of each output; None for those of the small PNG.
        state: The state that it shows between `queued` and the end.
    """

    fail: str | None = None
    duration: float | None = None
    outputs: int | None = None
    size: int | None = None
    state: str = "processing"


def parse_script(prompt: str) -> Script:
    """Read the tokens in a prompt: words such as `sandbox:duration=3`.

    Raises:
        ValueError: A token is unknown or malformed; the message shows the right form.
    """
    words = (word.removeprefix(TOKEN_PREFIX) for word in prompt.split() if _is_token(word))
    return Script(**dict(_parse_token(word) for word in words))


def _is_token(word: str) -> bool:
    return word.startswith(TOKEN_PREFIX) and word != TOKEN_PREFIX


def _parse_token(token: str) -> tuple[str, Any]:
    name, _, text = token.partition("=")
    if name not in _VALUES:
        names = ", ".join(f"{TOKEN_PREFIX}{known}=" for known in _VALUES)
        raise ValueError(f"Unknown token '{TOKEN_PREFIX}{token}'. Valid: {names}")
    parse, expected = _VALUES[name]
    try:
        return name, parse(text)
    except ValueError:
        message = f"Malformed token '{TOKEN_PREFIX}{token}': {name} must be {expected}"
        raise ValueError(message) from None


def _parse_word(text: str) -> str:
    if not text.replace("-", "").replace("_", "").isalnum():
        raise ValueError
    return text


def _parse_duration(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text)


def _parse_outputs(text: str) -> int:
    if not 0 <= int(text) <= MAX_OUTPUTS:
        raise ValueError
    return int(text)


def _parse_size(text: str) -> int:
    if not 1 <= int(text) <= MAX_SIZE:
        raise ValueError
    return int(text)


_VALUES: dict[str, tuple[Callable[[str], Any], str]] = {
    "fail": (_parse_word, "a failure code of letters, digits, - and _"),
    "duration": (_parse_duration, "a number of seconds, 0 or more"),
    "outputs": (_parse_outputs, f"a whole number from 0 to {MAX_OUTPUTS}"),
    "size": (_parse_size, f"a whole number of bytes from 1 to {MAX_SIZE}"),
    "state": (_parse_word, "a word of letters, digits, - and _"),
}
