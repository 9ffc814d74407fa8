"""Which media some bytes are: told by the first of them, checked against the content type."""

from __future__ import annotations

import re
from typing import Final

TYPES: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/x-exr": "exr",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "video/quicktime": "mov",
}
UNKNOWN = "bin"
EXTENSIONS: Final = (*TYPES.values(), UNKNOWN)
"""Those that `extension_of` gives."""
NO_MEDIA: Final = re.compile(r"(?i)text/|application/([\w.-]+\+)?(json|xml)\b|application/xhtml")
"""Content types of pages and error messages."""
MAGIC: Final = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"\x1aE\xdf\xa3": "webm",
    b"v/1\x01": "exr",
}
HEIF_BRANDS: Final = (b"avif", b"avis", b"heic", b"mif1")
HEAD_SIZE = 64
"""Bytes that are enough to tell."""


def is_media(content_type: str) -> bool:
    """Whether a content type may be that of an image or video: not text, JSON or XML."""
    return NO_MEDIA.match(content_type) is None


def extension_of(head: bytes, content_type: str) -> str | None:
    """The extension of a file that begins so; None if it is not what its content type says.

    What begins with unknown bytes is a `bin`, if its content type is unknown too and it does not
    look like a text.
    """
    found = sniff(head)
    if found is not None:
        return found
    looks_like_text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"<", b"{", b"[", b"")
    return None if content_type in TYPES or looks_like_text else UNKNOWN


def sniff(head: bytes) -> str | None:
    """The extension of the media that begins with these bytes, if it is a known one."""
    if head[4:8] == b"ftyp" and head[8:12] not in HEIF_BRANDS:
        return "mov" if head[8:12] == b"qt  " else "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in MAGIC.items() if head.startswith(start)), None)
