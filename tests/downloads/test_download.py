"""Downloads: whole files or none, whatever the storage and the network do."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import given, settings
from hypothesis import strategies as st

from luma_poll import (
    ConfigurationError,
    DownloadError,
    DownloadProgress,
    Generation,
    GenerationFailedError,
    LumaClient,
    OutputNotFoundError,
)
from luma_poll._downloads import output as job
from luma_poll._downloads.names import naming_of
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.object_store import Blob
from tests.fakes import ID, snapshot

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
    storage: Storage, http_class: type[httpx.AsyncClient] = httpx.AsyncClient, **options: Any
) -> AsyncIterator[LumaClient]:
    async with http_class(transport=storage, **options) as http:
        yield LumaClient(TOKEN, base_url=BASE_URL, http_client=http)


class LaterClient(httpx.AsyncClient):
    """Like a client of an httpx that no longer has `_transport_for_url`."""

    sending = False

    def __getattribute__(self, name: str) -> Any:
        if name == "_transport_for_url" and not self.sending:
            raise AttributeError(name)
        return super().__getattribute__(name)

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        self.sending = True
        try:
            return await super().send(request, **options)
        finally:
            self.sending = False


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(autouse=True)
def _soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "anyio_backend" not in request.fixturenames:  # in virtual time every pause is short
        monkeypatch.setattr(job, "backoff", lambda tries: 0.01)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        ([serve()], 1),
        ([serve(cut=3000), serve()], 2),
        ([serve(cut=3000, ranges=False), serve(ranges=False)], 2),
        ([serve(cut=3000), status(416), serve()], 3),
        ([serve(cut=3000), serve(PNG[:-1] + b"!", cut=10, ETag='"two"'), serve()], 3),
        ([serve(cut=3000), status(403), serve()], 3),
        ([status(503), status(429, Retry_After="2"), status(500), serve()], 4),
        ([serve(cut=0), serve(cut=0), serve()], 3),
        ([serve(cut=3000, ETag='W/"weak"'), serve(ETag='W/"weak"')], 2),
    ],
    ids=["plain", "cut", "no ranges", "416", "changed", "403", "5xx", "at once", "weak etag"],
)
async def test_a_transient_fault_is_overcome(
    tmp_path: Path, answers: list[Any], requests: int
) -> None:
    """In the end the file is complete, and the directory has nothing else."""
    storage = Storage(*answers)
    async with opened(storage) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [f"{ID}.png"]
    assert len(storage.requests) == requests


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "words", "retryable"),
    [
        (status(404), "HTTP 404", True),
        (status(503), "HTTP 503", True),
        (status(403), "HTTP 403", True),
        (serve(announced=len(PNG) + 1, ranges=False), "shorter than announced", True),
        (serve(announced=len(PNG) - 1), "longer than announced", True),
        (serve(b"<Error>no</Error>"), "not an image or video", True),
        (serve(b"{}", Content_Type="application/json"), "sent application/json", True),
        (serve(b"\xef\xbb\xbf <html>", Content_Type=""), "sent text", True),
        (serve(Content_Encoding="br", data=b"\x8b\x01" + bytes(99)), "encoded .br", True),
        (serve(Content_Encoding="gzip", data=b"\x1f\x8b" + bytes(99)), "broken gzip", True),
        (status(302, Location="http://storage.example.com/b"), "not https", False),
        (status(302, Location="https://u:p@storage.example.com/"), "password", False),
        (status(302, Location="/again"), "more than 3 redirects", True),
        (status(302, Location="https://[storage"), "not valid", True),
        (status(302, Location="https://storage.example.com:x/"), "not valid", True),
        (status(206, Content_Range="bytes 5-9/10"), "a part that was not asked for", True),
    ],
)
async def test_what_cannot_be_a_file_is_an_error(
    tmp_path: Path, answer: Any, words: str, retryable: bool
) -> None:
    """The error says why, without the signature, and no file is left."""
    async with opened(Storage(answer)) as client:
        with pytest.raises(DownloadError, match=words) as caught:
            await client.download(generation(), tmp_path)
    assert caught.value.retryable is retryable
    assert "5ec4e7" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("head", "content_type", "extension"),
    [
        (b"\xff\xd8\xff\xe0", "image/jpeg", "jpg"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp", "webp"),
        (b"\0\0\0\x18ftypmp42", "video/mp4", "mp4"),
        (b"\0\0\0\x14ftypqt  ", "video/quicktime", "mov"),
        (b"\x1aE\xdf\xa3", "video/webm", "webm"),
        (b"v/1\x01\x02\0\0\0", "image/x-exr", "exr"),
        (b"\x89PNG\r\n\x1a\n", "image/jpeg", "png"),
        (b"\x89PNG\r\n\x1a\n", "", "png"),
        (b"\0\0\0\x1cftypavif", "image/avif", "avif"),
        (b"\xff\xfe\xfd", "image/png", "png"),
        (b"new format", "model/new", "bin"),
    ],
)
async def test_the_extension_is_that_of_the_bytes(
    tmp_path: Path, head: bytes, content_type: str, extension: str
) -> None:
    """The content type, which may be wrong, decides only if the bytes are unknown."""
    data = head + bytes(1000)
    async with opened(Storage(serve(data, Content_Type=content_type))) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path == tmp_path / f"{ID}.{extension}"
    assert path.read_bytes() == data


@pytest.mark.anyio
@pytest.mark.parametrize("http_class", [httpx.AsyncClient, LaterClient])
async def test_the_key_stays_with_the_api(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, http_class: type[httpx.AsyncClient]
) -> None:
    """Not even the client's own headers, cookies and auth reach the storage or its redirects."""
    caplog.set_level(logging.DEBUG)
    storage = Storage(
        status(302, Location="https://other.example.com/?X-Amz-Signature=5ec4e7"), serve()
    )
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Api-Key": TOKEN}

    def sign(request: Any) -> Any:
        request.headers["X-Signature"] = TOKEN
        return request

    async with opened(
        storage,
        http_class,
        headers=headers,
        cookies={"a": TOKEN},
        auth=sign,
        params={"k": TOKEN},
    ) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG
    assert [request.url.host for request in storage.requests] == [
        "storage.example.com",
        "other.example.com",
    ]
    for request in storage.requests:
        assert TOKEN not in f"{request.headers.raw} {request.url}"
        assert "Authorization" not in request.headers
        assert "Cookie" not in request.headers
    assert "5ec4e7" not in caplog.text


