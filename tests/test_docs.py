"""Every Python snippet of the README and of docs/ runs, in virtual time, against the sandbox."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
import respx
from respx.handlers import ASGIHandler
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tenacity import wait_fixed

import luma_poll
from luma_poll.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
HOME = "https://github.com/luma-poll/luma-poll/blob/main/"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
HERO_ID = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"
REAL_TIME = re.compile(
    r"\.serve\(\)|luma_agents|aiohttp"
)  # sockets and threads know no virtual time


def snippets(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def is_blocking(code: str, page: Path) -> bool:
    """True for what must not run in the event loop of the test."""
    return page.name == "synchronous.md" or "import sync" in code


def in_real_time(code: str, page: Path) -> bool:
    """True for what needs sockets or threads."""
    return page.name == "fleets.md" or is_blocking(code, page) or bool(REAL_TIME.search(code))


def with_the_heros_generation(app: ASGIApp, generation_id: str) -> ASGIApp:
    """The id in the README is nobody's: another one answers for it."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_renamed(message: Message) -> None:
            body = message.get("body", b"").replace(generation_id.encode(), HERO_ID.encode())
            await send({**message, "body": body} if "body" in message else message)

        path = scope["path"].replace(HERO_ID, generation_id)
        renamed = send if path == scope["path"] else send_renamed
        await app({**scope, "path": path, "raw_path": path.encode()}, receive, renamed)

    return wrapped


async def run(code: str, names: dict[str, Any], page: Path) -> None:
    if is_blocking(code, page):
        await anyio.to_thread.run_sync(exec, compile(code, str(page), "exec"), names)
        return
    code = code.replace("asyncio.run(main())", "await main()")  # a loop runs already
    compiled = compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    pending = eval(compiled, names)
    if inspect.isawaitable(pending):
        await pending


@pytest.mark.anyio
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_snippets_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a reader copies works, from the first snippet of a page to the last."""
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-docs")
    monkeypatch.chdir(tmp_path)
    sandbox = Sandbox(seed=1)
    transport = httpx.ASGITransport(app=sandbox.app)
    headers = {"Authorization": "Bearer luma-api-docs"}
    async with httpx.AsyncClient(transport=transport, headers=headers) as http:
        answer = await http.post("http://test/v1/generations", json={"prompt": "the hero's"})
    app = with_the_heros_generation(sandbox.app, answer.json()["id"])
    names: dict[str, Any] = {"__name__": "docs"}
    for code in snippets(page):
        if in_real_time(code, page):
            continue
        with respx.mock(assert_all_called=False) as router:
            router.route(host="agents.lumalabs.ai").mock(side_effect=ASGIHandler(app))
            await run(code, names, page)


@pytest.mark.asyncio
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
async def test_snippets_in_real_time_run(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So do those with a socket, or with the official SDK and its threads."""
    names: dict[str, Any] = {}
    await run("import httpx\nfrom luma_poll import *\nfrom luma_poll.sandbox import *", names, page)
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", wait_fixed(0.05))
    monkeypatch.setattr("luma_poll._running.runner.AdaptiveWait", lambda **_: wait_fixed(0.05))
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-docs")
    monkeypatch.chdir(tmp_path)
    async with Sandbox(seed=1, speed=1000).serve() as base_url:
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
        for code in snippets(page):
            if in_real_time(code, page):
                await run(code, names, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """No link between the pages is broken."""
    text = page.read_text()
    relative = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    absolute = re.findall(rf"{re.escape(HOME)}([^)#\s]+)", text)
    assert [link for link in relative if not (page.parent / link).exists()] == []
    assert [link for link in absolute if not (ROOT / link).exists()] == []


def test_the_readme_has_no_relative_links() -> None:
    """They would be broken on PyPI, which shows the README alone."""
    text = re.sub(
        r"^```.*?^```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
    )
    links = re.findall(r"\]\(([^)]+)\)|^\[[^]]+\]: (\S+)", text, re.MULTILINE)
    assert links
    assert [a or b for a, b in links if not (a or b).startswith(("https://", "#"))] == []


def test_the_pages_have_snippets() -> None:
    """The pattern finds them, so the tests above test something."""
    assert len(snippets(PAGES[0])) >= 5
    assert snippets(PAGES[0])[0].startswith(
        "import asyncio\n\nfrom luma_poll import LumaClient, Poller\n"
    )


def test_json_snippets_are_json() -> None:
    """Examples of output can be read by a program."""
    found = [json.loads(text) for page in PAGES for text in snippets(page, "json")]
    assert found


def test_the_changelog_tells_of_this_version() -> None:
    """A release without an entry is not one."""
    assert f"## [{luma_poll.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_table_of_errors_is_complete() -> None:
    """Every public error stands in the README."""
    readme = (ROOT / "README.md").read_text()
    public = [name for name in luma_poll.__all__ if name.endswith("Error")]
    grouping = {"APIError", "APIStatusError"}
    assert [name for name in public if name not in readme and name not in grouping] == []
