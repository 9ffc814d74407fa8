"""The result of one request of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luma_poll._running.requests import AnyRequest
from luma_poll._texts import with_brief_request
from luma_poll.models import Generation, GenerationOutput


@dataclass(frozen=True)
class RunResult:
    """The result of one request.

    Attributes:
        request: The request, as it was given.
        generation: The last snapshot of the last attempt, or None if there was none; never None
            if `ok`.
        error: The exception that `Runner.run` would have raised, or None.
        submitted: The ids, one for each attempt that was accepted. If `error` is a timeout or
            an `APIError`, the last of them may still finish and be billed: wait for it by its id.
        key: The key of the request: the one you gave, else the journal's; None without both.
        paths: The downloaded files; empty if there was no download, or it failed.
        download_error: The exception that ended the download, or None. The generation is complete
            and paid for: fetch it by its id, with `LumaClient.download`.
    """

    request: AnyRequest
    generation: Generation | Any  # see PollResult
    error: Exception | None = None
    submitted: tuple[str, ...] = ()
    key: str | None = None
    paths: list[Path] = field(default_factory=list)
    download_error: Exception | None = None

    def __repr__(self) -> str:
        return with_brief_request(self)  # inputs in memory may have megabytes

    @property
    def ok(self) -> bool:
        """True if the generation completed, with outputs."""
        return self.error is None

    @property
    def outputs(self) -> list[GenerationOutput]:
        """The outputs.

        Raises:
            GenerationError: The generation failed.
            Exception: Whatever else `Runner.run` would have raised.
        """
        if self.error is not None:
            raise self.error
        return [] if self.generation is None else self.generation.output