@pytest.mark.anyio
async def test_a_finished_file_is_not_fetched_again(tmp_path: Path) -> None:
    """It knows whose it is, so the storage is not even asked, unless it is to be overwritten."""
    storage = Storage(serve())
    async with opened(storage) as client:
        paths = await client.download(generation(), tmp_path)
        assert await client.download(generation(), tmp_path) == paths
        assert len(storage.requests) == 1
        await client.download(generation(), tmp_path, overwrite=True)
    assert len(storage.requests) == 2


@pytest.mark.anyio
async def test_max_bytes(tmp_path: Path) -> None:
    """The limit holds for the announced and for the received size."""
    async with opened(Storage(serve())) as client:
        with pytest.raises(DownloadError, match="max_bytes"):
            await client.download(generation(), tmp_path, max_bytes=100)
        assert await client.download(generation(), tmp_path, max_bytes=len(PNG))


@pytest.mark.anyio
async def test_progress(tmp_path: Path) -> None:
    """It grows up to the total and ends with the path; exceptions in the callback are dropped."""
    seen: list[DownloadProgress] = []

    def watch(progress: DownloadProgress) -> None:
        seen.append(progress)
        raise ZeroDivisionError

    async with opened(Storage(serve(cut=3000), serve())) as client:
        paths = await client.download(generation(), tmp_path, on_progress=watch)
    received = [progress.received for progress in seen]
    assert received == sorted(received)
    assert received[-1] == len(PNG) == seen[-1].total
    assert [progress.path for progress in seen if progress.done] == paths


