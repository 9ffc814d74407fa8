"""The commands of `luma-poll`, each in a module of its own."""

from __future__ import annotations

from shutil import get_terminal_size
from typing import Annotated

import typer

from luma_poll._cli.create_command import create
from luma_poll._cli.demo_command import demo
from luma_poll._cli.download_command import download
from luma_poll._cli.exit_codes import HELP
from luma_poll._cli.fleet_command import fleet
from luma_poll._cli.get_command import get
from luma_poll._cli.journal_command import journal
from luma_poll._cli.mcp_command import mcp
from luma_poll._cli.process import orderly_exit, run_app
from luma_poll._cli.run_command import run as run_prompts
from luma_poll._cli.sandbox_command import sandbox
from luma_poll._cli.table import NARROW
from luma_poll._cli.terminal import put_line
from luma_poll._cli.wait_command import wait
from luma_poll._cli.watch_command import watch
from luma_poll._cli.worker_command import worker
from luma_poll._version import __version__

COLUMNS = get_terminal_size().columns

app = typer.Typer(
    no_args_is_help=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "terminal_width": COLUMNS if COLUMNS < NARROW else None,
    },
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if COLUMNS >= NARROW else None,
    help="From prompt to file with Luma: never pays twice, never hangs, as fast as your account "
    "allows. Without an API key, try luma-poll demo.\n\n"
    "The key is read from LUMA_AGENTS_API_KEY, the base URL from LUMA_BASE_URL if set.\n\n"
    'Example: luma-poll create "a red fox" -o fox.png',
    epilog=HELP,
)
for room in (create, run_prompts, wait, download, watch, get, demo, sandbox, mcp, worker):
    app.command()(room)
app.add_typer(journal, name="journal")
app.add_typer(fleet, name="fleet")


def run() -> None:
    """Run the command line."""
    run_app(app)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    """Handle the options of `luma-poll` itself."""
    if version:
        with orderly_exit():
            put_line(f"luma-poll {__version__}")
        raise typer.Exit
