"""The type of a media file, from its first bytes and its content type."""

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
"""All results of `extension_of`."""
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
"""Bytes that `extension_of` needs."""


def is_media(content_type: str) -> bool:
    """True unless a content type is that of text, JSON or XML."""
    return NO_MEDIA.match(content_type) is None


def extension_of(head: bytes, content_type: str) -> str | None:
    """The extension of a file with these first bytes; None if they contradict its content type.

    Unknown bytes are a `bin` if the content type is unknown too and they do not look like text.
    """
    found = sniff(head)
    if found is not None:
        return found
    looks_like_text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"<", b"{", b"[", b"")
    return None if content_type in TYPES or looks_like_text else UNKNOWN


def sniff(head: bytes) -> str | None:
    """The extension of the media type that begins with these bytes; None if it is unknown."""
    if head[4:8] == b"ftyp" and head[8:12] not in HEIF_BRANDS:
        return "mov" if head[8:12] == b"qt  " else "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return next((name for start, name in MAGIC.items() if head.startswith(start)), None)