@pytest.mark.anyio
async def test_several_outputs(tmp_path: Path) -> None:
    """They are numbered, and one failure does not keep the others from being fetched."""
    answer = {"/a": serve(), "/b": serve(announced=3 * 1024**3)}
    storage = Storage(lambda request: answer[request.url.path](request))
    async with opened(storage) as client:
        host = "https://storage.example.com"
        paths = await client.download(generation(f"{host}/a", f"{host}/a"), tmp_path)
        assert [path.name for path in paths] == [f"{ID}.png", f"{ID}-2.png"]
        with pytest.raises(DownloadError, match="max_bytes"):
            await client.download(generation(f"{host}/b", f"{host}/a"), tmp_path / "new")
    assert names(tmp_path / "new") == [f"{ID}-2.png"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (snapshot("failed", failure_code="generation_failed"), GenerationFailedError),
        (17, ConfigurationError),
        ([], ConfigurationError),
        (["a"], ConfigurationError),
    ],
)
async def test_what_has_no_outputs(tmp_path: Path, given: Any, error: type[Exception]) -> None:
    """There is nothing to fetch, and the error says why."""
    async with opened(Storage(serve())) as client:
        with pytest.raises(error):
            await client.download(given, tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize("given", [snapshot("queued"), snapshot("completed", output=[])])
async def test_a_snapshot_without_outputs_is_asked_for_again(tmp_path: Path, given: Any) -> None:
    """It is older than the wait that came after it; what has not ended by now is refused."""
    storage = Storage(serve())
    async with opened(storage) as client:
        assert await client.download(given, tmp_path)
        client.generations.get = lambda _: _later(snapshot("queued"))  # type: ignore[assignment]
        with pytest.raises(ConfigurationError, match="'queued'"):
            await client.download(given, tmp_path)
        client.generations.get = lambda _: _later(snapshot(output=[]))  # type: ignore[assignment]
        with pytest.raises(OutputNotFoundError):
            await client.download(given, tmp_path)
    assert storage.gets == 1


async def _later(given: Generation) -> Generation:
    return given


@pytest.mark.anyio
async def test_outputs_know_their_generation(tmp_path: Path) -> None:
    """What a wait returns can be downloaded, all of it or one of several."""
    host = "https://storage.example.com"
    outputs = generation(f"{host}/a", f"{host}/b").outputs
    async with opened(Storage(serve())) as client:
        assert await client.download(outputs, tmp_path) == [
            tmp_path / f"{ID}.png",
            tmp_path / f"{ID}-2.png",
        ]
        assert await client.download(outputs[1], tmp_path / "b") == [tmp_path / "b" / f"{ID}-2.png"]


@pytest.mark.anyio
async def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the path and the system's own error."""

    def write(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", write)
    async with opened(Storage(serve())) as client:
        with pytest.raises(DownloadError, match="No space left") as caught:
            await client.download(generation(), tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.asyncio
async def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "out").touch()
    async with opened(Storage(serve())) as client:
        with pytest.raises(DownloadError, match="out"):
            await client.download(ID, tmp_path / "out")


@pytest.mark.asyncio
async def test_the_deadline_and_the_next_call(tmp_path: Path) -> None:
    """A call that ran out of time keeps its bytes, and the next one continues from there."""
    storage = Storage(serve(PNG * 100))
    async with opened(storage) as client:
        with pytest.raises(DownloadError, match="not complete within"):
            await client.download(generation(), tmp_path, timeout=0.2)
        assert all(name.endswith(".part") for name in names(tmp_path))
        storage.answers = [serve(PNG * 100, cut=0), serve(PNG * 100, cut=2000)]
        with pytest.raises(DownloadError, match="not complete within"):
            await client.download(generation(), tmp_path, timeout=0.2)
    assert int(storage.requests[-1].headers["Range"][6:-1]) > 0


# It runs many event loops, so the collector comes by here for whatever others left to it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9000), st.booleans(), st.booleans()), max_size=4))
def test_cut_anywhere(cuts: list[tuple[int, bool, bool]]) -> None:
    """Wherever it is cut, with ranges or without, changed or not, its bytes are of one version."""

    async def run(directory: Path) -> None:
        answers = [
            serve(OLD, cut=cut, ranges=ranges, ETag='"old"')
            if changed
            else serve(cut=cut, ranges=ranges)
            for cut, ranges, changed in cuts
        ]
        async with opened(Storage(*answers, serve())) as client:
            (path,) = await client.download(generation(), directory)
        assert path.read_bytes() in (PNG, OLD)
        assert names(directory) == [path.name]

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "backoff", lambda tries: 0.0)
        anyio.run(run, Path(directory))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 0.03), max_size=4))
