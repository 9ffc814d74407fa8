"""The bot of docs/chat-bots.md, with messages like those of discord.py."""

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from luma_poll import Journal, LumaClient
from luma_poll.sandbox import Sandbox
from tests.test_docs import ROOT, snippets

pytestmark = pytest.mark.anyio
PAUSE = 0.02
"""Seconds between two edits here; two seconds on the page."""
NUMBERS = itertools.count(1000)


class FakeMessage:
    """A message, with the time of each edit."""

    def __init__(self, content: str, number: int | None = None) -> None:
        self.id = number or next(NUMBERS)
        self.content = content
        self.edits: list[tuple[float, str]] = []
        self.replies: list[FakeMessage] = []
        self.attachments: Sequence[object] = ()
        self.is_deleted = False

    async def reply(self, content: str) -> "FakeMessage":
        self.replies.append(FakeMessage(content))
        return self.replies[-1]

    async def edit(self, *, content: str, attachments: Sequence[object] = ()) -> None:
        if self.is_deleted and not attachments:
            raise RuntimeError("404 Unknown Message")
        self.edits.append((anyio.current_time(), content))
        self.attachments = attachments


@asynccontextmanager
async def painter(sandbox: Sandbox, directory: Path) -> AsyncGenerator[Any]:
    """The one of the page, over a sandbox."""
    names: dict[str, Any] = {}
    (code,) = snippets(ROOT / "docs/chat-bots.md")
    assert code.count("anyio.sleep(2)") == 1
    exec(code.replace("anyio.sleep(2)", f"anyio.sleep({PAUSE})"), names)
    transport = httpx.ASGITransport(app=sandbox.app)
    async with httpx.AsyncClient(transport=transport) as http:
        client = LumaClient("luma-api-bot", base_url="http://localhost/v1", http_client=http)
        with Journal(directory / "bot.db") as journal:
            yield names["Painter"](client, journal)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """In real time, a hundred times as fast: the journal and the files are the work of threads."""
    return request.param


@pytest.fixture(autouse=True)
def _in_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUMA_POLL_SPEED", "100")


async def test_a_reply_tells_each_state_and_ends_with_the_file(tmp_path: Path) -> None:
    """In the order of the states, with a pause between two edits, but for the last."""
    question = FakeMessage("a red fox sandbox:duration=30")
    async with painter(Sandbox(seed=1, speed=100), tmp_path) as bot:
        await bot.answer(question)
    (reply,) = question.replies
    (file,) = reply.attachments
    *states, last = [text for _, text in reply.edits]
    assert await anyio.Path(str(file)).exists()
    assert last == "Here it is:"
    assert states
    assert states == [each for each in ("queued", "processing", "completed") if each in states]
    times = [time for time, _ in reply.edits[:-1]]
    assert all(later - time > 0.9 * PAUSE for time, later in itertools.pairwise(times))


async def test_a_failure_is_told_in_words_for_the_public(tmp_path: Path) -> None:
    """Without the key, a URL, or the name of a class."""
    question = FakeMessage("a fox sandbox:fail=content_moderated")
    async with painter(Sandbox(seed=1, speed=100), tmp_path) as bot:
        await bot.answer(question)
    said = question.replies[0].edits[-1][1]
    assert "moderation" in said
    assert "luma-api" not in said
    assert "://" not in said
    assert question.replies[0].attachments == []


async def test_a_message_that_is_delivered_twice_is_paid_once(tmp_path: Path) -> None:
    """Platforms deliver events again after a reconnect."""
    sandbox = Sandbox(seed=1, speed=100)
    question = FakeMessage("a red fox")
    async with painter(sandbox, tmp_path) as bot, anyio.create_task_group() as tasks:
        tasks.start_soon(bot.answer, question)
        tasks.start_soon(bot.answer, question)
    assert [reply.edits[-1][1] for reply in question.replies] == ["Here it is:"] * 2
    assert sandbox.calls["POST /generations"] == 1


async def test_a_deleted_reply_costs_no_picture(tmp_path: Path) -> None:
    """The edits fail, the wait goes on."""
    question = FakeMessage("a red fox")
    async with (
        painter(Sandbox(seed=1, speed=100), tmp_path) as bot,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(bot.answer, question)
        await anyio.sleep(PAUSE)
        question.replies[0].is_deleted = True
    assert len(question.replies[0].attachments) == 1


async def test_a_restart_continues_and_pays_nothing(tmp_path: Path) -> None:
    """The bot that comes next finds the message by the key of the journal."""
    sandbox = Sandbox(seed=1, speed=100)
    question = FakeMessage("a red fox sandbox:duration=100")
    async with painter(sandbox, tmp_path) as bot, anyio.create_task_group() as tasks:
        tasks.start_soon(bot.answer, question)
        while not bot.journal.entries("running"):  # noqa: ASYNC110
            await anyio.sleep(PAUSE)
        tasks.cancel_scope.cancel()
    assert question.replies[0].attachments == ()

    async def fetch(number: int) -> FakeMessage:
        assert number == question.id
        return question

    async with painter(sandbox, tmp_path) as bot:
        await bot.resume(fetch)
    assert question.replies[1].edits[-1][1] == "Here it is:"
    assert sandbox.calls["POST /generations"] == 1
