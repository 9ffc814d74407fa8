"""From prompt to file with Luma: never pays twice, never hangs, as fast as your account allows."""

from luma_poll._api.media_reference import media
from luma_poll._client.client import LumaClient
from luma_poll._client.uploads import UploadProgress
from luma_poll._downloads.output import DownloadProgress
from luma_poll._journal.entry import JournalEntry
from luma_poll._journal.journal import Journal
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.poll_result import PollResult
from luma_poll._polling.poller import Poller
from luma_poll._polling.schedules import DEFAULT_WAIT
from luma_poll._running.request_files import requests_from
from luma_poll._running.run_result import RunResult
from luma_poll._running.runner import Runner
from luma_poll._version import __version__
from luma_poll.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BudgetExhaustedError,
    ConfigurationError,
    ContentModeratedError,
    CorruptInputError,
    DownloadError,
    GenerationError,
    GenerationFailedError,
    GenerationRateLimitedError,
    ImageTooLargeError,
    InsufficientBalanceError,
    InvalidRequestError,
    InvalidResponseError,
    JournalError,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    PollTimeoutError,
    RateLimitError,
    ServerError,
    SubmissionLimitError,
    SubmissionUnknownError,
    UnprocessableEntityError,
    UnsupportedFormatError,
    UploadError,
)
from luma_poll.events import PollEvent
from luma_poll.models import Generation, GenerationOutput, OutputLayer

__all__ = [
    "DEFAULT_WAIT",
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AdaptiveWait",
    "AuthenticationError",
    "BadRequestError",
    "BudgetExhaustedError",
    "ConfigurationError",
    "ContentModeratedError",
    "CorruptInputError",
    "DownloadError",
    "DownloadProgress",
    "Generation",
    "GenerationError",
    "GenerationFailedError",
    "GenerationOutput",
    "GenerationRateLimitedError",
    "ImageTooLargeError",
    "InsufficientBalanceError",
    "InvalidRequestError",
    "InvalidResponseError",
    "Journal",
    "JournalEntry",
    "JournalError",
    "LumaClient",
    "LumaError",
    "NotFoundError",
    "OutputLayer",
    "OutputNotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PollEvent",
    "PollResult",
    "PollTimeoutError",
    "Poller",
    "RateLimitError",
    "RunResult",
    "Runner",
    "ServerError",
    "SubmissionLimitError",
    "SubmissionUnknownError",
    "UnprocessableEntityError",
    "UnsupportedFormatError",
    "UploadError",
    "UploadProgress",
    "__version__",
    "media",
    "requests_from",
]
