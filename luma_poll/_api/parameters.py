"""The parameters of `generations.create`, for type checkers and editors.

Names and values are the API's own, and the API checks them; the types here are not enforced. Any
string is accepted for a parameter to which the API may add values.
https://docs.agents.lumalabs.ai/api/resources/generations/methods/create
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

from luma_poll.models import GenerationLike

F = TypeVar("F", bound=Callable[..., object])

Model: TypeAlias = Literal["uni-1", "uni-1-max", "ray-3.2"] | str
"""The model: `uni-1` and `uni-1-max` make images, `ray-3.2` makes videos."""
GenerationType: TypeAlias = (
    Literal["image", "image_edit", "video", "video_edit", "video_reframe", "layering"] | str
)
"""The kind of generation."""
AspectRatio: TypeAlias = (
    Literal["3:1", "2:1", "21:9", "16:9", "4:3", "3:2", "1:1", "3:4", "2:3", "9:16", "1:2", "1:3"]
    | str
)
"""Width to height. Which of them a model accepts depends on the model and on the type."""


class MediaRef(TypedDict, total=False):
    """An image or a video as input: exactly one of `url`, `data`, `generation_id` and `file_id`.

    Attributes:
        url: A public address.
        data: The bytes in Base64; needs `media_type`.
        generation_id: The id of an earlier generation of the same account.
        file_id: The id of an uploaded file that is ready.
        media_type: The media type, such as `image/jpeg` or `video/mp4`.
    """

    url: str | None
    data: str | None
    generation_id: str | None
    file_id: str | None
    media_type: str | None


class SupportsRead(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int = ..., /) -> bytes: ...


class SupportsSave(Protocol):
    """An image in memory, such as Pillow's `Image`."""

    def save(self, fp: Any, format: str | None = ...) -> object: ...  # noqa: A002 (its name)


Media: TypeAlias = (
    MediaRef | os.PathLike[str] | bytes | SupportsRead | SupportsSave | GenerationLike
)
"""An image or a video as input: a reference, or anything that can be turned into one."""


class Layering(TypedDict, total=False):
    """Options of the type `layering`.

    Attributes:
        resolution: The resolution of each layer; `2k` costs more.
    """

    resolution: Literal["1k", "2k"] | str


class PoseControl(TypedDict, total=False):
    """The control of how closely an edit follows the poses of its source."""

    enabled: bool | None
    strength: Literal["precise", "coarse"] | str | None


class DepthControl(TypedDict, total=False):
    """The control of how closely an edit follows the depth of its source.

    Attributes:
        blur: From 0 to 1; more leaves the geometry freer.
    """

    enabled: bool | None
    blur: float | None


class NormalsControl(TypedDict, total=False):
    """The control of how closely an edit follows the surfaces of its source.

    Attributes:
        augmentation: From 0 to 1; more leaves the surfaces freer.
    """

    enabled: bool | None
    augmentation: float | None


class FaceControl(TypedDict, total=False):
    """The choice to keep the faces of the source of an edit."""

    enabled: bool | None


class TrajectoryControl(TypedDict, total=False):
    """The control of how closely an edit follows the motion of its source.

    Attributes:
        sparsity: From 0 to 1; more follows fewer points.
    """

    enabled: bool | None
    sparsity: float | None


class VideoControls(TypedDict, total=False):
    """The controls of a video edit; the model has defaults for those left out."""

    pose: PoseControl | None
    depth: DepthControl | None
    normals: NormalsControl | None
    face: FaceControl | None
    trajectory: TrajectoryControl | None


