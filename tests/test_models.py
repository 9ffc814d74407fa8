"""What is kept, what is shown, and what an answer must at least be."""

import copy
import json
import pickle
from datetime import UTC, datetime
from types import MappingProxyType, SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from luma_poll import (
    BudgetExhaustedError,
    ContentModeratedError,
    CorruptInputError,
    Generation,
    GenerationError,
    GenerationFailedError,
    GenerationOutput,
    GenerationRateLimitedError,
    ImageTooLargeError,
    InvalidRequestError,
    InvalidResponseError,
    LumaClient,
    OutputLayer,
    OutputNotFoundError,
    UnsupportedFormatError,
)
from luma_poll._api.answers import (
    as_generation,
    note_answer,
    read_generation,
    snapshot_retry_after,
)
from tests.fakes import ID, OUTPUT, URL, snapshot

DOCUMENTED = """{
  "id": "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e",
  "created_at": "created_at",
  "model": "uni-1",
  "state": "queued",
  "type": "image",
  "failure_code": "content_moderated",
  "failure_reason": "failure_reason",
  "output": [{"type": "type", "url": "https://example.com"}]
}"""


def read(body: bytes) -> Generation:
    """The generation that the client makes of this body."""
    answer = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    client = LumaClient("key", http_client=httpx.AsyncClient(transport=answer), max_retries=0)
    return anyio.run(client.generations.get, ID)


def signed(**query: str) -> GenerationOutput:
    return GenerationOutput(url=str(httpx.URL("https://storage.example.com/a.png", params=query)))


# --- what is kept --------------------------------------------------------------------------------


def test_the_documented_example_parses() -> None:
    """Placeholders and all, field by field."""
    generation = read(DOCUMENTED.encode())
    assert generation.id == ID
    assert generation.created_at == "created_at"
    assert generation.model == "uni-1"
    assert generation.state == "queued"
    assert generation.type == "image"
    assert generation.failure_code == "content_moderated"
    assert generation.failure_reason == "failure_reason"
    assert generation.output == [GenerationOutput(type="type", url="https://example.com")]


def test_an_id_and_a_state_are_enough() -> None:
    """All the rest may be missing."""
    generation = Generation.model_validate({"id": ID, "state": "queued"})
    assert generation.output == []
    assert generation.created_at is generation.model is generation.type is None
    assert generation.failure_code is generation.failure_reason is None


@pytest.mark.parametrize("field", ["state", "model", "type", "failure_code"])
def test_an_unknown_value_is_kept_as_a_plain_string(field: str) -> None:
    """The API's lists have grown five times without a new version."""
    document = {"id": ID, "state": "queued", field: "of-tomorrow"}
    generation = Generation.model_validate(document)
    assert getattr(generation, field) == "of-tomorrow"
    assert type(getattr(generation, field)) is str


def test_unknown_fields_are_kept() -> None:
    """As attributes, through pickle and in the dump, of every model."""
    document = {
        "id": ID,
        "state": "completed",
        "cost": {"cents": [4, None]},
        "output": [{"type": "image", "url": URL, "width": 2048, "layer": {"index": 0, "z": 1.5}}],
    }
    generation = Generation.model_validate(document)
    again = pickle.loads(pickle.dumps(generation))
    assert again == generation
    assert repr(again) == repr(generation)
    each: Any
    for each in (generation, again):
        assert each.cost == {"cents": [4, None]}
        assert each.output[0].width == 2048
        assert each.output[0].layer.z == 1.5
        assert each.model_dump()["cost"] == {"cents": [4, None]}
        assert each.model_dump(exclude_unset=True) == document


@pytest.mark.parametrize("fields", [{}, {"output": None}, {"output": []}])
def test_no_output_is_written_in_three_ways(fields: dict[str, Any]) -> None:
    """Absent, null and an empty list all mean that there is none."""
    assert Generation.model_validate({"id": ID, "state": "completed"} | fields).output == []


UNREADABLE_OUTPUTS = [
    *("", "nope", {}, {"url": URL}, 7, True),
    *([None], ["https://example.com"], [{}], [{"url": None}], [{"url": ""}], [[]]),
]


