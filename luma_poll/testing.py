"""A pytest plugin: fixtures for code that uses luma-poll, without a network and without sleeping.

Needs the extra `sandbox`. pytest finds it by itself, without an import:

    @pytest.mark.anyio
    async def test_a_picture_is_made(luma_client, luma_poller):
        generation = await luma_client.generations.create("a red fox")
        assert await luma_poller.wait(generation)

- `luma_sandbox`: the simulated API, in memory; it counts submissions, polls and downloads.
- `luma_client`, `luma_poller`, `luma_runner`: with that sandbox, on asyncio and trio, closed at the
  end.
- `luma_redirect`: the same sandbox on a local socket, which every client of luma-poll or the
  official SDK uses that the code under test makes. The real host cannot be reached.

The sandbox is a thousand times as fast as the API. `@pytest.mark.luma_sandbox(...)` takes the
arguments of `luma_poll.sandbox.Sandbox`, for one test, a class or a module:

    @pytest.mark.luma_sandbox(max_concurrent=2, faults={"503": 0.5})
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest

from luma_poll._client.client import LumaClient
from luma_poll._polling.poller import Poller
from luma_poll._polling.schedules import SPEED
from luma_poll._running.runner import Runner

if TYPE_CHECKING:
    from luma_poll.sandbox import Sandbox

__all__ = ["luma_client", "luma_poller", "luma_redirect", "luma_runner", "luma_sandbox"]

DEFAULT_SPEED = 1000.0
KEY = "luma-api-test"
REAL_HOSTS = (".lumalabs.ai", ".luma.ai")
_BASE_URL = "http://localhost/v1"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "luma_sandbox(**options): arguments of luma_poll.sandbox.Sandbox for the luma_* fixtures",
    )


def _options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the arguments of the sandbox; the nearest marker wins."""
    options: dict[str, Any] = {"speed": DEFAULT_SPEED, "seed": 0}
    for marker in reversed(list(request.node.iter_markers("luma_sandbox"))):
        if marker.args:
            pytest.fail("the marker luma_sandbox takes keyword arguments only")
        options |= marker.kwargs
    return options


@pytest.fixture
def luma_sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Return a simulated API in memory, with `.submissions`, `.calls` and `.refusals`.

    `async with luma_sandbox.serve() as base_url` serves it on a local socket, on asyncio.
    """
    from luma_poll.sandbox import Sandbox

    return Sandbox(**_options(request))


@pytest.fixture
def luma_client(luma_sandbox: Sandbox) -> Iterator[LumaClient]:
    """Yield a `LumaClient` for `luma_sandbox`."""
    transport = httpx.ASGITransport(app=luma_sandbox.app)
    http_client = httpx.AsyncClient(transport=transport)
    yield LumaClient(KEY, base_url=_BASE_URL, http_client=http_client)
    # The test's event loop has ended. No socket is open, so any other can close the client.
    anyio.run(http_client.aclose)


@pytest.fixture
def luma_poller(luma_client: LumaClient, luma_sandbox: Sandbox) -> Poller:
    """Return a `Poller` for `luma_client`, with a schedule as fast as the sandbox."""
    return Poller(luma_client, wait=luma_sandbox.wait, max_rate=None)


@pytest.fixture
def luma_runner(luma_client: LumaClient, luma_poller: Poller) -> Runner:
    """Return a `Runner` for `luma_client` and `luma_poller`."""
    return Runner(luma_client, luma_poller)


@pytest.fixture
def luma_redirect(luma_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Serve the sandbox on a local socket, to which the environment of the test points.

    A client without a key and base URL of its own takes them from the environment: `LumaClient`,
    `luma_poll.sync`, the command line and the official SDK. `LUMA_POLL_SPEED` speeds up schedules.
    Names under lumalabs.ai are not looked up, on any event loop, so that nothing reaches the API.
    """
    from anyio.from_thread import start_blocking_portal

    for name in list(os.environ):
        if name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    with (
        _real_hosts_refused() as refused,
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(luma_sandbox.serve()) as base_url,
    ):
        monkeypatch.setenv("LUMA_AGENTS_API_KEY", KEY)
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
        monkeypatch.setenv(SPEED, str(luma_sandbox.speed))
        yield luma_sandbox
    if refused:  # perhaps in a thread, or in code that continues after any exception
        pytest.fail(_why(refused[0]), pytrace=False)


@contextmanager
def _real_hosts_refused() -> Iterator[list[str]]:
    """Refuse to look up the names of Luma's hosts; yield the list of those that were tried."""
    refused: list[str] = []
    with pytest.MonkeyPatch.context() as patches:
        for owner, name in _look_ups():
            patches.setattr(owner, name, _checked(getattr(owner, name), refused))
        yield refused


def _why(name: str) -> str:
    return (
        f"a test with luma_redirect does not reach the real {name}: a client has an address of "
        "its own, or was made before the test, as by an import"
    )


def _look_ups() -> Iterator[tuple[Any, str]]:
    """Yield every function that looks up a name, which is its first argument or called `host`."""
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        yield socket, name
    with suppress(ImportError):  # it does not use the functions of socket
        import uvloop

        yield from ((uvloop.Loop, name) for name in ("getaddrinfo", "create_connection"))
    with suppress(ImportError):  # it may use aiodns, which asks name servers itself
        from aiohttp.resolver import AsyncResolver

        yield AsyncResolver, "resolve"


def _checked(look_up: Any, refused: list[str]) -> Any:
    """Return the function, which no longer takes the names of Luma's hosts."""

    @functools.wraps(look_up)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for given in (*args, kwargs.get("host")):
            name = given.decode("ascii", "replace") if isinstance(given, bytes) else given
            if isinstance(name, str) and f".{name.rstrip('.').lower()}".endswith(REAL_HOSTS):
                refused.append(name)
                # Not an error: a wait would take one for an outage, and sit it out.
                pytest.fail(_why(name), pytrace=False)
        return look_up(*args, **kwargs)

    return checked
