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

Every error pickles, and none contains the API key or the query of a presigned URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from luma_poll._redaction import redact
from luma_poll._texts import encodable, one_line

if TYPE_CHECKING:
    from pathlib import Path

    from luma_poll.models import Generation

_MAX_NAME, _MAX_NAMES = 50, 5
_RETRYABLE_STATUSES = frozenset({408, 409, 425, 429})


class LumaError(Exception):
    """Root of all errors raised by luma-poll."""

    def __init__(self, message: str) -> None:
        super().__init__(_safe(message))

    # The default would call the class with `args`, which our keyword-only fields make impossible.
    def __reduce__(self) -> tuple[Callable[..., LumaError], tuple[Any, ...]]:
        cause = self.__cause__ if isinstance(self.__cause__, LumaError) else None
        state = self.__dict__.copy()
        if "__notes__" in state:
            state["__notes__"] = list(state["__notes__"])
        return _rebuild, (type(self), self.args, state, cause)


def _safe(message: str) -> str:
    """One line without secrets: a log, a terminal and a header can show it."""
    return redact(one_line(encodable(message)))


def _rebuild(
    cls: type[LumaError], args: tuple[Any, ...], state: dict[str, Any], cause: LumaError | None
) -> LumaError:
    error = cls.__new__(cls)
    error.args = args  # given to __new__, those of an OSError would be lost
    error.__dict__.update(state)
    error.__cause__ = cause
    return error


class ConfigurationError(LumaError, ValueError):
    """An argument or a setting is unusable; nothing was sent.

    Attributes:
        problems: Each of several problems with a file of requests, with its line; else empty.
    """

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(redact(problem) for problem in problems)


class APIError(LumaError):
    """A request to the API failed.

    Attributes:
        generation_id: The generation that was asked for; None for the submission of a new one,
            unless an answer that is otherwise unreadable has its id.
        message: The text without the generation's id.
        retryable: True if the same request may succeed later.
        submission_id: For a failed submission: the `X-Request-Id` of ours that it carried, which
            Luma's support can find it by. None for every other request.
    """

    retryable: bool = False
    submission_id: str | None = None

    def __init__(self, message: str, *, generation_id: str | None = None) -> None:
        subject = "" if generation_id is None else f"generation {generation_id}: "
        super().__init__(subject + message)
        self.generation_id = generation_id
        self.message: str = _safe(message)

    @property
    def may_have_been_accepted(self) -> bool:
        """For a failed submission: True if the API may have accepted it all the same.

        The generation may then be running and be billed, and a second submission would be
        billed as well.
        """
        if isinstance(self, APIConnectionError):
            return self.request_sent
        if isinstance(self, APIStatusError):  # the others are refusals
            return self.retryable and not isinstance(self, RateLimitError)
        return True


class APIConnectionError(APIError):
    """No response: the host name did not resolve, or the connection was refused or broken.

    Attributes:
        request_sent: False if the API has certainly not seen the request.
        retryable: False if the server's certificate is not valid.
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
    """No complete response within the client's `timeout`."""


class InvalidResponseError(APIError):
    """The API answered 200, but the body is not a generation, or is too large to be one."""

    retryable = True


class APIStatusError(APIError):
    """The API answered with an error status.

    Attributes:
        status_code: The HTTP status.
        detail: The API's own description (`{"detail": ...}`), or None.
        request_id: `X-Request-Id`, which Luma's support asks for, or None.
        retry_after: Seconds to wait before the next request (`Retry-After`), or None.
        retryable: True if the same request may succeed later.
        in_api_words: False if the answer lacks the API's own `{"detail": ...}`. Then a gateway or
            a proxy in between may have given it, and the status may say nothing of the generation.
        hint: Advice for every error of this class, which its message ends with; may be empty.
    """

    hint: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        detail: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        generation_id: str | None = None,
        in_api_words: bool = True,
    ) -> None:
        super().__init__(message, generation_id=generation_id)
        self.status_code = status_code
        self.detail: str | None = None if detail is None else redact(detail)
        self.request_id = request_id
        self.retry_after = retry_after
        self.in_api_words = in_api_words
        self.retryable: bool = status_code in _RETRYABLE_STATUSES or status_code >= 500


