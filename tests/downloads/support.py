"""An API with a storage of prepared answers."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from luma_poll import Generation, LumaClient
from tests.fakes import ID

TOKEN = "luma-api-download-secret"
SECRET = "X-Amz-Signature=5ec4e7"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
OLD = PNG[:8] + PNG[:7:-1]
BASE_URL = "https://api.example.com/v1"
STORE = "https://storage.example.com/a"
GET = {"Content-Type": "image/png", "ETag": '"one"'}


class Storage(httpx.AsyncBaseTransport):
    """The API and the storage, which gives these answers in turn, and the last one from then on."""

    def __init__(self, *answers: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.gets = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "api.example.com":
            self.gets += 1
            return httpx.Response(200, json=completed(f"{STORE}?{SECRET}&n={self.gets}"))
        self.requests.append(request)
        return (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])(request)


class Body(httpx.AsyncByteStream):
    """Bytes in pieces, then the error if one is given."""

    def __init__(self, data: bytes, error: Exception | None = None, piece: int = 1000) -> None:
        self.data, self.error, self.piece = data, error, piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.data), self.piece):
            await anyio.sleep(0.001)
            yield self.data[start : start + self.piece]
        if self.error is not None:
            raise self.error


def completed(*urls: str) -> dict[str, Any]:
    output = [{"type": "image", "url": url} for url in urls]
    return {"id": ID, "state": "completed", "output": output}


def generation(*urls: str) -> Generation:
    return Generation.model_validate(completed(*(urls or (f"{STORE}?{SECRET}",))))


def serve(
    data: bytes = PNG,
    *,
    cut: int | None = None,
    ranges: bool = True,
    announced: int | None = None,
    **headers: str,
) -> Callable[[httpx.Request], httpx.Response]:
    """An answer with these bytes; `cut` breaks the connection after so many of them."""

    def answer(request: httpx.Request) -> httpx.Response:
        given = GET | {name.replace("_", "-"): value for name, value in headers.items()}
        start, status = 0, 200
        wanted = request.headers.get("Range")
        if wanted and ranges and request.headers["If-Range"] == given["ETag"]:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            given["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        given["Content-Length"] = str(announced or len(data) - start)
        error = None if cut is None else httpx.ReadError("reset")
        return httpx.Response(status, headers=given, stream=Body(data[start:][:cut], error))

    return answer


def status(code: int, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(code, headers=headers, content=b"<Error/>")


@asynccontextmanager
async def opened(
    storage: Storage,
    http_class: type[httpx.AsyncClient] = httpx.AsyncClient,
    base_url: str = BASE_URL,
    **options: Any,
) -> AsyncIterator[LumaClient]:
    async with http_class(transport=storage, **options) as http:
        yield LumaClient(TOKEN, base_url=base_url, http_client=http)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def rest(changes: dict[str, str | None]) -> Callable[[httpx.Request], httpx.Response]:
    """The part that was asked for, of other bytes, with these headers changed."""

    def answer(request: httpx.Request) -> httpx.Response:
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        said = GET | {"Content-Range": f"bytes {start}-{len(OLD) - 1}/{len(OLD)}"} | changes
        headers = {name: value for name, value in said.items() if value is not None}
        return httpx.Response(206, headers=headers, stream=Body(OLD[start:]))

    return answer
