"""The tools that an agent sees, over the official client and the sandbox, in one process."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import anyio
import httpx
import pytest
from tenacity import wait_fixed

from luma_poll import ConfigurationError, Journal, JournalEntry, LumaClient, Poller
from luma_poll.sandbox import Sandbox

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, ImageContent, TextContent

from luma_poll._mcp.references import read_reference
from luma_poll.mcp import choose_key, open_server, spent_since

pytestmark = pytest.mark.anyio
SLOW = "a fox sandbox:duration=1000"
FAST = "a fox sandbox:duration=0"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """In real time: the journal, the files and the pictures are the work of threads."""
    return request.param


class Wire(httpx.ASGITransport):
    """The way to a sandbox, which may lose the answers to submissions, or be cut."""

    answers_lost = False
    is_cut = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.is_cut:
            raise httpx.ConnectError("no route to the host")
        answer = await super().handle_async_request(request)
        if self.answers_lost and request.method == "POST":
            raise httpx.ReadError("the connection broke")
        return answer


@asynccontextmanager
async def connected(
    sandbox: Sandbox, directory: Path, *, wire: Wire | None = None, **options: Any
) -> AsyncGenerator[Callable[..., Any]]:
    """The `call_tool` of a client of a new server; the journal stays in the directory."""
    async with AsyncExitStack() as stack:
        transport = wire or httpx.ASGITransport(app=sandbox.app)
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

        async def call(name: str, *, progress: Any = None, **arguments: Any) -> CallToolResult:
            return await client.call_tool(name, arguments, progress_callback=progress)

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


async def test_the_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that opens them may be in another directory than the server."""
    monkeypatch.chdir(tmp_path)
    async with connected(Sandbox(), tmp_path, download="out") as call:
        told = report(await call("generate", prompt=FAST, key="fox"))
    assert told["files"] == [str(tmp_path / "out/fox.png")]


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
    options: dict[str, Any] = {limit: 1}
    async with connected(sandbox, tmp_path, **options) as call:
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


async def test_a_failure_that_may_pass_is_submitted_again_by_another_key(tmp_path: Path) -> None:
    """The same call gives the same failure, and says so; only a new key pays again."""
    sandbox = Sandbox()
    prompt = "a fox sandbox:duration=0 sandbox:fail=generation_failed"
    async with connected(sandbox, tmp_path) as call:
        first = refusal(await call("generate", prompt=prompt))
        second = refusal(await call("generate", prompt=prompt))
        assert sandbox.calls["POST /generations"] == 1
        assert "needs another key" in first
        assert "needs another key" in second
        refusal(await call("generate", prompt=prompt, key="again"))
    assert sandbox.calls["POST /generations"] == 2


async def test_a_call_that_returns_during_its_submission_says_so(tmp_path: Path) -> None:
    """It may be billed by then: nobody is told that it was not submitted."""
    sandbox = Sandbox()
    has_answered = anyio.Event()

    class Slow(Wire):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "POST":
                await has_answered.wait()
            return await super().handle_async_request(request)

    async with connected(sandbox, tmp_path, wire=Slow(app=sandbox.app), patience=0.3) as call:
        told = report(await call("generate", prompt=SLOW))
        has_answered.set()
    assert told["state"] == "being submitted"
    assert told["next"].startswith("being submitted: call wait_for")


async def test_an_unknown_submission_is_not_waited_for(tmp_path: Path) -> None:
    """People must settle it: nothing is submitted again, and the purse has paid for it."""
    sandbox = Sandbox()
    wire = Wire(app=sandbox.app)
    wire.answers_lost = True
    async with connected(sandbox, tmp_path, wire=wire) as call:
        first = refusal(await call("generate", prompt=FAST, key="fox"))
        again = refusal(await call("generate", prompt=FAST, key="fox"))
        waited = refusal(await call("wait_for", key_or_id="fox"))
        listed = report(await call("journal"))
    assert "not known whether the generation was accepted" in first
    assert '(key "fox")' in first
    assert "may have been submitted" in again
    assert "Do not submit it again" in waited
    assert [each["state"] for each in listed["entries"]] == ["unknown"]
    assert listed["submissions_left"] == 19
    assert sandbox.calls["POST /generations"] == 1


