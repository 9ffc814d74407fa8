"""Media types: told by a file's first bytes, and only then by the label that it carries."""

from __future__ import annotations

import mimetypes
import re
from typing import Final

EXTENSIONS: Final = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/tiff": "tiff",
    "image/bmp": "bmp",
    "image/jxl": "jxl",
    "image/x-exr": "exr",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "application/zip": "zip",
}
"""The extension for each media type that the first bytes can tell."""
SPELLINGS: Final = {"jpeg": "jpg", "tif": "tiff", "qt": "mov", "m4v": "mp4"}
"""Other ways to write an extension."""
UNKNOWN: Final = "bin"
HEAD_SIZE: Final = 64
"""Bytes that `media_type_of` and `looks_like_text` need."""

_STARTS: Final = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
    b"II+\0": "image/tiff",  # its 64-bit variant
    b"MM\0+": "image/tiff",
    b"v/1\x01": "image/x-exr",
    b"\xff\x0a": "image/jxl",
    b"\0\0\0\x0cJXL \r\n\x87\n": "image/jxl",
    b"PK\x03\x04": "application/zip",
}
_BRANDS: Final = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"heim": "image/heic",
    b"heis": "image/heic",
    b"hevc": "image/heic",
    b"hevx": "image/heic",
    b"qt  ": "video/quicktime",
}
_ANY_HEIF: Final = (b"mif1", b"msf1")
_QUICKTIME_BOXES: Final = (b"wide", b"pnot")
_MOVIE_BOXES: Final = (b"moov", b"mdat", b"free", b"skip")
"""Boxes that both QuickTime and MP4 files may begin with, if they do not begin with their type."""


def media_type_of(head: bytes, label: str = "") -> str | None:
    """Return the media type of a file with these first bytes.

    Args:
        head: The first `HEAD_SIZE` bytes, or all of a smaller file.
        label: A type or name that the file carries; it decides between MP4 and QuickTime if the
            bytes do not.

    Returns:
        A key of `EXTENSIONS`; None for unknown bytes.
    """
    if (box := head[4:8]) == b"ftyp":
        return _type_of_brands(head)
    if box == b"styp":
        return "video/mp4"
    if box in _QUICKTIME_BOXES:
        return "video/quicktime"
    if box in _MOVIE_BOXES:
        return "video/mp4" if "mp4" in label.lower() else "video/quicktime"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "image/bmp"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video/x-matroska" if b"matroska" in head else "video/webm"
    return next((found for start, found in _STARTS.items() if head.startswith(start)), None)


def _type_of_brands(head: bytes) -> str:
    major = head[8:12]
    if major not in _ANY_HEIF:
        return _BRANDS.get(major, "video/mp4")
    end = min(int.from_bytes(head[:4]), len(head))
    compatible = [head[place : place + 4] for place in range(16, end, 4)]
    found = [_BRANDS[brand] for brand in compatible if brand in _BRANDS]
    return found[0] if found else "image/heif"


def looks_like_text(head: bytes) -> bool:
    """Return True for the first bytes of a web page, an error message, or other text."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"<", b"{", b"["):
        return True
    try:
        shown = text.decode()
    except UnicodeDecodeError as error:
        if error.end < len(text):
            return False
        shown = text[: error.start].decode()  # the head may end in the middle of a character
    return bool(shown) and all(
        character.isprintable() or character.isspace() for character in shown
    )


def extension_of_label(content_type: str) -> str:
    """Return the extension for a content type, without a dot; `bin` if it has none."""
    plain = content_type.partition(";")[0].strip().lower()
    if plain in EXTENSIONS:
        return EXTENSIONS[plain]
    guessed = (mimetypes.guess_extension(plain) or "").removeprefix(".")
    return guessed if re.fullmatch(r"[a-z0-9]{1,8}", guessed) else UNKNOWN
