"""Processes that die while they submit: nothing is submitted twice, and nothing is lost."""

import signal
from pathlib import Path

import pytest

from tests.journal.kills import campaign

pytestmark = pytest.mark.asyncio


@pytest.mark.posix
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_killed_process_submits_nothing_twice(tmp_path: Path, backend: str) -> None:
    """What was under way is called unknown; all the rest ends, with the ids that it had."""
    tally = await campaign(
        tmp_path, rounds=2, number=20, end_by=signal.SIGKILL, backend=backend, seed=7
    )
    assert (tally.twice, tally.lost) == (0, 0)
    assert tally.completed + tally.unknown == 20
    assert tally.unknown <= 2 * 8  # no more than were under way at the kills


@pytest.mark.posix
async def test_forks_that_end_change_nothing(tmp_path: Path) -> None:
    """A process whose children end all the time, killed: as one that has none."""
    tally = await campaign(
        tmp_path,
        rounds=2,
        number=20,
        end_by=signal.SIGKILL,
        backend="asyncio",
        seed=13,
        forks=True,
    )
    assert (tally.twice, tally.lost) == (0, 0)
    assert tally.completed + tally.unknown == 20


@pytest.mark.posix
@pytest.mark.parametrize("end_by", ["SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_terminated_process_leaves_nothing_unknown(
    tmp_path: Path, backend: str, end_by: str
) -> None:
    """It lets the submissions under way end, and records their ids."""
    number = signal.Signals[end_by]
    tally = await campaign(tmp_path, rounds=2, number=20, end_by=number, backend=backend, seed=11)
    assert (tally.twice, tally.lost, tally.unknown) == (0, 0, 0)
    assert tally.completed == 20