def test_cancelled_anywhere(times: list[float]) -> None:
    """Cancelled at any time, the file is complete or absent, and the last call completes it."""

    async def run(directory: Path) -> None:
        async with opened(Storage(serve())) as client:
            for seconds in times:
                with anyio.move_on_after(seconds):
                    await client.download(generation(), directory)
                assert [p for p in names(directory) if p.endswith(".png")] in ([], [f"{ID}.png"])
                for name in names(directory):
                    whole = (directory / name).read_bytes() == PNG
                    assert whole or name.endswith(".part")
            (path,) = await client.download(generation(), directory)
        assert path.read_bytes() == PNG
        assert names(directory) == [path.name]

    with tempfile.TemporaryDirectory() as directory:
        anyio.run(run, Path(directory))


@given(st.text(min_size=1), st.integers(1, 100))
def test_no_id_leads_out_of_the_directory(generation_id: str, number: int) -> None:
    """Whatever the API calls a generation, its file is in the directory."""
    name = naming_of("out", None).stem(generation_id, number)[0]
    assert Path("out", name).parent == Path("out")
    assert name.strip(".")
    assert "\0" not in name
    assert len(os.fsencode(name)) <= 255 - len("-100.webp.part")


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ["cut-reset", "cut-truncated", "no-range", "503", "403"])
async def test_faults_on_a_real_socket(tmp_path: Path, fault: str) -> None:
    """Every third response of the sandbox fails, and the files are complete."""
    sandbox = Sandbox(seed=5, storage_faults={fault: 0.3})
    async with sandbox.serve() as base_url, LumaClient(TOKEN, base_url=base_url) as client:
        prompt = "x sandbox:duration=0 sandbox:outputs=6 sandbox:size=300000"
        submitted = await client.generations.create(prompt)
        paths = await client.download(submitted.id, tmp_path)
    assert sandbox.storage_faults_served[fault]
    assert [path.stat().st_size for path in paths] == [300_000] * 6
    for index, path in enumerate(paths):
        blob = Blob(f"/storage/{submitted.id}/{index}", 300_000)
        assert path.read_bytes() == blob.read(0, blob.size)
    assert len(names(tmp_path)) == 6


@pytest.mark.asyncio
async def test_an_expired_url_is_signed_afresh(tmp_path: Path) -> None:
    """A snapshot from yesterday can still be downloaded."""
    sandbox = Sandbox(url_expires=1)
    async with sandbox.serve() as base_url, LumaClient(TOKEN, base_url=base_url) as client:
        submitted = await client.generations.create("x sandbox:duration=0")
        old = await client.generations.get(submitted.id)
        await asyncio.sleep(1.1)
        assert await client.download(old, tmp_path)
    assert sandbox.calls["GET /generations/{id}"] >= 2


# --- slow, endless, forbidden, twice -------------------------------------------------------------


class Stalls(httpx.AsyncByteStream):
    """Some bytes, then silence."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield PNG[:3000]
        await anyio.sleep_forever()


@pytest.mark.anyio
async def test_a_dead_connection_is_dropped_and_the_file_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After half a minute without a byte, and what has arrived is not fetched again."""

    def stall(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=GET | {"Content-Length": str(len(PNG))}, stream=Stalls())

    storage = Storage(stall, serve())
    async with opened(storage) as client:
        began = anyio.current_time()
        (path,) = await client.download(generation(), tmp_path)
        assert anyio.current_time() - began >= 30
    assert path.read_bytes() == PNG
    assert storage.requests[1].headers["Range"] == "bytes=3000-"


@pytest.mark.anyio
async def test_a_body_of_unknown_length_is_bounded(tmp_path: Path) -> None:
    """`max_bytes` holds without an announced length, too."""

    def chunked(request: httpx.Request) -> httpx.Response:
        headers = {"Content-Type": "image/png", "Transfer-Encoding": "chunked"}
        return httpx.Response(200, headers=headers, stream=Body(PNG * 100))

    async with opened(Storage(chunked)) as client:
        with pytest.raises(DownloadError, match=r"max_bytes \(20,000 bytes\)"):
            await client.download(generation(), tmp_path, max_bytes=20_000)
        assert names(tmp_path) == []
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG * 100


