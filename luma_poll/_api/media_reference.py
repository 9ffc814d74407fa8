"""Images and videos that are here and not at the API: files, bytes and images in memory."""

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
from luma_poll.errors import ConfigurationError

T = TypeVar("T")
R = TypeVar("R")

MAX_DATA = 50_000_000
"""Bytes that a request may carry itself: the API's "50 MB", in the narrower sense of it."""
MAX_UPLOAD = 5 * 1024**3
"""Bytes of an upload: what the storage takes in one piece."""
PIECE = 1024 * 1024
"""Bytes that are read at a time, where a file is not needed as a whole."""
MAX_NAME = 100
"""Characters of a file's name in messages."""


@dataclass(frozen=True, repr=False)
class LocalMedia:
    """An image or a video that is here: it becomes data or an upload when it is sent.

    Attributes:
        name: The name of its file, for people; empty if it has none.
        media_type: By its first bytes.
        size: Bytes.
        content: Its path, its bytes, or the open file that it is the rest of.
        state: Of the file when it was looked at: what is sent is what was checked.
    """

    name: str
    media_type: str
    size: int
    content: Path | bytes | BinaryIO
    state: tuple[int, int] | int | None = None

    def __repr__(self) -> str:
        return f"<{self.name or 'bytes'}: {self.media_type}, {self.size:,} bytes>"

    def open(self) -> AbstractContextManager[BinaryIO]:
        """Open it for reading, from its first byte; a file that was handed in is not closed.

        Raises:
            ConfigurationError: The file is no longer what it was, or cannot be read.
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
            ConfigurationError: They cannot be read, or there are fewer than when it was checked.
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
        """Return it as the API takes it in a request; reads all of it."""
        content = self.content if isinstance(self.content, bytes) else b"".join(self.pieces())
        data = _Data(data=b64encode(content).decode("ascii"), media_type=self.media_type)
        return cast(MediaRef, data)


class _Data(dict[str, Any]):
    """A reference whose data does not fill a screen when it is shown."""

    def __repr__(self) -> str:
        return (
            f"{{'data': <{len(self['data']):,} characters>, 'media_type': {self['media_type']!r}}}"
        )


def media(source: Media | str, *, media_type: str | None = None) -> MediaRef:
    """Return the media reference for something that is here, or was made before.

    `create`, `run` and the others take a path, bytes, a file or a generation as they are. This is
    the same for those who want to see it, or who call the official SDK. It reads the file now.

        reference = luma_poll.media(Path("photo.webp"))
        await client.generations.create("at night", type="image_edit", source=reference)

    Args:
        source: A `Path`, bytes, a binary file, an image of Pillow, a generation, a reference, or
            the address of something that is on the web.
        media_type: For example `image/webp`; by default it follows from the first bytes.

    Returns:
        A mapping as the API takes it.

    Raises:
        ConfigurationError: It cannot be read, is empty, is of no known type, or has more than
            50 MB: `await client.files.upload(path)` is for those.
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
    """Return the reason why it cannot be part of a request."""
    return (
        f"{found.name or 'it'} has {found.size:,} bytes, more than the 50 MB that a request takes: "
        "upload it (client.files.upload) and give {'file_id': …}"
    )


def string_given(place: str, value: str) -> str:
    """Return the reason why text is no media reference, and how to write one."""
    if value.lower().startswith(("https://", "http://")):
        hint = "write {'url': …} for an address"
    else:
        hint = "write Path(…) for a file, or {'generation_id': …} for a generation"
    return f"{place} is text, not a media reference: {hint}"


def takes_time(value: object) -> bool:
    """Return True for what `read_local` may read a lot of, or must convert."""
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
    """Call a function, in a thread if it takes time: a few bytes are read faster than one begins.

    That is also what lets tests in virtual time have inputs: a thread has no part in it.
    """
    if takes_time:
        return await anyio.to_thread.run_sync(function, argument, limiter=own_threads())
    return function(argument)


def read_local(place: str, value: object, media_type: str | None = None) -> Any:
    """Read what is needed to know an image or a video; files of any size are left on the disk.

    Args:
        place: The name of the parameter, for messages.
        value: A path, bytes, a binary file, an image of Pillow, or a generation.
        media_type: The type; by default it follows from the first bytes.

    Returns:
        A `LocalMedia`, or the reference to a generation.

    Raises:
        ConfigurationError: It is none of these, or unusable.
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
        if not path.is_file():  # a pipe has no size, and can be read once
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
        file.seek(start)  # so that it may be the input of another request, too
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
        raise ConfigurationError(f"{place}: {called} has {size:,} bytes; 5 GiB are the limit")
    found = media_type or media_type_of(head, name)
    if found is None or not found.startswith(("image/", "video/")):
        what = "is not an image or a video" if found else "is of no known type of image or video"
        raise ConfigurationError(f"{place}: {called} {what}")
    return LocalMedia(name, found, size, content, state)


def _as_png(place: str, image: Any) -> bytes:
    """Return an image of Pillow, or of anything with its `save`, as a PNG: nothing is lost."""
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
        return error.strerror
    return shown(error, str)[:200] or type(error).__name__