@pytest.mark.parametrize("output", UNREADABLE_OUTPUTS)
def test_outputs_that_cannot_be_read_are_not_none(output: object) -> None:
    """A completed generation has a file: an answer that hides it is unreadable, not empty."""
    fields = {"id": ID, "state": "completed", "output": output}
    with pytest.raises(InvalidResponseError, match="outputs"):
        as_generation(SimpleNamespace(**fields))
    with pytest.raises(ValidationError, match="outputs"):
        Generation.model_validate_json(json.dumps(fields))


@pytest.mark.parametrize("state", ["queued", "processing", "failed", "tomorrow"])
@pytest.mark.parametrize("output", UNREADABLE_OUTPUTS[:3])
def test_outputs_matter_only_once_it_has_completed(state: str, output: object) -> None:
    """A failure that was told is not lost for a field that says nothing."""
    assert snapshot(state, output=output).output == []


def test_a_usable_output_is_kept_beside_an_unreadable_one() -> None:
    """One bad entry does not hide the others, and is kept where it does not disturb."""
    generation = snapshot("completed", output=[{"type": "image"}, {"url": URL}, 7])
    assert [output.url for output in generation.output] == [URL]
    again = Generation.model_validate_json(generation.model_dump_json())
    for each in (generation, again):
        assert each.model_dump()["unreadable_output"] == [{"type": "image"}, 7]


@pytest.mark.parametrize("spelled", [ID, ID.upper(), ID.replace("-", ""), f"{{{ID}}}"])
def test_a_uuid_may_be_spelled_in_several_ways(spelled: str) -> None:
    """The API may write an id in another way than the caller did."""
    assert as_generation(snapshot("queued", id=spelled), ID).state == "queued"


@pytest.mark.parametrize("other", ["", "other", ID[:-1] + "0"])
def test_an_answer_about_another_generation_is_unreadable(other: str) -> None:
    """Somebody else's result is never taken for one's own."""
    with pytest.raises(InvalidResponseError, match=f"{ID}: .* another generation"):
        as_generation(snapshot("completed", id=other), ID)


@pytest.mark.parametrize("field", ["created_at", "model", "type", "failure_code", "failure_reason"])
@pytest.mark.parametrize("odd", [7, 1.5, True, [1], {"a": 1}])
def test_an_odd_value_of_a_lesser_field_never_makes_an_answer_unreadable(
    field: str, odd: Any
) -> None:
    """It becomes text: the state and the outputs matter more."""
    document = {"id": ID, "state": "queued", field: odd}
    assert getattr(Generation.model_validate(document), field) == str(odd)


def test_a_layer_is_read() -> None:
    """Its fields are those of the official SDK, and a number may be written as text."""
    layer = {"index": "2", "label": "sky", "description": "A blue sky", "alpha_hint": "soft"}
    (output,) = snapshot(output=[{"url": URL, "layer": layer}]).output
    assert output.layer == OutputLayer(
        index=2, label="sky", description="A blue sky", alpha_hint="soft"
    )


@pytest.mark.parametrize("layer", [None, 7, "front", [], {"index": "front"}])
def test_a_layer_that_cannot_be_read_is_none(layer: object) -> None:
    """The file is there all the same."""
    (output,) = snapshot(output=[{"url": URL, "layer": layer}]).output
    assert (output.url, output.layer) == (URL, None)


def test_a_model_is_frozen() -> None:
    """A snapshot is what the API said at one moment."""
    generation = snapshot()
    with pytest.raises(ValidationError, match="frozen"):
        generation.state = "queued"
    with pytest.raises(ValidationError, match="frozen"):
        generation.output[0].url = URL


def test_snapshots_share_no_list() -> None:
    """What is done to the outputs of one does not show in another."""
    bare = {"id": ID, "state": "queued"}
    Generation.model_validate(bare).output.append(GenerationOutput(url=URL))
    assert Generation.model_validate(bare).output == []


# --- the end of a generation ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "terminal"),
    [
        ("queued", False),
        ("processing", False),
        ("of-tomorrow", False),
        ("Completed", False),
        ("completed", True),
        ("failed", True),
    ],
)
def test_only_completed_and_failed_are_terminal(state: str, terminal: bool) -> None:
    """An unknown state has not ended."""
    assert snapshot(state).is_terminal is terminal