class BadRequestError(APIStatusError):
    """400: the API rejected the parameters."""


class AuthenticationError(APIStatusError):
    """401: the key is missing, wrong, revoked or expired."""

    hint = "Check the API key (LUMA_AGENTS_API_KEY). A generation already submitted continues."


class InsufficientBalanceError(APIStatusError):
    """402: the account has no funds left."""

    hint = "Add funds to the account, then try again."


class PermissionDeniedError(APIStatusError):
    """403: the account is not allowed to do this, for example because it is suspended."""


class NotFoundError(APIStatusError):
    """404: no such generation, or it belongs to another account."""

    hint = "Check the id, and that the API key belongs to the account that submitted it."


class PayloadTooLargeError(APIStatusError):
    """413: an image or video in the request is too large."""


class UnprocessableEntityError(APIStatusError):
    """422: an input of the request could not be fetched or read."""


class RateLimitError(APIStatusError):
    """429: too many requests, or too many generations at once."""


class ServerError(APIStatusError):
    """500 and above: a fault on the API's side."""


STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: PermissionDeniedError,
    404: NotFoundError,
    413: PayloadTooLargeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}


class GenerationError(LumaError):
    """The generation ended in the state "failed".

    Luma documents the codes at https://docs.agents.lumalabs.ai (error handling). A code that this
    version does not know raises this class itself, with the code kept.

    Attributes:
        generation: The failed generation.
        failure_code: The API's code, or None if it gave none.
        failure_reason: The API's explanation for people, or None.
        retryable: True if submitting the same request again may succeed, as a new generation that
            is billed again. Polling the failed one never helps.
        hint: Advice, which its message ends with; may be empty.
    """

    retryable: bool = False
    hint: str = ""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.failure_code: str | None = generation.failure_code
        self.failure_reason: str | None = generation.failure_reason
        said = [part for part in (self.failure_code, self.failure_reason) if part]
        message = ": ".join([f"generation {generation.id} {self._ended(generation)}", *said])
        super().__init__(f"{message.rstrip('.')}. {self.hint}".rstrip())

    def _ended(self, generation: Generation) -> str:
        return "failed"


class ContentModeratedError(GenerationError):
    """`content_moderated`: the prompt, an input or the output was flagged."""

    hint = "The same request will be rejected again: change the prompt or the references."


class GenerationFailedError(GenerationError):
    """`generation_failed`: an internal error of the model."""

    retryable = True
    hint = "Submit it again."


class BudgetExhaustedError(GenerationError):
    """`budget_exhausted`: the account ran out of funds while the generation was running."""

    hint = "Add funds to the account, then submit it again."


class OutputNotFoundError(GenerationError):
    """`output_not_found`: the result was lost, or the generation completed without outputs.

    Only the former failed, and may be submitted again. The latter is billed like any other that
    completed: it is never submitted again by itself.
    """

    retryable = True
    hint = "Submit it again."

    def __init__(self, generation: Generation) -> None:
        if generation.state != "failed":
            self.retryable = False
            self.hint = _in_place_of_outputs(generation) + (
                "It is billed: look at the account before you submit it again."
            )
        super().__init__(generation)
        self.failure_code: str | None = self.failure_code or "output_not_found"

    def _ended(self, generation: Generation) -> str:
        return "failed" if generation.state == "failed" else "completed without any output"


def _in_place_of_outputs(generation: Generation) -> str:
    """Name the fields that an answer has instead: names alone, as values may be signed URLs."""
    names = [redact(name)[:_MAX_NAME] for name in generation.model_extra or {}][:_MAX_NAMES]
    if not names:
        return ""
    if "assets" in names:
        return "Its result is in `assets`, as in answers of Luma's older API: check the base URL. "
    return f"The answer has other fields: {', '.join(map(repr, names))}. "


class ImageTooLargeError(GenerationError):
    """`image_too_large`: an input is over the limit."""

    hint = "Resize or compress the input."


