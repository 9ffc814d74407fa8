"""Simulated generations: their states over time, their durations and their outputs."""

import math
from dataclasses import dataclass
from random import Random
from typing import Any

from luma_poll.sandbox.clock import is_reached
from luma_poll.sandbox.scripts import Script

# Medians in seconds. uni-1: "p50 about 30 s" (quickstart). For uni-1-max and ray-3.2, Luma only
# says "well under 2 minutes" for video; resellers show 69 s, and 52 to 60 s.
MEDIAN_DURATIONS = {"uni-1": 30.0, "uni-1-max": 69.0, "ray-3.2": 55.0}
# Sigma of the log-normal: 95 % between half and twice the median, which for uni-1 are the
# "15 to 60 s" of the FAQ.
DURATION_SPREAD = 0.35
QUEUED_SHARE = 0.125  # of the duration
MODERATED_SHARE = 0.2  # of the duration: moderation is an early end
LAYERS = 3

# The texts of the error-handling guide; it shows none for the other codes.
FAILURE_REASONS = {
    "budget_exhausted": "Insufficient credits to complete this generation.",
    "content_moderated": "Generation output was flagged by our content moderation system.",
    "output_not_found": "Output artifacts not found",
}
OTHER_FAILURE_REASON = "Generation failed"


@dataclass(frozen=True, slots=True)
class Job:
    """A simulated generation; its state is a function of time.

    Attributes:
        id: The id, a UUID.
        client: The API key that submitted it.
        model: The model, such as `uni-1`.
        type: The type, such as `image`.
        created: When it was submitted, in seconds on the sandbox's clock.
        duration: Seconds from submission to the end.
        script: The tokens in its prompt.
    """

    id: str
    client: str
    model: str
    type: str
    created: float
    duration: float
    script: Script

    @property
    def ends(self) -> float:
        """The time when it completes or fails, in seconds on the sandbox's clock."""
        return self.created + self.duration


def state_at(job: Job, now: float) -> str:
    """Return the state of the generation at `now`."""
    if is_reached(job.ends, now):
        return "failed" if job.script.fail else "completed"
    if is_reached(job.created + QUEUED_SHARE * job.duration, now):
        return job.script.state
    return "queued"


def failure_at(job: Job, now: float) -> tuple[str, str] | tuple[None, None]:
    """Return the failure code and failure reason of the generation at `now`."""
    code = job.script.fail
    if code is None or not is_reached(job.ends, now):
        return None, None
    return code, FAILURE_REASONS.get(code, OTHER_FAILURE_REASON)


def outputs_at(job: Job, now: float) -> list[dict[str, Any]]:
    """Return the outputs of the generation at `now`, without their URLs."""
    if job.script.fail or not is_reached(job.ends, now):
        return []
    if job.type == "layering":
        count = LAYERS if job.script.outputs is None else job.script.outputs
        return [{"type": "image", "layer": _layer(index, count)} for index in range(count)]
    media_type = "video" if job.type.startswith("video") else "image"
    count = 1 if job.script.outputs is None else job.script.outputs
    return [{"type": media_type} for _ in range(count)]


def _layer(index: int, count: int) -> dict[str, Any]:
    is_background = index == count - 1
    return {
        "index": index,
        "label": "background" if is_background else f"element {index + 1}",
        "description": f"Layer {index + 1} of {count}, counted from the front",
        "alpha_hint": "none" if is_background else "soft" if index % 2 else "hard",
    }


def draw_duration(random: Random, model: str) -> float:
    """Draw a random duration in seconds, from the published timings of `model`."""
    return random.lognormvariate(math.log(MEDIAN_DURATIONS[model]), DURATION_SPREAD)


def choose_duration(script: Script, drawn: float) -> float:
    """Return the seconds that a generation takes: as scripted, else as drawn."""
    if script.duration is not None:
        return script.duration
    return drawn * MODERATED_SHARE if script.fail == "content_moderated" else drawn
