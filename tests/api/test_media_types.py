"""The type of a file: its first bytes decide, its label only where they do not."""

import pytest

from luma_poll._api.media_types import extension_of_label, looks_like_text, media_type_of


@pytest.mark.parametrize(
    ("head", "label", "media_type"),
    [
        (b"\x89PNG\r\n\x1a\n", "", "image/png"),
        (b"\x89PNG\r\n\x1a\n", "text/plain", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/png", "image/jpeg"),
        (b"GIF89a", "", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "", "image/webp"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "", None),
        (b"II*\0\x08\0\0\0", "", "image/tiff"),
        (b"MM\0*\0\0\0\x08", "", "image/tiff"),
        (b"v/1\x01\x02\0\0\0", "", "image/x-exr"),
        (b"BM\x36\0\0\0\0\0\0\0", "", "image/bmp"),
        (b"BMW drives", "", None),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "", "image/jxl"),
        (b"PK\x03\x04", "", "application/zip"),
        (b"\0\0\0\x18ftypmp42", "", "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/mp4", "video/quicktime"),
        (b"\0\0\0\x1cftypavif", "", "image/avif"),
        (b"\0\0\0\x1cftypheic", "", "image/heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "", "image/avif"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1", "", "image/heif"),
        (b"\0\0\0\x18stypmsdh", "", "video/mp4"),
        (b"\0\0\0\x08wide\0\0\x10\0mdat", "video/mp4", "video/quicktime"),
        (b"\0\0\x10\0moov", "video/mp4", "video/mp4"),
        (b"\0\0\x10\0mdat", "", "video/quicktime"),
        (b"\x1aE\xdf\xa3\x01\x42\x82\x84webm", "", "video/webm"),
        (b"\x1aE\xdf\xa3\x01\x42\x82\x88matroska", "", "video/x-matroska"),
        (b"\xff\xfe\xfd", "image/png", None),
        (b"", "image/png", None),
    ],
)
def test_the_first_bytes_decide(head: bytes, label: str, media_type: str | None) -> None:
    """Whatever the label says; unknown bytes have no type."""
    assert media_type_of(head, label) == media_type


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"<html>", True),
        (b"\xef\xbb\xbf  <?xml", True),
        (b'{"error": 1}', True),
        (b"Service unavailable", True),
        ("Bitte später".encode()[:8], True),
        (b"\0\x01\x02", False),
        (b"\xff\xfe\xfd", False),
        (b"", False),
    ],
)
def test_text_is_told_from_media(head: bytes, text: bool) -> None:
    """A page in place of a file is recognised by what it begins with."""
    assert looks_like_text(head) is text


@pytest.mark.parametrize(
    ("label", "extension"),
    [
        ("image/png", "png"),
        ("Video/MP4; codecs=avc1", "mp4"),
        ("application/pdf", "pdf"),
        ("model/unheard-of", "bin"),
        ("", "bin"),
    ],
)
def test_the_extension_of_a_label(label: str, extension: str) -> None:
    """Unknown labels have none."""
    assert extension_of_label(label) == extension
