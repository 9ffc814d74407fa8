"""`luma-poll sandbox`: a simulated API on a port of this machine."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated, Literal, TypeAlias

import anyio
import typer

from luma_poll._cli.options import positive
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.terminal import put_line, say
from luma_poll.errors import ConfigurationError
from luma_poll.sandbox import DEFAULT_ACCOUNT, Sandbox

AccountKind: TypeAlias = Literal["unlimited", "new"]


def sandbox(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any free one.")] = 8787,
    speed: Annotated[
        float, typer.Option(callback=positive, help="How many times faster than the real API.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Repeat the same ids and durations.")] = None,
    faults: Annotated[
        float,
        typer.Option(min=0, max=1, help="The share of polls answered with a fault."),
    ] = 0.0,
    strict_keys: Annotated[
        bool, typer.Option("--strict-keys", help="Refuse keys that do not begin with luma-api-.")
    ] = False,
    account: Annotated[
        AccountKind,
        typer.Option(help="The account's limits; new: those of a new account."),
    ] = "unlimited",
) -> None:
    """Serve a simulated API until Ctrl-C, for clients in any language.

    Words in a prompt control its generation: sandbox:duration=3, sandbox:outputs=2,
    sandbox:fail=content_moderated, sandbox:state=throttled.

    Example: luma-poll sandbox --speed 10 --account new
    """
    with orderly_exit():
        make = partial(Sandbox, **DEFAULT_ACCOUNT) if account == "new" else Sandbox
        simulated = make(speed=speed, seed=seed, faults=faults, strict_keys=strict_keys)
        anyio.run(serve, simulated, host, port)


async def serve(sandbox: Sandbox, host: str, port: int) -> None:
    """Serve a sandbox until it is cancelled, and print the settings that clients need.

    Raises:
        ConfigurationError: The address or the port cannot be used.
    """
    async with AsyncExitStack() as stack:
        try:
            base_url = await stack.enter_async_context(sandbox.serve(host, port))
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(
                f"cannot listen on {host}, port {port}: {_reason(error)}"
            ) from None
        say(f"The sandbox listens at {base_url} until Ctrl-C. In the shell of a client, paste:")
        # The address for "all interfaces" is not one to connect to.
        own = base_url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        for line in settings(own):
            put_line(line)
        await anyio.sleep_forever()


def settings(base_url: str) -> list[str]:
    """Return the lines to paste into a shell, for all programs started from it."""
    word = "set" if sys.platform == "win32" else "export"
    return [f"{word} LUMA_BASE_URL={base_url}", f"{word} LUMA_AGENTS_API_KEY=luma-api-sandbox"]


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # the error's own text repeats the address
    return str(getattr(error, "strerror", None) or error)
