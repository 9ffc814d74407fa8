"""Exit codes: their meanings, and the code for each error."""

from __future__ import annotations

from luma_poll.errors import ConfigurationError, GenerationError, PollTimeoutError

COMPLETED, FAILED, USAGE, TIMED_OUT, TROUBLE, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 3, 4, 130, 141

MEANINGS = {
    COMPLETED: "all completed",
    FAILED: "a generation failed",
    USAGE: "a bad argument, or no API key",
    TIMED_OUT: "timed out; it may still finish: wait again",
    TROUBLE: "an error of the API, the connection or the output",
    INTERRUPTED: "interrupted by Ctrl-C, SIGTERM, SIGHUP or SIGQUIT",
    OUTPUT_CLOSED: "standard output was closed early, for example by head",
}

HELP = "\n\n".join(
    [
        "Exit codes; with several generations, the highest that applies:",
        *(f"{code}  {meaning}" for code, meaning in MEANINGS.items()),
    ]
)
"""The meanings as paragraphs, for `--help`."""


def exit_code(error: Exception | None) -> int:
    """Return the exit code for the end of one generation, or of a command."""
    if error is None:
        return COMPLETED
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, PollTimeoutError):
        return TIMED_OUT
    return FAILED if isinstance(error, GenerationError) else TROUBLE
