"""An output on disk: a part until it is complete, then a file under its final name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, Literal, ParamSpec, TypeAlias, TypeVar

import anyio

from luma_poll._api.media_types import (
    EXTENSIONS,
    SPELLINGS,
    extension_of_label,
    media_type_of,
)
from luma_poll._downloads.files import (
    PartFile,
    have_same_bytes,
    on_disk,
    publish,
    remove_parts,
    seal,
    size_of,
)
from luma_poll._downloads.names import clean
from luma_poll._downloads.output import Sink, check_head
from luma_poll._downloads.ownership import Claim, Owner, claim_of, mark
from luma_poll._downloads.storage import InterruptedTry, Version
from luma_poll._logging import fields, logger
from luma_poll.errors import DownloadError

Overwrite: TypeAlias = bool | Literal["number"]
"""The treatment of a file that has the same name but holds something else."""
HELD: Final = 5.0
"""Seconds for which a rename is tried while another program, such as a virus scanner, has the file
open."""
EXTENSIONS_TO_TRY: Final = (*dict.fromkeys(EXTENSIONS.values()), "bin")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Saving(Sink[Path]):
    """One output on its way into one file.

    Attributes:
        owner: The output.
        folder: The directory.
        stem: The name without the extension.
        extension: The extension that was given, if one was.
        overwrite: False to refuse a name that something else has, True to replace that file,
            "number" to take a free name beside it.
    """

    owner: Owner
    folder: Path
    stem: str
    extension: str | None
    overwrite: Overwrite
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    _file: PartFile | None = None
    _kept: Path | None = None

    @property
    def path(self) -> Path:
        """The path of the file; without the extension until that is known."""
        suffix = f".{self.extension}" if self.extension else ""
        return self.folder / f"{self.stem}{suffix}"

    async def existing(self) -> Path | None:
        """Return the unchanged file of an earlier download, or None.

        Raises:
            DownloadError: It was changed, and `overwrite` is False.
        """
        return None if self.overwrite is True else await self._disk(self._find)

    async def expect(self, version: Version) -> None:
        """Refuse, before any byte is sent, if a file of another size has the name."""
        if self.overwrite is False and version.total is not None:
            path = self._named(self.extension or extension_of_label(version.content_type))
            size = await self._disk(size_of, path)
            if size not in (None, version.total):
                raise self._taken(path)

    async def received(self, version: Version) -> int:
        """Return the number of bytes of a version that are on disk."""
        if not version.resumable:
            return 0
        size = await self._disk(size_of, self._part(version)) or 0
        return size if size <= (version.total or 0) else 0

    async def open(self, version: Version, start: int) -> None:
        """Open the part for the bytes from `start` on."""
        self._file = PartFile(self._part(version), start)
        if not await self._disk(self._file.open, version.resumable):
            raise InterruptedTry("the file was taken away while it was written")

    def put(self, chunk: bytes) -> bool:
        """Add bytes to the buffer; return True if it should be written."""
        assert self._file is not None
        self._file.put(chunk)
        return self._file.is_full

    async def flush(self) -> None:
        """Write the buffer."""
        assert self._file is not None
        await self._disk(self._file.flush)

    async def close(self) -> None:
        """Write the buffer, and close the part."""
        if self._file is not None:
            await self._disk(self._file.close)

    def abandon(self) -> None:
        """Close the part at once."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    async def finish(self, version: Version) -> Path:
        """Give the complete part its final name.

        Raises:
            InterruptedTry: The part has vanished, or does not hold media.
            DownloadError: The name is taken, or the disk failed. The complete part is kept.
        """
        try:
            return await self._name(version)
        except DownloadError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        # The part is gone: another download of this output has finished it, and tidied up.
        of_another = await self._disk(self._find)
        if of_another is None:
            raise InterruptedTry("the file was taken away while it was written")
        return of_another

    async def _name(self, version: Version) -> Path:
        part, private = self._part(version), self._part(None)
        head = await self._patiently(partial(seal, part, private, version.total))
        try:
            check_head(head, version.content_type)
        except InterruptedTry as error:
            error.changed = True  # so that the bytes on disk are dropped
            raise
        self._kept = private
        try:
            extension = self._extension(head, version.content_type)
            path = await self._patiently(partial(self._publish, private, extension))
        except BaseException:
            with anyio.CancelScope(shield=True), suppress(DownloadError):
                if version.resumable:  # back under the name that another call looks for
                    self._kept = await self._disk(_put_back, private, part)
            raise
        self._kept = None
        return path

    async def tidy_up(self, keep: Version | None) -> None:
        """Remove all parts of this output, except one that can be resumed."""
        kept = self._kept or (None if keep is None else self._part(keep))
        await self._disk(remove_parts, self._part_base(), kept)

    def _publish(self, private: Path, extension: str) -> Path:
        """Give the file its name, after its attribute, so that no file is without one."""
        mark(private, self.owner)
        for path in self._candidates(extension):
            try:
                publish(private, path, overwrite=self.overwrite is True)
                return path
            except FileExistsError:
                claim = claim_of(path, self.owner)
                if claim is Claim.OURS or have_same_bytes(private, path):
                    if claim is not Claim.OURS:
                        mark(path, self.owner)
                    private.unlink()
                    return path
                if self.overwrite is False:
                    raise self._taken(path) from None
        raise AssertionError("there is always another number")

    def _find(self) -> Path | None:
        spellings = [self.extension] if self.extension else []
        for extension in (*spellings, *EXTENSIONS_TO_TRY):
            for path in self._candidates(extension):
                claim = claim_of(path, self.owner)
                if claim is Claim.OURS:
                    return path
                if claim is Claim.CHANGED and self.overwrite is False:
                    raise self._taken(path, "has been changed since it was downloaded")
                if claim is None:
                    break
        return None

    def _candidates(self, extension: str) -> Iterator[Path]:
        """Yield the names that the file may have; without end if numbers are allowed."""
        yield self._named(extension)
        for number in count(2) if self.overwrite == "number" else ():
            yield self._named(extension, f" ({number})")

    def _named(self, extension: str, suffix: str = "") -> Path:
        return self.folder / f"{self.stem}{suffix}.{extension}"

    def _extension(self, head: bytes, content_type: str) -> str:
        media_type = media_type_of(head, f"{content_type} {self.extension or ''}")
        given = self.extension or ""
        if media_type is None:
            extension = self.extension or extension_of_label(content_type)
            self._warn("the bytes are of no known type, and are kept as", extension)
            return extension
        extension = EXTENSIONS[media_type]
        if SPELLINGS.get(given.lower(), given.lower()) == extension:
            return given
        if given:
            self._warn("the name has another extension, but the bytes are those of", extension)
        return extension

    def _warn(self, message: str, extension: str) -> None:
        logger.warning(
            "generation %s: download: %s .%s",
            self.owner.generation_id,
            message,
            extension,
            extra=fields(self.owner.generation_id),
        )

    def _part_base(self) -> Path:
        # Named after the output and not the file: what has arrived serves under any file name.
        return self.folder / f".{clean(self.owner.generation_id)[:60]}-{self.owner.number}"

    def _part(self, version: Version | None) -> Path:
        # The version is in the name, and a version always has the same bytes. So any other download
        # that writes this part, now or earlier, writes the same bytes to the same places.
        key = version.key if version is not None and version.resumable else self._nonce
        base = self._part_base()
        return base.with_name(f"{base.name}.{key}.part")

    def _taken(self, path: Path, why: str = "is there, and holds something else") -> DownloadError:
        return DownloadError(
            f"{path.name} {why}. It is left as it is. Download under another name, "
            'with overwrite="number" to a numbered one, or with overwrite=True to replace it',
            generation_id=self.owner.generation_id,
            path=path,
        )

    async def _patiently(self, function: Callable[[], T]) -> T:
        """Run a function that renames a file, again while another program has the file open."""
        began = anyio.current_time()
        while True:
            try:
                return await self._disk(function)
            except DownloadError as error:
                held = isinstance(error.__cause__, PermissionError)
                if not held or anyio.current_time() - began >= HELD:
                    raise
            await anyio.sleep(0.1)

    async def _disk(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        work = partial(function, *args, **options)
        return await on_disk(self.path, self.owner.generation_id, work)


def _put_back(private: Path, part: Path) -> Path:
    """Return the path at which a complete part waits for another call."""
    if part.exists():
        return private
    os.replace(private, part)
    return part
