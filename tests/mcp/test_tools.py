"""The tools that an agent sees, over the official client and the sandbox, in one process."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from tenacity import wait_fixed

from luma_poll import Journal, JournalEntry, LumaClient, Poller
from luma_poll.sandbox import Sandbox

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent

from luma_poll.mcp import choose_key, open_server, read_reference

pytestmark = pytest.mark.anyio
SLOW = "a fox sandbox:duration=1000"
FAST = "a fox sandbox:duration=0"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """In real time: the journal, the files and the pictures are the work of threads."""
    return request.param


@asynccontextmanager
async def connected(
    sandbox: Sandbox, directory: Path, **options: Any
) -> AsyncGenerator[Callable[..., Any]]:
    """The `call_tool` of a client of a new server; the journal stays in the directory."""
    async with AsyncExitStack() as stack:
        transport = httpx.ASGITransport(app=sandbox.app)
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport))
        luma = LumaClient("luma-api-secret", base_url="http://localhost/v1", http_client=http)
        poller = Poller(luma, wait=wait_fixed(0.05))
        given = {
            "poller": poller,
            "journal": directory / "luma.db",
            "download": directory / "out",
            **options,
        }
        server = await stack.enter_async_context(open_server(luma, **given))
        client = await stack.enter_async_context(Client(server))

        async def call(name: str, **arguments: Any) -> CallToolResult:
            return await client.call_tool(name, arguments)

        yield call


def report(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, result.content
    assert result.structured_content is not None
    found: dict[str, Any] = result.structured_content
    return found


def refusal(result: CallToolResult) -> str:
    assert result.is_error
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


async def test_a_prompt_becomes_a_file_with_a_preview(tmp_path: Path) -> None:
    """One call: the file is on disk, the model sees it small, and no URL is shown."""
    async with connected(Sandbox(), tmp_path) as call:
        result = await call("generate", prompt=FAST, key="fox")
    told = report(result)
    assert (told["state"], told["submissions"]) == ("completed", 1)
    assert [Path(file).parent for file in told["files"]] == [tmp_path / "out"]
    assert await anyio.Path(told["files"][0]).read_bytes()
    assert any(isinstance(block, ImageContent) for block in result.content)
    assert "http" not in result.model_dump_json()


async def test_a_call_that_is_repeated_is_paid_once(tmp_path: Path) -> None:
    """A client that gives up after a minute and calls again finds the generation that runs."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path, patience=0.3) as call:
        told = [report(await call("generate", prompt=SLOW)) for _ in range(3)]
    assert len({each["key"] for each in told}) == 1
    assert "call wait_for" in told[0]["next"]
    assert sandbox.calls["POST /generations"] == 1


async def test_two_calls_at_once_are_paid_once(tmp_path: Path) -> None:
    """Whichever comes second joins the first."""
    sandbox = Sandbox()
    told: list[Any] = []
    async with connected(sandbox, tmp_path) as call, anyio.create_task_group() as tasks:

        async def generate() -> None:
            told.append(report(await call("generate", prompt=FAST)))

        for _ in range(5):
            tasks.start_soon(generate)
    assert len({each["generation_id"] for each in told}) == 1
    assert sandbox.calls["POST /generations"] == 1


async def test_a_restart_pays_for_nothing_twice(tmp_path: Path) -> None:
    """The journal knows the key, so that the next server waits for what the last one began."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path, patience=0.3) as call:
        first = report(await call("generate", prompt="a fox sandbox:duration=1"))
    async with connected(sandbox, tmp_path) as call:
        second = report(await call("generate", prompt="a fox sandbox:duration=1"))
        third = report(await call("wait_for", key_or_id=first["key"]))
    assert (second["key"], second["state"]) == (first["key"], "completed")
    assert third["files"] == second["files"]
    assert sandbox.calls["POST /generations"] == 1


async def test_a_cancelled_call_loses_nothing(tmp_path: Path) -> None:
    """The request goes on behind it, and `wait_for` brings its files."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path) as call:
        with anyio.move_on_after(0.5):
            await call("generate", prompt="a fox sandbox:duration=1", key="fox")
        told = report(await call("wait_for", key_or_id="fox"))
    assert (told["state"], len(told["files"])) == ("completed", 1)
    assert sandbox.calls["POST /generations"] == 1


async def test_an_id_can_be_waited_for_and_looked_at(tmp_path: Path) -> None:
    """Also one that another program submitted."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path) as call:
        transport = httpx.ASGITransport(app=sandbox.app)
        async with httpx.AsyncClient(transport=transport) as http:
            luma = LumaClient("luma-api-secret", base_url="http://localhost/v1", http_client=http)
            generation = await luma.generations.create(FAST)
        looked = report(await call("generation", generation_id=generation.id))
        told = report(await call("wait_for", key_or_id=generation.id))
    assert looked["generation_id"] == generation.id
    assert (told["state"], len(told["files"])) == ("completed", 1)


@pytest.mark.parametrize("limit", ["max_submissions", "max_per_day"])
async def test_the_purse_has_a_bottom(tmp_path: Path, limit: str) -> None:
    """A refusal says that nothing was sent, and that calling again does not help."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path, **{limit: 1}) as call:
        report(await call("generate", prompt=FAST))
        again = report(await call("generate", prompt=FAST))
        said = refusal(await call("generate", prompt="an owl"))
        left = report(await call("journal"))["submissions_left"]
    assert again["state"] == "completed"
    assert "nothing was submitted" in said
    assert left == 0
    assert sandbox.calls["POST /generations"] == 1