@pytest.mark.anyio
@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "٣", ""])
async def test_an_odd_length_is_refused(tmp_path: Path, length: str) -> None:
    """Without a valid length, the body's end could be a broken connection."""

    def odd(request: httpx.Request) -> httpx.Response:
        headers = [(b"Content-Type", b"image/png"), (b"Content-Length", length.encode())]
        extensions = {"http_version": b"HTTP/1.1"}
        return httpx.Response(200, headers=headers, stream=Body(PNG), extensions=extensions)

    async with opened(Storage(odd)) as client:
        with pytest.raises(DownloadError, match="did not say how long"):
            await client.download(generation(), tmp_path)
    assert names(tmp_path) == []


@pytest.mark.anyio
async def test_a_directory_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the path, the system's words and its cause."""

    def forbidden(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", forbidden)
    async with opened(Storage(serve())) as client:
        with pytest.raises(DownloadError, match="Permission denied") as caught:
            await client.download(generation(), tmp_path)
    assert caught.value.path is not None
    assert caught.value.path.parent == tmp_path
    assert isinstance(caught.value.__cause__, PermissionError)
    assert not caught.value.retryable


@pytest.mark.anyio
@pytest.mark.parametrize("again", range(20))  # threads meet differently each time
async def test_several_downloads_of_one_generation_at_once(tmp_path: Path, again: int) -> None:
    """All return the path of a complete file, and nothing else is left."""
    storage = Storage(serve(cut=3000), serve(cut=5000), serve())
    paths: list[Path] = []
    async with opened(storage) as client:

        async def fetch() -> None:
            paths.extend(await client.download(generation(), tmp_path))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(fetch)
    assert paths == [tmp_path / f"{ID}.png"] * 3
    assert paths[0].read_bytes() == PNG
    assert names(tmp_path) == [f"{ID}.png"]


@pytest.mark.anyio
async def test_one_lost_output_does_not_hinder_the_others(tmp_path: Path) -> None:
    """They are complete when the error is raised."""

    def answer(request: httpx.Request) -> httpx.Response:
        too_large = serve(announced=3 * 1024**3)
        return too_large(request) if "lost" in str(request.url) else serve()(request)

    async with opened(Storage(answer)) as client:
        with pytest.raises(DownloadError, match="max_bytes"):
            await client.download(generation(f"{STORE}?lost=1", f"{STORE}?n=2"), tmp_path)
    assert names(tmp_path) == [f"{ID}-2.png"]


@pytest.mark.asyncio
async def test_a_wrong_length_on_a_real_socket(tmp_path: Path) -> None:
    """A body that is always too short never becomes a file."""
    head = 'HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nETag: "one"\r\nConnection: close\r\n'

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"{head}Content-Length: {len(PNG) + 50}\r\n\r\n".encode() + PNG)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"
    async with server, LumaClient(TOKEN, base_url="http://127.0.0.1:1/v1") as client:
        with pytest.raises(DownloadError) as caught:
            await client.download(generation(url), tmp_path / "short", timeout=0.3)
        assert caught.value.retryable
    assert [name for name in names(tmp_path / "short") if not name.startswith(".")] == []


@pytest.mark.asyncio
async def test_the_fork_of_httpx_downloads_too(tmp_path: Path) -> None:
    """A client of httpx2 is as good as one of httpx, over a real socket with a reset in it."""
    sandbox = Sandbox(speed=1000, seed=1, storage_faults={"cut-reset": 0.5})
    async with (
        sandbox.serve() as base_url,
        httpx2.AsyncClient() as http,
        LumaClient("key", base_url=base_url, http_client=http) as client,
    ):
        made = await client.generations.create("a fox sandbox:duration=0 sandbox:size=3000000")
        await anyio.sleep(0.05)
        (path,) = await client.download(made.id, tmp_path)
    assert path.stat().st_size == 3_000_000


# --- spliced, redirected, odd --------------------------------------------------------------------


def rest(changes: dict[str, str | None]) -> Callable[[httpx.Request], httpx.Response]:
    """The part that was asked for, of other bytes, with these headers changed."""

    def answer(request: httpx.Request) -> httpx.Response:
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        said = GET | {"Content-Range": f"bytes {start}-{len(OLD) - 1}/{len(OLD)}"} | changes
        headers = {name: value for name, value in said.items() if value is not None}
        return httpx.Response(206, headers=headers, stream=Body(OLD[start:]))

    return answer


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
    async with opened(storage) as client:
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
    async with opened(storage) as client:
        with pytest.raises(DownloadError, match="not https"):
            await client.download(generation("http://localhost/a"), tmp_path)


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
    async with opened(storage) as client:
        with pytest.raises(DownloadError) as caught:
            await client.download(generation(*[] if redirected else [url]), tmp_path)
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


