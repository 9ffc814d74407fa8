"""What a storage may answer: pieces of two files, redirects, oddities."""

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from luma_poll import ConfigurationError, DownloadError, LumaClient
from tests.downloads.support import (
    BASE_URL,
    GET,
    PNG,
    SECRET,
    TOKEN,
    Body,
    Storage,
    generation,
    names,
    opened,
    rest,
    serve,
    status,
)
from tests.fakes import ID

pytestmark = pytest.mark.usefixtures("soon")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "changes",
    [
        {"Content-Encoding": "gzip"},
        {"ETag": None},
        {"ETag": '"two"'},
        {"ETag": 'W/"one"'},
        {"Content-Range": None},
        {"Content-Range": f"bytes 3000-{len(PNG) - 1}/*"},
        {"Content-Range": f"bytes 2999-{len(PNG) - 1}/{len(PNG)}"},
        {"Content-Range": f"bytes 3000-{len(PNG)}/{len(PNG)}"},
        {"Content-Range": f"bytes 3000-2999/{len(PNG)}"},
    ],
)
async def test_a_part_that_is_not_what_was_promised_is_not_spliced(
    tmp_path: Path, changes: dict[str, str | None]
) -> None:
    """The file is started over, and no more ranges are asked for."""
    storage = Storage(serve(cut=3000), rest(changes), serve(cut=3000), serve())
    async with opened(storage) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [f"{ID}.png"]
    assert ["Range" in request.headers for request in storage.requests] == [0, 1, 0, 0]


@pytest.mark.anyio
async def test_a_part_ends_where_it_says(tmp_path: Path) -> None:
    """Bytes beyond its range belong nowhere."""
    part = rest({"Content-Range": f"bytes 3000-4999/{len(PNG)}"})
    async with opened(Storage(serve(cut=3000), part, serve())) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path.stat().st_size == len(PNG)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "location", "follows"),
    [
        ("https://storage.example.com/a", "http://127.0.0.1/b", False),
        ("https://storage.example.com/a", "http://localhost/b", False),
        ("https://127.0.0.1/a", "http://127.0.0.1/b", False),
        ("http://127.0.0.1/a", "http://storage.example.com/b", False),
        ("http://127.0.0.1/a", "http://localhost/b", True),
        ("HTTP://localhost/a", "/b", True),
        ("http://127.0.0.1/a", "https://storage.example.com/b", True),
    ],
)
async def test_a_redirect_gives_up_no_encryption(
    tmp_path: Path, url: str, location: str, follows: bool
) -> None:
    """Plain http on this machine is followed only from plain http."""
    storage = Storage(status(302, Location=location), serve())
    async with opened(storage, base_url=HERE) as client:
        if follows:
            assert await client.download(generation(url), tmp_path)
        else:
            with pytest.raises(DownloadError, match="not https"):
                await client.download(generation(url), tmp_path)
    assert len(storage.requests) == 1 + follows


@pytest.mark.anyio
async def test_what_was_encrypted_once_stays_so(tmp_path: Path) -> None:
    """Even if the first URL was unencrypted, on this machine."""
    there, back = "https://storage.example.com/b", "http://localhost/c"
    storage = Storage(status(302, Location=there), status(302, Location=back), serve())
    async with opened(storage, base_url=HERE) as client:
        with pytest.raises(DownloadError, match="not https"):
            await client.download(generation("http://localhost/a"), tmp_path)
    assert len(storage.requests) == 2


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:the API key will be sent")
@pytest.mark.parametrize(
    ("base_url", "url", "fetches"),
    [
        ("https://api.example.com/v1", "http://localhost:6379/a", False),
        ("https://api.example.com/v1", "http://127.0.0.1:6379/a", False),
        ("https://api.example.com/v1", "http://[::1]/a", False),
        ("https://api.example.com/v1", "http://api.example.com/a", False),
        ("http://luma.internal/v1", "http://localhost/a", False),
        ("http://luma.internal/v1", "http://luma.internal/a", True),
        ("http://luma.internal/v1", "http://other.internal/a", False),
        ("http://localhost:8000/v1", "http://127.0.0.1:9000/a", True),
        ("https://localhost/v1", "http://localhost/a", True),
        ("http://localhost/v1", "http://luma.internal/a", False),
    ],
)
async def test_only_an_api_on_this_machine_names_servers_on_this_machine(
    tmp_path: Path, base_url: str, url: str, fetches: bool
) -> None:
    """A remote one has no business with what listens here; plain http is your choice alone."""
    storage = Storage(serve())
    async with opened(storage, base_url=base_url) as client:
        if fetches:
            assert await client.download(generation(url), tmp_path)
        else:
            with pytest.raises(DownloadError, match="not https"):
                await client.download(generation(url), tmp_path)
    assert len(storage.requests) == fetches