async def test_what_was_not_accepted_is_not_paid_for(tmp_path: Path) -> None:
    """A model that tries options which do not exist keeps its purse."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path, max_submissions=1) as call:
        for wrong in ({"model": "gpt-9"}, {"options": {"colour": "red"}}, {"type": "hologram"}):
            assert "HTTP 400" in refusal(await call("generate", prompt=FAST, **wrong))
        assert report(await call("journal"))["submissions_left"] == 1
        assert report(await call("generate", prompt=FAST))["submissions"] == 1
        assert report(await call("journal"))["submissions_left"] == 0


async def test_a_late_refusal_is_told_to_who_waits(tmp_path: Path) -> None:
    """The call has returned by then, and the journal does not know of it; nothing was paid."""
    sandbox = Sandbox()
    wire = Wire(app=sandbox.app)
    wire.is_cut = True
    async with connected(sandbox, tmp_path, wire=wire, patience=0.3) as call:
        first = report(await call("generate", prompt=FAST, key="fox", model="gpt-9"))
        wire.is_cut = False
        with anyio.fail_after(30):
            while not (told := await call("wait_for", key_or_id="fox")).is_error:
                pass
        again = refusal(await call("wait_for", key_or_id="fox"))
        better = report(await call("generate", prompt=FAST, key="fox"))
        left = report(await call("journal"))["submissions_left"]
    assert "not submitted yet" in first["next"]
    assert "Unknown model: gpt-9" in refusal(told)
    assert again == refusal(told)
    assert better["submissions"] == 1
    assert left == 19


async def test_a_full_account_is_waited_for(tmp_path: Path) -> None:
    """As long as there is no room, nothing was submitted, and the report says so."""
    sandbox = Sandbox(max_concurrent=1)
    async with connected(sandbox, tmp_path, patience=0.5) as call:
        first = report(await call("generate", prompt=SLOW))
        second = report(await call("generate", prompt=FAST, key="second"))
        waited = report(await call("wait_for", key_or_id="second"))
    assert (first["state"] != "waiting for room", first["submissions"]) == (True, 1)
    assert (second["state"], second["submissions"]) == ("waiting for room", 0)
    assert second["generation_id"] is None
    assert "not submitted yet" in second["next"]
    assert waited == second


async def test_an_outage_is_waited_out(tmp_path: Path) -> None:
    """Nothing was sent, so nothing was paid; when it is over, one submission is made."""
    sandbox = Sandbox()
    wire = Wire(app=sandbox.app)
    wire.is_cut = True
    async with connected(sandbox, tmp_path, wire=wire, patience=0.3) as call:
        cut = report(await call("generate", prompt=FAST, key="fox"))
        wire.is_cut = False
        with anyio.fail_after(30):
            while report(told := await call("wait_for", key_or_id="fox"))["state"] != "completed":
                pass
    assert (cut["state"], cut["submissions"]) == ("waiting for room", 0)
    assert report(told)["submissions"] == 1
    assert sandbox.calls["POST /generations"] == 1


@pytest.mark.parametrize("prompt", [FAST, SLOW])
async def test_a_key_is_of_one_request(tmp_path: Path, prompt: str) -> None:
    """With other parameters it is refused: while the first one runs, and after its end."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path, patience=0.5) as call:
        report(await call("generate", prompt=prompt, key="fox"))
        said = refusal(await call("generate", prompt="an owl", key="fox"))
    assert "other parameters" in said
    assert "othing was sent" in said
    assert sandbox.calls["POST /generations"] == 1


