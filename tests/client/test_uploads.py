"""Uploads: a file becomes an id that generations may use, whatever happens on the way."""

import io
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from luma_agents import AsyncLuma

from luma_poll import (
    APIConnectionError,
    ConfigurationError,
    InvalidResponseError,
    Journal,
    LumaClient,
    PermissionDeniedError,
    Poller,
    Runner,
    UploadError,
    UploadProgress,
)
from luma_poll._api import request_body
from luma_poll.sandbox import Sandbox
from tests.api.test_media_reference import PNG, WEBP

KEY = "luma-api-0123456789abcdef"
Handler = Callable[[httpx.Request], httpx.Response | None]


class Transport(httpx.AsyncBaseTransport):
    """The sandbox, with something before it that may answer in its place."""

    def __init__(self, sandbox: Sandbox, handler: Handler = lambda request: None) -> None:
        self._inner = httpx.ASGITransport(app=sandbox.app)
        self._handler = handler
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self._handler(request) or await self._inner.handle_async_request(request)


@asynccontextmanager
async def connect(
    sandbox: Sandbox,
    handler: Handler = lambda request: None,
    base_url: str = "http://localhost/v1",
    **options: Any,
) -> AsyncIterator[tuple[LumaClient, Transport]]:
    transport = Transport(sandbox, handler)
    async with httpx.AsyncClient(transport=transport) as http_client:
        yield LumaClient(KEY, base_url=base_url, http_client=http_client, **options), transport


def failing(method: str, end: str, *answers: int | Exception) -> Handler:
    """Answer the first requests of this kind with these statuses, or with these exceptions."""
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response | None:
        if not left or request.method != method or end not in request.url.path:
            return None
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, json={"detail": "no"})

    return handle


