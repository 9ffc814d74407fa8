"""Storages as they are, with every client that we accept: the bytes, or an error that says why."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import httpx_aiohttp
import pytest

from luma_poll import DownloadError, Generation, LumaClient
from luma_poll._downloads import output
from tests.downloads.support import names
from tests.fakes import ID

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
Answer = tuple[int, dict[str, str], bytes]
BYTES = (200, {"Content-Type": "image/png", "ETag": '"one"'}, PNG)


def once(status: int, body: bytes = b"", **headers: str) -> list[Answer]:
    """This answer, then the file."""
    return [
        (status, {name.replace("_", "-"): value for name, value in headers.items()}, body),
        BYTES,
    ]


def always(body: bytes, **headers: str) -> list[Answer]:
    """This file."""
    return [(200, _named(headers), body)]


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()


AVIF = b"\0\0\0\x20ftypavif" + bytes(500)
TIFF = b"II*\0" + bytes(500)
ZIP = b"PK\x03\x04" + bytes(500)
STYP = b"\0\0\0\x18stypmsdh" + bytes(500)
WIDE = b"\0\0\0\x08wide\0\0\x10\0mdat" + bytes(500)
MOOV = b"\0\0\x10\0moov" + bytes(500)
ODD = b"\xff\xfe\xfd\x00" * 100

MATRIX: dict[str, tuple[list[Answer], bytes, str]] = {
    "plain": ([BYTES], PNG, "png"),
    "404 once": (once(404, error("NoSuchKey")), PNG, "png"),
    "empty once": (once(200, Content_Type="video/mp4"), PNG, "png"),
    "400 once": (once(400, error("ExpiredToken")), PNG, "png"),
    "401 once": (once(401, error("Unauthorized")), PNG, "png"),
    "403 once": (once(403, error("AccessDenied")), PNG, "png"),
    "410 once": (once(410), PNG, "png"),
    "421 once": (once(421), PNG, "png"),
    "202 once": (once(202), PNG, "png"),
    "204 once": (once(204), PNG, "png"),
    "500 once": (once(500, error("InternalError")), PNG, "png"),
    "503 once": (once(503, error("SlowDown"), Retry_After="0"), PNG, "png"),
    "page once": (once(200, b"<html>wait</html>", Content_Type="text/html"), PNG, "png"),
    "page as a picture once": (once(200, error("no"), Content_Type="image/png"), PNG, "png"),
    "unknown coding once": (once(200, ODD, Content_Encoding="br"), PNG, "png"),
    "redirect with a blank": (once(302, Location="/out/a b"), PNG, "png"),
    "aws-chunked": (always(PNG, Content_Encoding="aws-chunked"), PNG, "png"),
    "utf-8": (always(PNG, Content_Encoding="utf-8"), PNG, "png"),
    "no coding": (always(PNG, Content_Encoding=""), PNG, "png"),
    "binary, none": (always(PNG, Content_Encoding="binary, none"), PNG, "png"),
    "gzip": (always(gzip.compress(PNG), Content_Encoding="gzip"), PNG, "png"),
    "deflate": (always(zlib.compress(PNG), Content_Encoding="deflate"), PNG, "png"),
    "raw deflate": (always(zlib.compress(PNG, wbits=-15), Content_Encoding="deflate"), PNG, "png"),
    "gzip that is none": (always(PNG, Content_Encoding="gzip"), PNG, "png"),
    "text/plain": (always(PNG, Content_Type="text/plain"), PNG, "png"),
    "application/json": (always(PNG, Content_Type="application/json"), PNG, "png"),
    "no type": (always(PNG), PNG, "png"),
    "octet-stream": (always(PNG, Content_Type="binary/octet-stream"), PNG, "png"),
    "zip": (always(ZIP, Content_Type="application/zip"), ZIP, "zip"),
    "avif": (always(AVIF, Content_Type="image/avif"), AVIF, "avif"),
    "tiff": (always(TIFF, Content_Type="image/tiff"), TIFF, "tiff"),
    "styp": (always(STYP, Content_Type="video/mp4"), STYP, "mp4"),
    "moov": (always(MOOV, Content_Type="video/mp4"), MOOV, "mp4"),
    "wide": (always(WIDE, Content_Type="video/quicktime"), WIDE, "mov"),
    "unknown bytes": (always(ODD, Content_Type="image/png"), ODD, "png"),
}
"""The answers in turn, the bytes of the file, and its extension."""

REFUSED: dict[str, tuple[list[Answer], str]] = {
    "gone": ([(404, {}, error("NoSuchKey"))], "HTTP 404"),
    "empty": (always(b""), "the file is empty"),
    "page": (always(b"<html>", Content_Type="text/html"), "sent text/html"),
    "unknown coding": (always(ODD, Content_Encoding="zstd"), "encoded .zstd"),
    "broken gzip": (always(gzip.compress(PNG)[:-9], Content_Encoding="gzip"), "ends too early"),
    "plain http": ([(302, {"Location": "http://storage.example.com/"}, b"")], "not https"),
}

CLIENTS: dict[str, Callable[[], Any]] = {
    "own": lambda: None,
    "httpx": httpx.AsyncClient,
    "httpx2": httpx2.AsyncClient,
    "httpx-aiohttp": lambda: httpx_aiohttp.HttpxAiohttpClient(),
}


@asynccontextmanager
async def storage_with(answers: list[Answer]) -> AsyncIterator[str]:
    """The API, and a storage that gives these answers in turn; yields the base URL."""
    left = list(answers)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        if " /v1/" in request:
            urls = [{"type": "image", "url": f"{origin}/out/a?X-Amz-Signature=5ec4e7"}]
            fields = {"id": ID, "state": "completed", "output": urls}
            status, headers, body = 200, dict[str, str](), json.dumps(fields).encode()
        else:
            status, headers, body = left.pop(0) if len(left) > 1 else left[0]
        said = headers | {"Connection": "close"}
        if status != 204:
            said["Content-Length"] = str(len(body))
        lines = [f"HTTP/1.1 {status} said", *(f"{name}: {value}" for name, value in said.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield f"{origin}/v1"


@asynccontextmanager
async def client_of(name: str, base_url: str) -> AsyncIterator[LumaClient]:
    http = CLIENTS[name]()
    async with LumaClient("luma-api-key", base_url=base_url, http_client=http) as client:
        try:
            yield client
        finally:
            if http is not None:
                await http.aclose()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the patience end after three tries, however fast the machine is.

    So it ends in a sleep: aiohttp drops the socket of a connect that is cancelled, for the garbage
    collector to close.
    """

    def backoff(tries: int) -> float:
        if tries == 3:
            raise output.OutOfTimeError
        return 0.01

    monkeypatch.setattr(output, "backoff", backoff)


