"""A file belongs to its output: a name is no identity, and neither is a size."""

import os
from pathlib import Path

import pytest

from luma_poll import DownloadError, Generation
from luma_poll._downloads import ownership
from tests.downloads.support import PNG, STORE, Storage, names, opened, serve
from tests.fakes import ID, snapshot

OTHER = "00000000-0000-4000-8000-000000000001"
NEW = PNG[:-4] + b"NEW!"


def output_of(id: str) -> Generation:
    return snapshot(id=id, output=[{"type": "image", "url": f"{STORE}/{id}"}])


def answer(request: object) -> object:
    url = str(request.url)  # type: ignore[attr-defined]
    return serve(NEW if OTHER in url else PNG)(request)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_two_generations_under_one_name(tmp_path: Path) -> None:
    """Of one size: the second is refused, numbered, or replaces the first, as asked."""
    async with opened(Storage(answer)) as client:  # type: ignore[arg-type]
        (first,) = await client.download(output_of(ID), tmp_path, name="same")
        with pytest.raises(DownloadError, match="holds something else"):
            await client.download(output_of(OTHER), tmp_path, name="same")
        assert first.read_bytes() == PNG
        (second,) = await client.download(
            output_of(OTHER), tmp_path, name="same", overwrite="number"
        )
        assert second == tmp_path / "same (2).png"
        assert second.read_bytes() == NEW
        again = await client.download(output_of(OTHER), tmp_path, name="same", overwrite="number")
        assert again == [second]
        assert await client.download(output_of(ID), tmp_path, name="same") == [first]
        assert await client.download(output_of(OTHER), tmp_path, name="same", overwrite=True)
    assert first.read_bytes() == NEW
    assert names(tmp_path) == ["same (2).png", "same.png"]


@pytest.mark.anyio
@pytest.mark.parametrize("mine", [b"my own", b"!" * len(PNG)])
async def test_a_file_of_somebody_else_is_left(tmp_path: Path, mine: bytes) -> None:
    """Of another size or of the same."""
    (tmp_path / "logo.png").write_bytes(mine)
    async with opened(Storage(serve())) as client:
        with pytest.raises(DownloadError, match="holds something else"):
            await client.download(output_of(ID), tmp_path, name="logo")
    assert (tmp_path / "logo.png").read_bytes() == mine


@pytest.mark.anyio
async def test_a_retouched_file_is_left(tmp_path: Path) -> None:
    """It is no longer the output, and not replaced unless asked for."""
    async with opened(Storage(serve())) as client:
        (path,) = await client.download(output_of(ID), tmp_path)
        with path.open("ab") as file:
            file.write(b"retouched")
        with pytest.raises(DownloadError):
            await client.download(output_of(ID), tmp_path)
        assert path.read_bytes() == PNG + b"retouched"
        assert await client.download(output_of(ID), tmp_path, overwrite=True) == [path]
    assert path.read_bytes() == PNG


@pytest.mark.anyio
async def test_a_copy_without_attributes_is_known_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system keeps no attributes at all."""

    def unsupported(*_: object) -> bytes:
        raise OSError

    monkeypatch.setattr(ownership, "_get", unsupported)
    monkeypatch.setattr(ownership, "_set", unsupported)
    async with opened(Storage(answer)) as client:  # type: ignore[arg-type]
        (path,) = await client.download(output_of(ID), tmp_path, name="a")
        assert await client.download(output_of(ID), tmp_path, name="a") == [path]
        with pytest.raises(DownloadError):
            await client.download(output_of(OTHER), tmp_path, name="a")
    assert path.read_bytes() == PNG


@pytest.mark.posix
@pytest.mark.anyio
@pytest.mark.parametrize("times", [3, 10_000])
async def test_a_rename_that_is_held_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """By a virus scanner, for a while: it is tried again; for longer: the bytes are kept."""
    held = [True] * times
    link = os.link

    def linking(one: Path, other: Path, *, follow_symlinks: bool) -> None:
        if held:
            held.pop()
            raise PermissionError(13, "held")
        link(one, other, follow_symlinks=follow_symlinks)

    def replacing(one: Path, other: Path) -> None:
        if other.suffix == ".png":
            raise PermissionError(13, "held")
        one.rename(other)

    monkeypatch.setattr(os, "link", linking)
    monkeypatch.setattr(os, "replace", replacing)
    async with opened(Storage(serve())) as client:
        if times > 100:
            with pytest.raises(DownloadError, match="held"):
                await client.download(output_of(ID), tmp_path)
            (part,) = names(tmp_path)
            assert (tmp_path / part).read_bytes() == PNG
            held.clear()
        assert await client.download(output_of(ID), tmp_path) == [tmp_path / f"{ID}.png"]
    assert names(tmp_path) == [f"{ID}.png"]