# --- writes that are cut short, and names that change hands --------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["whole", "short", "full", "full after half"]), max_size=12))
def test_whatever_the_disk_writes(outcomes: list[str]) -> None:
    """A disk that takes less, or is full for a while: the bytes written are right, and continued.

    No byte is ever written twice, and there is never a gap.
    """
    pwrite = os.pwrite

    def write(descriptor: int, data: memoryview, place: int) -> int:
        outcome = outcomes.pop(0) if outcomes else "whole"
        half = data[: max(1, len(data) // 2)]
        if outcome == "short":
            return pwrite(descriptor, half, place)
        if outcome == "full after half":
            pwrite(descriptor, half, place)
        if outcome.startswith("full"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(descriptor, data, place)

    async def run(directory: Path) -> None:
        async with opened(Storage(serve())) as client:
            while True:
                with contextlib.suppress(DownloadError):
                    (path,) = await client.download(generation(), directory)
                    break
                (part,) = names(directory)
                assert PNG.startswith((directory / part).read_bytes())
        assert path.read_bytes() == PNG
        assert names(directory) == [path.name]

    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr("luma_poll._downloads.files.BUFFER", 2500)
        patch.setattr(os, "pwrite", write)
        anyio.run(run, Path(directory))


@pytest.mark.asyncio
async def test_a_loop_that_ends_in_the_middle_of_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled by asyncio again and again: the write ends first, and no other runs beside it."""
    pwrite, at_work, go_on = os.pwrite, threading.Semaphore(0), threading.Event()
    under_way: list[int] = []

    def write(descriptor: int, data: memoryview, place: int) -> int:
        under_way.append(descriptor)
        assert under_way == [descriptor]
        written = pwrite(descriptor, data[:1500], place)
        at_work.release()
        assert go_on.wait(20)
        os.fstat(descriptor)  # nobody has closed it
        under_way.remove(descriptor)
        return written

    monkeypatch.setattr("luma_poll._downloads.files.BUFFER", 2500)
    monkeypatch.setattr(os, "pwrite", write)
    async with opened(Storage(serve())) as client:
        task = asyncio.create_task(client.download(generation(), tmp_path))
        await asyncio.to_thread(at_work.acquire)
        for _ in range(3):
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await asyncio.sleep(0.01)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        (part,) = names(tmp_path)
        assert (tmp_path / part).read_bytes() == PNG[:3000]
        monkeypatch.undo()
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]


@pytest.mark.asyncio
@pytest.mark.parametrize("turns", range(1, 8))
async def test_a_storm_of_cancellations_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Asyncio's own cancellations interrupt clean-ups, too; the bytes on disk are right."""
    open_files, begin, end = set[int](), os.open, os.close

    def opening(path: str | Path, *rest: int) -> int:
        descriptor = begin(path, *rest)
        if str(path).endswith(".part"):
            open_files.add(descriptor)
        return descriptor

    def closing(descriptor: int) -> None:
        open_files.discard(descriptor)
        end(descriptor)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "close", closing)
    monkeypatch.setattr("luma_poll._downloads.files.BUFFER", 2500)
    begun = asyncio.Event()
    async with opened(Storage(serve())) as client:
        task = asyncio.create_task(
            client.download(generation(), tmp_path, on_progress=lambda _: begun.set())
        )
        await begun.wait()
        assert open_files
        while not task.done():
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
        assert task.cancelled()
        assert not open_files
        for name in names(tmp_path):
            assert PNG.startswith((tmp_path / name).read_bytes())
        assert await client.download(generation(), tmp_path)


DOWNLOAD = """
import asyncio, sys
from luma_poll import LumaClient

async def main():
    async with LumaClient("key", base_url=sys.argv[1]) as client:
        await client.download(sys.argv[2], sys.argv[3])

asyncio.run(main())
"""


def test_two_interrupts_in_a_row(tmp_path: Path) -> None:
    """The second one closes the loop in the middle of everything; no byte is wrong."""
    size = 30_000_000
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Sandbox(speed=1000).serve()) as base_url,
    ):
        prompt = {"prompt": f"a fox sandbox:duration=0 sandbox:size={size}"}
        headers = {"Authorization": "Bearer key"}
        made = httpx.post(f"{base_url}/generations", json=prompt, headers=headers).json()["id"]
        blob = Blob(f"/storage/{made}/0", size)
        command = [sys.executable, "-c", DOWNLOAD, base_url, made, str(tmp_path)]
        for least in (1e6, 15e6):
            with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
                while not any(part.stat().st_size > least for part in tmp_path.glob(".*.part")):
                    assert process.poll() is None
                process.send_signal(signal.SIGINT)
                time.sleep(0.03)
                process.send_signal(signal.SIGINT)
                assert process.wait(20) != 0
            (part,) = tmp_path.iterdir()
            there = part.read_bytes()
            assert there == blob.read(0, len(there))
        subprocess.run(command, check=True, timeout=40)
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == blob.read(0, size)


