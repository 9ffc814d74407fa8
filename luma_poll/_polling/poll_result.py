"""The result of one wait of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luma_poll.models import Generation, GenerationOutput


@dataclass(frozen=True)
class PollResult:
    """The result of one wait of a batch.

    Attributes:
        generation_id: The id that was given, or its text if it is not a valid id.
        generation: The last snapshot, or None if there was none; never None if `ok`.
        error: The exception that `Poller.wait` would have raised, or None.
    """

    generation_id: str
    # With Any, type checkers accept `result.generation` after `if result.ok`. Pyright cannot narrow
    # by the truth of another attribute, and a union of two classes could not be constructed.
    generation: Generation | Any
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """True if the generation completed, with outputs."""
        return self.error is None

    @property
    def outputs(self) -> list[GenerationOutput]:
        """The outputs.

        Raises:
            GenerationError: The generation failed.
            Exception: Whatever else `Poller.wait` would have raised.
        """
        if self.error is not None:
            raise self.error
        return [] if self.generation is None else self.generation.output
