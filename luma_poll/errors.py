"""The errors of luma-poll, as a tree.

    LumaError
    ├── ConfigurationError (also a ValueError)
    ├── APIError
    │   ├── APIConnectionError
    │   │   └── APITimeoutError
    │   ├── InvalidResponseError
    │   └── APIStatusError
    │       ├── BadRequestError 400 · AuthenticationError 401 · InsufficientBalanceError 402
    │       ├── PermissionDeniedError 403 · NotFoundError 404 · PayloadTooLargeError 413
    │       └── UnprocessableEntityError 422 · RateLimitError 429 · ServerError >= 500
    ├── GenerationError
    │   ├── ContentModeratedError · GenerationFailedError · BudgetExhaustedError
    │   ├── OutputNotFoundError · ImageTooLargeError · UnsupportedFormatError
    │   └── CorruptInputError · InvalidRequestError · GenerationRateLimitedError
    ├── DownloadError
    ├── UploadError
    ├── JournalError
    ├── SubmissionLimitError
    ├── SubmissionUnknownError
    └── PollTimeoutError (also a TimeoutError)

Every error can be pickled, and none contains the API key or the query of a presigned URL. The body
of each class declares the failure code or the HTTP status that it stands for, and how the public
sees it (`problem`).

An error may be rebuilt from its message alone, as Celery's JSON does (`type(error)(*error.args)`).
Then it has the message and what its class declares. Its ids and texts are empty, its objects are
None, and its numbers are 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from luma_poll._redaction import redact
from luma_poll._texts import encodable, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from luma_poll.models import Generation

_MAX_NAME, _MAX_NAMES = 50, 5
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})


class ProblemKind(NamedTuple):
    """The public form of the errors of a class, for `luma_poll.problems`.

    Attributes:
        status: The HTTP status.
        code: The code for programs, such as `content_moderated`.
        title: The meaning of the code.
        detail: Advice; by default the error's `hint`.
    """

    status: int
    code: str
    title: str
    detail: str = ""


UNAVAILABLE = ProblemKind(503, "unavailable", "The service is unavailable", "Try again later.")
"""The operator's own fault: the public learns no more than this."""


class LumaError(Exception):
    """The root of all errors that luma-poll raises.

    Attributes:
        problem: The public form of the errors of this class, for `luma_poll.problems`.
    """

    problem: ClassVar[ProblemKind] = ProblemKind(
        500, "internal", "The server made a mistake", "It has been logged."
    )

    def __init__(self, message: str) -> None:
        super().__init__(_safe(message))

    # The default would call the class with `args` alone, and lose the keyword-only fields.
    def __reduce__(self) -> tuple[Callable[..., LumaError], tuple[Any, ...]]:
        cause = self.__cause__ if isinstance(self.__cause__, LumaError) else None
        state = self.__dict__.copy()
        if "__notes__" in state:
            state["__notes__"] = list(state["__notes__"])
        return _rebuild, (type(self), self.args, state, cause)


def _safe(message: str) -> str:
    """Return one line without secrets, fit for a log, a terminal and a header."""
    return redact(one_line(encodable(message)))


def _rebuild(
    cls: type[LumaError], args: tuple[Any, ...], state: dict[str, Any], cause: LumaError | None
) -> LumaError:
    error = cls.__new__(cls)
    error.args = args  # set afterwards: OSError.__new__, behind PollTimeoutError, would lose them
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


class ConfigurationError(LumaError, ValueError):
    """An argument or a setting is unusable; nothing was sent.

    Attributes:
        problems: The problems of a file of requests, each with its line; else empty.
    """

    problem: ClassVar[ProblemKind] = UNAVAILABLE

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems: tuple[str, ...] = tuple(redact(problem) for problem in problems)


