"""Generations as the API reports them: frozen snapshots. Unknown fields are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, Self, cast
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler  # pydantic's own from 2.8

from luma_poll._redaction import redact, redact_value
from luma_poll.errors import FAILURE_ERRORS, GenerationError, InvalidResponseError

LONGEST_AGE = 3600.0
"""Seconds: the API ends every job within an hour (https://docs.agents.lumalabs.ai, FAQ)."""
MAX_CLOCK_ERROR = 60.0
"""Seconds by which a generation may seem to come from the future."""
MAX_ID_LENGTH = 1000
"""Characters; a UUID has 36."""
TERMINAL_STATES = frozenset({"completed", "failed"})


def _text_or_none(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def _redacted_text(value: Any) -> str | None:
    return None if value is None else redact(str(value))


def _none_if_invalid(value: Any, parse: Any) -> Any:
    try:
        return parse(value)
    except ValidationError:
        return None


def _usable_outputs(value: Any, info: ValidationInfo) -> list[Any]:
    """The entries that have a URL; null, [] and a missing field all mean that there are none.

    A completed generation with outputs that are all unreadable is an unreadable answer: it has
    produced something, so it must not pass for one without output.
    """
    if isinstance(value, (list, tuple)):
        usable = [entry for entry in value if not _is_unreadable(entry)]
    else:
        usable = []
    if not usable and value not in (None, [], ()) and info.data.get("state") == "completed":
        raise ValueError("none of the outputs has a URL")
    return usable


def _is_unreadable(output: Any) -> bool:
    url = _get(output, "url")
    return not isinstance(url, str) or not url


def _get(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, dict) else getattr(entry, name, None)


# A bad value in a minor field must not make the whole answer unreadable.
OptionalText = Annotated[str | None, BeforeValidator(_text_or_none)]
RedactedText = Annotated[str | None, BeforeValidator(_redacted_text)]


class _Snapshot(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True,
        extra="allow",
        from_attributes=True,
        hide_input_in_errors=True,
        defer_build=True,  # until the first snapshot, to keep the import of the library fast
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield redact_value(name), redact_value(value)

    def __rich_repr__(self) -> Iterator[Any]:
        return iter(self.__repr_args__())


class OutputLayer(_Snapshot):
    """The layer that an output of a generation of type `layering` holds.

    Attributes:
        index: Position, front to back; the last layer is the background.
        label: One or two words.
        description: A caption.
        alpha_hint: The edge: `soft`, `hard`, `none` or a value that the API has added since.
    """

    index: int | None = None
    label: OptionalText = None
    description: OptionalText = None
    alpha_hint: OptionalText = None


class GenerationOutput(_Snapshot):
    """One file that a generation produced.

    `repr` and `str` omit the query of the URL: anyone who has it can download the file.

    Attributes:
        type: `image`, `video` or a value that the API has added since.
        url: A presigned URL, valid for one hour; every `get` returns a fresh one. Download from
            it without the API key.
        layer: Only for generations of type `layering`.
    """

    type: OptionalText = None
    url: str
    layer: Annotated[OutputLayer | None, WrapValidator(_none_if_invalid)] = None

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            # The general rule stops at characters that are not expected in a URL.
            cut = name == "url" and "?" in self.url
            yield name, f"{self.url.partition('?')[0]}?..." if cut else value

    @property
    def expires_at(self) -> datetime | None:
        """The time at which `url` expires (aware, UTC), or None if the URL does not say."""
        try:
            query = parse_qs(urlsplit(self.url).query)
            signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ")
            seconds = int(query["X-Amz-Expires"][0])
            return signed.replace(tzinfo=UTC) + timedelta(seconds=seconds)
        except (KeyError, ValueError, OverflowError):
            return None


class RateLimit(NamedTuple):
    """The units that an account may submit a minute, and what is left of them."""

    limit: int
    remaining: int


class Generation(_Snapshot):
    """A snapshot of a generation, as `GET /generations/{id}` returns it.

    Unknown fields are kept as attributes; unknown states, types, models and failure codes as
    plain strings. The API has added some of each without a new version.
    https://docs.agents.lumalabs.ai/api/resources/generations/methods/get

    Attributes:
        id: The generation's id, a UUID.
        created_at: The time of the submission, as the API writes it (RFC 3339 in its docs).
        model: For example `uni-1` or `ray-3.2`.
        state: `queued`, `processing`, `completed`, `failed` or one that the API has added since.
        type: For example `image`, `image_edit` or `video`.
        failure_code: The reason of a failure, for programs; see `luma_poll.GenerationError`.
        failure_reason: The reason of a failure, for people. URLs in it have lost their query.
        output: The files; empty until it has completed. Entries without a URL are left out and
            kept in the attribute `unreadable_output`, which other snapshots do not have.
    """

    id: str
    created_at: OptionalText = None
    model: OptionalText = None
    state: str
    type: OptionalText = None
    failure_code: OptionalText = None
    failure_reason: RedactedText = None
    output: Annotated[list[GenerationOutput], BeforeValidator(_usable_outputs)] = []

    # Of the answer alone: no field, and no copy and no pickle has it.
    __slots__ = ("_rate_limit", "_retry_after")

    def __hash__(self) -> int:
        return hash((self.id, self.state))

    @model_validator(mode="wrap")
    @classmethod
    def _keep_unreadable_output(cls, value: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        generation = build(value)
        outputs = _get(value, "output")
        if generation.output and len(generation.output) < len(outputs):
            unreadable = [entry for entry in outputs if _is_unreadable(entry)]
            cast(dict[str, Any], generation.model_extra)["unreadable_output"] = unreadable
        return generation

    @property
    def age(self) -> float | None:
        """Seconds from `created_at` to the answer with this snapshot, both by the server's clock.

        Accurate to a second; None if either is missing, as in snapshots of other clients.
        """
        try:
            created = datetime.fromisoformat(self.created_at or "")
            answered = parsedate_to_datetime(self.__dict__["_date"])
            age = (answered - created).total_seconds()
        except (KeyError, ValueError, TypeError, OverflowError):
            return None
        return max(0.0, age) if age > -MAX_CLOCK_ERROR else None

    @property
    def is_terminal(self) -> bool:
        """True if it has ended: `completed` or `failed`. An unknown state is not an end."""
        return self.state in TERMINAL_STATES

    def raise_for_failure(self) -> Self:
        """Return self, unless the generation failed.

        Raises:
            GenerationError: The subclass for its `failure_code`.
        """
        if self.state == "failed":
            raise FAILURE_ERRORS.get(self.failure_code or "", GenerationError)(self)
        return self


class GenerationLike(Protocol):
    """Anything that looks like a generation, such as the official SDK's."""

    @property
    def id(self) -> str:
        """The generation's id."""
        ...

    @property
    def state(self) -> str:
        """The generation's state."""
        ...


def note_answer(
    generation: Generation,
    *,
    date: str | None = None,
    retry_after: float | None = None,
    rate_limit: RateLimit | None = None,
) -> Generation:
    """Attach headers of the answer to a snapshot; they do not count when snapshots are compared.

    Args:
        generation: The snapshot.
        date: The `Date` of the answer, for `Generation.age`.
        retry_after: Seconds of its `Retry-After`, for `snapshot_retry_after`.
        rate_limit: Of its `X-RateLimit-` headers, for `snapshot_rate_limit`.

    Returns:
        The same snapshot.
    """
    if date is not None:
        vars(generation)["_date"] = date
    object.__setattr__(generation, "_retry_after", retry_after)
    object.__setattr__(generation, "_rate_limit", rate_limit)
    return generation


def snapshot_retry_after(generation: Generation) -> float | None:
    """The seconds of the `Retry-After` of the answer with this snapshot, or None."""
    seconds: float | None = _header_of(generation, "_retry_after")
    return seconds


def snapshot_rate_limit(generation: Generation) -> RateLimit | None:
    """The account's rate limit as the answer with this snapshot reported it, or None."""
    rate_limit: RateLimit | None = _header_of(generation, "_rate_limit")
    return rate_limit


def _header_of(generation: Generation, name: str) -> Any:
    try:
        return object.__getattribute__(generation, name)
    except AttributeError:  # from another client, or a copy
        return None


def as_generation(value: object, generation_id: str | None = None) -> Generation:
    """Convert any object that looks like a generation.

    Raises:
        InvalidResponseError: It has no `id` and `state`, or not the id that is expected. An id that
            could be read is its `generation_id`.
    """
    if isinstance(value, Generation):
        return _checked_id(value, generation_id)
    # Only its own dump includes the unknown fields of another library's model.
    fields = value.model_dump(warnings=False) if isinstance(value, BaseModel) else value
    return _validated(partial(Generation.model_validate, fields), generation_id, fields)


def read_generation(content: bytes, generation_id: str | None = None) -> Generation:
    """Parse the JSON of an answer.

    Raises:
        InvalidResponseError: It is not a generation, or not the one with the id that is expected.
            An id that could be read is its `generation_id`.
    """
    return _validated(partial(Generation.model_validate_json, content), generation_id, content)


def _validated(
    validate: Callable[[], Generation], generation_id: str | None, answer: object
) -> Generation:
    try:
        return _checked_id(validate(), generation_id)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Raised outside the `except`: pydantic's error holds the body, and with it the signed URLs.
    place = ".".join(str(part) for part in problem["loc"])
    raise InvalidResponseError(
        f"the answer is not a generation ({place + ': ' if place else ''}{problem['msg']})",
        generation_id=generation_id or _id_in(answer),
    )


def _id_in(answer: object) -> str | None:
    """The id in an answer that is otherwise unreadable: that of a submission must not be lost."""
    try:
        found = _get(json.loads(answer) if isinstance(answer, bytes) else answer, "id")
    except Exception:  # an object of another library may raise anything
        return None
    return found if isinstance(found, str) and 0 < len(found) <= MAX_ID_LENGTH else None


def _checked_id(generation: Generation, generation_id: str | None) -> Generation:
    if generation_id is None or _is_same_id(generation.id, generation_id):
        return generation
    raise InvalidResponseError(
        "the answer is about another generation", generation_id=generation_id
    )


def _is_same_id(one: str, other: str) -> bool:
    """Compare ids; a UUID has several spellings."""
    try:
        return one == other or UUID(one) == UUID(other)
    except ValueError:
        return False