class UnsupportedFormatError(GenerationError):
    """`unsupported_format`: the format of an input is not accepted."""

    hint = "Convert the input to a supported format."


class CorruptInputError(GenerationError):
    """`corrupt_input`: an input could not be decoded."""

    hint = "Encode the input again, or replace it."


class InvalidRequestError(GenerationError):
    """`invalid_request`: the request was rejected after it had been accepted."""

    hint = "Fix the parameters."


class GenerationRateLimitedError(GenerationError):
    """`rate_limited`: throttled upstream; HTTP 429 is `RateLimitError`."""

    retryable = True
    hint = "Submit it again later."


FAILURE_ERRORS: dict[str, type[GenerationError]] = {
    "content_moderated": ContentModeratedError,
    "generation_failed": GenerationFailedError,
    "budget_exhausted": BudgetExhaustedError,
    "output_not_found": OutputNotFoundError,
    "image_too_large": ImageTooLargeError,
    "unsupported_format": UnsupportedFormatError,
    "corrupt_input": CorruptInputError,
    "invalid_request": InvalidRequestError,
    "rate_limited": GenerationRateLimitedError,
}


class DownloadError(LumaError):
    """A file could not be fetched or written. Nothing exists under its final name.

    `__cause__` is the OSError if the disk was at fault.

    Attributes:
        generation_id: The generation whose output it is.
        path: The file or directory; without the extension as long as that is not known.
        retryable: True if the same call may succeed later; it continues where this one ended.
    """

    def __init__(
        self, message: str, *, generation_id: str, path: Path, retryable: bool = False
    ) -> None:
        super().__init__(f"download of generation {generation_id} to {path}: {message}.")
        self.generation_id = generation_id
        self.path = path
        self.retryable = retryable


class UploadError(LumaError):
    """A file could not be uploaded. Nothing was submitted, and an upload is not billed.

    Attributes:
        name: The name of the file; `bytes` if it has none.
        file_id: The id of the file that is not complete, or None.
        retryable: True if the same call may succeed later.
    """

    def __init__(
        self, message: str, *, name: str = "", file_id: str | None = None, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.name = name
        self.file_id = file_id
        self.retryable = retryable


class SubmissionLimitError(LumaError):
    """`max_submissions` of a `Runner` is reached; nothing was sent for this request."""


class JournalError(LumaError):
    """A journal cannot be read or written, for example because the disk is full.

    For a request that was to be submitted: nothing was sent.
    """


class SubmissionUnknownError(LumaError):
    """It is not known whether the API accepted a submission, so it is not made again.

    It may be running and be billed. The API has no list of generations: look at the usage of the
    account, then say which id it was, or that it may be submitted.

    Attributes:
        key: The request's key, by which it is settled.
        request: The request: a mapping of the parameters of `generations.create`.
        submission_id: The `X-Request-Id` that the submission carried, which Luma's support can
            find it by, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str,
        request: Mapping[str, Any],
        submission_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.key = key
        self.request = request
        self.submission_id = submission_id


class PollTimeoutError(LumaError, TimeoutError):
    """The deadline passed before the generation ended. It may still finish, and be billed.

    `__cause__` is the last API error, if the API could not be reached when the deadline passed.

    Attributes:
        generation_id: The generation: wait again with this id.
        last_generation: The last snapshot, or None.
        elapsed: Seconds waited.
        attempts: Requests sent for the generation during this wait.
    """

    def __init__(
        self,
        generation_id: str,
        *,
        last_generation: Generation | None,
        elapsed: float,
        attempts: int,
        why: str = "",
    ) -> None:
        state = "has not answered" if last_generation is None else f"is {last_generation.state!r}"
        polls = "1 poll" if attempts == 1 else f"{attempts} polls"
        super().__init__(
            f"generation {generation_id} {state} after {elapsed:.1f} s and {polls}{why}. "
            "It may still finish and be billed: "
            "wait again with the same id rather than submit it again."
        )
        self.generation_id = generation_id
        self.last_generation = last_generation
        self.elapsed = elapsed
        self.attempts = attempts
