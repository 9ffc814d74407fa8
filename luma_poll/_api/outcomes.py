"""The three outcomes of a submission: accepted, not accepted, unknown. Only decided here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard
from uuid import uuid4

from luma_poll._api.answers import as_generation, snapshot_rate_limit, snapshot_request_id
from luma_poll._api.evidence import nothing_was_sent
from luma_poll._api.headers import RateLimit, submission_id
from luma_poll._api.translation import translate_to_keep
from luma_poll._arguments import check_generation_id
from luma_poll._logging import fields, logger
from luma_poll.errors import (
    APIError,
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    InsufficientBalanceError,
    InvalidResponseError,
    LumaError,
    PermissionDeniedError,
    RateLimitError,
)
from luma_poll.models import Generation

_ADVICE = (
    "It is not known whether the generation was accepted: it may be running and be billed. "
    "Look at the usage of the account before you submit it again."
)
_OF_A_PAGE = (301, 302, 303, 307, 308, 401, 402, 403, 404, 405, 511)
_OF_THE_ACCOUNT = (AuthenticationError, InsufficientBalanceError, PermissionDeniedError)


@dataclass(frozen=True)
class Accepted:
    """A submission that was accepted: its generation runs, and is billed.

    Attributes:
        generation: The first snapshot; only `id` and `state` if no more of the answer was readable.
        rate_limit: The account's rate limit as the answer reported it, or None.
        request_id: The `X-Request-Id` of the answer, or None.
    """

    generation: Generation
    rate_limit: RateLimit | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class NotAccepted:
    """A submission that was certainly not accepted: refused, or never sent.

    Attributes:
        error: The reason.
    """

    error: Exception

    @property
    def is_refusal(self) -> bool:
        """True for a 429: the submission waits for its turn again, for as long as it takes."""
        return isinstance(self.error, RateLimitError)

    @property
    def may_pass(self) -> bool:
        """True if the same submission may be accepted later."""
        return isinstance(self.error, APIError) and (self.error.retryable or _is_page(self.error))


@dataclass(frozen=True)
class Unknown:
    """A submission that may have been accepted: its generation may be running, and be billed.

    Attributes:
        error: The reason why this is not known.
    """

    error: Exception


Outcome: TypeAlias = Accepted | NotAccepted | Unknown

NOT_SENT = NotAccepted(LumaError("It was cancelled before it was submitted: nothing was sent."))
"""The outcome of a submission that was cancelled before it began."""
CUT_OFF = Unknown(LumaError("The submission was cut off before the answer came."))
"""The outcome of a submission that was cut off while it was under way."""


def ends_all(error: object) -> TypeGuard[APIError]:
    """Return True for a refusal that every other submission would get, too: 401, 402 or 403.

    It must be in the API's words: a gateway or a Wi-Fi's login page has such statuses as well.
    """
    if not isinstance(error, _OF_THE_ACCOUNT):
        return False
    return error.in_api_words and error.generation_id is None


def _is_page(error: APIError) -> bool:
    """Return True for a page that something between us and the API answered: it may go away."""
    if not isinstance(error, APIStatusError) or error.in_api_words:
        return False
    return error.status_code in _OF_A_PAGE


def new_submission_id() -> str:
    """Return an `X-Request-Id` for a submission."""
    return str(uuid4())


async def submit_once(
    create: Callable[[], Awaitable[object]], handle: str | None = None
) -> Outcome:
    """Submit once, and return the outcome.

    Args:
        create: Sends one submission, once; returns what looks like a generation.
        handle: The `X-Request-Id` of the submission; by default a new one.

    Returns:
        The outcome, which includes any `Exception`. A cancellation, and whatever else is not an
        `Exception`, is raised.
    """
    handle = handle or submission_id.get() or new_submission_id()
    before = submission_id.set(handle)
    try:
        outcome = _accepted(as_generation(await create()))
    except Exception as error:
        outcome = outcome_of(error)
    except BaseException as error:
        if not nothing_was_sent(error):
            logger.warning(
                "a submission was cut off before its answer came: it may be running and be "
                "billed, and its id is not known (X-Request-Id %s)",
                handle,
                extra=fields(error=error),
            )
        raise
    finally:
        submission_id.reset(before)
    if not isinstance(outcome, Accepted) and isinstance(outcome.error, APIError):
        outcome.error.submission_id = handle
    return outcome


def outcome_of(error: Exception) -> Outcome:
    """Return the outcome of a submission that raised this.

    Args:
        error: An exception from any client.
    """
    found = translate_to_keep(error)
    if found is None:
        unsent = isinstance(error, ConfigurationError) or nothing_was_sent(error)
        return NotAccepted(error) if unsent else Unknown(error)
    if isinstance(found, InvalidResponseError) and found.generation_id:
        # Accepted, in an answer of which nothing else was readable: polls tell the rest.
        return _accepted(Generation(id=found.generation_id, state="queued"))
    return _unknown(found) if found.may_have_been_accepted else NotAccepted(found)


def _unknown(error: APIError) -> Unknown:
    if _ADVICE not in getattr(error, "__notes__", ()):
        error.add_note(_ADVICE)
    return Unknown(error)


def _accepted(generation: Generation) -> Outcome:
    """Return Accepted, or Unknown if the id is not one that can be waited for."""
    try:
        check_generation_id(generation.id)
    except ConfigurationError as error:
        return _unknown(InvalidResponseError(f"the answer has an id that cannot be one: {error}"))
    return Accepted(generation, snapshot_rate_limit(generation), snapshot_request_id(generation))