class APIError(LumaError):
    """A request to the API failed.

    Attributes:
        generation_id: The id of the generation; None for a submission, unless an otherwise
            unreadable answer had the id.
        message: The text without the generation's id.
        retryable: True if the same request may succeed later.
        submission_id: The `X-Request-Id` that a failed submission carried, by which Luma's support
            can find it; None for any other request.
    """

    problem: ClassVar[ProblemKind] = ProblemKind(
        502, "upstream_error", "The generation service is having trouble", "Try again later."
    )
    retryable: bool = False
    submission_id: str | None = None

    def __init__(self, message: str, *, generation_id: str | None = None) -> None:
        subject = "" if generation_id is None else f"generation {generation_id}: "
        super().__init__(subject + message)
        self.generation_id = generation_id
        self.message: str = _safe(message)

    @property
    def may_have_been_accepted(self) -> bool:
        """True for a failed submission that the API may have accepted nevertheless.

        The generation may be running and be billed, and a second submission would be billed, too.
        """
        if isinstance(self, APIConnectionError):
            return self.request_sent
        if isinstance(self, APIStatusError) and self.status_code:  # other statuses are refusals
            return self.retryable and not isinstance(self, RateLimitError)
        return True


class APIConnectionError(APIError):
    """No response came: the host name did not resolve, or the connection was refused or broken.

    Attributes:
        request_sent: False if the API has certainly not received the request.
        retryable: False if it cannot pass, for example if the server's certificate is not valid.
    """

    def __init__(
        self,
        message: str,
        *,
        generation_id: str | None = None,
        request_sent: bool = True,
        retryable: bool = True,
    ) -> None:
        super().__init__(message, generation_id=generation_id)
        self.request_sent = request_sent
        self.retryable = retryable


class APITimeoutError(APIConnectionError):
    """No complete response came within the client's `timeout`."""


class InvalidResponseError(APIError):
    """The API answered 200, but the body is not a generation, or is too large to be one."""

    retryable = True


class APIStatusError(APIError):
    """The API answered with an error status.

    Attributes:
        status_code: The HTTP status, by default that of the class; 0 if it is not known.
        detail: The API's own description (`{"detail": ...}`), or None.
        request_id: The `X-Request-Id`, which Luma's support asks for, or None.
        retry_after: Seconds to wait before the next request (`Retry-After`), or None.
        retryable: True if the same request may succeed later.
        in_api_words: False if the answer lacks the API's own `{"detail": ...}`. Then a gateway or
            a proxy may have answered, and the status may tell nothing about the generation.
        hint: The advice at the end of the message; may be empty.
    """

    status_code: int = 0
    hint: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        detail: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        generation_id: str | None = None,
        in_api_words: bool = True,
    ) -> None:
        super().__init__(message, generation_id=generation_id)
        if status_code is not None:
            self.status_code = status_code
        self.detail: str | None = None if detail is None else redact(detail)
        self.request_id = request_id
        self.retry_after = retry_after
        self.in_api_words = in_api_words
        status = self.status_code
        self.retryable: bool = status in _RETRYABLE_STATUSES or status >= 500


class BadRequestError(APIStatusError):
    """400: the API rejected the parameters."""

    status_code = 400
    problem: ClassVar[ProblemKind] = ProblemKind(
        400, "bad_request", "The parameters were rejected", "Change the parameters."
    )


class AuthenticationError(APIStatusError):
    """401: the key is missing, wrong, revoked or expired."""

    status_code = 401
    problem: ClassVar[ProblemKind] = UNAVAILABLE
    hint = "Check the API key (LUMA_AGENTS_API_KEY). A generation already submitted continues."


class InsufficientBalanceError(APIStatusError):
    """402: the account has no funds left."""

    status_code = 402
    problem: ClassVar[ProblemKind] = UNAVAILABLE
    hint = "Add funds to the account, then try again."


class PermissionDeniedError(APIStatusError):
    """403: the account is not allowed to do this, for example because it is suspended."""

    status_code = 403
    problem: ClassVar[ProblemKind] = UNAVAILABLE


