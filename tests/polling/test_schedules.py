"""Schedules that learn hear of each end, also inside tenacity's sums and chains."""

from dataclasses import dataclass, field

import pytest
from tenacity import RetryCallState, wait_chain, wait_fixed, wait_random
from tenacity.wait import wait_base

from luma_poll import AdaptiveWait, Generation, Poller
from luma_poll.typing import Schedule
from tests.fakes import ID, FakeClient

pytestmark = pytest.mark.anyio


@dataclass
class Learner(wait_base):
    """Not hashable, like any dataclass that can be compared."""

    ends: list[str] = field(default_factory=list)

    def __call__(self, retry_state: RetryCallState) -> float:
        return 2

    def observe(self, generation: Generation, *, after: float, by: float) -> None:
        self.ends.append(generation.id)


LEARNER = Learner()


@pytest.mark.parametrize(
    "wait",
    [
        LEARNER,
        LEARNER + wait_random(-1, 1),
        wait_fixed(1) + wait_fixed(1) + LEARNER,
        sum([LEARNER, wait_fixed(1)]),
        wait_chain(wait_fixed(1), LEARNER),
        wait_chain(wait_fixed(1) + LEARNER, LEARNER),
    ],
)
async def test_a_schedule_learns_inside_sums_and_chains(wait: Schedule) -> None:
    """Once for each end, however often it stands in there."""
    LEARNER.ends.clear()
    await Poller(FakeClient("queued", "queued", "completed"), wait=wait).wait(ID)
    assert LEARNER.ends == [ID]


async def test_adaptive_wait_learns_in_a_sum() -> None:
    """Jitter of one's own on top costs none of the learning."""
    adaptive = AdaptiveWait()
    poller = Poller(FakeClient("queued", "completed"), wait=adaptive + wait_random(-0.2, 0.2))
    await poller.wait(ID)
    assert adaptive.to_json() != AdaptiveWait().to_json()
