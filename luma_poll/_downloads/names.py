"""Names of files: as given, from templates, and cleaned for every file system."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, cast

from luma_poll._api.media_types import EXTENSIONS, SPELLINGS
from luma_poll._arguments import shown
from luma_poll.errors import ConfigurationError

MAX_STEM: Final = 220
"""Bytes of a name without its extension: 255, minus room for a number and an extension."""
KNOWN: Final = frozenset({*EXTENSIONS.values(), *SPELLINGS})
"""Extensions by which a path is taken for that of a file, not of a directory."""
_UNUSABLE: Final = re.compile(
    r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f'
    r"\u2028\u2029\u202a-\u202e\u2066-\u2069"  # new lines, and turns of the writing direction
    r"\ud800-\udfff]"
)
_DEVICE: Final = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?")
_FIELD: Final = re.compile(r"\{([a-z_]+)\}")
_FIELDS: Final = ("id", "key", "n")


@dataclass(frozen=True)
class Naming:
    """The names of the files of a generation.

    Attributes:
        folder: The directory.
        name: The name or template as it was given; None for the key or the id.
        key: The value of `{key}`, and the name if `name` is None.
    """

    folder: Path
    name: str | None
    key: str | None

    def stem(self, generation_id: str, number: int) -> tuple[str, str | None]:
        """Return the name of one file without its extension, and the extension if one was given.

        Args:
            generation_id: The id of the generation.
            number: The number of the output, from 1.
        """
        values = {"id": generation_id, "key": self.key, "n": str(number)}
        if self.name is None and self.key is None:
            stem = clean(generation_id)
            return stem if number == 1 else f"{stem}-{number}", None
        template = "{key}" if self.name is None else self.name
        name = _FIELD.sub(lambda found: str(values[found[1]]), template)
        stem, extension = split(name)
        stem = clean(stem)
        return stem if number == 1 or "{n}" in template else f"{stem}~{number}", extension


def naming_of(target: object, name: object, key: object = None) -> Naming:
    """Check the place and the names for the files of a generation.

    Args:
        target: A directory, or the path of a file, which ends in a known extension.
        name: A name or template, without directories.
        key: The value of `{key}`.

    Raises:
        ConfigurationError: An argument is unusable.
    """
    path = checked_path(target)
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ConfigurationError(f"name must be a string that is not blank, not {shown(name)}")
    if key is not None and (not isinstance(key, str) or not key.strip()):
        raise ConfigurationError(f"key must be a string that is not blank, not {shown(key)}")
    if _is_file(target, path):
        if name is not None:
            raise ConfigurationError(f"{path} already names the file: pass a directory, or no name")
        path, name = path.parent, path.name
    for field in _FIELD.findall(name or ""):
        if field not in _FIELDS:
            raise ConfigurationError(
                f"{{{field}}} is unknown in a name: use {{id}}, {{key}}, {{n}}"
            )
        if field == "key" and key is None:
            raise ConfigurationError("name contains {key}, but there is no key")
    return Naming(path, name, key)


def tells_generations_apart(name: str | None) -> bool:
    """Return True if the files of several generations can share this name or template."""
    return name is None or not {"id", "key"}.isdisjoint(_FIELD.findall(name))


def identity_of(name: str) -> str:
    """Return a text that is equal for names that some system takes for the same file.

    Such names differ in case, or in the composition of their characters.
    """
    return unicodedata.normalize("NFC", clean(split(name)[0]).casefold())


def split(name: str) -> tuple[str, str | None]:
    """Split a name into stem and known extension, or None."""
    stem, _, extension = name.rpartition(".")
    known = stem.strip(" .") and extension.lower() in KNOWN
    return (stem, extension) if known else (name, None)


def clean(name: str) -> str:
    """Return a name that every file system accepts, and that stays in its directory.

    It is in Unicode's composed form. If something had to be replaced, a hash distinguishes it from
    other names that would otherwise be equal.
    """
    name = unicodedata.normalize("NFC", name)
    cleaned = _UNUSABLE.sub("_", name)
    inner = cleaned.lstrip(".")
    cleaned = ("_" * (len(cleaned) - len(inner)) + inner).rstrip(". ")
    if _DEVICE.fullmatch(cleaned):
        cleaned = f"_{cleaned}"
    if cleaned == name and len(cleaned.encode()) <= MAX_STEM:
        return cleaned
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    room = cleaned.encode()[: MAX_STEM - 9].decode(errors="ignore")
    return f"{room}_{digest}"


def checked_path(path: object) -> Path:
    """Return the path of a directory.

    Raises:
        ConfigurationError: It is not a path.
    """
    try:
        checked = Path(cast(str, path))
        if b"\0" in os.fsencode(checked):
            raise ValueError
    except (TypeError, ValueError):  # a UnicodeEncodeError is one
        raise ConfigurationError(f"the directory must be a path, not {shown(path)}") from None
    return checked


def _is_file(given: object, path: Path) -> bool:
    """Return True for a path with a known extension, unless it is a directory's."""
    text = os.fspath(given) if isinstance(given, (str, os.PathLike)) else ""
    ends_open = isinstance(text, str) and text.endswith(("/", os.sep))
    return split(path.name)[1] is not None and not ends_open and not path.is_dir()
