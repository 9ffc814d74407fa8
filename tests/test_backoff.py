"""The pauses between tries: of the client, of downloads, of runs and of fleets."""

import pytest

from luma_poll._tasks.backoff import backoff, doubled


@pytest.mark.parametrize(("tries", "seconds"), [(1, 0.5), (2, 1.0), (4, 4.0), (5, 8.0), (99, 8.0)])
def test_the_backoff_doubles_up_to_a_limit(tries: int, seconds: float) -> None:
    """Less up to a quarter, by chance."""
    assert doubled(tries) == seconds
    pauses = {backoff(tries) for _ in range(100)}
    assert all(0.75 * seconds <= pause <= seconds for pause in pauses)
    assert len(pauses) > 1


def test_an_outage_of_a_day_is_no_overflow() -> None:
    """2.0 ** 1100 is one; what tries every 30 s until it is done comes that far in eight hours."""
    assert doubled(10_000, 0.2, 5.0) == 5.0
    assert doubled(3, 1.0, 30.0) == 4.0