@pytest.mark.parametrize("state", ["queued", "processing", "completed", "of-tomorrow"])
def test_raise_for_failure_returns_the_generation_itself(state: str) -> None:
    """So that it chains, even if there is a failure code."""
    generation = snapshot(state, failure_code="content_moderated")
    assert generation.raise_for_failure() is generation


@pytest.mark.parametrize(
    ("code", "error_class", "retryable"),
    [
        ("content_moderated", ContentModeratedError, False),
        ("generation_failed", GenerationFailedError, True),
        ("output_not_found", OutputNotFoundError, True),
        ("budget_exhausted", BudgetExhaustedError, False),
        ("image_too_large", ImageTooLargeError, False),
        ("unsupported_format", UnsupportedFormatError, False),
        ("corrupt_input", CorruptInputError, False),
        ("invalid_request", InvalidRequestError, False),
        ("rate_limited", GenerationRateLimitedError, True),
        ("of_tomorrow", GenerationError, False),
        ("", GenerationError, False),
        (None, GenerationError, False),
    ],
)
def test_each_failure_code_has_its_class(
    code: str | None, error_class: type[GenerationError], retryable: bool
) -> None:
    """An unknown one, and none at all, raise the plain class with the code kept."""
    generation = snapshot("failed", failure_code=code, failure_reason="why")
    with pytest.raises(GenerationError) as caught:
        generation.raise_for_failure()
    error = caught.value
    assert type(error) is error_class
    assert (error.failure_code, error.failure_reason) == (code, "why")
    assert error.retryable is retryable
    assert error.generation == generation


# --- when a URL expires --------------------------------------------------------------------------


def test_expires_at_is_read_from_the_url() -> None:
    """An aware time in UTC, whatever else the query holds."""
    output = signed(**{"X-Amz-Date": "20260408T235900Z", "a": "b", "X-Amz-Expires": "3600"})
    expires_at = output.expires_at
    assert expires_at == datetime(2026, 4, 9, 0, 59, tzinfo=UTC)
    assert expires_at.utcoffset() is not None


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"X-Amz-Date": "20260408T120000Z"},
        {"X-Amz-Expires": "3600"},
        {"X-Amz-Date": "yesterday", "X-Amz-Expires": "3600"},
        {"X-Amz-Date": "20261308T120000Z", "X-Amz-Expires": "3600"},
        {"X-Amz-Date": "20260408T120000Z", "X-Amz-Expires": "an hour"},
        {"X-Amz-Date": "20260408T120000Z", "X-Amz-Expires": "nan"},
        {"X-Amz-Date": "20260408T120000Z", "X-Amz-Expires": "9" * 12},
        {"X-Amz-Date": "20260408T120000Z", "X-Amz-Expires": "9" * 20},
        {"X-Amz-Date": "20260408T120000Z", "X-Amz-Expires": "9" * 5000},
    ],
)
def test_a_url_that_does_not_say_when_expires_at_none(query: dict[str, str]) -> None:
    """A part missing, nonsense and numbers beyond the calendar are no errors."""
    assert signed(**query).expires_at is None


@pytest.mark.parametrize("url", ["not a url", "http://[::1?X-Amz-Expires=1", "//", "?", "data:,"])
def test_a_url_that_is_none_expires_at_none(url: str) -> None:
    """It is kept as the API wrote it."""
    output = GenerationOutput(url=url)
    assert (output.url, output.expires_at) == (url, None)


@given(st.text(), st.text())
def test_expires_at_never_raises(date: str, seconds: str) -> None:
    """Whatever the API writes."""
    output = GenerationOutput(
        url=f"https://s.example.com/?X-Amz-Date={date}&X-Amz-Expires={seconds}"
    )
    assert output.expires_at is None or output.expires_at.tzinfo is UTC


# --- what is shown -------------------------------------------------------------------------------


