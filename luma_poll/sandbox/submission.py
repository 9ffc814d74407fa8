"""What a client may submit: the body of `POST /generations`."""

import json
from dataclasses import dataclass
from typing import Any, cast

# All from the types of the official SDK, luma-agents 0.5.0. Tuples, not sets: a JSON value may be
# unhashable.
MODELS = ("uni-1", "uni-1-max", "ray-3.2")
TYPES = ("image", "image_edit", "video", "video_edit", "video_reframe", "layering")
ASPECT_RATIOS = (
    *("3:1", "2:1", "21:9", "16:9", "4:3", "3:2"),
    *("1:1", "3:4", "2:3", "9:16", "1:2", "1:3"),
)
VIDEO_MODEL = "ray-3.2"
MAX_PROMPT_LENGTH = 6000


@dataclass(frozen=True, slots=True)
class Submission:
    """A valid body of `POST /generations`, as far as the sandbox uses it.

    Attributes:
        prompt: 1 to 6000 characters.
        model: For example `uni-1`.
        type: For example `image`.
    """

    prompt: str
    model: str
    type: str


def parse_submission(body: bytes) -> Submission:
    """Read the body of a request; what the sandbox does not use, it does not check.

    Raises:
        ValueError: The API would answer 400; the message is its text.
    """
    fields = _parse_object(body)
    model, kind = fields.get("model"), fields.get("type")
    if model is None:
        model = VIDEO_MODEL if str(kind).startswith("video") else "uni-1"
    if kind is None:
        kind = "video" if model == VIDEO_MODEL else "image"
    if model not in MODELS:
        raise ValueError(f"Unknown model: {model}")
    if kind not in TYPES:
        raise ValueError(f"Invalid type '{kind}'. Valid: {', '.join(TYPES)}")
    ratio = fields.get("aspect_ratio")
    if ratio is not None and ratio not in ASPECT_RATIOS:
        raise ValueError(f"Invalid aspect_ratio '{ratio}'. Valid: {', '.join(ASPECT_RATIOS)}")
    return Submission(prompt=_check_prompt(fields.get("prompt")), model=model, type=kind)


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError("Request body must be a JSON object")
    return cast(dict[str, Any], value)


def _check_prompt(prompt: object) -> str:
    if not isinstance(prompt, str) or not 1 <= len(prompt) <= MAX_PROMPT_LENGTH:
        raise ValueError(f"Prompt must be between 1 and {MAX_PROMPT_LENGTH} characters")
    return prompt
