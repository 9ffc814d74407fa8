"""Images and videos that are here: how they are recognised, and what they become."""

import io
import os
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from luma_poll import ConfigurationError, Generation, media
from luma_poll._api.media_reference import MAX_DATA, LocalMedia, read_local
from tests.fakes import ID

WEBP = b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


class Picture:
    """An image as Pillow has them."""

    def save(self, fp: BinaryIO, format: str | None = None) -> None:
        assert format == "PNG"
        fp.write(PNG)


@pytest.fixture
def webp(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    path.write_bytes(WEBP)
    return path


def test_a_file_is_recognised_by_its_bytes(webp: Path) -> None:
    """Its name says JPEG; a machine without a table of types makes no difference."""
    assert media(webp) == {"data": media(WEBP)["data"], "media_type": "image/webp"}
    assert b64decode(media(webp)["data"] or "") == WEBP


@pytest.mark.parametrize("given", [WEBP, io.BytesIO(WEBP), bytearray(WEBP), memoryview(WEBP)])
def test_bytes_and_files_are_taken(given: Any) -> None:
    """From memory, and from what is open."""
    assert media(given)["media_type"] == "image/webp"


def test_a_file_counts_from_where_it_stands(webp: Path) -> None:
    """As for all that read files."""
    with webp.open("rb") as file:
        assert media(file) == media(file)  # it may be the input of several requests
        file.seek(len(WEBP))
        with pytest.raises(ConfigurationError, match=r"photo\.jpg is empty"):
            media(file)


def test_an_image_in_memory_is_sent_as_png() -> None:
    """By its own `save`; Pillow is not imported."""
    assert b64decode(media(Picture())["data"] or "") == PNG


def test_a_generation_is_referred_to() -> None:
    """Nothing is uploaded: it is at the API."""
    assert media(Generation(id=ID, state="completed")) == {"generation_id": ID}
    with pytest.raises(ConfigurationError, match="has failed"):
        media(Generation(id=ID, state="failed"))


def test_an_address_and_a_reference_stay_what_they_are() -> None:
    """So that code of one's own may take either."""
    assert media("https://example.com/a.png") == {"url": "https://example.com/a.png"}
    assert media({"file_id": ID}) == {"file_id": ID}
    assert media(PNG, media_type="image/svg+xml")["media_type"] == "image/svg+xml"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("photo.webp", r"text, not a media reference: write Path"),
        (Path("missing.png"), r"missing\.png cannot be read: No such file"),
        (Path(), r"cannot be read: Is a directory"),
        (Path("a\0b.png"), r"cannot be read"),
        (b"", "what was given is empty"),
        (b"hello", "of no known type"),
        (b"PK\x03\x04" + bytes(60), "not an image or a video"),
        (io.StringIO("text"), "open as text: use mode 'rb'"),
        (object(), "but object"),
        (7, "but int"),
        (None, "but NoneType"),
    ],
)
def test_what_is_unusable_is_named(given: Any, said: str) -> None:
    """One line, before anything is sent."""
    with pytest.raises(ConfigurationError, match=said) as refused:
        media(given)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("media")


def test_what_is_too_large_is_to_be_uploaded(tmp_path: Path) -> None:
    """The file is not read for it."""
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypmp42")
        file.truncate(MAX_DATA + 1)
    with pytest.raises(ConfigurationError, match=r"film\.mp4 has 50,000,001 bytes.*files\.upload"):
        media(path)
    found = read_local("source", path)
    assert (found.size, found.media_type) == (MAX_DATA + 1, "video/mp4")
    with path.open("rb") as file:
        found = read_local("source", file)
        assert found.size == MAX_DATA + 1
        assert found.digest == read_local("source", path).digest


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_pipe_is_read_once() -> None:
    """It has no size, and no second reading: `--source <(make-picture)`."""
    reading, writing = os.pipe()
    with open(writing, "wb") as file:
        file.write(WEBP)
    assert media(Path(f"/dev/fd/{reading}"))["media_type"] == "image/webp"
    os.close(reading)


@pytest.mark.parametrize("change", ["longer", "shorter", "gone"])
def test_what_is_sent_is_what_was_checked(webp: Path, change: str) -> None:
    """A file that changes meanwhile is an error, and no other picture is paid for."""
    found = read_local("source", webp)
    if change == "gone":
        webp.unlink()
    else:
        webp.write_bytes(WEBP + b"more" if change == "longer" else WEBP[:-1])
    with pytest.raises(ConfigurationError, match=r"photo\.jpg"):
        found.as_data()


def test_it_shows_itself_in_short() -> None:
    """In a log or a notebook, fifty megabytes are a line."""
    large = PNG + bytes(1_000_000)
    assert repr(read_local("source", large)) == "<bytes: image/png, 1,000,048 bytes>"
    assert len(repr(media(large))) < 100


def test_a_spooled_file_is_taken() -> None:
    """A web framework hands over uploads in these."""
    with tempfile.SpooledTemporaryFile() as file:
        file.write(WEBP)
        file.seek(0)
        found = read_local("source", file)
    assert isinstance(found, LocalMedia)
    assert found.as_data()["media_type"] == "image/webp"