def shown(value: object) -> str:
    """All ways in which a model is shown to people."""
    console = Console(width=1000, color_system=None)
    with console.capture() as capture:
        console.print(value)
    return "\n".join([repr(value), str(value), f"{value}", repr([value]), capture.get()])


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "https://storage.example.com/a.png?Expires=1&Signature=5ec4e7&Key-Pair-Id=K",
        "HTTPS://STORAGE.EXAMPLE.COM/a.png?sig=5ec4e7",
        "http://storage.example.com?5ec4e7",
        "https://storage.example.com/a.png?a=https://b.example.com/?sig=5ec4e7",
        "https://storage.example.com/a.png?sig='5ec4e7'",
        "https://storage.example.com/it's.png?Signature=5ec4e7",
        "https://storage.example.com/a b.png?Signature=5ec4e7",
        "gs://storage.example.com/a.png?X-Goog-Signature=5ec4e7",
    ],
)
def test_the_query_of_an_outputs_url_is_never_shown(url: str) -> None:
    """Who has it may download for an hour; `.url`, the dump and pickle keep it."""
    generation = snapshot("completed", output=[{"type": "image", "url": url}])
    (output,) = generation.output
    assert "5ec4e7" not in shown(output)
    assert "5ec4e7" not in shown(generation)
    assert output.url == url
    assert generation.model_dump()["output"][0]["url"] == url
    assert pickle.loads(pickle.dumps(output)).url == url


@pytest.mark.parametrize(
    "extra",
    [
        {"preview": URL},
        {"preview": {"small": {"url": URL}}},
        {"previews": [URL, [URL], {"url": URL}]},
        {URL: 1},
        {"failure_reason": f"failed to fetch {URL}."},
        {"output": [{"url": "https://example.com", "poster": URL}]},
        {"output": [{"url": "https://example.com", "layer": {"mask": [URL]}}]},
    ],
)
def test_the_query_of_a_url_is_not_shown_wherever_it_stands(extra: dict[str, Any]) -> None:
    """In fields that nobody knows yet, nested, in lists and within a text."""
    generation = snapshot(**extra)
    assert "5ec4e7" not in shown(generation)
    assert URL in generation.model_dump_json()


def test_what_is_no_secret_is_shown() -> None:
    """A repr tells the state, the id and where the file is."""
    words = shown(snapshot("completed"))
    for word in (ID, "completed", "https://storage.example.com/a.png"):
        assert word in words


# --- any answer at all ---------------------------------------------------------------------------

FIELDS = ["id", "state", "output", "type", "url", "layer", "index", "created_at", "failure_code"]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner),
    max_leaves=20,
)
GENERATIONS: st.SearchStrategy[dict[str, Any]] = st.builds(
    lambda extra, known: extra | known,
    st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON, max_size=4),
    st.fixed_dictionaries(
        {"id": st.text(), "state": st.sampled_from(["queued", "completed", "failed"]) | st.text()},
        optional={
            "output": JSON
            | st.lists(st.fixed_dictionaries({"url": st.text()}, optional={"layer": JSON}))
        },
    ),
)


def read_or_refuse(body: bytes) -> Generation | None:
    try:
        return read(body)
    except InvalidResponseError:
        return None


@given(JSON)
def test_any_json_is_a_generation_or_an_invalid_response(document: Any) -> None:
    """Nothing else is raised, and nothing that is shown fails."""
    generation = read_or_refuse(json.dumps(document).encode())
    assert generation is None or repr(generation)


@given(st.binary())
def test_any_bytes_are_a_generation_or_an_invalid_response(body: bytes) -> None:
    """A proxy may answer anything."""
    read_or_refuse(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b"[]",
        b"<html>busy</html>",
        b'"text"',
        b'{"id": 7, "state": "queued"}',
        b'{"id": "x"}',
        b'{"id": "x", "state": null}',
        b'{"id": "x", "state": "queued"',
        b'{"id": "\xff", "state": "queued"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: body[:40],
)
def test_what_is_no_generation_is_an_invalid_response(body: bytes) -> None:
    """Without an id and a state there is nothing to tell."""
    assert read_or_refuse(body) is None


def test_an_invalid_response_tells_what_is_wrong_and_no_secret() -> None:
    """The place and the problem, never the value."""
    with pytest.raises(InvalidResponseError, match=r"not a generation \(state: ") as caught:
        read(json.dumps({"id": ID, "state": [URL]}).encode())
    assert "5ec4e7" not in str(caught.value)
    assert (caught.value.generation_id, caught.value.retryable) == (ID, True)
    assert caught.value.__cause__ is caught.value.__context__ is None