@pytest.fixture
def webp(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(WEBP)
    return path


@pytest.mark.anyio
async def test_an_upload_can_be_used(webp: Path) -> None:
    """Created, sent without the key, completed, and waited for."""
    sandbox, told = Sandbox(), list[UploadProgress]()
    async with connect(sandbox) as (client, transport):
        file_id = await client.files.upload(webp, progress=told.append, purpose="reference")
        generation = await client.generations.create("a fox", image_ref=[{"file_id": file_id}])
    assert generation.state == "queued"
    create, put, *_ = transport.requests
    assert b'"mime_type": "image/webp"' in create.content
    assert (put.method, put.headers["Content-Type"]) == ("PUT", "image/webp")
    assert put.headers["Content-Length"] == str(len(WEBP))
    assert "Transfer-Encoding" not in put.headers
    assert "Authorization" not in put.headers
    assert told[0] == UploadProgress("photo.png", 0, len(WEBP))
    assert told[-1] == UploadProgress("photo.png", len(WEBP), len(WEBP))


@pytest.mark.anyio
@pytest.mark.parametrize("given", [WEBP, io.BytesIO, "photo.png", Path("photo.png")])
async def test_paths_bytes_and_files_are_uploaded(
    given: Any, webp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A string is a path here: there is nothing else that it could be."""
    monkeypatch.chdir(webp.parent)
    async with connect(Sandbox()) as (client, _):
        assert await client.files.upload(given(WEBP) if callable(given) else given)


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [403, 500, 503, 429, httpx.ReadError("reset"), TimeoutError()])
async def test_a_failed_put_begins_again(answer: Any, webp: Path) -> None:
    """With a fresh URL, and from the first byte; nothing is billed twice, as nothing is billed."""
    sandbox = Sandbox()
    async with connect(sandbox, failing("PUT", "/uploads/", answer)) as (client, _):
        assert await client.files.upload(webp)
    assert sandbox.calls["POST /files"] == 2


@pytest.mark.anyio
async def test_a_put_that_was_answered_by_something_else_begins_again(webp: Path) -> None:
    """A proxy says 200, but the API has no bytes."""
    sandbox = Sandbox()
    async with connect(sandbox, failing("PUT", "/uploads/", 200)) as (client, _):
        assert await client.files.upload(webp)
    assert sandbox.calls["PUT /uploads/{id}"] == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "end"), [("POST", "/files"), ("POST", "/complete"), ("GET", "/files/")]
)
@pytest.mark.parametrize("answer", [503, 429, httpx.ReadError("reset")])
async def test_the_api_may_be_down_for_a_while(
    method: str, end: str, answer: Any, webp: Path
) -> None:
    """None of these requests costs anything, so each is repeated."""
    async with connect(Sandbox(), failing(method, end, answer, answer)) as (client, _):
        assert await client.files.upload(webp)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 301, 404])
async def test_a_storage_that_refuses_is_an_upload_error(status: int, webp: Path) -> None:
    """It says that nothing was submitted, and never the signed URL."""
    async with connect(Sandbox(), failing("PUT", "/uploads/", status)) as (client, _):
        with pytest.raises(UploadError) as refused:
            await client.files.upload(webp)
    error = refused.value
    assert (error.name, error.retryable, error.file_id is None) == ("photo.png", False, False)
    assert f"upload of photo.png: the storage answered HTTP {status}. Nothing was" in str(error)
    assert "Signature" not in str(error)


@pytest.mark.anyio
async def test_an_upload_gives_up(webp: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After as many tries as the client has for everything; the URL is in no log either."""
    caplog.set_level(logging.DEBUG)
    handler = failing("PUT", "/uploads/", *[503] * 9)
    async with connect(Sandbox(), handler, max_retries=1) as (client, transport):
        with pytest.raises(UploadError, match="HTTP 503") as refused:
            await client.files.upload(webp)
    assert refused.value.retryable
    assert sum(request.method == "PUT" for request in transport.requests) == 2
    assert "X-Amz-Signature" not in caplog.text


@pytest.mark.anyio
async def test_what_the_api_does_not_take_says_why(tmp_path: Path) -> None:
    """Moderation, for example."""
    path = tmp_path / "sandbox:fail.png"
    path.write_bytes(PNG)
    async with connect(Sandbox()) as (client, _):
        with pytest.raises(UploadError, match="flagged by our content moderation") as refused:
            await client.files.upload(path)
    assert not refused.value.retryable


@pytest.mark.anyio
async def test_a_deadline_is_a_deadline(webp: Path) -> None:
    """A file that never becomes ready is not waited for for ever."""
    async with connect(Sandbox(speed=1e-6)) as (client, _):
        start = anyio.current_time()
        with pytest.raises(UploadError, match="not ready within 60 s") as late:
            await client.files.upload(webp, timeout=60)
        assert anyio.current_time() - start == pytest.approx(60)
    assert late.value.retryable


@pytest.mark.anyio
async def test_refusals_of_the_api_pass_through(webp: Path) -> None:
    """They have nothing to do with the file."""
    async with connect(Sandbox(), failing("POST", "/files", 403)) as (client, _):
        with pytest.raises(PermissionDeniedError):
            await client.files.upload(webp)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body", ["[]", "{}", '{"id": 7}', '{"id": "f"}', "<html>", '{"id": "f", "upload": {}}']
)
async def test_an_unreadable_answer_is_an_error(body: str, webp: Path) -> None:
    """Whatever answers in place of the API."""

    def handle(request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(201, text=body) if request.url.path.endswith("/files") else None

    async with connect(Sandbox(), handle) as (client, _):
        with pytest.raises(InvalidResponseError):
            await client.files.upload(webp)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("api", "url"),
    [
        ("http://localhost/v1", "http://storage.example.com/a?X-Amz-Signature=5ec4e7"),
        ("http://localhost/v1", "ftp://x/"),
        ("http://localhost/v1", "nothing"),
        ("https://api.example.com/v1", "http://localhost:6379/a?X-Amz-Signature=5ec4e7"),
    ],
)
async def test_a_file_goes_to_no_plain_address(api: str, url: str, webp: Path) -> None:
    """Anybody on the way could read it; and a remote API names no server on this machine."""

    def handle(request: httpx.Request) -> httpx.Response | None:
        upload = {"url": url, "method": "PUT", "expires_at": "2030-01-01T00:00:00Z"}
        answer = {"id": "f", "upload": upload}
        return httpx.Response(201, json=answer) if request.url.path.endswith("/files") else None

    async with connect(Sandbox(), handle, base_url=api) as (client, _):
        with pytest.raises(UploadError, match="not https") as refused:
            await client.files.upload(webp)
    assert "5ec4e7" not in str(refused.value)


@pytest.mark.anyio
async def test_a_broken_observer_breaks_no_upload(webp: Path) -> None:
    """Its exception is logged."""

    def broken(progress: UploadProgress) -> None:
        raise RuntimeError("no terminal")

    async with connect(Sandbox()) as (client, _):
        assert await client.files.upload(webp, progress=broken)


@pytest.mark.anyio
async def test_a_cancelled_upload_leaves_nothing_open(webp: Path) -> None:
    """The next one works."""
    async with connect(Sandbox(speed=1e-6)) as (client, _):
        with anyio.move_on_after(5) as scope:
            await client.files.upload(webp)
        assert scope.cancelled_caught
    async with connect(Sandbox()) as (client, _):
        assert await client.files.upload(webp)


@pytest.mark.anyio
async def test_a_file_can_be_deleted(webp: Path) -> None:
    """And an id that cannot be one is refused."""
    sandbox = Sandbox()
    async with connect(sandbox) as (client, _):
        await client.files.delete(await client.files.upload(webp))
        with pytest.raises(ConfigurationError):
            await client.files.delete("..")
    assert sandbox.calls["DELETE /files/{id}"] == 1


@pytest.mark.anyio
async def test_a_large_input_is_uploaded_by_itself(
    webp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however many requests refer to it."""
    monkeypatch.setattr(request_body.uploaded, "__kwdefaults__", {"larger_than": 10})
    sandbox = Sandbox()
    edit: dict[str, Any] = {"prompt": "a", "type": "image_edit", "source": webp}
    async with connect(sandbox) as (client, _):
        await client.generations.create(**edit)
        results = await Runner(client).run_all([edit, edit])
    assert [result.error for result in results] == [None, None]
    assert sandbox.calls["POST /files"] == 1
    assert {len(record.params["source"]) for record in sandbox.submissions} == {1}
    assert "file_id" in sandbox.submissions[0].params["source"]


@pytest.mark.anyio
async def test_an_upload_that_fails_submits_nothing(
    webp: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The journal has no entry that could be unknown, and the same key is submitted later."""
    monkeypatch.setattr(request_body.uploaded, "__kwdefaults__", {"larger_than": 10})
    sandbox = Sandbox()
    edit: dict[str, Any] = {"type": "image_edit", "source": webp, "key": "k"}
    handler = failing("PUT", "/uploads/", 400)
    with Journal(tmp_path / "runs.db") as journal:
        async with connect(sandbox, handler) as (client, _):
            with pytest.raises(UploadError):
                await Runner(client, journal=journal).run("a", **edit)
            assert journal.entries() == []
            await Runner(client, journal=journal).run("a", **edit)
    assert len(sandbox.submissions) == 1


@pytest.mark.anyio
async def test_media_stay_out_of_the_journal(webp: Path, tmp_path: Path) -> None:
    """A digest stands for them; a request that was submitted needs its file no more."""
    sandbox = Sandbox()
    path = tmp_path / "runs.db"
    with Journal(path) as journal:
        async with connect(sandbox) as (client, _):
            runner = Runner(client, journal=journal)
            await runner.run("a", type="image_edit", source=webp, key="k")
            await runner.run("a", type="image_edit", source=WEBP, key="k")
            with pytest.raises(ConfigurationError):
                await runner.run("a", type="image_edit", source=PNG, key="k")
        (entry,) = journal.entries()
    assert entry.request["source"].keys() == {"sha256", "media_type", "bytes"}
    assert b"UklGRi" not in path.read_bytes()
    assert len(sandbox.submissions) == 1


def test_the_official_sdk_is_given_what_it_takes(webp: Path) -> None:
    """Its client knows no paths. In real time: it asks a thread for the platform."""
    sandbox = Sandbox(speed=1000)
    transport = httpx.ASGITransport(app=sandbox.app)

    async def scenario() -> None:
        async with httpx.AsyncClient(transport=transport) as http_client:
            sdk = AsyncLuma(auth_token=KEY, base_url="http://sandbox/v1", http_client=http_client)
            runner = Runner(sdk, Poller(sdk, wait=sandbox.wait))
            await runner.run("a", type="image_edit", source=webp)

    anyio.run(scenario)
    assert sandbox.submissions[0].params["source"]["media_type"] == "image/webp"


@pytest.mark.anyio
async def test_no_connection_is_an_error_of_the_connection(webp: Path) -> None:
    """Not of the file."""
    handler = failing("POST", "/files", *[httpx.ConnectError("refused")] * 9)
    async with connect(Sandbox(), handler) as (client, _):
        with pytest.raises(APIConnectionError):
            await client.files.upload(webp)
