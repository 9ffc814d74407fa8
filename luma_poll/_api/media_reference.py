"""Local images and videos as input: files, bytes and images in memory."""

from __future__ import annotations

import io
import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import anyio.to_thread

from luma_poll._api.media_types import HEAD_SIZE, media_type_of
from luma_poll._api.parameters import Media, MediaRef
from luma_poll._arguments import check_generation_id, shown
from luma_poll._tasks.threads import own_threads
from luma_poll._texts import reason_of
from luma_poll.errors import ConfigurationError

T = TypeVar("T")
R = TypeVar("R")

MAX_DATA = 50_000_000
"""Bytes that a request may carry itself: the API's "50 MB", read as the smaller of its meanings."""
MAX_UPLOAD = 5 * 1024**3
"""Bytes of the largest upload that the storage takes in one piece."""
PIECE = 1024 * 1024
"""Bytes that are read at a time from a file that is not needed as a whole."""
MAX_NAME = 100
"""Characters of a file's name in messages."""


@dataclass(frozen=True, repr=False)
class LocalMedia:
    """A local image or video, which becomes data or an upload when it is sent.

    Attributes:
        name: The name of its file, for messages; empty if it has none.
        media_type: The type that its first bytes show.
        size: Its size in bytes.
        content: Its path, its bytes, or an open file, read from its present position.
        state: The size and time of the file, or the position in it, when it was checked: only what
            was checked is sent.
    """

    name: str
    media_type: str
    size: int
    content: Path | bytes | BinaryIO
    state: tuple[int, int] | int | None = None

    def __repr__(self) -> str:
        return f"<{self.name or 'bytes'}: {self.media_type}, {self.size:,} bytes>"

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open it for reading, from its first byte; a file that the user opened is not closed.

        Raises:
            ConfigurationError: The file has changed, or cannot be read.
        """
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        called = self.name or "the file"
        try:
            if not isinstance(self.content, Path):
                self.content.seek(cast(int, self.state))
                return nullcontext(self.content)
            file = self.content.open("rb")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{called} cannot be read: {_reason(error)}") from None
        if _state_of(os.fstat(file.fileno())) != self.state:
            file.close()
            raise ConfigurationError(f"{called} has changed since it was checked")
        return file

    def pieces(self) -> Iterator[bytes]:
        """Yield its bytes, piece by piece.

        Raises:
            ConfigurationError: They cannot be read, or are fewer than when the file was checked.
        """
        left, called = self.size, self.name or "the file"
        with self.open() as file:
            while left:
                try:
                    piece = file.read(min(PIECE, left))
                except (OSError, ValueError) as error:
                    raise ConfigurationError(f"{called} cannot be read: {_reason(error)}") from None
                if not piece:
                    raise ConfigurationError(f"{called} has become shorter")
                left -= len(piece)
                yield piece

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its bytes; reads all of them."""
        found = sha256()
        for piece in self.pieces():
            found.update(piece)
        return found.hexdigest()

    def as_data(self) -> MediaRef:
        """Return it in the form that a request may carry; reads all of it."""
        content = self.content if isinstance(self.content, bytes) else b"".join(self.pieces())
        data = _Data(data=b64encode(content).decode("ascii"), media_type=self.media_type)
        return cast(MediaRef, data)


class _Data(dict[str, Any]):
    """A media reference whose repr leaves out the data, which would fill the screen."""

    def __repr__(self) -> str:
        return (
            f"{{'data': <{len(self['data']):,} characters>, 'media_type': {self['media_type']!r}}}"
        )


def media(source: Media | str, *, media_type: str | None = None) -> MediaRef:
    """Return the media reference for a local file or an earlier generation.

    You seldom need this: `create`, `run` and the others take a path, bytes, a file or a generation
    as it is. Use it to look at the reference, or with the official SDK. It reads the file now.

        reference = luma_poll.media(Path("photo.webp"))
        await client.generations.create("at night", type="image_edit", source=reference)

    Args:
        source: A `Path`, bytes, a binary file, a Pillow image, a generation, a reference, or the
            URL of a public image or video.
        media_type: The media type, such as `image/webp`; by default the first bytes decide.

    Returns:
        A mapping that the API accepts.

    Raises:
        ConfigurationError: `source` cannot be read, is empty, is of no known type, or has more than
            50 MB. Upload larger files with `await client.files.upload(path)`.
    """
    if isinstance(source, str):
        if not source.lower().startswith(("https://", "http://")):
            raise ConfigurationError(string_given("media", source))
        return {"url": source} if media_type is None else {"url": source, "media_type": media_type}
    if isinstance(source, Mapping):
        return source
    found = read_local("media", source, media_type)
    if not isinstance(found, LocalMedia):
        return cast(MediaRef, found)
    if found.size > MAX_DATA:
        raise ConfigurationError(f"media: {too_large(found)}")
    return found.as_data()


def too_large(found: LocalMedia) -> str:
    """Return why it cannot be part of a request, and what to do instead."""
    return (
        f"{found.name or 'it'} has {found.size:,} bytes, more than the 50 MB that a request takes: "
        "upload it (client.files.upload) and give {'file_id': …}"
    )


def string_given(place: str, value: str) -> str:
    """Return why text is not a media reference, and how to write one."""
    if value.lower().startswith(("https://", "http://")):
        hint = "write {'url': …} for an address"
    else:
        hint = "write Path(…) for a file, or {'generation_id': …} for a generation"
    return f"{place} is text, not a media reference: {hint}"