class NotFoundError(APIStatusError):
    """404: no such generation, or it belongs to another account."""

    status_code = 404
    problem: ClassVar[ProblemKind] = ProblemKind(
        404, "not_found", "There is no such generation", "Check the id."
    )
    hint = "Check the id, and that the API key belongs to the account that submitted it."


class PayloadTooLargeError(APIStatusError):
    """413: an image or video in the request is too large."""

    status_code = 413
    problem: ClassVar[ProblemKind] = ProblemKind(
        413, "payload_too_large", "The request is too large", "Use smaller images or videos."
    )


class UnprocessableEntityError(APIStatusError):
    """422: an input of the request could not be fetched or read."""

    status_code = 422
    problem: ClassVar[ProblemKind] = ProblemKind(
        422, "unprocessable_input", "An input cannot be read", "Check the inputs of the request."
    )


class RateLimitError(APIStatusError):
    """429: too many requests, or too many generations at once."""

    status_code = 429
    problem: ClassVar[ProblemKind] = ProblemKind(
        503, "rate_limited", "The generation service is busy", "Try again a little later."
    )


class ServerError(APIStatusError):
    """500 and above: a fault on the API's side."""

    status_code = 500


STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    each.status_code: each for each in APIStatusError.__subclasses__()
}
"""The class for each status; any status above 500 is also a `ServerError`."""


class GenerationError(LumaError):
    """The generation ended in the state "failed".

    Luma documents the codes at https://docs.agents.lumalabs.ai (error handling). An unknown code
    raises this class itself, which keeps the code.

    Attributes:
        generation: The failed generation; None in an error rebuilt from its message alone.
        generation_id: The id of the generation; empty in such an error.
        failure_code: The API's code, or None.
        failure_reason: The API's description, or None.
        retryable: True if the same request may succeed when you submit it again, as a new
            generation that is billed again. Polling the failed one never helps.
        hint: The advice at the end of the message; may be empty.
    """

    problem: ClassVar[ProblemKind] = ProblemKind(
        502, "unknown_failure", "The generation failed", "The reason is unknown."
    )
    failure_code: str | None = None
    retryable: bool = False
    hint: str = ""

    def __init__(self, generation: Generation | str) -> None:
        """Make the error of a failed generation, or one that has a message alone."""
        self.generation: Generation | None = None if isinstance(generation, str) else generation
        self.generation_id: str = ""
        self.failure_reason: str | None = None
        if isinstance(generation, str):
            super().__init__(generation)
            return
        self.generation_id = generation.id
        if generation.failure_code or self.failure_code is None:
            self.failure_code = generation.failure_code
        self.failure_reason = generation.failure_reason
        said = [part for part in (generation.failure_code, self.failure_reason) if part]
        message = ": ".join([f"generation {generation.id} {self._ended(generation)}", *said])
        super().__init__(f"{message.rstrip('.')}. {self.hint}".rstrip())

    def _ended(self, generation: Generation) -> str:
        return "failed"


class ContentModeratedError(GenerationError):
    """`content_moderated`: the prompt, an input or the output was flagged."""

    failure_code: str | None = "content_moderated"
    problem: ClassVar[ProblemKind] = ProblemKind(
        422, "content_moderated", "The content was rejected by moderation"
    )
    hint = "The same request will be rejected again: change the prompt or the references."


class GenerationFailedError(GenerationError):
    """`generation_failed`: an internal error of the model."""

    failure_code: str | None = "generation_failed"
    problem: ClassVar[ProblemKind] = ProblemKind(502, "generation_failed", "The generation failed")
    retryable = True
    hint = "Submit it again."


class BudgetExhaustedError(GenerationError):
    """`budget_exhausted`: the account ran out of funds while the generation was running."""

    failure_code: str | None = "budget_exhausted"
    problem: ClassVar[ProblemKind] = UNAVAILABLE
    hint = "Add funds to the account, then submit it again."


