"""One event loop after the other, and never two at once."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from luma_poll import ConfigurationError
from luma_poll._tasks.event_loops import LoopGuard

RUN: dict[str, Callable[..., Any]] = {
    "asyncio": anyio.run,
    "uvloop": partial(anyio.run, backend_options={"use_uvloop": True}),
    "trio": partial(anyio.run, backend="trio"),
}


@pytest.fixture
def guard() -> LoopGuard:
    """Guards nothing."""
    return LoopGuard("Poller")


@pytest.mark.anyio
async def test_only_the_first_use_in_an_event_loop_is_new(guard: LoopGuard) -> None:
    """From then on all tasks share what was made."""
    entered: list[bool] = []

    async def enter() -> None:
        entered.append(guard.enter())

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(enter)
    assert entered == [True, False, False]


@pytest.mark.parametrize("first", RUN)
@pytest.mark.parametrize("second", RUN)
def test_after_an_event_loop_that_ended_everything_begins_anew(
    guard: LoopGuard, first: str, second: str
) -> None:
    """Of whatever kind they are."""

    async def enter() -> list[bool]:
        return [guard.enter(), guard.enter()]

    assert RUN[first](enter) == [True, False]
    assert RUN[second](enter) == [True, False]


def test_an_event_loop_that_stands_still_has_lost_its_claim(guard: LoopGuard) -> None:
    """It may never run again, as those between two tests; if it does, it has its turn anew."""

    async def enter() -> bool:
        return guard.enter()

    loops = [asyncio.new_event_loop(), asyncio.new_event_loop()]
    try:
        for loop in loops * 2:
            assert loop.run_until_complete(enter())
            assert not loop.run_until_complete(enter())
    finally:
        for loop in loops:
            loop.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("other", RUN)
def test_a_second_event_loop_beside_one_that_runs_is_refused(
    guard: LoopGuard, backend: str, other: str
) -> None:
    """At once and in clear words, rather than with a wait that hangs; afterwards it may begin."""

    async def enter() -> bool:
        return guard.enter()

    with start_blocking_portal(backend) as portal:
        assert portal.call(enter)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="create a Poller for each event loop"):
                RUN[other](enter)
        assert not portal.call(enter)
    assert RUN[other](enter)


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of threads: none is in use
def test_a_forked_process_has_event_loops_of_its_own(guard: LoopGuard) -> None:
    """Its memory says that the parent's runs: not there."""

    async def enter() -> bool:
        return guard.enter()

    async def fork() -> int:
        guard.enter()
        child = os.fork()
        if not child:
            status = 1
            try:
                asyncio.events._set_running_loop(None)
                status = 0 if asyncio.run(enter()) else 1
            finally:
                os._exit(status)
        return child

    _, status = os.waitpid(asyncio.run(fork()), 0)
    assert status == 0
