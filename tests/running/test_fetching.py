"""Runs that bring their files home."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from luma_poll import ConfigurationError, DownloadError, LumaClient, Runner
from luma_poll.sandbox import Sandbox


def client_of(sandbox: Sandbox) -> LumaClient:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=sandbox.app))
    return LumaClient("luma-api-key", base_url="http://sandbox/v1", http_client=http)


PROMPTS: list[Any] = [
    {"prompt": "a fox sandbox:duration=0", "key": "Füchse (1)"},
    {"prompt": "an owl sandbox:duration=0", "key": "owl"},
]


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:the API key will be sent")
async def test_files_are_named_by_their_keys(tmp_path: Path) -> None:
    """In the order of the requests, each beside the other."""
    runner = Runner(client_of(Sandbox(speed=1000)))
    results = await runner.run_all(PROMPTS, download=tmp_path)
    assert [result.paths for result in results] == [
        [tmp_path / "Füchse (1).png"],
        [tmp_path / "owl.png"],
    ]
    async with runner.as_completed(PROMPTS, download=tmp_path, name="{key}-{id}") as ended:
        paths = [result.paths async for result in ended]
    assert all(path.exists() for each in paths for path in each)


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:the API key will be sent")
async def test_a_failed_download_is_not_a_failed_generation(tmp_path: Path) -> None:
    """The result is completed and paid for, and says why its files are not there."""
    (tmp_path / "owl.png").write_bytes(b"my own")
    runner = Runner(client_of(Sandbox(speed=1000)))
    fox, owl = await runner.run_all(PROMPTS, download=tmp_path)
    assert fox.paths
    assert owl.ok
    assert owl.outputs
    assert owl.paths == []
    assert isinstance(owl.download_error, DownloadError)
    assert (tmp_path / "owl.png").read_bytes() == b"my own"


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:the API key will be sent")
@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["hero", "hero"], None),
        (["hero", "Hero"], None),
        (["f\u00fcchse", "fu\u0308chse"], None),
        (["a", "b"], "hero"),
        (["a", "b"], "{n}"),
        (["a", "b"], "{kee}"),
        (["a", None], "{key}"),
    ],
)
async def test_two_files_of_one_name_are_refused(
    tmp_path: Path, keys: list[str | None], name: str | None
) -> None:
    """Before anything is submitted, also where only some systems take them for one."""
    sandbox = Sandbox(speed=1000)
    requests: list[Any] = [{"prompt": "x", "key": key} if key else {"prompt": "x"} for key in keys]
    with pytest.raises(ConfigurationError):
        await Runner(client_of(sandbox)).run_all(requests, download=tmp_path, name=name)
    assert not sandbox.calls


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:the API key will be sent")
async def test_an_unusable_directory_is_found_out_first(tmp_path: Path) -> None:
    """Before anything is submitted."""
    (tmp_path / "file").touch()
    sandbox = Sandbox(speed=1000)
    runner = Runner(client_of(sandbox))
    with pytest.raises(ConfigurationError, match="cannot write"):
        await runner.run_all(PROMPTS, download=tmp_path / "file")
    with pytest.raises(ConfigurationError, match="cannot write"):
        async with runner.as_completed(PROMPTS, download=tmp_path / "file"):
            pass
    assert not sandbox.calls