HERE = "http://127.0.0.1:1/v1"

BAD_URLS = [
    "https://storage.example.com/\x00",
    "https://storage.example.com/\ud800",
    "https://\ud800.example.com/",
    "https://xn--zzzzzz\u00e9/",
    "https://xn--/",
    "https://xn--ls8h=.example.com/",
    "https://[storage/",
    "https://storage.example.com:99999/",
    "https://storage.example.com:-1/",
    "https://storage example.com/",
    f"https://storage.example.com/{'a' * 70_000}",
    "https:///a",
    "a",
    "",
]


@pytest.mark.anyio
@pytest.mark.parametrize("url", BAD_URLS)
@pytest.mark.parametrize("redirected", [False, True])
async def test_what_is_no_url_is_refused(tmp_path: Path, url: str, redirected: bool) -> None:
    """With a `DownloadError` whose causes have no signature."""
    url = f"{url}?{SECRET}"
    location = [(b"Location", url.encode("utf-8", "surrogatepass"))]
    storage = Storage(lambda request: httpx.Response(302, headers=location))
    given = generation(*[] if redirected else [url])
    async with opened(storage) as client:
        with pytest.raises(DownloadError) as caught:
            await client.download(given, tmp_path, timeout=60)
    error: BaseException | None = caught.value
    assert "not" in str(error) or "more than 3 redirects" in str(error)
    while error is not None:
        assert "5ec4e7" not in f"{error!r} {vars(error)}"
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_host_that_cannot_be_looked_up_is_a_download_error(tmp_path: Path, backend: str) -> None:
    """On a real connection, which encodes the name in its own way."""

    async def run() -> None:
        url = f"https://{'a' * 64}.invalid/"
        async with LumaClient(TOKEN, base_url="http://127.0.0.1:1/v1") as client:
            with pytest.raises(DownloadError, match="generation"):
                await client.download(generation(url), tmp_path, timeout=0.2)

    anyio.run(run, backend=backend)


@pytest.mark.anyio
async def test_a_response_that_was_read_before_is_a_file_too(tmp_path: Path) -> None:
    """As the mock transport of httpx gives it."""

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=GET, content=PNG)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
        client = LumaClient(TOKEN, base_url=BASE_URL, http_client=http)
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error", [anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError]
)
async def test_errors_of_the_connection_that_httpcore_lets_through(
    tmp_path: Path, error: type[Exception]
) -> None:
    """They are retried like any other, before the response and in its middle."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise error

    def break_off(request: httpx.Request) -> httpx.Response:
        headers = GET | {"Content-Length": str(len(PNG))}
        return httpx.Response(200, headers=headers, stream=Body(PNG[:3000], error()))

    async with opened(Storage(refuse, break_off, serve())) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG


@pytest.mark.anyio
@pytest.mark.parametrize("directory", ["a\0b", "\ud800", b"bytes", 17, None])
async def test_what_is_no_directory(directory: Any) -> None:
    """It is refused before anything is sent."""
    storage = Storage(serve())
    async with opened(storage) as client:
        with pytest.raises(ConfigurationError, match="directory"):
            await client.download(ID, directory)
    assert storage.gets == 0
