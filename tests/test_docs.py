"""Every Python snippet of the README and of docs/ runs, in virtual time, against the sandbox."""

import ast
import importlib
import inspect
import json
import logging
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
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
from luma_poll._cli import commands
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.films import make_mp4
from luma_poll.sandbox.pictures import make_png
from tests.benchmarks import page as benchmarks

ROOT = Path(__file__).parent.parent
HOME = "https://github.com/luma-poll/luma-poll/blob/main/"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
WITH_SNIPPETS = [page for page in PAGES if "```python" in page.read_text()]
HERO_ID = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"
REAL_TIME = re.compile(
    r"\.serve\(\)|luma_agents|aiohttp"
)  # sockets and threads know no virtual time


INPUTS = {
    "photo.webp": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40),
    "style.png": make_png("a style"),
    "holiday.mp4": make_mp4("a holiday"),
    "products.csv": b"key,prompt,type,source\na,on a beach,image_edit,photo.webp\nb,a shoe,,\n",
}
"""The files that snippets take as input."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def enter_a_directory_with_inputs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in INPUTS.items():
        (directory / name).write_bytes(content)
    monkeypatch.chdir(directory)


def snippets(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def is_blocking(code: str, page: Path) -> bool:
    """True for what must not run in the event loop of the test."""
    return page.name == "without-async.md" or "import sync" in code


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
    code = code.replace("asyncio.run(", "await (")  # a loop runs already
    compiled = compile(code, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    pending = eval(compiled, names)
    if inspect.isawaitable(pending):
        await pending


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Some pages set up logging; other tests look at what is logged."""
    loggers = [logging.getLogger(), logging.getLogger("luma_poll")]
    before = [(logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.mark.anyio
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
async def test_snippets_run(
    page: Path, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a reader copies works, from the first snippet of a page to the last.

    On asyncio it runs as after `luma-poll sandbox`, with LUMA_BASE_URL set.
    """
    host = "agents.lumalabs.ai"
    if anyio_backend_name == "asyncio":
        host = "sandbox.test"
        monkeypatch.setenv("LUMA_BASE_URL", f"https://{host}/v1")
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-docs")
    enter_a_directory_with_inputs(tmp_path, monkeypatch)
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
            router.route(host=host).mock(side_effect=ASGIHandler(app))
            await run(code, names, page)


@pytest.mark.asyncio
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=name_of)
async def test_snippets_in_real_time_run(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So do those with a socket, or with the official SDK and its threads."""
    names: dict[str, Any] = {}
    await run("import httpx\nfrom luma_poll import *\nfrom luma_poll.sandbox import *", names, page)
    monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", wait_fixed(0.05))
    monkeypatch.setattr("luma_poll._running.runner.AdaptiveWait", lambda **_: wait_fixed(0.05))
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-docs")
    enter_a_directory_with_inputs(tmp_path, monkeypatch)
    async with Sandbox(seed=1, speed=1000).serve() as base_url:
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
        for code in snippets(page):
            if in_real_time(code, page):
                await run(code, names, page)


def test_the_tests_on_the_page_of_testing_pass(tmp_path: Path) -> None:
    """In a project of their own; to define them, as above, is not to run them."""
    code = snippets(ROOT / "docs/testing.md")
    in_virtual_time = code.index(next(each for each in code if "MockClock" in each))
    defining = [each for each in code if not re.search(r"^async with", each, re.MULTILINE)]
    (tmp_path / "conftest.py").write_text("import pytest\n" + code[in_virtual_time])
    (tmp_path / "test_page.py").write_text(
        "\n".join(each for each in defining if "MockClock" not in each)
    )
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stdout
    assert "7 passed" in told.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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
    assert len(snippets(PAGES[0])) >= 4
    assert snippets(PAGES[0])[0].startswith("from luma_poll import sync\n")


def test_json_snippets_are_json() -> None:
    """Examples of output can be read by a program."""
    found = [json.loads(text) for page in PAGES for text in snippets(page, "json")]
    assert found


def public_names() -> set[str]:
    """Of the package and its public doors, with their modules."""
    doors = {
        f"luma_poll.{module.name}"
        for module in pkgutil.iter_modules(luma_poll.__path__)
        if not module.name.startswith("_") and module.name not in ("errors", "models")
    }
    found = set()
    for door in {"luma_poll", *doors}:
        found |= {f"{door}.{name}" for name in importlib.import_module(door).__all__}
    again = {f"luma_poll.fastapi.{name}" for name in ("Problem", "to_problem")}  # of `problems`
    return found - again - {"luma_poll.__version__"}


def test_the_reference_is_complete() -> None:
    """Every public name has a place in it, and no page asks for a name that is not public."""
    text = "".join(page.read_text() for page in ROOT.glob("docs/reference/*.md"))
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) - {"luma_poll._client.generations.Generations"} == public_names()


def test_the_tree_of_errors_is_that_of_the_classes() -> None:
    """The page of errors begins with all of them, each below the one that it derives from."""

    def tree(error: type[luma_poll.LumaError], depth: int) -> list[str]:
        public = [each for each in error.__subclasses__() if each.__name__ in luma_poll.__all__]
        name = f"[{error.__name__}](#luma_poll.{error.__name__})"
        below = [line for each in public for line in tree(each, depth + 1)]
        return [f"{depth * 4 * ' '}-   {name}", *below]

    text = (ROOT / "docs/reference/errors.md").read_text()
    shown = re.findall(r"^ *- .*$", text, re.MULTILINE)
    assert shown == tree(luma_poll.LumaError, 0)


def test_docstrings_are_markdown() -> None:
    """Their examples are indented blocks; the `::` of reStructuredText would be shown as it is."""
    sources = (ROOT / "luma_poll").rglob("*.py")
    assert [
        str(path) for path in sources if re.search(r"::$", path.read_text(), re.MULTILINE)
    ] == []


def test_no_figure_of_the_benchmarks_is_typed_by_hand() -> None:
    """Their page is what its command writes from the figures that were measured."""
    figures = json.loads(benchmarks.FIGURES.read_text())
    assert benchmarks.PAGE.read_text() == benchmarks.page(figures)


FOREIGN = re.compile(
    r"\b(whoever|anew|dear|purse|goes on|for a try|hears of|any more|brought home|"
    r"[Ww]here (it|they|that|this|you) (is|are|was|has|have|do|does))\b"
)
"""What a native reader stumbles over: CONTRIBUTING.md says what to write instead."""


def prose(page: Path) -> str:
    """The text of a page without its code."""
    return re.sub(r"^```.*?^```$|`[^`]+`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [each for each in PAGES if each.name != "log.md"], ids=name_of)
def test_the_pages_are_in_plain_english(page: Path) -> None:
    """None of the words that the house does without, and no link whose text is a file name."""
    assert not re.search(r"^(<<<<<<<|=======|>>>>>>>)( |$)", page.read_text(), re.MULTILINE)
    assert [found[0] for found in FOREIGN.finditer(prose(page))] == []
    assert re.findall(r"\[[\w/-]+\.(?:md|py|html)\]\(", page.read_text()) == []


def test_the_picture_has_the_figures_of_the_benchmarks() -> None:
    """Both are of the same batch, so they may not differ."""
    rows = json.loads(benchmarks.FIGURES.read_text())["makespan"]["rows"]
    batch = [row for row in rows if (row["weights"], row["seed"]) == ("mixed", 0)]
    drawn = re.findall(r">(\d+) s[,<]", (ROOT / "docs/makespan.svg").read_text())
    assert sorted(drawn) == sorted(
        {f"{row['makespan']:.0f}" for row in batch} | {f"{row['ideal']:.0f}" for row in batch}
    )


def test_two_tables_of_the_schedules_agree() -> None:
    """What both say of the distributions that were held out is the same."""
    text = (ROOT / "docs/adaptive-wait.md").read_text()
    (row,) = re.findall(r"^\| held out \(\d+\), average \| (.*) \|$", text, re.MULTILINE)
    watched = ("after 0", "after 10", "after 50", "after 200", "DEFAULT_WAIT")
    learned = dict(zip(watched, row.split(" | "), strict=True))
    pattern = r"^\| (?:AdaptiveWait, )?(after \d+|DEFAULT_WAIT) \|.* \| ([\d.]+) \|$"
    beside = dict(re.findall(pattern, text, re.MULTILINE))
    assert beside.keys() == {"after 10", "after 50", "DEFAULT_WAIT"}
    assert beside.items() <= learned.items()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_pages_measure_nothing(page: str) -> None:
    """What they say of speed and size is a figure of the benchmarks, or none."""
    text = re.sub(r"```.*?```|`.*?`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    unit = r"(?:s|ms|µs|KiB|MB|%|seconds|times)"
    known = benchmarks.PAGE.read_text()
    assert [each for each in re.findall(rf"\d[\d,.]* {unit}\b", text) if each not in known] == []


def test_there_is_one_tagline() -> None:
    """The package, its index entry, the site, the README and the help say the same of it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    tagline = (luma_poll.__doc__ or "").strip()
    assert project["description"] == site["site_description"] == tagline
    assert f"**{tagline}**" in (ROOT / "README.md").read_text()
    assert (commands.app.info.help or "").startswith(tagline)


def test_pictures_load_nothing() -> None:
    """No font, script or style from elsewhere: the reader's browser asks nobody else."""
    drawings = [path.read_text() for path in ROOT.glob("docs/*.svg")]
    assert drawings
    assert not re.search(r"@font-face|@import|<script|<image|url\(http", "".join(drawings))


def test_every_page_is_in_the_navigation() -> None:
    """A page that nobody links to does not exist for a reader."""
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    listed = re.findall(r"'([^']+\.md)'", str(site["nav"]))
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(str(p.relative_to(docs)) for p in docs.rglob("*.md"))


def test_the_changelog_tells_of_this_version() -> None:
    """A release without an entry is not one."""
    assert f"## [{luma_poll.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_table_of_errors_is_complete() -> None:
    """Every public error stands in it."""
    table = (ROOT / "docs/waiting.md").read_text()
    public = [name for name in luma_poll.__all__ if name.endswith("Error")]
    grouping = {"APIError", "APIStatusError"}
    assert [name for name in public if f"`{name}`" not in table and name not in grouping] == []