class VideoEdit(TypedDict, total=False):
    """Options of the type `video_edit`, whose source lasts 18 seconds at most.

    Attributes:
        strength: The freedom of the edit: from `adhere_1` over `flex_1` to `reimagine_3`.
        auto_controls: True to let the model choose the controls.
        controls: The controls, chosen by hand.
        keyframes: Images to pass through; not together with `VideoOptions.start_frame`.
        keyframe_indexes: The frame of the source for each of `keyframes`.
    """

    strength: (
        Literal["adhere_1", "adhere_2", "adhere_3", "flex_1", "flex_2", "flex_3"]
        | Literal["reimagine_1", "reimagine_2", "reimagine_3"]
        | str
        | None
    )
    auto_controls: bool | None
    controls: VideoControls | None
    keyframes: Sequence[Media] | None
    keyframe_indexes: Sequence[int] | None


class SourcePosition(TypedDict):
    """The rectangle of the source in a reframed video, in fractions of the new width and height.

    Attributes:
        x_norm: Left edge; may be negative.
        y_norm: Top edge; may be negative.
        w_norm: Width.
        h_norm: Height, up to 2.
    """

    x_norm: float
    y_norm: float
    w_norm: float
    h_norm: float


class VideoOptions(TypedDict, total=False):
    """Options of the types `video`, `video_edit` and `video_reframe`.

    Attributes:
        duration: `5s` or `10s`.
        resolution: `360p` is for drafts.
        loop: True to end on the first frame; not with `10s` or `hdr`.
        hdr: True for high dynamic range; your account needs access.
        exr_export: True to get an EXR file as well; needs `hdr`.
        start_frame: The first frame; a `generation_id` continues that video.
        end_frame: The last frame.
        keyframes: Images to pass through, instead of `start_frame` and `end_frame`.
        keyframe_indexes: The frame (24 a second) for each of `keyframes`.
        edit: The options of the type `video_edit`.
        source_position: The place of the source, for the type `video_reframe`; by default centred.
    """

    duration: Literal["5s", "10s"] | str | None
    resolution: Literal["360p", "540p", "720p", "1080p"] | str | None
    loop: bool | None
    hdr: bool | None
    exr_export: bool | None
    start_frame: Media | None
    end_frame: Media | None
    keyframes: Sequence[Media] | None
    keyframe_indexes: Sequence[int] | None
    edit: VideoEdit | None
    source_position: SourcePosition | None


class CreateParams(TypedDict, total=False):
    """The parameters of `generations.create` besides the prompt; None means "not given".

    Attributes:
        model: The model; by default `uni-1`.
        type: The kind of generation; by default `image`.
        aspect_ratio: Width to height.
        image_ref: Images for style and content: up to 9 for `image`, 8 for `image_edit`.
        source: The image or video to edit, reframe or decompose.
        output_format: The file format of images.
        style: A preset.
        web_search: True to let the model search the web for references first.
        layering: Options of the type `layering`.
        video: Options of the types `video`, `video_edit` and `video_reframe`.
        user_id: A stable and opaque id of your user, for usage and trust-and-safety reports.
    """

    model: Model | None
    type: GenerationType | None
    aspect_ratio: AspectRatio | None
    image_ref: Sequence[Media] | None
    source: Media | None
    output_format: Literal["png", "jpeg"] | str | None
    style: Literal["auto", "manga"] | str | None
    web_search: bool | None
    layering: Layering | None
    video: VideoOptions | None
    user_id: str | None


Params: TypeAlias = dict[str, Any]
"""The parameters of one submission, by their names: those of `create`, and newer ones."""


def explicit(function: F) -> F:
    """Show the parameters of `create` in the signature of a function that takes `**params`.

    They are for `help()`, IPython and other tools that read the signature; type checkers and
    editors know them from the annotation.
    """
    shown = signature(function)
    # A TypedDict keeps its annotations as ForwardRefs; functions, and `help()`, show plain texts.
    known = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kept.__forward_arg__)
        for name, kept in CreateParams.__annotations__.items()
    ]
    last = list(shown.parameters.values())[-1]
    newer = last.replace(annotation=Parameter.empty)
    own = list(shown.parameters.values())[:-1]
    function.__signature__ = shown.replace(parameters=[*own, *known, newer])  # type: ignore[attr-defined]
    return function
