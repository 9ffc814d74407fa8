"""Which tools see the requests of a `LumaClient`, as docs/observability.md tells.

No test may send a real request: a mock that does not see one would let it through.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import respx
import vcr  # type: ignore[import-untyped]
from httpx_aiohttp import AiohttpTransport
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from luma_poll import APIConnectionError, LumaClient, Poller
from luma_poll.opentelemetry import instrument
from luma_poll.sandbox import Sandbox
from tests.fakes import ID

KEY = "luma-api-5ec4e7"
NOBODY = "http://127.0.0.1:9/v1"
"""Where nobody listens: a request that no mock sees fails."""
QUEUED = {"id": ID, "state": "queued"}


CLIENTS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "httpx": httpx.AsyncClient,
    "httpx over aiohttp": lambda: httpx.AsyncClient(transport=AiohttpTransport()),
    "httpx2": httpx2.AsyncClient,
}
UNSEEN = {
    ("httpx over aiohttp", "httpcore"),
    ("httpx2", "httpcore"),
    ("httpx2", "httpx"),
}
"""Where the requests are real in spite of respx in this mode."""


@asynccontextmanager
async def open_client(kind: str, base_url: str) -> AsyncIterator[LumaClient]:
    http = CLIENTS[kind]()
    async with (
        http or nullcontext(),
        LumaClient(KEY, base_url=base_url, http_client=http) as client,
    ):
        yield client


@pytest.mark.asyncio
@pytest.mark.parametrize("using", ["httpcore", "httpx"])
@pytest.mark.parametrize("kind", CLIENTS)
async def test_what_respx_sees(kind: str, using: str) -> None:
    """A client that it does not see reaches the server; the default one is always seen."""
    async with Sandbox(seed=1).serve() as base_url:
        with respx.mock(using=using, assert_all_called=False) as router:
            router.get(f"{base_url}/generations/{ID}").respond(json=QUEUED)
            router.post(f"{base_url}/generations").respond(201, json=QUEUED)
            async with open_client(kind, base_url) as client:
                submitted = await client.generations.create("a fox")
                assert (submitted.id == ID) is ((kind, using) not in UNSEEN)
                if submitted.id == ID:
                    assert (await client.generations.get(ID)).state == "queued"


@pytest.mark.anyio
@pytest.mark.parametrize("using", ["httpcore", "httpx"])
async def test_respx_sees_the_default_client_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, using: str
) -> None:
    """A proxy in the environment of the machine that runs the tests changes nothing."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with respx.mock(using=using) as router:
        router.post("https://luma.example.com/v1/generations").respond(201, json=QUEUED)
        async with LumaClient(KEY, base_url="https://luma.example.com/v1") as client:
            assert (await client.generations.create("a fox")).state == "queued"


@pytest.mark.anyio
async def test_event_hooks_are_those_of_a_client_of_your_own() -> None:
    """The default client has no place for any."""
    seen: list[str] = []

    async def see(request: httpx.Request) -> None:
        seen.append(request.method)

    async with httpx.AsyncClient(event_hooks={"request": [see]}) as http:
        with respx.mock as router:
            router.get(f"{NOBODY}/generations/{ID}").respond(json=QUEUED)
            await LumaClient(KEY, base_url=NOBODY, http_client=http).generations.get(ID)
    assert seen == ["GET"]


class Spans:
    """The spans of OpenTelemetry's instrumentor of httpx, and of ours."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def __str__(self) -> str:
        return "".join(span.to_json() for span in self._exporter.get_finished_spans())


@pytest.fixture
def spans() -> Iterator[Spans]:
    found = Spans()
    instrumentor = HTTPXClientInstrumentor()
    instrumentor.instrument(tracer_provider=found.provider)
    yield found
    instrumentor.uninstrument()


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["default", "httpx"])
async def test_opentelemetrys_instrumentor_sees_the_requests(
    spans: Spans, tmp_path: Path, kind: str
) -> None:
    """Its spans are children of the wait; neither key nor signature is in them."""
    sandbox = Sandbox(seed=1, speed=1000)
    async with sandbox.serve() as base_url, open_client(kind, base_url) as client:
        poller = Poller(client, wait=sandbox.wait)
        instrument(poller, tracer_provider=spans.provider)
        generation = await client.generations.create("a fox")
        await poller.wait(generation.id)
        await client.download(generation.id, tmp_path)
    assert len(spans.named("POST")) == 1
    (wait,) = spans.named("fetch_response")
    assert wait.context is not None
    parents = [span.parent and span.parent.span_id for span in spans.named("GET")]
    assert wait.context.span_id in parents
    assert "5ec4e7" not in str(spans)
    assert "X-Amz-Signature" not in str(spans)


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["default", "httpx"])
async def test_vcrpy_records_the_key_unless_it_is_filtered(tmp_path: Path, kind: str) -> None:
    """A cassette holds all headers, so `filter_headers` is a must."""
    async with Sandbox(seed=1).serve() as base_url:
        for name, filtered in ("bare", []), ("filtered", ["authorization"]):
            with vcr.use_cassette(str(tmp_path / name), filter_headers=filtered):
                async with open_client(kind, base_url) as client:
                    await client.generations.create("a fox")
    assert KEY in (tmp_path / "bare").read_text()
    assert KEY not in (tmp_path / "filtered").read_text()
    with vcr.use_cassette(str(tmp_path / "filtered"), record_mode="none"):
        async with open_client(kind, base_url) as client:  # the server has gone
            assert (await client.generations.create("a fox")).state == "queued"
    with pytest.raises(APIConnectionError):
        await LumaClient(KEY, base_url=base_url).generations.get(ID)