@pytest.mark.anyio
async def test_a_file_that_another_one_finishes_leaves_nothing_behind(tmp_path: Path) -> None:
    """Even at the moment at which this download wants to continue it."""

    def finish_it(request: httpx.Request) -> httpx.Response:
        (part,) = tmp_path.glob(".*.part")
        part.unlink()
        (tmp_path / f"{ID}.png").write_bytes(PNG)
        return serve()(request)

    storage = Storage(serve(cut=3000), finish_it, serve())
    async with opened(storage) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert names(tmp_path) == [path.name]
    assert len(storage.requests) == 3


@pytest.mark.anyio
@pytest.mark.parametrize("begun", [0, 3000])
async def test_a_name_that_changes_hands_while_its_file_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """One download finishes while a third starts: the part of the third gets no final name."""
    path = tmp_path / f"{ID}.png"

    def sync(descriptor: int) -> None:
        if not path.exists():
            (part,) = tmp_path.glob(".*.part")
            part.rename(path)
            part.write_bytes(PNG[:begun])

    monkeypatch.setattr(os, "fsync", sync)
    async with opened(Storage(serve())) as client:
        assert await client.download(generation(), tmp_path) == [path]
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]


@pytest.mark.anyio
async def test_a_version_for_each_request_leaves_one_part(tmp_path: Path) -> None:
    """Parts that cannot be resumed are removed, in the same call or a later one."""
    count = iter(range(10_000))

    def changing(request: httpx.Request) -> httpx.Response:
        return serve(cut=3000, ETag=f'"{next(count)}"')(request)

    storage = Storage(changing)
    async with opened(storage) as client:
        for _ in range(2):
            with pytest.raises(DownloadError, match="not complete within"):
                await client.download(generation(), tmp_path)
            assert len(names(tmp_path)) == 1
        storage.answers = [serve()]
        assert await client.download(generation(), tmp_path)
    assert names(tmp_path) == [f"{ID}.png"]


@pytest.mark.asyncio
async def test_the_part_of_another_version_is_left_to_who_writes_it(tmp_path: Path) -> None:
    """A download that ends first does not remove it, and the slower one starts only once."""
    held, other_ended = anyio.Event(), anyio.Event()

    class Held(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield PNG
            held.set()
            await other_ended.wait()
            yield PNG

    def slow(request: httpx.Request) -> httpx.Response:
        headers = GET | {"ETag": '"other"', "Content-Length": str(2 * len(PNG))}
        return httpx.Response(200, headers=headers, stream=Held())

    storage = Storage(slow, serve())
    async with opened(storage) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.download, generation(), tmp_path)
        await held.wait()
        (path,) = await client.download(generation(), tmp_path)
        assert path.read_bytes() == PNG
        other_ended.set()
    assert len(storage.requests) == 2
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]


@pytest.mark.anyio
async def test_a_system_without_locks_and_positioned_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like Windows: files are complete, and nothing else is left."""
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.setattr("luma_poll._downloads.files.fcntl", None)
    monkeypatch.setattr("luma_poll._downloads.files.BUFFER", 2500)
    storage = Storage(serve(cut=3000), serve(cut=3000, ETag='"two"'), serve(ETag='"two"'))
    async with opened(storage) as client:
        (path,) = await client.download(generation(), tmp_path)
    assert path.read_bytes() == PNG
    assert names(tmp_path) == [path.name]