class OutputNotFoundError(GenerationError):
    """`output_not_found`: the result was lost, or the generation completed without outputs.

    In the first case the generation failed, and is `retryable`. In the second it is billed like any
    other that completed, and luma-poll never submits it again.
    """

    failure_code: str | None = "output_not_found"
    problem: ClassVar[ProblemKind] = ProblemKind(
        502, "output_not_found", "The result of the generation was lost"
    )

    def __init__(self, generation: Generation | str) -> None:
        """Make the error of a generation, or one that has a message alone."""
        if isinstance(generation, str):
            pass  # nothing tells which of the two it was, so it is not submitted again
        elif generation.state == "failed":
            self.retryable = True
            self.hint = "Submit it again."
        else:
            self.hint: str = _in_place_of_outputs(generation) + (
                "It is billed: look at the account before you submit it again."
            )
        super().__init__(generation)

    def _ended(self, generation: Generation) -> str:
        return "failed" if generation.state == "failed" else "completed without any output"


def _in_place_of_outputs(generation: Generation) -> str:
    """Return the names of the fields that an answer has instead; values may be signed URLs."""
    names = [redact(name)[:_MAX_NAME] for name in generation.model_extra or {}][:_MAX_NAMES]
    if not names:
        return ""
    if "assets" in names:
        return "Its result is in `assets`, as in Luma's older API: check the base URL. "
    return f"The answer has other fields: {', '.join(map(repr, names))}. "


class ImageTooLargeError(GenerationError):
    """`image_too_large`: an input is over the limit."""

    failure_code: str | None = "image_too_large"
    problem: ClassVar[ProblemKind] = ProblemKind(413, "image_too_large", "An input is too large")
    hint = "Resize or compress the input."


class UnsupportedFormatError(GenerationError):
    """`unsupported_format`: the format of an input is not accepted."""

    failure_code: str | None = "unsupported_format"
    problem: ClassVar[ProblemKind] = ProblemKind(
        415, "unsupported_format", "The format of an input is not supported"
    )
    hint = "Convert the input to a supported format."


class CorruptInputError(GenerationError):
    """`corrupt_input`: an input could not be decoded."""

    failure_code: str | None = "corrupt_input"
    problem: ClassVar[ProblemKind] = ProblemKind(422, "corrupt_input", "An input is corrupt")
    hint = "Encode the input again, or replace it."


class InvalidRequestError(GenerationError):
    """`invalid_request`: the request was rejected after it had been accepted."""

    failure_code: str | None = "invalid_request"
    problem: ClassVar[ProblemKind] = ProblemKind(422, "invalid_request", "The request is not valid")
    hint = "Fix the parameters."


class GenerationRateLimitedError(GenerationError):
    """`rate_limited`: throttled upstream; HTTP 429 is `RateLimitError`."""

    failure_code: str | None = "rate_limited"
    problem: ClassVar[ProblemKind] = ProblemKind(
        503, "generation_rate_limited", "The generation service is busy"
    )
    retryable = True
    hint = "Submit it again later."


FAILURE_ERRORS: dict[str, type[GenerationError]] = {
    each.failure_code: each for each in GenerationError.__subclasses__() if each.failure_code
}
"""The class for each failure code."""


def failure_of(generation: Generation | None) -> GenerationError | None:
    """Return the error of a failed generation; None if it did not fail, or is None."""
    if generation is None or generation.state != "failed":
        return None
    return FAILURE_ERRORS.get(generation.failure_code or "", GenerationError)(generation)


class DownloadError(LumaError):
    """A file could not be fetched or written. Nothing exists under its final name.

    `__cause__` is the OSError if the disk was at fault.

    Attributes:
        generation_id: The id of the generation.
        path: The file or directory; without the extension if that is not known yet. None in an
            error rebuilt from its message alone.
        retryable: True if the same call may succeed later; it continues where this one ended.
    """

    problem: ClassVar[ProblemKind] = ProblemKind(
        502, "download_failed", "The result could not be fetched", "Try again later."
    )

    def __init__(
        self,
        message: str,
        *,
        generation_id: str = "",
        path: Path | None = None,
        retryable: bool = False,
    ) -> None:
        if generation_id:
            message = f"download of generation {generation_id} to {path}: {message}."
        super().__init__(message)
        self.generation_id = generation_id
        self.path = path
        self.retryable = retryable