def takes_time(value: object) -> bool:
    """Return True if `read_local` may have much to read, or must convert."""
    return callable(getattr(value, "save", None)) or (
        callable(getattr(value, "read", None)) and not isinstance(value, io.BytesIO)
    )


def is_local(value: object) -> bool:
    """Return True for what becomes a `LocalMedia`."""
    kinds = (os.PathLike, bytes, bytearray, memoryview, LocalMedia)
    return isinstance(value, kinds) or any(
        callable(getattr(value, name, None)) for name in ("read", "save")
    )


async def in_thread(takes_time: bool, function: Callable[[T], R], argument: T) -> R:
    """Call a function, in a thread if it takes time: a few bytes are read before a thread starts.

    Without a thread, inputs also work under a virtual clock, which does not wait for threads.
    """
    if takes_time:
        return await anyio.to_thread.run_sync(function, argument, limiter=own_threads())
    return function(argument)


def read_local(place: str, value: object, media_type: str | None = None) -> Any:
    """Read as much of an image or video as its check needs; files stay on the disk.

    Args:
        place: The name of the parameter, for messages.
        value: A path, bytes, a binary file, a Pillow image, or a generation.
        media_type: The media type; by default the first bytes decide.

    Returns:
        A `LocalMedia`, or the reference to a generation.

    Raises:
        ConfigurationError: `value` is something else, or is unusable.
    """
    if isinstance(value, LocalMedia):
        return value
    generation_id, state = getattr(value, "id", None), getattr(value, "state", None)
    if isinstance(generation_id, str) and isinstance(state, str):
        if state == "failed":
            raise ConfigurationError(f"{place}: the generation {generation_id} has failed")
        return {"generation_id": check_generation_id(generation_id)}
    try:
        if isinstance(value, os.PathLike):
            return _of_path(place, Path(os.fsdecode(value)), media_type)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return _of_bytes(place, "", bytes(value), media_type)
        if callable(getattr(value, "read", None)):
            return _of_file(place, cast(BinaryIO, value), media_type)
        if callable(getattr(value, "save", None)):
            return _of_bytes(place, "", _as_png(place, value), media_type)
    except ConfigurationError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        name = shown(value, str)[-MAX_NAME:] if isinstance(value, os.PathLike) else "the file"
        raise ConfigurationError(f"{place}: {name} cannot be read: {_reason(error)}") from None
    raise ConfigurationError(
        f"{place} is neither JSON nor a media reference, path, bytes, file or generation, "
        f"but {type(value).__name__}"
    )


def _of_path(place: str, path: Path, media_type: str | None) -> LocalMedia:
    name = path.name[-MAX_NAME:]
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        head = file.read(HEAD_SIZE)
        if not path.is_file():  # a pipe has no size, and can be read only once
            content = head + file.read(MAX_DATA + 1)
            if len(content) > MAX_DATA:
                raise ConfigurationError(f"{place}: {name} is too large to be sent from a pipe")
            return _of_bytes(place, name, content, media_type)
    return _known(place, name, head, status.st_size, path, _state_of(status), media_type)


def _of_bytes(place: str, name: str, content: bytes, media_type: str | None) -> LocalMedia:
    return _known(place, name, content[:HEAD_SIZE], len(content), content, None, media_type)


def _of_file(place: str, file: BinaryIO, media_type: str | None) -> LocalMedia:
    given = getattr(file, "name", "")
    name = Path(given).name[-MAX_NAME:] if isinstance(given, str) else ""
    start = file.tell() if _is_seekable(file) else None
    content = file.read(MAX_DATA + 1)
    if start is not None:
        file.seek(start)  # so that another request can use the same file
    if not isinstance(content, bytes):
        raise ConfigurationError(f"{place}: {name or 'the file'} is open as text: use mode 'rb'")
    if len(content) <= MAX_DATA:
        return _of_bytes(place, name, content, media_type)
    if start is None:
        raise ConfigurationError(f"{place}: {name or 'the file'} is too large to be sent from here")
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    return _known(place, name, content[:HEAD_SIZE], size, file, start, media_type)


def _is_seekable(file: BinaryIO) -> bool:
    try:
        return file.seekable()
    except AttributeError:
        return False


def _known(
    place: str,
    name: str,
    head: bytes,
    size: int,
    content: Path | bytes | BinaryIO,
    state: tuple[int, int] | int | None,
    media_type: str | None,
) -> LocalMedia:
    called = name or "what was given"
    if not size:
        raise ConfigurationError(f"{place}: {called} is empty")
    if size > MAX_UPLOAD:
        raise ConfigurationError(f"{place}: {called} has {size:,} bytes; the limit is 5 GiB")
    found = media_type or media_type_of(head, name)
    if found is None or not found.startswith(("image/", "video/")):
        what = "is not an image or a video" if found else "is of no known type of image or video"
        raise ConfigurationError(f"{place}: {called} {what}")
    return LocalMedia(name, found, size, content, state)


def _as_png(place: str, image: Any) -> bytes:
    """Return a Pillow image, or anything with such a `save`, as PNG, which is lossless."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="PNG")
    except Exception as error:
        raise ConfigurationError(
            f"{place}: the {type(image).__name__} cannot be saved as PNG: {_reason(error)}"
        ) from None
    return buffer.getvalue()


def _state_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return reason_of(error)
    return shown(error, str)[:200] or type(error).__name__
