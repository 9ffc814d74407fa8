"""Options and arguments that several commands share, and the values made from them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, get_args
from uuid import UUID

import typer

from luma_poll._api.parameters import GenerationType, Model
from luma_poll._arguments import shown
from luma_poll._client.client import LumaClient
from luma_poll._downloads.files import check_directory
from luma_poll._downloads.names import identity_of, naming_of
from luma_poll.errors import ConfigurationError

MODELS, TYPES = (get_args(get_args(names)[0]) for names in (Model, GenerationType))
"""The known ones; the API may accept newer ones."""


def positive(value: float | None) -> float | None:
    """Return a number if it is above 0 or not given, else raise."""
    if value is not None and not value > 0:
        raise typer.BadParameter(f"must be above 0, not {value:g}.")
    return value


def offer(values: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a completion to these values for the shell; other values are accepted, too."""
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of a generation.")]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        callback=positive,
        metavar="SECONDS",
        help="How long to wait for each generation; inf: no limit.",
    ),
]
MaxRateOption = Annotated[
    float,
    typer.Option(
        "--max-rate",
        callback=positive,
        metavar="N",
        help="Polls per second, for all together.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", autocompletion=offer(MODELS), help="uni-1, ray-3.2, ..."),
]
TypeOption = Annotated[
    str | None, typer.Option("--type", autocompletion=offer(TYPES), help="image, video, ...")
]
AspectRatioOption = Annotated[
    str | None, typer.Option("--aspect-ratio", metavar="RATIO", help="16:9, 1:1, ...")
]
ParamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="KEY=VALUE",
        help="Any other parameter; VALUE is JSON, @FILE or text.",
    ),
]
SourceOption = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="FILE|URL|ID",
        help="The image or video to start from.",
    ),
]
ImageOption = Annotated[
    list[str] | None,
    typer.Option("--image", metavar="FILE|URL|ID", help="A reference image; may be repeated."),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output", metavar="PATH", help="Append results to a file, one JSON object per line."
    ),
]
DownloadOption = Annotated[
    str | None,
    typer.Option("--download", metavar="DIR", help="Download the outputs, and print their paths."),
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="TEMPLATE", help="The names of the files, with {key}, {id} and {n}."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Show no progress; errors are still reported.")
]


def open_client() -> LumaClient:
    """Return a client with the key and the base URL from the environment.

    Raises:
        ConfigurationError: The key is missing, or one of the two is unusable.
    """
    key = os.environ.get("LUMA_AGENTS_API_KEY", "").strip()
    if not key:
        other = ""
        if os.environ.get("LUMAAI_API_KEY", "").strip():
            other = " LUMAAI_API_KEY is set, but its keys are for another API (Dream Machine)."
        raise ConfigurationError(
            f"no API key: set the environment variable LUMA_AGENTS_API_KEY.{other} Create a key "
            "at https://platform.lumalabs.ai. Without a key, try: luma-poll demo"
        )
    if key[0] in "\"'":
        raise ConfigurationError(
            "LUMA_AGENTS_API_KEY begins with a quotation mark, which is not part of a key. Some "
            "tools take the quotes in an env file literally: leave them out"
        )
    return LumaClient()


def check_place(
    place: str | None, name: str | None = None, keys: Iterable[str | None] = ()
) -> None:
    """Create the directory for the downloads, before anything is submitted.

    Args:
        place: A directory, or the path of a file.
        name: The name or template of the files.
        keys: The keys of all requests; None for a request without one.

    Raises:
        ConfigurationError: Files cannot be written there, or two requests would write the same one.
    """
    if place is None:
        if name is not None:
            raise ConfigurationError("--name needs --download")
        return
    seen: dict[str, str] = {}
    for count, key in enumerate(keys):
        naming = naming_of(place, name, key)
        file = identity_of(naming.stem(f"id-{count}", 1)[0])
        label = shown(key) if key is not None else "one without a key"
        if file in seen:
            raise ConfigurationError(
                f"two requests would write the same file: {seen[file]} and {label}. Give each its "
                "own key, or use --name '{key}-{id}'"
            )
        seen[file] = label
    folder = naming_of(place, name, "key").folder
    try:
        check_directory(folder)
    except OSError as error:
        why = error.strerror
        raise ConfigurationError(f"no files can be written to {folder}: {why}") from None


def reference(value: str) -> object:
    """Return a reference to an image or a video, given by a URL, a generation's id or a path."""
    if value.lower().startswith(("https://", "http://")):
        return {"url": value}
    with suppress(ValueError):
        return {"generation_id": str(UUID(value))}
    return Path(value).expanduser()


def read_params(given: Mapping[str, Any], words: Iterable[str] | None) -> dict[str, Any]:
    """Return the parameters of `generations.create`, from options and from `KEY=VALUE` words.

    Dots in a key lead into a parameter: `video.duration=5s`. A value is JSON, a file if `@` is
    before it, or else plain text, as in `style=manga`.

    Raises:
        ConfigurationError: A word is not `KEY=VALUE`, or a key is given twice.
    """
    params = {key: value for key, value in given.items() if value is not None}
    for word in words or ():
        key, equals, value = word.partition("=")
        *path, last = key.split(".")
        if not equals or not all(part.isidentifier() for part in (*path, last)):
            raise ConfigurationError(f"--param takes KEY=VALUE, not {word!r}")
        if key == "prompt":
            raise ConfigurationError("--param prompt: give the prompt as an argument, or in a file")
        place = params
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"--param {key}: {part} is also given as a whole")
        if last in place:
            raise ConfigurationError(f"--param {key} is given twice")
        place[last] = _read_value(key, value)
    return params


def _read_value(key: str, value: str) -> object:
    if value.startswith("@"):
        return reference(value[1:])
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if not value.lstrip().startswith(("{", "[", '"')):
            return value
        raise ConfigurationError(f"--param {key}: {value!r} is not JSON: {error}") from None
