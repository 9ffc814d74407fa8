"""`luma-poll journal`: list the entries of a journal, and settle unknown ones."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from luma_poll._cli.options import JsonOption, offer
from luma_poll._cli.process import orderly_exit
from luma_poll._cli.results import put_entry
from luma_poll._cli.terminal import say_lines
from luma_poll._journal.entry import STATES, check_state
from luma_poll._journal.journal import Journal
from luma_poll.errors import ConfigurationError

journal = typer.Typer(
    no_args_is_help=True, help="List the entries of a journal, or settle unknown ones."
)

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="The journal of luma-poll run.")]


@journal.command("list")
def list_entries(
    path: FileArgument,
    state: Annotated[
        str | None, typer.Option(autocompletion=offer(STATES), help=f"One of: {', '.join(STATES)}.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the entries: state, key, id, failure and prompt, separated by tabs.

    Example: luma-poll journal list runs.db --state unknown
    """
    with orderly_exit(), _open(path) as kept:
        for entry in kept.entries(check_state(state)):
            put_entry(entry, as_json=as_json)


@journal.command()
def resolve(
    path: FileArgument,
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY...", help="The keys of the entries.")
    ] = None,
    all_unknown: Annotated[
        bool, typer.Option("--all-unknown", help="Settle all unknown entries, without keys.")
    ] = False,
    generation_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The id that the API gave it.")
    ] = None,
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="Submit them again, even if that is billed twice.")
    ] = False,
) -> None:
    """Settle unknown entries; first look at the account's usage.

    Example: luma-poll journal resolve runs.db order-18 --resubmit
    """
    with orderly_exit():
        if bool(keys) is all_unknown:
            raise ConfigurationError("give the keys of entries, or --all-unknown")
        if (generation_id is None) is not resubmit:
            raise ConfigurationError("give --id ID, or --resubmit")
        with _open(path) as kept:
            settled = kept.resolve(
                *keys or (), generation_id=generation_id, resubmit=resubmit, all_unknown=all_unknown
            )
        does = "submits it" if resubmit else f"waits for {generation_id}"
        say_lines(f"{key}: the next run {does}." for key in settled)


def _open(path: str) -> Journal:
    """Return an existing journal: a misspelt name must not create a new one."""
    if not os.path.isfile(path):
        raise ConfigurationError(f"there is no journal at {path}")
    return Journal(path)
