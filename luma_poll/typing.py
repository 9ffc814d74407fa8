"""The types in the signatures of luma-poll, for annotations of your own.

    from luma_poll.typing import USE_DEFAULT, AnyGeneration, Schedule, UseDefault

    async def first_url(
        poller: Poller, generation: AnyGeneration, timeout: float | UseDefault | None = USE_DEFAULT
    ) -> str:
        return (await poller.wait(generation, timeout=timeout))[0].url

At runtime you need only `USE_DEFAULT`, the value of a timeout that is not given.
"""

from luma_poll._api.parameters import (
    AspectRatio,
    CreateParams,
    DepthControl,
    FaceControl,
    GenerationType,
    Layering,
    Media,
    MediaRef,
    Model,
    NormalsControl,
    PoseControl,
    SourcePosition,
    SupportsRead,
    SupportsSave,
    TrajectoryControl,
    VideoControls,
    VideoEdit,
    VideoOptions,
)
from luma_poll._arguments import USE_DEFAULT, UseDefault
from luma_poll._downloads.download import Downloadable
from luma_poll._downloads.saving import Overwrite
from luma_poll._journal.entry import EntryState
from luma_poll._polling.poller import AnyGeneration, SupportsGenerations, SupportsGet
from luma_poll._polling.schedules import Observer, Schedule
from luma_poll._running.request_files import RequestFile, RequestFormat
from luma_poll._running.requests import AnyRequest
from luma_poll._running.submitter import SupportsCreate, SupportsGetAndCreate
from luma_poll.models import GenerationLike

__all__ = [
    "USE_DEFAULT",
    "AnyGeneration",
    "AnyRequest",
    "AspectRatio",
    "CreateParams",
    "DepthControl",
    "Downloadable",
    "EntryState",
    "FaceControl",
    "GenerationLike",
    "GenerationType",
    "Layering",
    "Media",
    "MediaRef",
    "Model",
    "NormalsControl",
    "Observer",
    "Overwrite",
    "PoseControl",
    "RequestFile",
    "RequestFormat",
    "Schedule",
    "SourcePosition",
    "SupportsCreate",
    "SupportsGenerations",
    "SupportsGet",
    "SupportsGetAndCreate",
    "SupportsRead",
    "SupportsSave",
    "TrajectoryControl",
    "UseDefault",
    "VideoControls",
    "VideoEdit",
    "VideoOptions",
]
