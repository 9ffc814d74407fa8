"""Commands to copy, which continue what was interrupted or is incomplete."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import typer

FEW = 10
"""The most ids that fit into a command to copy, and the most results without a summary."""


def options_given(ctx: typer.Context, *only: str, **changed: object) -> list[str]:
    """Return the options that the command was called with, as words of a command line.

    Args:
        ctx: The context of the command.
        only: The names of the options to return; all if there are none.
        changed: Values that replace given ones or are added; None leaves an option out.
    """
    words: list[str] = []
    for param in ctx.command.params:
        name = param.name or ""
        if param.param_type_name != "option" or (only and name not in (*only, *changed)):
            continue
        source = ctx.get_parameter_source(name)
        given = ctx.params.get(name) if source and source.name == "COMMANDLINE" else None
        value = changed.get(name, given)
        option = max(param.opts, key=len)
        if isinstance(value, bool):
            words += [option] * value
        elif value is not None:
            for each in value if isinstance(value, (list, tuple)) else [value]:
                words += [option, _text(each)]
    return words


def longer_timeout(ctx: typer.Context, was_too_short: bool) -> dict[str, float]:
    """Return a longer `--timeout` to replace a given one, for a command that keeps waiting."""
    if not was_too_short or not options_given(ctx, "timeout"):
        return {}
    return {"timeout": max(600.0, 2 * ctx.params["timeout"])}


def command(name: str, *words: str) -> str:
    """Return a line with a command to copy."""
    return f"  luma-poll {name} {shlex.join(words)}"


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of consecutive numbers."""
    groups = groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])
    runs = [[number for _, number in group] for _, group in groups]
    return [(run[0], run[-1]) for run in runs]


def in_words(numbers: Sequence[int]) -> str:
    """Return the numbers of lines as words: `line 2` or `lines 3-7,9`."""
    return f"line{'s' * (len(numbers) > 1)} {as_option(numbers)}"


def as_option(numbers: Iterable[int]) -> str:
    """Return the numbers of lines in the form that `--lines` takes."""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges(numbers))


def read_ranges(text: str) -> list[tuple[int, float]]:
    """Return the ranges in a value of `--lines`, such as `3-7,9,12-`.

    Raises:
        ValueError: The text is not such a value.
    """
    found: list[tuple[int, float]] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        end = float("inf") if dash and not last else int(last or first)
        if not 1 <= int(first) <= end:
            raise ValueError(part)
        found.append((int(first), end))
    return found


def counts(outcomes: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Yield a summary: how many ended in each way."""
    for outcome, count in outcomes:
        yield f"{count:>7} {outcome}"


def plural(count: int, noun: str) -> str:
    """Return a number of things: `1 line`, `2 lines`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def unfinished(running: int, undownloaded: int) -> str:
    """Return how many may still finish, and how many have, but are not downloaded."""
    said = [f"{running} may still finish"] * bool(running)
    said += [f"{were(undownloaded)} not downloaded"] * bool(undownloaded)
    return ", ".join(said)


def were(count: int) -> str:
    """Return a number with its verb: `1 was`, `2 were`."""
    return f"{count} {'was' if count == 1 else 'were'}"


def _text(value: object) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