class UploadError(LumaError):
    """A file could not be uploaded. Nothing was submitted, and an upload is not billed.

    Attributes:
        name: The name of the file; `bytes` if it has none.
        file_id: The id of the incomplete file, or None.
        retryable: True if the same call may succeed later.
    """

    problem: ClassVar[ProblemKind] = ProblemKind(
        502, "upload_failed", "An input could not be uploaded", "Try again later."
    )

    def __init__(
        self, message: str, *, name: str = "", file_id: str | None = None, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.name = name
        self.file_id = file_id
        self.retryable = retryable


class SubmissionLimitError(LumaError):
    """A `Runner` has reached its `max_submissions`; nothing was sent for this request."""

    problem: ClassVar[ProblemKind] = UNAVAILABLE


class JournalError(LumaError):
    """A journal cannot be read or written, for example because the disk is full.

    If it interrupts a submission, nothing has been sent.
    """

    problem: ClassVar[ProblemKind] = UNAVAILABLE


class SubmissionUnknownError(LumaError):
    """The API may have accepted a submission, so it is not made again.

    The generation may be running and be billed. The API has no list of generations: look at the
    usage of the account, then say which id it was, or that it may be submitted.

    Attributes:
        key: The key of the request, by which you settle it.
        request: The request, as a mapping of the parameters of `generations.create`.
        submission_id: The `X-Request-Id` of the submission, by which Luma's support can find it, or
            None.
    """

    problem: ClassVar[ProblemKind] = ProblemKind(
        502,
        "submission_unknown",
        "The submission got no answer",
        "It is not known whether the generation was submitted. It may be running: "
        "look for it before you submit it again.",
    )

    def __init__(
        self,
        message: str,
        *,
        key: str = "",
        request: Mapping[str, Any] | None = None,
        submission_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.key = key
        self.request: Mapping[str, Any] = request or {}
        self.submission_id = submission_id


class PollTimeoutError(LumaError, TimeoutError):
    """The timeout passed before the generation ended. It may still finish, and be billed.

    `__cause__` is the last API error, if the API could not be reached when the timeout passed.

    Attributes:
        generation_id: The id of the generation, by which you can wait again.
        last_generation: The last snapshot, or None.
        elapsed: The seconds waited.
        attempts: The requests sent for the generation during this wait.
    """

    problem: ClassVar[ProblemKind] = ProblemKind(
        504,
        "timed_out",
        "The generation has not ended yet",
        "It is still running: ask again with the same id, rather than submit it again.",
    )

    def __init__(
        self,
        message: str = "",
        *,
        generation_id: str = "",
        last_generation: Generation | None = None,
        elapsed: float = 0.0,
        attempts: int = 0,
    ) -> None:
        """Make the error of a wait for this generation, or one that has a message alone.

        Args:
            message: A further text, such as the last error; the whole text if there is no id.
            generation_id: The id of the generation.
            last_generation: The last snapshot, or None.
            elapsed: The seconds waited.
            attempts: The requests sent for the generation during this wait.
        """
        if generation_id:
            answer = last_generation
            state = "has not answered" if answer is None else f"is {answer.state!r}"
            polls = "1 poll" if attempts == 1 else f"{attempts} polls"
            message = (
                f"generation {generation_id} {state} after {elapsed:.1f} s and {polls}{message}. "
                "It may still finish and be billed: "
                "wait again with the same id rather than submit it again."
            )
        super().__init__(message)
        self.generation_id = generation_id
        self.last_generation = last_generation
        self.elapsed = elapsed
        self.attempts = attempts
