"""Outputs without a directory."""

from pathlib import Path

import pytest

from luma_poll import ConfigurationError, DownloadError
from tests.downloads.support import PNG, STORE, Storage, generation, opened, serve


@pytest.mark.anyio
async def test_bytes_of_all_outputs() -> None:
    """Resumed and checked as files are."""
    storage = Storage(serve(cut=3000), serve())
    async with opened(storage) as client:
        assert await client.read(generation()) == [PNG]
        assert storage.requests[1].headers["Range"] == "bytes=3000-"
        assert await client.read(generation(STORE, STORE)) == [PNG, PNG]
        with pytest.raises(DownloadError, match="max_bytes"):
            await client.read(generation(), max_bytes=100)


@pytest.mark.anyio
async def test_a_stream_is_resumed() -> None:
    """Each byte arrives once, in order; of several outputs one must be chosen."""
    large = PNG * 100
    async with opened(Storage(serve(large, cut=500_000), serve(large))) as client:
        async with client.stream(generation()) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == large
        with pytest.raises(ConfigurationError, match="2 outputs"):
            async with client.stream(generation(STORE, STORE)):
                pass
        async with client.stream(generation(STORE, STORE).outputs[1]) as chunks:
            async for _ in chunks:
                break  # whoever has seen enough may leave


@pytest.mark.anyio
async def test_a_stream_that_cannot_be_resumed_says_so() -> None:
    """What was passed on cannot be called back."""
    large = PNG * 100
    broken = serve(large, cut=500_000, ETag='W/"weak"')
    async with opened(Storage(broken)) as client, client.stream(generation()) as chunks:
        with pytest.raises(DownloadError, match="broke off"):
            assert [chunk async for chunk in chunks]


@pytest.mark.anyio
async def test_files_show_themselves(tmp_path: Path) -> None:
    """A notebook gets the picture from the disk, and no signature."""
    async with opened(Storage(serve())) as client:
        paths = await client.download(generation(), tmp_path)
    shown = paths._repr_html_()  # type: ignore[attr-defined]
    assert "data:image/png;base64," in shown
    assert "X-Amz" not in shown
    assert "X-Amz" not in generation().outputs[0]._repr_html_()