@given(GENERATIONS)
def test_a_generation_survives_dump_and_parse(document: dict[str, Any]) -> None:
    """As an object, as JSON and pickled, with all that it does not know."""
    try:
        generation = Generation.model_validate(document)
    except ValidationError:
        assert document["state"] == "completed", "only its outputs may be unreadable"
        return
    assert Generation.model_validate(generation.model_dump()) == generation
    assert Generation.model_validate_json(generation.model_dump_json()) == generation
    assert pickle.loads(pickle.dumps(generation)) == generation
    assert repr(generation)


# --- age -----------------------------------------------------------------------------------------

CREATED = "2026-04-08T12:00:00Z"


@pytest.mark.parametrize(
    ("created_at", "date", "age"),
    [
        (CREATED, "Wed, 08 Apr 2026 12:01:30 GMT", 90),
        ("2026-04-08T14:00:00.5+02:00", "Wed, 08 Apr 2026 12:01:30 GMT", 89.5),
        (CREATED, "Wed, 08 Apr 2026 11:59:59 GMT", 0),  # to the second at best
        (CREATED, "Wed, 08 Apr 2026 11:00:00 GMT", None),  # from the future
        (CREATED, None, None),
        (CREATED, "soon", None),
        (CREATED, "Wed, 99 Apr 99999 11:00:00 GMT", None),
        ("created_at", "Wed, 08 Apr 2026 12:01:30 GMT", None),
        (None, "Wed, 08 Apr 2026 12:01:30 GMT", None),
        ("2026-04-08T12:00:00", "Wed, 08 Apr 2026 12:01:30 GMT", None),  # of which place?
    ],
)
def test_the_age_is_by_the_clock_of_the_server(
    created_at: str | None, date: str | None, age: float | None
) -> None:
    """From `created_at` to the `Date` of the answer; None where either makes no sense."""
    generation = note_answer(snapshot("processing", created_at=created_at), date=date)
    assert generation.age == age


def test_the_age_is_no_part_of_what_a_snapshot_says() -> None:
    """Two that say the same are equal; copies keep their age; dumps and reprs do not show it."""
    young = note_answer(
        snapshot("queued", created_at=CREATED), date="Wed, 08 Apr 2026 12:00:01 GMT"
    )
    old = note_answer(snapshot("queued", created_at=CREATED), date="Wed, 08 Apr 2026 13:00:00 GMT")
    assert young == old == snapshot("queued", created_at=CREATED)
    assert [copied.age for copied in (pickle.loads(pickle.dumps(old)), old.model_copy())] == [
        3600
    ] * 2
    assert "_date" not in old.model_dump()
    assert "13:00" not in repr(old)
    assert snapshot("queued", created_at=CREATED).age is None


# --- hints and hashes ----------------------------------------------------------------------------


def test_a_hint_belongs_to_its_answer_alone() -> None:
    """No copy, no pickle and no dump has it, and it is no part of what the snapshot says."""
    told = note_answer(snapshot("queued"), retry_after=7.0)
    assert snapshot_retry_after(told) == 7
    copies = [
        pickle.loads(pickle.dumps(told)),
        copy.copy(told),
        copy.deepcopy(told),
        told.model_copy(),
        Generation.model_validate(told.model_dump()),
    ]
    assert [snapshot_retry_after(copied) for copied in copies] == [None] * len(copies)
    assert [told] * len(copies) == copies
    assert "7" not in repr(told).replace(told.id, "")
    assert snapshot_retry_after(snapshot("queued", _retry_after=7)) is None


def test_a_snapshot_can_be_a_key() -> None:
    """Equal ones have the same hash; what the API adds to them may be of any type."""
    fields: dict[str, Any] = {"output": OUTPUT, "added": [{"a": []}]}
    first, second = snapshot("completed", **fields), snapshot("completed", **fields)
    assert first == second
    assert len({first, second, snapshot("queued"), pickle.loads(pickle.dumps(first))}) == 2
    assert len({first.output[0], second.output[0]}) == 1


HALF = "\ud83e"  # of a surrogate pair: what JavaScript's `slice` leaves of an emoji
WITH_HALVES: dict[str, Any] = {
    "id": ID,
    "state": "completed",
    "type": f"layering{HALF}",
    "failure_reason": f"a fox {HALF}",
    "output": [
        {
            "url": URL,
            "type": HALF,
            "layer": {"index": 0, "label": HALF, HALF: HALF},
            "new": [HALF],
        }
    ],
    "request": {"prompt": f"a fox {HALF}", HALF: {"deep": HALF}},
}


