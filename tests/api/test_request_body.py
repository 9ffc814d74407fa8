"""The parameters of a submission on their way: checked, described, and sent."""

import json
import math
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luma_poll import ConfigurationError, Generation, RunResult
from luma_poll._api.request_body import described, encoded, read_params, uploaded
from luma_poll._texts import brief
from luma_poll.events import Run, RunBegan
from tests.api.test_media_reference import PNG, WEBP
from tests.fakes import ID

FOX = {"prompt": "a fox"}


@pytest.mark.parametrize(
    "params",
    [
        {"source": WEBP},
        {"image_ref": [WEBP, PNG]},
        {"video": {"start_frame": WEBP, "end_frame": PNG}},
        {"video": {"keyframes": (WEBP,)}},
        {"video": {"edit": {"keyframes": [WEBP]}}},
        {"newer": {"mask": WEBP}},
    ],
)
@pytest.mark.anyio
async def test_media_are_taken_everywhere(params: dict[str, Any]) -> None:
    """Where the API takes a reference, and where it may take one tomorrow."""
    text = json.dumps(await encoded(read_params({**FOX, **params})))
    assert '"media_type": "image/webp"' in text
    assert "data" not in json.dumps(described(read_params({**FOX, **params})))


def test_what_was_given_may_change_afterwards() -> None:
    """A caller may use a mapping again for the next row."""
    video: dict[str, Any] = {"duration": "5s", "keyframe_indexes": [1]}
    params = read_params({**FOX, "video": video})
    video["duration"] = "10s"
    video["keyframe_indexes"].append(2)
    assert params["video"] == {"duration": "5s", "keyframe_indexes": [1]}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"source": "photo.png"}, r"source is text, not a media reference: write Path"),
        ({"source": "https://a.example/b.png"}, r"source is text.*write {'url'"),
        ({"image_ref": ["b.png"]}, r"image_ref\[0\] is text"),
        ({"image_ref": WEBP}, r"image_ref is a list of media references, not one"),
        ({"image_ref": Path("a.png")}, r"image_ref is a list"),
        ({"image_ref": "a.png"}, r"image_ref is a list of media references, not text"),
        ({"video": {"start_frame": Path("gone.png")}}, r"video\.start_frame: gone\.png cannot"),
        ({"video": {"keyframes": [b"text"]}}, r"video\.keyframes\[0\]: .* no known type"),
        ({"source": Generation(id=ID, state="failed")}, r"source: the generation .* failed"),
        ({"seed": math.nan}, r"seed is nan, which is not JSON"),
        ({"video": {"blur": [math.inf]}}, r"video\.blur\[0\] is inf"),
        ({"user_id": "\ud83d"}, r"user_id is not text"),
        ({"prompt": "a \ud83d fox"}, r"prompt is not text"),
        ({"tags": {1, 2}}, r"tags is neither JSON nor .* but set"),
        ({"video": {7: "x"}}, r"video: a name in it is a string, not 7"),
        ({7: "x"}, r"a parameter's name is a string, not 7"),
        ({"prompt": None}, r"prompt must be a string that is not blank"),
        ({"prompt": " "}, r"prompt must be a string that is not blank"),
        ({"prompt": 7, "type": "layering"}, r"prompt must be a string"),
    ],
)
def test_what_is_unusable_is_named(params: Any, said: str) -> None:
    """By its place, in one line."""
    with pytest.raises(ConfigurationError, match=said) as refused:
        read_params({**FOX, **params})
    assert "\n" not in str(refused.value)


def test_a_cycle_ends() -> None:
    """It is no JSON either."""
    cycle: dict[str, Any] = {}
    cycle["video"] = cycle
    with pytest.raises(ConfigurationError, match="video is nested too deeply"):
        read_params({**FOX, **cycle})


def test_a_layering_needs_no_prompt() -> None:
    """The API documents it as a hint."""
    assert read_params({"prompt": None, "type": "layering"}) == {"type": "layering"}
    assert read_params({"prompt": "", "type": "layering"})["prompt"] == ""


def test_ids_may_be_uuids_and_none_means_not_given() -> None:
    """As everywhere else."""
    params = read_params({**FOX, "source": {"generation_id": uuid.UUID(ID)}, "style": None})
    assert params == {**FOX, "source": {"generation_id": ID}}


def test_the_same_bytes_are_the_same_request(tmp_path: Path) -> None:
    """From a file, from another file, from memory, or in Base64."""
    path = tmp_path / "a.webp"
    path.write_bytes(WEBP)
    data = read_params({**FOX, "source": WEBP})["source"].as_data()
    one, two, three = (
        described(read_params({**FOX, "source": source})) for source in (path, WEBP, data)
    )
    assert one == two == three
    assert one != described(read_params({**FOX, "source": PNG}))
    assert one["source"]["bytes"] == len(WEBP)


@pytest.mark.anyio
async def test_what_is_too_large_is_uploaded_and_what_is_not_is_sent() -> None:
    """Each where it is cheaper."""

    async def upload(found: Any) -> str:
        return f"file-of-{found.media_type}"

    params = read_params({**FOX, "source": WEBP, "image_ref": [PNG + bytes(100)]})
    sent = await uploaded(params, upload, larger_than=100)
    assert sent["image_ref"] == [{"file_id": "file-of-image/png"}]
    assert sent["source"] is params["source"]
    with pytest.raises(ConfigurationError, match=r"client\.files\.upload"):
        await uploaded(params, None, larger_than=100)


def test_a_request_shows_itself_in_short() -> None:
    """Its bytes and data are counted, the rest is there."""
    shown = repr(brief({**FOX, "source": WEBP, "image_ref": [{"data": "aGk=" * 1000}]}))
    assert shown == (
        "{'prompt': 'a fox', 'source': <56 bytes>, 'image_ref': [{'data': <4,000 characters>}]}"
    )


def test_a_result_shows_its_request_in_short() -> None:
    """A list of results in a notebook is not fifty megabytes of one picture."""
    result = RunResult({**FOX, "source": bytes(10**6)}, None)
    assert repr(result).startswith(
        "RunResult(request={'prompt': 'a fox', 'source': <1,000,000 bytes>}, generation=None, "
    )


def test_an_event_shows_its_request_in_short() -> None:
    """So that an observer may print each."""
    run = Run(0, {**FOX, "source": bytes(10**6)}, None, ())
    assert repr(RunBegan(run, 1, None)) == (
        "RunBegan(run=Run(number=0, request={'prompt': 'a fox', 'source': <1,000,000 bytes>}, "
        "key=None), attempt=1, generation=None)"
    )


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"])),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
            ),
            max_leaves=10,
        ),
    )
)
def test_json_passes_as_it_is(newer: dict[str, Any]) -> None:
    """Parameters that the API has learned since are none of our business."""
    params = {"a newer one": newer, **FOX}
    assert read_params(params) == params
