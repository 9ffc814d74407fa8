"""`luma-poll sandbox`: a simulated API on a port of this machine."""

from __future__ import annotations

import os
import socket
from contextlib import AsyncExitStack

import anyio

from luma_poll._cli.terminal import put_line, say
from luma_poll.errors import ConfigurationError
from luma_poll.sandbox import Sandbox


async def serve(sandbox: Sandbox, host: str, port: int) -> None:
    """Serve a sandbox for ever, and print the settings that clients need.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        try:
            base_url = await stack.enter_async_context(sandbox.serve(host, port))
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(
                f"cannot listen on {host}, port {port}: {_reason(error)}"
            ) from None
        say(f"The sandbox is listening at {base_url}; Ctrl-C stops it. To use it:")
        # An address that stands for all interfaces is not one to connect to.
        own = base_url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        put_line(f"export LUMA_BASE_URL={own}")
        put_line("export LUMA_AGENTS_API_KEY=luma-api-sandbox")
        await anyio.sleep_forever()


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno:
        return os.strerror(error.errno)  # the error's own text repeats the address
    return str(getattr(error, "strerror", None) or error)
