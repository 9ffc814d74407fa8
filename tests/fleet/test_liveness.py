"""Who is dead? Decided on what one worker sees of the others."""

from luma_poll._fleet.liveness import LEFT, Watch


def test_a_worker_that_does_not_beat_is_dead() -> None:
    """After the patience, and not before; one that beats lives."""
    watch = Watch(patience=6)
    dead = [watch.look({"still": 7, "alive": beat + 1}, now=2.0 * beat) for beat in range(5)]
    assert dead == [[], [], [], ["still"], ["still"]]


def test_a_worker_that_has_left_is_dead_at_once() -> None:
    """It said so itself."""
    assert Watch(patience=6).look({"left": LEFT, "alive": 1}, now=0) == ["left"]


def test_nobody_is_judged_for_a_time_that_nobody_saw() -> None:
    """After an outage of the database, or a stop of the watcher, all have their patience again."""
    watch = Watch(patience=6)
    watch.look({"other": 7}, now=0)
    assert watch.look({"other": 7}, now=40) == []
    assert watch.look({"other": 7}, now=42) == []
    assert watch.look({"other": 7}, now=44) == []
    assert watch.look({"other": 7}, now=46) == ["other"]


def test_a_worker_that_returns_lives_again() -> None:
    """With another beat than the one it had."""
    watch = Watch(patience=2)
    watch.look({"other": 7}, now=0)
    watch.look({"other": 7}, now=1)
    assert watch.look({"other": 7}, now=2) == ["other"]
    assert watch.look({"other": 8}, now=3) == []
    assert watch.look({}, now=4) == []
