"""Submissions that the sandbox accepts, and those that it refuses as the API does."""

import collections.abc
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal, get_args, get_origin

import pytest
from luma_agents.types import GenerationCreateParams
from typing_extensions import get_type_hints, is_typeddict

from luma_poll.sandbox import Sandbox
from tests.sandbox.test_sandbox import connect, submit

URL = {"url": "https://example.com/a.jpg"}
DATA = {"data": "iVBORw0KGgo=", "media_type": "image/png"}
FILM = {"url": "https://example.com/a.mp4", "media_type": "video/mp4"}
VIDEO = {"model": "ray-3.2", "type": "video"}
EDIT = {"model": "ray-3.2", "type": "video_edit", "source": FILM}
REFRAME = {"model": "ray-3.2", "type": "video_reframe", "source": FILM}
POSITION = {"x_norm": -0.5, "y_norm": 0, "w_norm": 2, "h_norm": 2.0}


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {"style": "manga", "output_format": "jpeg", "web_search": True, "user_id": "u-1"},
        {"output_format": None, "user_id": None, "source": None, "video": None, "layering": None},
        {"image_ref": [URL, DATA, *[URL] * 7]},
        {"image_ref": [{"url": "HTTP://example.com", "data": None, "media_type": None}]},
        {"type": "image_edit", "source": DATA, "image_ref": [URL] * 8, "aspect_ratio": "9:16"},
        {"prompt": "", "type": "layering", "source": URL, "layering": {"resolution": "2k"}},
        {**VIDEO, "aspect_ratio": "21:9", "video": {"duration": "10s", "resolution": "1080p"}},
        {**VIDEO, "video": {"start_frame": URL, "end_frame": URL}},
        {**VIDEO, "video": {"hdr": True, "exr_export": True, "loop": False}},
        {**VIDEO, "video": {"loop": True, "start_frame": URL, "duration": "5s", "hdr": None}},
        {**VIDEO, "video": {"keyframes": [URL, DATA], "keyframe_indexes": [0, 120]}},
        {**EDIT, "video": {"edit": {"keyframes": [URL], "keyframe_indexes": [300]}}},
        {**EDIT, "video": {"edit": {"controls": {"depth": {"blur": 0.5}, "face": None}}}},
        {**EDIT, "video": {"start_frame": URL, "edit": {"strength": "flex_2"}}},
        {**REFRAME, "aspect_ratio": "9:16", "video": {"source_position": POSITION}},
    ],
)
async def test_all_that_is_documented_is_accepted(fields: dict[str, Any]) -> None:
    """All that the documentation allows is accepted, null too where the SDK's types have it."""
    async with connect(Sandbox()) as client:
        response = await client.post("/generations", json={"prompt": "A cat", **fields})
    assert response.status_code == 201, response.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"type": "video"}, "Type 'video' is not supported for model 'uni-1'"),
        ({"model": "ray-3.2"}, "Type 'image' is not supported for model 'ray-3.2'"),
        (
            {"model": "uni-1-max", "type": "layering", "source": URL},
            "Type 'layering' is not supported for model 'uni-1-max'",
        ),
        ({"type": None}, "Type 'None' is not supported for model 'uni-1'"),
        ({"model": None}, "Unknown model: None"),
        (
            {"aspect_ratio": "4:3"},
            "Invalid aspect_ratio '4:3'. Valid: 1:1, 1:2, 1:3, 16:9, 2:1, 2:3, 3:1, 3:2, 9:16",
        ),
        (
            {**VIDEO, "aspect_ratio": "1:3"},
            "Invalid aspect_ratio '1:3'. Valid: 1:1, 16:9, 21:9, 3:4, 4:3, 9:16",
        ),
        ({"output_format": "bmp"}, "Invalid output_format 'bmp'. Valid: png, jpeg"),
        ({"style": None}, "Invalid style 'None'. Valid: auto, manga"),
        ({"web_search": 1}, "web_search must be true or false"),
        ({"user_id": 7}, "user_id must be a string"),
        ({"image_ref": URL}, "image_ref must be an array"),
        ({"image_ref": [None]}, "image_ref[0] must be an object"),
        (
            {"image_ref": [URL, {**URL, **DATA}]},
            "image_ref[1]: provide either 'url' or 'data', not both",
        ),
        (
            {"image_ref": [{**URL, "generation_id": "x"}]},
            "image_ref[0]: provide one of 'url', 'data', 'generation_id', 'file_id'",
        ),
        (
            {"image_ref": [{"media_type": "image/png"}]},
            "image_ref[0]: provide one of 'url', 'data', 'generation_id', 'file_id'",
        ),
        (
            {"image_ref": [{"data": "iVBORw0KGgo="}]},
            "image_ref[0]: 'media_type' is required with 'data'",
        ),
        ({"image_ref": [URL] * 10}, "image supports up to 9 reference images"),
        (
            {"type": "image_edit", "source": URL, "image_ref": [URL] * 9},
            "image_edit supports up to 8 reference images (source occupies one slot)",
        ),
        ({"source": URL}, "source is only valid for type 'image_edit'"),
        ({"type": "image_edit"}, "source is required for type 'image_edit'"),
        ({"type": "layering", "source": None}, "source is required for type 'layering'"),
        ({**EDIT, "source": None}, "source is required for type 'video_edit'"),
        ({**REFRAME, "source": None}, "source is required for type 'video_reframe'"),
        (
            {**VIDEO, "source": FILM},
            "source is only valid for type 'video_edit' or 'video_reframe'",
        ),
        (
            {**EDIT, "source": {"url": "https://example.com/a.mp4"}},
            "source: 'media_type' is required with 'url' for videos",
        ),
        (
            {"type": "layering", "source": URL, "prompt": "x" * 501},
            "Prompt must be at most 500 characters",
        ),
        (
            {"type": "layering", "source": URL, "layering": {"resolution": "4k"}},
            "Invalid layering.resolution '4k'. Valid: 1k, 2k",
        ),
        ({"layering": {"resolution": "1k"}}, "layering is only valid for type 'layering'"),
        (
            {"video": {"duration": "5s"}},
            "video is only valid for type 'video' or 'video_edit' or 'video_reframe'",
        ),
        (
            {**VIDEO, "video": {"duration": "7s"}},
            "Invalid video.duration '7s'. Valid: 5s, 10s",
        ),
        (
            {**VIDEO, "video": {"edit": {"auto_controls": True}}},
            "video.edit is only valid for type 'video_edit'",
        ),
        ({**EDIT, "video": {"loop": True}}, "video.loop is only valid for type 'video'"),
        (
            {**VIDEO, "video": {"duration": "10s", "start_frame": URL}},
            "video.start_frame is not supported with video.duration=10s",
        ),
        (
            {**VIDEO, "video": {"loop": True, "hdr": True}},
            "video.loop is not supported with video.hdr",
        ),
        (
            {**VIDEO, "video": {"hdr": True, "resolution": "360p"}},
            "video.hdr is not supported with video.resolution=360p",
        ),
        ({**VIDEO, "video": {"exr_export": True}}, "video.exr_export requires video.hdr"),
        (
            {**VIDEO, "video": {"keyframes": [URL, URL], "keyframe_indexes": [0]}},
            "video.keyframe_indexes must match video.keyframes in length",
        ),
        (
            {**VIDEO, "video": {"keyframes": [URL, URL], "keyframe_indexes": [5, 5]}},
            "video.keyframe_indexes must be unique",
        ),
        (
            {**VIDEO, "video": {"keyframes": [URL], "keyframe_indexes": [121]}},
            "video.keyframe_indexes must be between 0 and 120",
        ),
        (
            {**VIDEO, "video": {"keyframes": [URL], "keyframe_indexes": [-1]}},
            "video.keyframe_indexes[0] must be a whole number, 0 or more",
        ),
        (
            {**VIDEO, "video": {"keyframes": [URL] * 65, "keyframe_indexes": [*range(65)]}},
            "video.keyframes supports up to 64 keyframes",
        ),
        (
            {
                **EDIT,
                "video": {
                    "start_frame": URL,
                    "edit": {"keyframes": [URL], "keyframe_indexes": [0]},
                },
            },
            "video.edit.keyframes is not supported with video.start_frame",
        ),
        (
            {**EDIT, "video": {"edit": {"controls": {"depth": {"blur": 1.5}}}}},
            "video.edit.controls.depth.blur must be between 0 and 1",
        ),
        (
            {**EDIT, "video": {"edit": {"controls": {"depth": {"blur": True}}}}},
            "video.edit.controls.depth.blur must be a number",
        ),
        (
            {**REFRAME, "video": {"source_position": {"x_norm": 0}}},
            "video.source_position.y_norm is required",
        ),
    ],
)
async def test_what_the_documentation_excludes(fields: dict[str, Any], detail: str) -> None:
    """All that the documentation excludes is answered 400, in the API's words if they are known."""
    async with connect(Sandbox()) as client:
        response = await client.post("/generations", json={"prompt": "A cat", **fields})
    assert (response.status_code, response.json()) == (400, {"detail": detail})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reference", "status", "detail"),
    [
        ({"data": "not-valid-base64!!!", "media_type": "image/png"}, 422, "invalid base64 data"),
        ({"data": "aé==", "media_type": "image/png"}, 422, "invalid base64 data"),
        ({"data": "AAAA", "media_type": "text/plain"}, 422, "content-type is not an image"),
        (FILM, 422, "content-type is not an image"),
        ({"url": "photos/a.jpg"}, 422, "failed to fetch URL"),
        ({"url": ""}, 422, "failed to fetch URL"),
        (
            {"data": "A" * 4 * (50 * 1024**2 // 3 + 1), "media_type": "image/png"},
            413,
            "image exceeds 50 MB limit",
        ),
    ],
)
async def test_references_that_cannot_be_used(
    reference: dict[str, str], status: int, detail: str
) -> None:
    """A picture that the API could not read is answered 422, one that is too large 413."""
    async with connect(Sandbox()) as client:
        for fields, path in (
            ({"image_ref": [URL, reference]}, "image_ref[1]"),
            ({"type": "image_edit", "source": reference}, "source"),
        ):
            response = await client.post("/generations", json={"prompt": "A cat", **fields})
            assert (response.status_code, response.json()["detail"]) == (
                status,
                f"{path}: {detail}",
            )


Build = Callable[[Any], Any]


def choices_of_the_sdk(
    hint: Any, path: str = "", build: Build = lambda value: value
) -> Iterator[tuple[str, set[str], Build]]:
    """All objects and enumerations among the SDK's parameters.

    Each with its path, its fields or values, and how a body is made of a value for it.
    """
    if type(None) in get_args(hint):
        (hint,) = set(get_args(hint)) - {type(None)}
    if is_typeddict(hint):
        fields = get_type_hints(hint)
        yield path, set(fields), lambda value: build({value: None})
        for name, inner in fields.items():
            yield from choices_of_the_sdk(
                inner,
                f"{path}.{name}".lstrip("."),
                lambda value, name=name: build({name: value}),  # type: ignore[misc]
            )
    elif get_origin(hint) is Literal:
        yield path, set(get_args(hint)), build
    elif get_origin(hint) is collections.abc.Iterable:
        (item,) = get_args(hint)
        yield from choices_of_the_sdk(item, f"{path}[0]", lambda value: build([value]))


CHOICES = {
    path: (known, build) for path, known, build in choices_of_the_sdk(GenerationCreateParams)
}
DEPENDENT = ("model", "type", "aspect_ratio")


@pytest.mark.anyio
@pytest.mark.parametrize("path", [path for path in CHOICES if path not in DEPENDENT])
async def test_parameters_are_those_of_the_sdk(path: str) -> None:
    """The sandbox knows the names and values that the official SDK's types know, and no others."""
    known, build = CHOICES[path]
    async with connect(Sandbox()) as client:
        response = await client.post("/generations", json={"prompt": "A cat", **build("modle")})
    assert response.status_code == 400
    said, _, valid = response.json()["detail"].partition(" Valid: ")
    assert set(valid.split(", ")) == known
    assert "modle" in said
    assert path in said


@pytest.mark.anyio
async def test_models_types_and_ratios_are_those_of_the_sdk() -> None:
    """Every model and type of the SDK can be submitted, and every ratio with one of them."""
    accepted: dict[str, set[str]] = {name: set() for name in DEPENDENT}
    async with connect(Sandbox()) as client:
        for values in product(*(CHOICES[name][0] for name in DEPENDENT)):
            fields = dict(zip(DEPENDENT, values, strict=True))
            for source in (URL | {"media_type": "image/png"}, None):
                body = {"prompt": "A cat", "source": source, **fields}
                if (await client.post("/generations", json=body)).status_code == 201:
                    for name, value in fields.items():
                        accepted[name].add(value)
    assert accepted == {name: CHOICES[name][0] for name in DEPENDENT}


@pytest.mark.anyio
async def test_extra_parameters() -> None:
    """Parameters that the API has learned since are accepted if they are named."""
    async with connect(Sandbox(extra_parameters=["seed", "style"])) as client:
        await submit(client, seed=[7])
        for fields, detail in (({"sed": 7}, "Unknown"), ({"style": "x"}, "Invalid style 'x'")):
            response = await client.post("/generations", json={"prompt": "A cat", **fields})
            assert response.status_code == 400
            assert response.json()["detail"].startswith(detail)
