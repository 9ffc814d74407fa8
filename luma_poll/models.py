"""Generations as the API reports them: frozen snapshots. Unknown fields are kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from html import escape
from typing import Annotated, Any, ClassVar, Protocol, Self, cast
from urllib.parse import parse_qs, urlsplit

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

from luma_poll._redaction import excerpt, redact_value
from luma_poll._texts import cleaned, encodable
from luma_poll.errors import failure_of

LONGEST_AGE = 3600.0
"""Seconds: the API ends every generation within an hour (https://docs.agents.lumalabs.ai, FAQ)."""
MAX_CLOCK_ERROR = 60.0
"""Seconds by which a generation may seem to come from the future."""
LONGEST_NAME = 200
"""Characters of a state, a type, a model or a failure code that are kept."""
LONGEST_TEXT = 1000
"""Characters of a failure's reason, or of a layer's description, that are kept."""
LONGEST_UNKNOWN = 10_000
"""Characters of a text in an unknown field that are kept; a prompt has up to 6,000."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
TERMINAL_STATES = frozenset({"completed", "failed"})


def _text(value: object, longest: int = LONGEST_NAME) -> Any:
    return encodable(str(value)[:longest])


def _name(value: object) -> Any:
    """Return a word for programs, without line ends, which would break a log or an SSE stream."""
    return _CONTROL.sub(" ", _text(value)) if isinstance(value, str) else value


def _name_or_none(value: object) -> str | None:
    return None if value is None else _name(str(value))


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value, LONGEST_TEXT)


def _redacted_text(value: object) -> str | None:
    return None if value is None else excerpt(encodable(str(value)), LONGEST_TEXT)


def _encodable(value: object) -> Any:
    return encodable(value) if isinstance(value, str) else value


def _none_if_invalid(value: Any, parse: Any) -> Any:
    try:
        return parse(value)
    except ValidationError:
        return None


def _usable_outputs(value: object, info: ValidationInfo) -> list[Any]:
    """Return the entries that have a URL; null, [] and a missing field all mean "no outputs".

    If a completed generation has outputs but none is readable, the whole answer is unreadable: it
    has produced something, so it must not count as one without output.
    """
    if isinstance(value, (list, tuple)):
        usable = [entry for entry in value if not _is_unreadable(entry)]
    else:
        usable = []
    if not usable and value not in (None, [], ()) and info.data.get("state") == "completed":
        raise ValueError("none of the outputs has a URL")
    return usable


def _is_unreadable(output: object) -> bool:
    url = field_of(output, "url")
    return not isinstance(url, str) or not url


def field_of(entry: object, name: str) -> Any:
    """Return a field of a mapping or an object; None if it is missing."""
    return entry.get(name) if isinstance(entry, Mapping) else getattr(entry, name, None)


# A bad value in a minor field must not make the whole answer unreadable, so it becomes None.
Name = Annotated[str, BeforeValidator(_name)]
OptionalName = Annotated[str | None, BeforeValidator(_name_or_none)]
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

    @model_validator(mode="after")
    def _clean_unknown_fields(self) -> Self:
        extra = self.__pydantic_extra__
        if extra:  # in place: a frozen model has no other way
            clean = cleaned(extra, LONGEST_UNKNOWN)
            extra.clear()
            extra.update(clean)
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield redact_value(name), redact_value(value)

    def __rich_repr__(self) -> Iterator[Any]:
        return iter(self.__repr_args__())


class OutputLayer(_Snapshot):
    """The layer that an output of a generation of type `layering` holds.

    Attributes:
        index: The position, front to back; the last layer is the background.
        label: A name of one or two words.
        description: A caption.
        alpha_hint: The edge: `soft`, `hard`, `none` or a newer value of the API.
    """

    index: int | None = None
    label: OptionalText = None
    description: OptionalText = None
    alpha_hint: OptionalName = None


class GenerationOutput(_Snapshot):
    """One file that a generation produced.

    `repr` and `str` omit the query of the URL: anyone who has it can download the file.

    Attributes:
        type: `image`, `video` or a newer value of the API.
        url: A presigned URL, valid for one hour; every `get` returns a fresh one. Download from
            it without the API key.
        layer: The layer that it holds, for generations of type `layering`; else None.
    """

    type: OptionalName = None
    url: Annotated[str, BeforeValidator(_encodable)]
    layer: Annotated[OutputLayer | None, WrapValidator(_none_if_invalid)] = None

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            # `redact` stops at characters that it does not expect in a URL.
            cut = name == "url" and "?" in self.url
            yield name, f"{self.url.partition('?')[0]}?..." if cut else value

    @property
    def generation_id(self) -> str | None:
        """The id of its generation; None for an output that you made yourself."""
        found: str | None = vars(self).get("_generation_id")
        return found

    @property
    def number(self) -> int:
        """The place among the outputs of its generation, from 1; a layer's is by its index."""
        found: int = vars(self).get("_number", 1)
        return found

    def _repr_html_(self) -> str:
        """Return the type, and when the URL expires, for notebooks; the URL itself is a secret."""
        until = self.expires_at
        expiry = "" if until is None else f", its URL works until {until:%Y-%m-%d %H:%M} UTC"
        return f"<p>{escape(self.type or 'output')}{expiry}</p>"

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


def numbers_of(outputs: Sequence[GenerationOutput]) -> list[int]:
    """Return the number of each output, from 1: layers by their index, others in their order."""
    indexes = [output.layer.index if output.layer else None for output in outputs]
    numbers = [index + 1 for index in indexes if index is not None and index >= 0]
    unique = len(set(numbers)) == len(outputs)
    return numbers if unique else list(range(1, len(outputs) + 1))


class Generation(_Snapshot):
    """A snapshot of a generation, as `GET /generations/{id}` returns it.

    Unknown fields are kept as attributes, and unknown states, types, models and failure codes as
    plain strings: the API has added some of each without a new version.
    https://docs.agents.lumalabs.ai/api/resources/generations/methods/get

    Attributes:
        id: The generation's id, a UUID.
        created_at: The time of the submission, as the API writes it (RFC 3339 in its docs).
        model: The model, such as `uni-1` or `ray-3.2`.
        state: `queued`, `processing`, `completed`, `failed` or a newer state of the API.
        type: The kind of generation, such as `image`, `image_edit` or `video`.
        failure_code: The API's code for a failure; see `luma_poll.GenerationError`.
        failure_reason: The API's description of a failure, with the queries of URLs removed.
        output: The files; empty until it has completed. Entries without a URL are left out, and
            kept in the attribute `unreadable_output`, which other snapshots do not have.
    """

    id: Annotated[str, BeforeValidator(_encodable)]
    created_at: OptionalName = None
    model: OptionalName = None
    state: Name
    type: OptionalName = None
    failure_code: OptionalName = None
    failure_reason: RedactedText = None
    output: Annotated[list[GenerationOutput], BeforeValidator(_usable_outputs)] = []

    # Facts about the answer. They are no fields, so copies and pickles do not have them.
    __slots__ = ("_rate_limit", "_request_id", "_retry_after")

    def __hash__(self) -> int:
        return hash((self.id, self.state))

    @model_validator(mode="wrap")
    @classmethod
    def _keep_unreadable_output(cls, value: object, build: ModelWrapValidatorHandler[Self]) -> Self:
        generation = build(value)
        outputs = field_of(value, "output")
        if generation.output and len(generation.output) < len(outputs):
            unreadable = [entry for entry in outputs if _is_unreadable(entry)]
            # The API may add a field of that name.
            cast(dict[str, Any], generation.model_extra).setdefault("unreadable_output", unreadable)
        for number, output in zip(numbers_of(generation.output), generation.output, strict=True):
            vars(output).update(_generation_id=generation.id, _number=number)
        return generation

    @property
    def outputs(self) -> list[GenerationOutput]:
        """The outputs; empty until it has completed. The same list as `output`."""
        return self.output

    @property
    def age(self) -> float | None:
        """The seconds from `created_at` to the answer with this snapshot, by the server's clock.

        They are accurate to a second; None if either is missing, as in other clients' snapshots.
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
        """True if it is `completed` or `failed`. An unknown state does not count as an end."""
        return self.state in TERMINAL_STATES

    def raise_for_failure(self) -> Self:
        """Return self, unless the generation failed.

        Returns:
            The generation itself, so that calls can be chained.

        Raises:
            GenerationError: The subclass for its `failure_code`.
        """
        failure = failure_of(self)
        if failure is not None:
            raise failure
        return self


class GenerationLike(Protocol):
    """An object that looks like a generation, such as the official SDK's."""

    @property
    def id(self) -> str:
        """The generation's id."""
        ...

    @property
    def state(self) -> str:
        """The generation's state."""
        ...