async def test_the_day_is_counted_over_restarts(tmp_path: Path) -> None:
    """A server that is started anew by each chat has no new purse."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path, max_per_day=1) as call:
        report(await call("generate", prompt=FAST))
    async with connected(sandbox, tmp_path, max_per_day=1) as call:
        assert "limit" in refusal(await call("generate", prompt="an owl"))


async def test_models_and_types_can_be_limited(tmp_path: Path) -> None:
    """The first that is allowed is the default."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path, models=["uni-1-max"], types=["image"]) as call:
        said = refusal(await call("generate", prompt=FAST, model="ray-3.2", type="video"))
        hidden = refusal(await call("generate", prompt=FAST, options={"model": "ray-3.2"}))
        report(await call("generate", prompt=FAST))
    assert "uni-1-max" in said
    assert "uni-1-max" in hidden
    assert [each.params["model"] for each in sandbox.submissions] == ["uni-1-max"]


async def test_a_failure_is_an_error_with_advice(tmp_path: Path) -> None:
    """The model reads what happened and what to do; never the key of the API."""
    prompt = "a fox sandbox:duration=0 sandbox:fail=content_moderated"
    async with connected(Sandbox(), tmp_path) as call:
        result = await call("generate", prompt=prompt, key="fox")
        unknown = await call("generation", generation_id="no-such-id")
    assert "moderated" in refusal(result)
    assert '(key "fox"' in refusal(result)
    assert "Generation not found" in refusal(unknown)
    assert "luma-api-secret" not in result.model_dump_json() + unknown.model_dump_json()


async def test_an_unknown_submission_is_not_waited_for(tmp_path: Path) -> None:
    """The model is told that people must settle it, and not to submit it again."""
    with Journal(tmp_path / "luma.db"):
        pass
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path) as call:
        listed = report(await call("journal"))
    assert listed == {"entries": [], "total": 0, "submissions_left": 20}


@pytest.mark.parametrize(
    "text",
    [
        "../secret.txt",
        "/etc/passwd",
        "link.txt",
        "missing.png",
        ".",
        "file:///etc/passwd",
        "http://example.com/a.png",
        "https://user:password@example.com/a.png",
        "https://localhost/a.png",
        "https://127.0.0.1/a.png",
        "https://127.1/a.png",
        "https://10.0.0.7/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.png",
        "https://0x7f.1/a.png",
        "https://printer.local/a.png",
        "https://api.internal/a.png",
        "https://[half",
    ],
)
async def test_a_hostile_reference_is_refused(tmp_path: Path, text: str) -> None:
    """A model that was talked into it reads no file outside, and no private address."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (inputs / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ToolError) as caught:
        read_reference(text, inputs)
    assert "secret" not in str(caught.value)


async def test_references_that_are_allowed(tmp_path: Path) -> None:
    """A file below the directory, a public URL, and the id of a generation."""
    (tmp_path / "sub").mkdir()
    photo = tmp_path / "sub" / "photo.png"
    photo.write_bytes(b"png")
    generation_id = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"
    assert read_reference("sub/photo.png", tmp_path) == photo.resolve()
    assert read_reference("https://example.com/a.png", None) == {"url": "https://example.com/a.png"}
    assert read_reference(generation_id, None) == {"generation_id": generation_id}
    with pytest.raises(ToolError, match="not allowed"):
        read_reference("photo.png", None)


async def test_an_input_file_is_sent(tmp_path: Path) -> None:
    """The bytes of the file reach the API, by a path below the directory of inputs."""
    sandbox = Sandbox()
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 64)
    async with connected(sandbox, tmp_path, inputs=tmp_path) as call:
        report(await call("generate", prompt=FAST, type="image_edit", source="photo.png"))
    assert sandbox.submissions[0].params["source"]["media_type"] == "image/png"


async def test_the_tools_tell_what_they_do(tmp_path: Path) -> None:
    """Annotations and schemas: what reads, what pays, and what comes back."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app=Sandbox().app))
        )
        luma = LumaClient("key", base_url="http://localhost/v1", http_client=http)
        server = await stack.enter_async_context(
            open_server(luma, journal=tmp_path / "luma.db", download=tmp_path)
        )
        client = await stack.enter_async_context(Client(server))
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"generate", "wait_for", "generation", "journal"}
    read_only = {
        name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint
    }
    assert read_only == {"generation", "journal"}
    assert all(tool.output_schema for tool in tools.values())
    assert "context" not in json.dumps(tools["generate"].input_schema["properties"])


def entry(key: str, state: Any, age: float) -> JournalEntry:
    changed = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=age)
    return JournalEntry(key, {}, state, 1, "id", None, changed)


@pytest.mark.parametrize(
    ("entries", "under_way", "key"),
    [
        ([], [], "d-1"),
        ([], ["d-1"], "d-1"),
        ([entry("d-1", "running", 1e6)], [], "d-1"),
        ([entry("d-1", "unknown", 1e6)], [], "d-1"),
        ([entry("d-1", "completed", 599)], [], "d-1"),
        ([entry("d-1", "failed", 599)], [], "d-1"),
        ([entry("d-1", "completed", 601)], [], "d-2"),
        ([entry("d-1", "completed", 601), entry("d-2", "completed", 5)], [], "d-2"),
        ([entry("d-1", "completed", 601)], ["d-2"], "d-2"),
        ([entry("e-1", "completed", 5)], [], "d-1"),
    ],
)
async def test_the_key_of_a_call_without_one(
    entries: list[JournalEntry], under_way: list[str], key: str
) -> None:
    """What has not ended, or ended a moment ago, is the same request."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert choose_key("d", entries, under_way, now) == key
