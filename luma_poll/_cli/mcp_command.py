"""`luma-poll mcp`: tools for agents, over standard input and output or on a local port."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from luma_poll._cli.options import open_client, positive
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.terminal import say
from luma_poll._tasks.beside import tasks_beside
from luma_poll.errors import ConfigurationError

HOW_TO_INSTALL = 'luma-poll mcp needs the extra "mcp": pip install "luma-poll[mcp]"'


def mcp(
    download: Annotated[
        Path, typer.Option(metavar="DIR", help="The only directory in which files are written.")
    ] = Path("luma"),
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The only directory from which files are read."),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The journal; by default luma-poll.db in --download."),
    ] = None,
    max_submissions: Annotated[
        int, typer.Option(min=0, metavar="N", help="The most submissions of this process.")
    ] = 20,
    max_per_day: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="The most submissions in any 24 hours, across restarts."
        ),
    ] = 100,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Allow only this model; may be repeated."),
    ] = None,
    allow_type: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE", help="Allow only this type; may be repeated."),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            callback=positive,
            metavar="SECONDS",
            help="After this, a call returns even if the generation still runs.",
        ),
    ] = 50.0,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve HTTP on this port of 127.0.0.1 instead."),
    ] = None,
) -> None:
    """Serve tools that make images and videos, for clients of the Model Context Protocol.

    A repeated call pays only once, even after a restart with the same journal.

    Example: luma-poll mcp --download out --max-submissions 10
    """
    with orderly_exit():
        try:
            import luma_poll.mcp  # noqa: F401
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("mcp", "PIL"):
                raise
            raise ConfigurationError(HOW_TO_INSTALL) from None
        anyio.run(
            partial(
                _serve,
                port,
                journal=journal or download / "luma-poll.db",
                download=download,
                inputs=inputs,
                patience=patience,
                max_submissions=max_submissions,
                max_per_day=max_per_day,
                models=allow_model or [],
                types=allow_type or [],
            )
        )


async def _serve(port: int | None, **options: Any) -> None:
    """Serve until the input ends or a signal comes; both are a clean end."""
    from luma_poll.mcp import open_server, serve_stdio

    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        signals.append(signal.SIGHUP)

    async def end_at_a_signal(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(*signals) as received:
            async for _ in received:
                scope.cancel()
                return

    async with (
        open_client() as client,
        open_server(client, **options) as server,
        tasks_beside() as tasks,
    ):
        if os.name == "posix":  # on Windows, Ctrl-C interrupts the event loop
            tasks.start_soon(end_at_a_signal, tasks.cancel_scope)
        await (serve_stdio(server) if port is None else _serve_http(server, port))


async def _serve_http(server: object, port: int) -> None:
    """Serve on the loopback address, and answer only requests to its host names."""
    from mcp.server.mcpserver import MCPServer

    from luma_poll.sandbox.server import serve_app

    assert isinstance(server, MCPServer)
    app = server.streamable_http_app()
    async with serve_app(app, "127.0.0.1", port) as origin, server.session_manager.run():
        say(f"Listening at {origin}/mcp until Ctrl-C.")
        await anyio.sleep_forever()