@pytest.mark.parametrize("key", ["{n}", "{colour}", "../../x", "/etc/x", "~", "x" * 900])
async def test_a_key_is_a_name_and_no_path(tmp_path: Path, key: str) -> None:
    """Its file lies in the directory, and `wait_for` finds it."""
    async with connected(Sandbox(), tmp_path) as call:
        told = report(await call("generate", prompt=FAST, key=key))
        again = report(await call("wait_for", key_or_id=key))
    assert [Path(file).parent for file in told["files"]] == [tmp_path / "out"]
    assert again["files"] == told["files"]
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize("key", ["", " ", "a\0b", "\ud800", "x" * 5000])
async def test_what_is_no_key_is_refused(tmp_path: Path, key: str) -> None:
    """Before anything is sent, and without the whole of it in the answer."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path) as call:
        said = refusal(await call("generate", prompt=FAST, key=key))
    assert "a key " in said
    assert len(said) < 200
    assert sandbox.calls["POST /generations"] == 0


@pytest.mark.parametrize("text", ["nope", "../../x", "a\0b", "", "x" * 5000])
async def test_an_unknown_key_is_an_error(tmp_path: Path, text: str) -> None:
    """Neither a key nor an id; nothing is submitted."""
    sandbox = Sandbox()
    async with connected(sandbox, tmp_path) as call:
        waited = refusal(await call("wait_for", key_or_id=text))
        looked = refusal(await call("generation", generation_id=text))
    assert "is not a generation id" in waited or "It is not a key either" in waited
    assert len(waited) + len(looked) < 700
    assert sandbox.calls["POST /generations"] == 0


async def test_many_calls_at_once_share_one_purse(tmp_path: Path) -> None:
    """The last submission is spent once, whichever call comes first."""
    sandbox = Sandbox()
    told: list[CallToolResult] = []
    async with (
        connected(sandbox, tmp_path, max_submissions=3, max_per_day=2) as call,
        anyio.create_task_group() as tasks,
    ):

        async def generate(number: int) -> None:
            told.append(await call("generate", prompt=f"{FAST} {number}"))

        for number in range(6):
            tasks.start_soon(generate, number)
    assert sorted(each.is_error for each in told) == [False] * 2 + [True] * 4
    assert sandbox.calls["POST /generations"] == 2


async def test_a_purse_may_be_empty_from_the_start(tmp_path: Path) -> None:
    """For an agent that may look, and not spend."""
    async with connected(Sandbox(), tmp_path, max_submissions=0) as call:
        assert "limit" in refusal(await call("generate", prompt=FAST))
        assert report(await call("journal"))["submissions_left"] == 0


async def test_a_day_ends_after_a_day() -> None:
    """What changed at its very beginning still counts: rather too much than too little."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    entries = [entry("a", "completed", 86_400), entry("b", "completed", 86_401)]
    assert spent_since(entries, now - timedelta(days=1)) == 1


async def test_progress_is_told_to_those_who_ask(tmp_path: Path) -> None:
    """With the state in words; a client without a token is told nothing, and served as well."""
    told: list[tuple[float, float | None, str | None]] = []

    async def progress(seconds: float, total: float | None, message: str | None) -> None:
        told.append((seconds, total, message))

    async with connected(Sandbox(), tmp_path, patience=0.5) as call:
        report(await call("generate", prompt=SLOW, progress=progress))
    assert told
    assert told[0][1:] == (0.5, "waiting for room")


