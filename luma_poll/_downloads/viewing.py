"""Downloaded files that a notebook can show."""

from __future__ import annotations

import os
from base64 import b64encode
from html import escape
from pathlib import Path
from typing import Final
from urllib.parse import quote

from luma_poll._api.media_types import EXTENSIONS, HEAD_SIZE, media_type_of

MAX_EMBEDDED: Final = 8 * 1024**2
"""The most bytes of a file that is embedded in a notebook; a larger file is linked."""
_SHOWN: Final = ("png", "jpg", "webp", "gif", "avif", "bmp", "mp4", "webm", "mov")


class Files(list[Path]):
    """The paths of a generation's files, in the order of its outputs.

    A notebook shows the files as read from the disk, so that no signed URL is saved in it.
    """

    def _repr_html_(self) -> str:
        return "\n".join(_figure(path) for path in self)


def _figure(path: Path) -> str:
    caption = escape(str(path))
    try:
        with path.open("rb") as file:
            media_type = media_type_of(file.read(HEAD_SIZE), path.suffix)
            fits = os.fstat(file.fileno()).st_size <= MAX_EMBEDDED
            file.seek(0)
            content = file.read() if fits else b""
    except OSError as error:
        return f"<p>{caption}: {escape(error.strerror or type(error).__name__)}</p>"
    if media_type is None or EXTENSIONS[media_type] not in _SHOWN:
        return f"<p>{caption}</p>"
    link = quote(path.as_posix())
    source = f"data:{media_type};base64,{b64encode(content).decode()}" if fits else link
    if media_type.startswith("video/"):
        shown = f'<video controls loop src="{source}" style="max-width: 100%"></video>'
    else:
        shown = f'<img src="{source}" alt="{caption}" style="max-width: 100%">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