@pytest.mark.asyncio
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("case", MATRIX)
async def test_the_bytes_arrive(tmp_path: Path, case: str, client: str) -> None:
    """Whatever the label says, and whatever came first; on disk and in memory."""
    answers, content, extension = MATRIX[case]
    async with storage_with(answers) as base_url, client_of(client, base_url) as luma:
        (path,) = await luma.download(ID, tmp_path)
    assert path == tmp_path / f"{ID}.{extension}"
    assert path.read_bytes() == content
    assert names(tmp_path) == [path.name]
    async with storage_with(answers) as base_url, client_of(client, base_url) as luma:
        assert await luma.read(ID) == [content]


@pytest.mark.asyncio
@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("case", REFUSED)
async def test_the_error_says_why(tmp_path: Path, case: str, client: str) -> None:
    """When the patience is over, with the last trouble, and no file."""
    answers, words = REFUSED[case]
    async with storage_with(answers) as base_url, client_of(client, base_url) as luma:
        with pytest.raises(DownloadError, match=words) as caught:
            await luma.download(ID, tmp_path)
    assert "5ec4e7" not in repr(caught.value)
    assert names(tmp_path) == []


@pytest.mark.asyncio
@pytest.mark.filterwarnings("ignore:the API key will be sent")
async def test_plain_http_is_for_the_host_that_the_user_chose(tmp_path: Path) -> None:
    """A sandbox in a container is reached by its name; no other host without encryption."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v1"):
            urls = [{"type": "image", "url": f"http://{host}/out/a"}]
            return httpx.Response(200, json={"id": ID, "state": "completed", "output": urls})
        return httpx.Response(200, headers={"Content-Type": "image/png"}, content=PNG)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        luma = LumaClient("luma-api-key", base_url="http://sandbox:8000/v1", http_client=http)
        host = "sandbox:8000"
        assert await luma.download(ID, tmp_path)
        host = "elsewhere:8000"
        with pytest.raises(DownloadError, match="the URL on elsewhere is not https"):
            await luma.download(ID, tmp_path / "b")


@pytest.mark.asyncio
async def test_the_proxy_is_that_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked up for its own URL, though the API needs none; its refusal is named."""
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    proxy = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    monkeypatch.setenv("HTTPS_PROXY", url)
    urls = [{"type": "image", "url": "https://storage.invalid/a?X-Amz-Signature=5ec4e7"}]
    given = Generation.model_validate({"id": ID, "state": "completed", "output": urls})
    async with proxy, LumaClient("luma-api-key", base_url="http://127.0.0.1:1/v1") as luma:
        with pytest.raises(DownloadError, match="the proxy wants a user name and password"):
            await luma.download(given, tmp_path)
    assert asked == [b"CONNECT storage.invalid:443 HTTP/1.1"]
