import gc
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import trio.testing
from hypothesis import settings

from tests import without_posix
from tests.virtual_time import VirtualTimeLoop

WITHOUT_POSIX = os.name != "posix" or bool(os.environ.get("WITHOUT_POSIX"))
if WITHOUT_POSIX and os.name == "posix":
    without_posix.hide()

# A busy machine takes longer than Hypothesis's 200 milliseconds for many an example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Containers often forbid bytecode. The tests start Python about 250 times, and each of these
# processes, as well as each worker of xdist, would compile everything that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Here rather than by its entry point, which is off: the coverage of what it imports is counted.
pytest_plugins = ["luma_poll.testing"]


def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: tests of sockets, processes and databases mostly wait."""
    return 2 * (os.cpu_count() or 1)


_tracers: list[Any] = []
"""The function that measures the coverage, if it is measured."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A Ctrl-C that arrives in the tracer ends it, for all tests that come after it.
    if (tracer := sys.gettrace()) is not None:
        _tracers[:] = [tracer]
    elif _tracers:
        sys.settrace(_tracers[0])
    if WITHOUT_POSIX and item.get_closest_marker("posix"):
        pytest.skip("needs signals, terminals, forks or modes of POSIX")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a case by its value, without addresses: the same name in every process."""
    if val is None or isinstance(val, str | int | float | type):
        return None  # pytest's own names
    if isinstance(val, set | frozenset):
        val = sorted(val)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(val))[:80]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Tests marked `anyio` run on both backends, in virtual time."""
    if request.param == "asyncio":
        return "asyncio", {"loop_factory": VirtualTimeLoop}
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


@pytest.fixture
def sockets_left_to_the_collector() -> Iterator[None]:
    """For tests that cancel at every moment of a connect.

    A cancellation right after the connect makes anyio or asyncio drop the new socket, which the
    garbage collector then closes with a ResourceWarning, during whatever test runs by then.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("LUMA_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


@pytest.fixture
def api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in the environment, where clients look for theirs."""
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-secret")
