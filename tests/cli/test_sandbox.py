"""`luma-poll sandbox`: a simulated API on a port."""

import re
import shlex
import signal
import subprocess
import sys
from typing import Any

import anyio
import httpx
import pytest

from luma_poll.sandbox import DEFAULT_ACCOUNT, Sandbox
from tests.cli.support import COMMAND, Cli, started
from tests.fakes import ID


def test_a_port_in_use_is_2(cli: Cli, base_url: str) -> None:
    """With the system's reason."""
    port = str(httpx.URL(base_url).port)
    code, out, err = cli("sandbox", "--port", port)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: cannot listen on 127.0.0.1, port {port}: Address")


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_as_ctrl_c(cli: Cli, monkeypatch: pytest.MonkeyPatch, ctrl_c: Any) -> None:
    """Also in the background of a script, where Ctrl-C is ignored."""

    async def sleep_forever() -> None:
        signal.raise_signal(signal.SIGTERM)
        await anyio.sleep(60)

    monkeypatch.setattr("luma_poll._cli.sandbox_command.anyio.sleep_forever", sleep_forever)
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        code, out, err = cli("sandbox", "--port", "0", "--seed", "1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    url = re.search(r"http://127\.0\.0\.1:\d+/v1", err)
    assert url
    word = "set" if sys.platform == "win32" else "export"
    assert out.splitlines() == [
        f"{word} LUMA_BASE_URL={url[0]}",
        f"{word} LUMA_AGENTS_API_KEY=luma-api-sandbox",
    ]


def test_the_sandbox_takes_faults_and_strict_keys(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--faults` is the share of polls that are answered with a fault; keys may be checked."""
    seen: list[dict[str, Any]] = []

    def sandbox(**options: Any) -> Sandbox:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("luma_poll._cli.sandbox_command.Sandbox", sandbox)
    assert cli("sandbox", "--faults", "0.3").code == 130
    assert cli("sandbox", "--strict-keys", "--account", "new").code == 130
    assert seen == [
        {"speed": 1.0, "seed": None, "faults": 0.3, "strict_keys": False},
        {"speed": 1.0, "seed": None, "faults": 0.0, "strict_keys": True, **DEFAULT_ACCOUNT},
    ]


@pytest.mark.parametrize(
    ("host", "reachable"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")]
)
def test_the_sandbox_prints_an_address_to_connect_to(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, host: str, reachable: str
) -> None:
    """The address of all interfaces is not one."""

    async def sleep_forever() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luma_poll._cli.sandbox_command.anyio.sleep_forever", sleep_forever)
    out = cli("sandbox", "--host", host, "--port", "0").out
    assert f" LUMA_BASE_URL=http://{reachable}:" in out.splitlines()[0]


@pytest.mark.posix
def test_the_sandbox_ends_with_sigterm() -> None:
    """Even if it was started with Ctrl-C ignored, as in the background of a script."""
    command = ("sh", "-c", f"trap '' INT; exec {shlex.join(COMMAND)} sandbox --port 0")
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        url = process.stdout.readline().partition("=")[2].strip()
        process.stdout.readline()
        assert httpx.get(f"{url}/generations/{ID}").status_code == 401
        process.terminate()
        assert process.wait(50) == 130
        assert process.stderr.read().count("\n") == 1