async def test_an_error_that_nobody_foresaw_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is told the key, and nothing that is secret."""

    async def download(*_: object, **__: object) -> object:
        raise RuntimeError("https://storage/a.png?X-Amz-Signature=0123456789abcdef")

    sandbox = Sandbox()
    async with connected(sandbox, tmp_path) as call:
        with monkeypatch.context() as broken:
            broken.setattr(LumaClient, "download", download)
            said = refusal(await call("generate", prompt=FAST, key="fox"))
        told = report(await call("generate", prompt=FAST, key="fox"))
    assert "RuntimeError" in said
    assert '(key "fox")' in said
    assert "0123456789abcdef" not in said
    assert told["state"] == "completed"
    assert sandbox.calls["POST /generations"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"download": __file__}, "download: .*exists"),
        ({"models": "uni-1"}, "models is a list"),
        ({"max_per_day": -1}, "max_per_day must be"),
        ({"max_submissions": 1.5}, "max_submissions must be"),
        ({"patience": None}, "patience must be a number above 0"),
        ({"inputs": "missing"}, "no directory missing"),
    ],
)
async def test_unusable_arguments_are_named(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    """Before anything is served."""
    given = {"journal": tmp_path / "luma.db", "download": tmp_path, **options}
    async with LumaClient("luma-api-secret", base_url="http://localhost/v1") as luma:
        with pytest.raises(ConfigurationError, match=says):
            async with open_server(luma, **given):
                pass


async def test_an_error_in_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    """Not in a group of exceptions."""
    with pytest.raises(ZeroDivisionError):
        async with (
            LumaClient("luma-api-secret", base_url="http://localhost/v1") as luma,
            open_server(luma, journal=tmp_path / "luma.db", download=tmp_path),
        ):
            raise ZeroDivisionError


@pytest.mark.parametrize(
    "options",
    [
        {"source": {"url": "http://10.0.0.1/a.png"}},
        {"image_ref": [{"url": "https://169.254.169.254/a"}]},
        {"video": {"start_frame": {"url": "file:///etc/passwd"}}},
        {"video": {"edit": {"keyframes": ["../secret.txt"]}}},
        {"source": "/etc/passwd"},
        {"webhook": "http://localhost/"},
        {"prompt": "an owl"},
        {"key": "owl"},
    ],
)
async def test_options_are_no_way_around(tmp_path: Path, options: dict[str, Any]) -> None:
    """What is refused beside the options is refused in them, however deep."""
    sandbox = Sandbox()
    (tmp_path / "inputs").mkdir()
    async with connected(sandbox, tmp_path, inputs=tmp_path / "inputs") as call:
        said = refusal(await call("generate", prompt=FAST, options=options))
    assert "only public" in said or "no file of that name" in said or "not options" in said
    assert sandbox.calls["POST /generations"] == 0


@pytest.mark.posix
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
        "a\0b",
        "loop.png",
        "x" * 5000,
        "\ud800",
        "~/photo.png",
        "",
    ],
)
async def test_a_hostile_reference_is_refused(tmp_path: Path, text: str) -> None:
    """A model that was talked into it reads no file outside, and no private address."""
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (inputs / "link.txt").symlink_to(tmp_path / "secret.txt")
    (inputs / "loop.png").symlink_to(inputs / "loop.png")
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
        video = {"start_frame": "photo.png"}
        await call("generate", prompt=FAST, model="ray-3.2", type="video", options={"video": video})
    assert sandbox.submissions[0].params["source"]["media_type"] == "image/png"
    assert sandbox.submissions[1].params["video"]["start_frame"]["media_type"] == "image/png"


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


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_a_client_does_each_request_is_paid_once(tmp_path: Path, seed: int) -> None:
    """Calls at once, given up at any moment, through outages, over a restart; none is unknown."""
    chance = Random(seed)
    sandbox = Sandbox(seed=seed, max_concurrent=2)
    wire = Wire(app=sandbox.app)

    async def outages() -> None:
        for _ in range(3):
            await anyio.sleep(chance.random() / 4)
            wire.is_cut = not wire.is_cut
        wire.is_cut = False

    async def act(call: Callable[..., Any]) -> None:
        await anyio.sleep(chance.random() / 2)
        key = chance.choice(["one", "two", None])
        with anyio.move_on_after(chance.choice([0.02, 0.1, 1])):
            if chance.random() < 0.8:
                await call("generate", prompt=chance.choice([FAST, "an owl"]), key=key)
            else:
                await call("wait_for", key_or_id=key or "three")

    for _ in range(2):
        async with (
            connected(sandbox, tmp_path, wire=wire, patience=0.3) as call,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(outages)
            for _ in range(15):
                tasks.start_soon(act, call)
    accepted = [each.generation_id for each in sandbox.submissions if each.refused is None]
    with Journal(tmp_path / "luma.db") as journal:
        recorded = [each.generation_id for each in journal.entries()]
    assert accepted
    assert sorted(map(str, accepted)) == sorted(map(str, recorded))
    assert len(accepted) <= 4  # two prompts without a key, and two keys