def doors() -> list[Any]:
    """All ways by which an answer becomes a generation."""
    text = json.dumps(WITH_HALVES)
    return [
        lambda: read_generation(text.encode(), ID),
        lambda: read_generation(
            json.dumps(WITH_HALVES, ensure_ascii=False).encode("utf-8", "surrogatepass"), ID
        ),
        lambda: as_generation(WITH_HALVES, ID),
        lambda: as_generation(MappingProxyType(WITH_HALVES), ID),
    ]


@pytest.mark.parametrize("door", range(4))
def test_half_of_a_character_never_loses_a_generation(door: int) -> None:
    """It is replaced on the way in, so that nothing behind it ever meets one."""
    generation = doors()[door]()
    assert generation.outputs[0].url == URL
    assert generation.outputs[0].layer is not None
    assert generation.outputs[0].layer.label == "\ufffd"
    assert generation.failure_reason == "a fox \ufffd"
    for text in (generation.model_dump_json(), repr(generation), f"{generation.model_dump()}"):
        text.encode()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_every_encoding_that_json_may_have(encoding: str) -> None:
    """A byte order mark in front, or another encoding than UTF-8, is no reason to lose it."""
    text = json.dumps({"id": ID, "state": "completed", "output": OUTPUT, "prompt": "a f\u00f6x"})
    assert read_generation(text.encode(encoding), ID).outputs[0].url == URL


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 990 + b"1" + b"}" * 990, b"9" * 5000],
)
def test_what_is_no_json_is_an_unreadable_answer(body: bytes) -> None:
    """Neither parser makes sense of it."""
    with pytest.raises(InvalidResponseError, match="not a generation"):
        read_generation(body, ID)


@pytest.mark.parametrize("depth", [150, 900, 5000])
def test_a_field_that_is_nested_deep_is_no_reason_to_crash(depth: int) -> None:
    """It is left out where it is too deep, or the answer is unreadable."""
    deep: Any = []
    for _ in range(depth):
        deep = [deep]
    for field in ("new", "type", "failure_reason"):
        try:
            generation = as_generation({"id": ID, "state": "queued", field: deep}, ID)
        except InvalidResponseError:
            continue
        assert generation.state == "queued"


@pytest.mark.parametrize("value", [7, None, [], {}, True, "text", [1], {"a": 1}])
@pytest.mark.parametrize(
    "name",
    [
        *("unreadable_output", "is_terminal", "outputs", "model_config", "model_dump", "age"),
        *("model_extra", "model_fields_set", "raise_for_failure", "__dict__", "_date", "__class__"),
    ],
)
def test_a_field_named_like_one_of_ours_never_collides(name: str, value: object) -> None:
    """The API may name its fields as it likes; ours keep their meaning."""
    fields = {"id": ID, "state": "completed", "output": [*OUTPUT, {}], name: value}
    for generation in (
        as_generation(fields, ID),
        read_generation(json.dumps(fields).encode(), ID),
    ):
        assert generation.is_terminal is True
        assert generation.age is None
        assert generation.outputs is generation.raise_for_failure().output
        assert generation.model_dump()[name] == value
        assert copy.copy(generation) == generation
        repr(generation)


LONG = "x" * 2_000_000


def test_what_is_kept_of_a_long_text_is_bounded() -> None:
    """Thousands of snapshots are held at the same time."""
    generation = as_generation(
        {
            "id": ID,
            "state": LONG,
            "model": LONG,
            "type": {"a": LONG},
            "created_at": LONG,
            "failure_code": LONG,
            "failure_reason": LONG,
            "new": {"a": [LONG]},
            "output": [{"url": URL, "type": LONG, "layer": {"index": 0, "label": LONG}}],
        }
    )
    assert len(generation.model_dump_json()) < 20_000
    assert generation.outputs[0].url == URL


def test_a_word_for_programs_has_no_line_ends() -> None:
    """A state is an event of an SSE stream, and stands in one line of a log."""
    generation = as_generation({"id": ID, "state": "new\nstate\r\n\x00", "type": "a\u2028b"})
    assert (generation.state, generation.type) == ("new state ", "a b")
