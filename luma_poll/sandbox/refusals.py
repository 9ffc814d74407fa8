"""The body of `POST /generations`: the valid parameters, and the refusals of all others.

Names and values are those of the official SDK, luma-agents 0.5.0. The rules for combining them are
from its docstrings, and from Luma's guides to errors and to videos. If the API's own message is not
known, it is made up in the same style.
"""

import json
import math
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, cast

Fields: TypeAlias = Mapping[str, Any]
Check: TypeAlias = Callable[[str, Any], None]
"""A function that takes a parameter's name and value; raises `RefusedError` for a bad value."""

MAX_PROMPT_LENGTH = 6000
MAX_LAYERING_PROMPT_LENGTH = 500
MAX_REFERENCES = 9
MAX_KEYFRAMES = 64
MAX_MEDIA_SIZE = 50 * 1024**2  # bytes
FRAMES_PER_SECOND = 24


class RefusedError(Exception):
    """The refusal of a submission, with its status and message."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status


@dataclass(frozen=True, slots=True)
class Submission:
    """A valid body, as far as the sandbox uses it.

    Attributes:
        prompt: The prompt, of up to 6000 characters.
        model: The model, such as `uni-1`.
        type: The type, such as `image`.
        parameters: All parameters as given, with `model` and `type` filled in.
    """

    prompt: str
    model: str
    type: str
    parameters: Fields


def parse_submission(body: bytes, extra_parameters: Collection[str] = ()) -> Submission:
    """Read the body of a request.

    Args:
        body: The body as received.
        extra_parameters: Names of further parameters, accepted with any value.

    Raises:
        RefusedError: The body is not valid.
    """
    given = _parse_object(body)
    model, kind = given.get("model", "uni-1"), given.get("type", "image")
    if model not in tuple(TYPES):
        raise RefusedError(f"Unknown model: {model}")
    if kind not in TYPES[model]:
        raise RefusedError(f"Type '{kind}' is not supported for model '{model}'")
    prompt = _check_prompt(given.get("prompt"), kind)
    record(**(dict.fromkeys(extra_parameters, anything) | parameters_of(kind)))("", given)
    for detail in _conflicts(kind, given):
        raise RefusedError(detail)
    return Submission(prompt, model, kind, {**given, "model": model, "type": kind})


def _parse_object(body: bytes) -> Fields:
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RefusedError("Request body must be a JSON object")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RefusedError("Request body must be valid Unicode: it has a lone surrogate") from None
    return cast(Fields, value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_prompt(prompt: object, kind: str) -> str:
    if kind == "layering":  # a hint only, so optional
        prompt = "" if prompt is None else prompt
        if not isinstance(prompt, str) or len(prompt) > MAX_LAYERING_PROMPT_LENGTH:
            raise RefusedError(f"Prompt must be at most {MAX_LAYERING_PROMPT_LENGTH} characters")
    elif not isinstance(prompt, str) or not 1 <= len(prompt) <= MAX_PROMPT_LENGTH:
        raise RefusedError(f"Prompt must be between 1 and {MAX_PROMPT_LENGTH} characters")
    return prompt


# Checks of one value


def anything(name: str, value: object) -> None:
    """Accept any value."""


def string(name: str, value: object) -> None:
    """Accept a string."""
    if not isinstance(value, str):
        raise RefusedError(f"{name} must be a string")


def boolean(name: str, value: object) -> None:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise RefusedError(f"{name} must be true or false")


def index(name: str, value: object) -> None:
    """Accept whole numbers from 0 up."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RefusedError(f"{name} must be a whole number, 0 or more")


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """Accept numbers from `low` to `high`."""

    def check(name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RefusedError(f"{name} must be a number")
        if not low <= value <= high:
            raise RefusedError(f"{name} must be between {low:g} and {high:g}")

    return check


def one_of(*values: str) -> Check:
    """Accept these strings."""

    def check(name: str, value: object) -> None:
        if value not in values:
            raise RefusedError(f"Invalid {name} '{value}'. Valid: {', '.join(values)}")

    return check


def nullable(check: Check) -> Check:
    """Accept null and whatever `check` accepts."""
    return lambda name, value: None if value is None else check(name, value)


def array(check: Check) -> Check:
    """Accept an array whose items `check` accepts."""

    def check_all(name: str, values: object) -> None:
        if not isinstance(values, list):
            raise RefusedError(f"{name} must be an array")
        for position, value in enumerate(values):
            check(f"{name}[{position}]", value)

    return check_all


def record(*required: str, **checks: Check) -> Check:
    """Accept an object with these fields, each checked by its own check; some are `required`."""

    def check_all(name: str, fields: object) -> None:
        if not isinstance(fields, dict):
            raise RefusedError(f"{name} must be an object")
        for field, value in cast(Fields, fields).items():
            path = f"{name}.{field}".lstrip(".")
            if field not in checks:
                raise RefusedError(f"Unknown parameter: {path}. Valid: {', '.join(sorted(checks))}")
            checks[field](path, value)
        for field in required:
            if field not in fields:
                raise RefusedError(f"{name}.{field} is required")

    return check_all


def reference(name: str, value: Any) -> None:
    """Accept an image or video: a URL, bytes in base64, or the id of a generation or file."""
    _reference_fields(name, value)
    given = {field: content for field, content in value.items() if content is not None}
    media_type = given.pop("media_type", None)
    if given.keys() >= {"url", "data"}:
        raise RefusedError(f"{name}: provide either 'url' or 'data', not both")
    if len(given) != 1:
        raise RefusedError(f"{name}: provide one of 'url', 'data', 'generation_id', 'file_id'")
    if "data" in given and media_type is None:
        raise RefusedError(f"{name}: 'media_type' is required with 'data'")
    if not (media_type or "image/").startswith(("image/", "video/")):
        raise RefusedError(f"{name}: content-type is not an image", 422)
    if not given.get("url", "https:").lower().startswith(("https:", "http:")):
        raise RefusedError(f"{name}: failed to fetch URL", 422)
    if _size_of_base64(name, given.get("data", "")) > MAX_MEDIA_SIZE:
        raise RefusedError(f"{name}: image exceeds 50 MB limit", 413)


def image(name: str, value: Any) -> None:
    """Accept a `reference` to an image."""
    reference(name, value)
    if (value.get("media_type") or "").startswith("video/"):
        raise RefusedError(f"{name}: content-type is not an image", 422)


def video_source(name: str, value: Any) -> None:
    """Accept a `reference` with a `media_type`, which a URL of a video needs."""
    reference(name, value)
    if value.get("url") and not value.get("media_type"):
        raise RefusedError(f"{name}: 'media_type' is required with 'url' for videos")


def _size_of_base64(name: str, data: str) -> int:
    try:
        return len(b64decode(data, validate=True))
    except ValueError:
        raise RefusedError(f"{name}: invalid base64 data", 422) from None


# Types and their parameters

TYPES: Mapping[str, Collection[str]] = {
    "uni-1": ("image", "image_edit", "layering"),
    "uni-1-max": ("image", "image_edit"),
    "ray-3.2": ("video", "video_edit", "video_reframe"),
}
"""The types of generation that each model supports."""

_IMAGE_RATIOS = ("1:1", "1:2", "1:3", "16:9", "2:1", "2:3", "3:1", "3:2", "9:16")
_VIDEO_RATIOS = ("1:1", "16:9", "21:9", "3:4", "4:3", "9:16")
ASPECT_RATIOS: Mapping[str, Collection[str]] = {
    "image": _IMAGE_RATIOS,
    "image_edit": _IMAGE_RATIOS,
    "layering": (*_IMAGE_RATIOS, "21:9", "3:4", "4:3"),  # the true set is not known
    "video": _VIDEO_RATIOS,
    "video_edit": _VIDEO_RATIOS,
    "video_reframe": _VIDEO_RATIOS,
}
SOURCES: Mapping[str, Check] = {
    "image_edit": image,
    "layering": image,
    "video_edit": video_source,
    "video_reframe": video_source,
}
"""The types that need a source, and how it is checked."""

_reference_fields = record(
    url=nullable(string),
    data=nullable(string),
    media_type=nullable(string),
    generation_id=nullable(string),
    file_id=nullable(string),
)
_switch = nullable(boolean)
_share = nullable(number(0, 1))
_keyframes = {"keyframes": nullable(array(image)), "keyframe_indexes": nullable(array(index))}
_strengths = [f"{word}_{step}" for word in ("adhere", "flex", "reimagine") for step in (1, 2, 3)]
_controls = record(
    depth=nullable(record(enabled=_switch, blur=_share)),
    face=nullable(record(enabled=_switch)),
    normals=nullable(record(enabled=_switch, augmentation=_share)),
    pose=nullable(record(enabled=_switch, strength=nullable(one_of("precise", "coarse")))),
    trajectory=nullable(record(enabled=_switch, sparsity=_share)),
)
_edit = record(
    auto_controls=_switch,
    controls=nullable(_controls),
    strength=nullable(one_of(*_strengths)),
    **_keyframes,
)
_source_position = record(
    *("x_norm", "y_norm", "w_norm", "h_norm"),
    x_norm=number(),
    y_norm=number(),
    w_norm=number(0),
    h_norm=number(0, 2),
)
_video = record(
    duration=nullable(one_of("5s", "10s")),
    edit=nullable(_edit),
    end_frame=nullable(image),
    exr_export=_switch,
    hdr=_switch,
    loop=_switch,
    resolution=nullable(one_of("360p", "540p", "720p", "1080p")),
    source_position=nullable(_source_position),
    start_frame=nullable(image),
    **_keyframes,
)


def parameters_of(kind: str) -> dict[str, Check]:
    """Return the parameters of a generation of this type, each with its own check."""
    return {
        "aspect_ratio": nullable(one_of(*ASPECT_RATIOS[kind])),
        "image_ref": array(image),
        "layering": nullable(record(resolution=one_of("1k", "2k"))),
        "model": string,
        "output_format": nullable(one_of("png", "jpeg")),
        "prompt": anything,
        "source": nullable(SOURCES.get(kind, reference)),
        "style": one_of("auto", "manga"),
        "type": string,
        "user_id": nullable(string),
        "video": nullable(_video),
        "web_search": boolean,
    }


# Combinations that are not valid

ONLY_FOR: Mapping[str, Collection[str]] = {
    "layering": ("layering",),
    "video": ("video", "video_edit", "video_reframe"),
    "video.edit": ("video_edit",),
    "video.hdr": ("video", "video_edit"),
    "video.keyframes": ("video",),
    "video.loop": ("video",),
    "video.source_position": ("video_reframe",),
}
"""Parameters that only some types have."""

EXCLUDES: Mapping[str, Collection[str]] = {
    "loop": ("duration=10s", "hdr", "end_frame", "keyframes"),
    "hdr": ("duration=10s", "resolution=360p", "resolution=540p"),
    "start_frame": ("duration=10s", "keyframes"),
    "end_frame": ("duration=10s", "keyframes"),
}
"""Video options that exclude others."""


def _conflicts(kind: str, given: Fields) -> Iterator[str]:
    """Yield the reasons to refuse parameters that are valid one by one but not together."""
    if kind in SOURCES and not given.get("source"):
        yield f"source is required for type '{kind}'"
    if kind not in SOURCES and given.get("source"):
        needing = "image_edit" if kind == "image" else "video_edit' or 'video_reframe"
        yield f"source is only valid for type '{needing}'"
    references = len(given.get("image_ref", ()))
    if kind == "image_edit" and references > MAX_REFERENCES - 1:
        yield "image_edit supports up to 8 reference images (source occupies one slot)"
    if references > MAX_REFERENCES:
        yield f"{kind} supports up to {MAX_REFERENCES} reference images"
    for path, kinds in ONLY_FOR.items():
        if kind not in kinds and _look_up(given, path):
            types = " or ".join(f"'{each}'" for each in kinds)
            yield f"{path} is only valid for type {types}"
    yield from _video_conflicts(kind, given.get("video") or {})


def _look_up(given: Fields, path: str) -> Any:
    value: Any = given
    for name in path.split("."):
        value = (value or {}).get(name)
    return value


def _video_conflicts(kind: str, video: Fields) -> Iterator[str]:
    chosen = {name for name, value in video.items() if value}
    chosen |= {f"{name}={value}" for name, value in video.items() if isinstance(value, str)}
    for option, others in EXCLUDES.items():
        for other in others:
            if kind == "video" and {option, other} <= chosen:
                yield f"video.{option} is not supported with video.{other}"
    if "exr_export" in chosen and "hdr" not in chosen:
        yield "video.exr_export requires video.hdr"
    seconds = 10 if "duration=10s" in chosen else 5
    yield from _keyframe_conflicts("video", video, last=seconds * FRAMES_PER_SECOND)
    edit = video.get("edit") or {}
    if edit.get("keyframes") and "start_frame" in chosen:
        yield "video.edit.keyframes is not supported with video.start_frame"
    yield from _keyframe_conflicts("video.edit", edit, last=math.inf)


def _keyframe_conflicts(path: str, options: Fields, last: float) -> Iterator[str]:
    indexes = options.get("keyframe_indexes") or []
    count = len(options.get("keyframes") or [])
    if count > MAX_KEYFRAMES:
        yield f"{path}.keyframes supports up to {MAX_KEYFRAMES} keyframes"
    if len(indexes) != count:
        yield f"{path}.keyframe_indexes must match {path}.keyframes in length"
    if len(set(indexes)) != len(indexes):
        yield f"{path}.keyframe_indexes must be unique"
    if max(indexes, default=0) > last:
        yield f"{path}.keyframe_indexes must be between 0 and {last:g}"
