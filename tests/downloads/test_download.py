"""Downloads: whole files or none, whatever the storage and the network do."""

import asyncio
import errno
import logging
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
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
from tests.downloads.support import (
    GET,
    OLD,
    PNG,
    STORE,
    TOKEN,
    Body,
    Storage,
    generation,
    names,
    opened,
    serve,
    status,
)
from tests.fakes import ID, snapshot

pytestmark = pytest.mark.usefixtures("soon")


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
            await client.download(generation(), tmp_path, timeout=60)
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

    monkeypatch.setattr("luma_poll._downloads.files._write_at", write)
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
