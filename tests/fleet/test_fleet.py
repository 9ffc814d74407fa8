"""One process: what a fleet promises to those who submit."""

import asyncio
import contextlib
import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from dbos import DBOS, DBOSConfig
from standardwebhooks import Webhook
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tenacity import wait_fixed

from luma_poll import (
    BadRequestError,
    ConfigurationError,
    LumaClient,
    PollTimeoutError,
    SubmissionUnknownError,
)
from luma_poll._fleet import callbacks
from luma_poll.dbos import Fleet, GenerationEnd, fleet_config
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app
from tests.fleet.processes import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

KEY = "luma-api-must-not-be-stored"
SECRET = "whsec_" + "b2xk" * 8


class Receiver:
    """Hears callbacks, and answers with the statuses that it was given, the last one for good."""

    def __init__(self) -> None:
        self.statuses = [200]
        self.heard: list[tuple[Request, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.heard.append((request, await request.body()))
        status = self.statuses[0] if len(self.statuses) == 1 else self.statuses.pop(0)
        await Response(status_code=status)(scope, receive, send)

    def of(self, key: str) -> list[dict[str, Any]]:
        """The events of a submission, with their ids, all of which are verified."""
        events = []
        for request, body in self.heard:
            event = Webhook(SECRET).verify(body, dict(request.headers))
            if event["data"]["key"] == key:
                events.append(event | {"id": request.headers["webhook-id"]})
        return events

    async def wait_for(self, key: str, count: int) -> list[dict[str, Any]]:
        await until(lambda: len(self.of(key)) >= count)
        return self.of(key)


class World:
    """A fleet of one worker, its sandbox, its callbacks' receiver and its database."""

    def __init__(self, database: Path, base_url: str, hook: str) -> None:
        self.database = database
        self.sandbox: Sandbox
        self.hook = hook
        self.receiver: Receiver
        self.client = LumaClient(KEY, base_url=base_url)
        self.fleet = Fleet(
            lambda: self.client,
            wait=wait_fixed(0.05),
            callback_secrets=[SECRET, "whsec_" + "bmV3" * 8],
            allow_private_callbacks=True,
            heartbeat=0.2,
            patience=0.8,
        )


@DBOS.step()
async def double(number: int) -> int:
    return 2 * number


@DBOS.workflow()
async def my_own_workflow(number: int) -> int:
    return await double(await double(number))


ORDERING: dict[str, Fleet] = {}


@DBOS.workflow()
async def my_order(key: str) -> str:
    handle = await ORDERING["fleet"].submit("a fox", key=key)
    return (await handle.result()).state


@asynccontextmanager
async def launched(config: DBOSConfig) -> AsyncIterator[None]:
    DBOS(config=config)
    try:
        DBOS.launch()
        yield
    finally:
        await asyncio.to_thread(DBOS.destroy)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    database = tmp_path_factory.mktemp("fleet") / "fleet.db"
    sandbox, receiver = Sandbox(speed=50, seed=1), Receiver()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("luma_poll.dbos.RESULT_INTERVAL", 0.05)
        async with sandbox.serve() as base_url, serve_app(receiver, "127.0.0.1", 0) as hook:
            world = World(database, base_url, f"{hook}/hook")
            world.sandbox, world.receiver = sandbox, receiver
            async with launched(fleet_config(f"sqlite:///{database}")), world.fleet:
                yield world


async def test_a_submission_ends(world: World) -> None:
    """With its id, which gives fresh URLs; the handle is found again by its key."""
    handle = await world.fleet.submit("a fox", key="end", type="image")
    end = await handle.result()
    assert end == GenerationEnd(end.id, "completed", None, None, (end.id,))
    assert await world.fleet.handle("end").result() == end
    assert (await world.fleet.submit("a fox", key="end", type="image")) == handle


async def test_a_failure_is_a_result(world: World) -> None:
    """Submitted again as often as it may be, where that may help."""
    submit = world.fleet.submit
    failed = await submit("sandbox:fail=generation_failed", key="again", max_attempts=2)
    moderated = await submit("sandbox:fail=content_moderated", key="not again", max_attempts=2)
    end = await failed.result()
    assert (end.state, end.failure_code) == ("failed", "generation_failed")
    assert len(set(end.submitted)) == 2
    assert end.id == end.submitted[-1]
    assert len((await moderated.result()).submitted) == 1


async def test_no_output_is_a_failure(world: World) -> None:
    """Although the API calls it completed."""
    handle = await world.fleet.submit("sandbox:outputs=0", key="no output", max_attempts=3)
    end = await handle.result()
    assert (end.state, end.failure_code) == ("failed", "completed_without_output")
    assert len(end.submitted) == 1  # it is billed


async def test_a_refusal_is_raised(world: World) -> None:
    """Typed, with what the API said; an operator may have it tried again."""
    handle = await world.fleet.submit("a fox", key="refused", model="no such model")
    for _ in range(2):
        with pytest.raises(BadRequestError, match="no such model") as caught:
            await handle.result()
        assert caught.value.status_code == 400
        assert caught.value.request_id
        before = world.sandbox.calls["POST /generations"]
        await world.fleet.resolve("refused", resubmit=True)
    with pytest.raises(BadRequestError):
        await handle.result()
    assert world.sandbox.calls["POST /generations"] == before + 1


async def test_a_deadline_is_raised_and_the_wait_can_continue(world: World) -> None:
    """With the id, which is not submitted again."""
    handle = await world.fleet.submit("sandbox:duration=60", key="late", timeout=0.3)
    with pytest.raises(PollTimeoutError) as caught:
        await handle.result()
    generation_id = caught.value.generation_id
    with pytest.raises(ConfigurationError, match="is known"):
        await world.fleet.resolve("late", resubmit=True)
    for _ in range(20):
        await world.fleet.resolve("late", generation_id=generation_id)
        with contextlib.suppress(PollTimeoutError):
            assert (await handle.result()).submitted == (generation_id,)
            break
    else:
        pytest.fail("it never ended")


async def test_what_cannot_be_submitted_is_refused(world: World) -> None:
    """Before anything is recorded."""
    submit: Any = world.fleet.submit
    wrong: list[dict[str, Any]] = [
        {"prompt": " ", "key": "k"},
        {"prompt": "a fox", "key": ""},
        {"prompt": "a fox", "key": 3},
        {"prompt": "a fox", "key": "k", "max_attempts": 0},
        {"prompt": "a fox", "key": "k", "max_attempts": None},
        {"prompt": "a fox", "key": "k", "timeout": 0},
        {"prompt": "a fox", "key": "ä" * 1001},
        {"prompt": "a fox", "key": "日" * 900},
        {"prompt": "a fox", "key": "a\0b"},
        {"prompt": "a fox", "key": "half a pair \ud83d"},
        {"prompt": "a fox", "key": "k", "source": {"type": "image", "data": "A" * 300_000}},
        {"prompt": "a fox", "key": "k", "seed": object()},
        {"prompt": "a fox", "key": "k", "weight": float("nan")},
        {"prompt": "a fox", "key": "k", "callback": "ftp://example.com"},
    ]
    for arguments in wrong:
        with pytest.raises(ConfigurationError):
            await submit(**arguments)
    with pytest.raises(ConfigurationError, match="no submission has the key"):
        await world.fleet.handle("k").result()


async def test_a_key_belongs_to_one_submission(world: World) -> None:
    """Other parameters under it are an error; a workflow of its name is something else."""
    await world.fleet.submit("a fox", key="taken")
    for others in ({"prompt": "another fox"}, {"prompt": "a fox", "max_attempts": 2}):
        arguments: dict[str, Any] = others
        with pytest.raises(ConfigurationError, match="taken"):
            await world.fleet.submit(key="taken", **arguments)


async def test_only_an_error_is_resolved(world: World) -> None:
    """And in one of two ways."""
    await (await world.fleet.submit("a fox", key="fine")).result()
    for arguments in ({"resubmit": True}, {"generation_id": "1"}, {}):
        given: Any = arguments
        with pytest.raises(ConfigurationError, match=r"it is completed|takes either"):
            await world.fleet.resolve("fine", **given)
    with pytest.raises(ConfigurationError):
        await world.fleet.resolve("never heard of", resubmit=True)


async def test_a_lost_answer_is_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not sent again until somebody says so; the callback is told of both ends."""
    generations = world.client.generations
    create = generations.create
    lost = []

    async def lose(**request: Any) -> Any:
        lost.append((await create(**request)).id)
        raise OSError("the connection broke")

    monkeypatch.setattr(type(generations), "create", lambda _, **request: lose(**request))
    handle = await world.fleet.submit("a fox", key="lost", callback=world.hook)
    with pytest.raises(SubmissionUnknownError) as caught:
        await handle.result()
    monkeypatch.undo()
    assert caught.value.key == "lost"
    assert caught.value.request == {"prompt": "a fox"}
    assert [each.key for each in await world.fleet.entries("unknown")] == ["lost"]
    await world.receiver.wait_for("lost", 1)
    await world.fleet.resolve("lost", generation_id=lost[0])
    assert (await handle.result()).id == lost[0]
    assert await world.fleet.entries("unknown") == []
    assert len(lost) == 1
    events = await world.receiver.wait_for("lost", 2)
    assert [each["type"] for each in events] == ["generation.unknown", "generation.completed"]
    assert events[0]["id"] != events[1]["id"]


async def test_a_full_account_is_waited_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An end makes room, not the minute that the refusal names."""
    monkeypatch.setattr(world.sandbox, "_max_concurrent", 2)
    handles = [await world.fleet.submit("sandbox:duration=10", key=f"full-{n}") for n in range(6)]
    assert {(await each.result()).state for each in handles} == {"completed"}


async def test_a_callback_hears_of_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed, again after a failure, with the same id each time, and without any URL."""
    monkeypatch.setattr(callbacks, "PAUSES", (0, 0.1, 0.1, 0.1))
    world.receiver.statuses = [500, 302, 200]
    handle = await world.fleet.submit("a fox", key="called", callback=world.hook)
    end = await handle.result()
    events = await world.receiver.wait_for("called", 3)
    assert events[0] == events[1] == events[2]
    assert events[0]["type"] == "generation.completed"
    assert events[0]["data"] == {
        "key": "called",
        "id": end.id,
        "state": "completed",
        "failure_code": None,
        "failure_reason": None,
        "submitted": [end.id],
    }


async def state_of_call(world: World, key: str) -> str:
    while True:
        with contextlib.closing(sqlite3.connect(world.database)) as connection:
            found = connection.execute(
                "SELECT state, last FROM luma_callbacks WHERE key = ? ORDER BY due_at", [key]
            ).fetchall()
        if found and found[-1][0] != "due":
            return ": ".join(found[-1])
        await asyncio.sleep(0.05)


async def test_a_410_ends_the_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver wants no more of it."""
    monkeypatch.setattr(callbacks, "PAUSES", (0, 0.05, 0.05))
    world.receiver.statuses = [410]
    await (await world.fleet.submit("a fox", key="gone", callback=world.hook)).result()
    await world.receiver.wait_for("gone", 1)
    assert await state_of_call(world, "gone") == "gone: gone"
    assert len(world.receiver.of("gone")) == 1
    world.receiver.statuses = [200]


async def test_calls_are_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last pause; an operator may have them made once more."""
    monkeypatch.setattr(callbacks, "PAUSES", (0, 0.05))
    world.receiver.statuses = [503]
    await (await world.fleet.submit("a fox", key="deaf", callback=world.hook)).result()
    await world.receiver.wait_for("deaf", 2)
    assert await state_of_call(world, "deaf") == "given up: HTTP 503"
    world.receiver.statuses = [200]
    assert await world.fleet.redeliver("deaf") == 1
    events = await world.receiver.wait_for("deaf", 3)
    assert await state_of_call(world, "deaf") == "delivered: delivered"
    assert events[0]["id"] == events[2]["id"]


async def test_files_are_uploaded_and_not_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for a key: its submission names the upload; another file under it is an error."""
    uploads = []

    async def upload_once(_: object, found: object) -> str:
        uploads.append(found)
        return "0b0e37c0-8c5a-4b8f-9c5d-6d2c0f6a1b11"

    monkeypatch.setattr(type(world.client.files), "upload_once", upload_once)
    await world.fleet.pause()
    picture = b"\x89PNG\r\n\x1a\n" + b"0" * 1000
    for _ in range(2):
        await world.fleet.submit(
            "at night", key="edit", type="image_edit", source=picture, timeout=30
        )
    assert len(uploads) == 1
    (entry,) = [each for each in await world.fleet.entries() if each.key == "edit"]
    assert set(entry.request["source"]) == {"file_id"}
    with pytest.raises(ConfigurationError, match="edit"):
        await world.fleet.submit(
            "at night", key="edit", type="image_edit", source=picture + b"1", timeout=30
        )
    await world.fleet.cancel("edit")
    await world.fleet.resume()


async def test_a_key_may_have_any_characters(world: World) -> None:
    """Also for the message of its end, whose id is a header."""
    await (await world.fleet.submit("a fox", key="zoë 狐", callback=world.hook)).result()
    assert (await world.receiver.wait_for("zoë 狐", 1))[0]["id"].startswith("msg_")


async def test_other_workflows_work_beside_it(world: World) -> None:
    """A fleet does not own DBOS."""
    assert await my_own_workflow(3) == 12


async def test_the_block_raises_what_it_raised(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a group around it; and the fleet may be entered again."""
    another = Fleet(lambda: LumaClient(KEY, base_url="http://127.0.0.1:1/v1"), queue="another-1")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            async with another:
                1 / 0  # noqa: B018


async def test_a_workflow_may_submit(world: World) -> None:
    """And wait for the end, as a step of its own."""
    ORDERING["fleet"] = world.fleet
    assert await my_order("of a workflow") == "completed"


async def test_the_database_has_no_secret_and_no_url(world: World) -> None:
    """No key of the API, no secret of callbacks, no URL of an output, and no pickle."""
    await (await world.fleet.submit("a fox", key="dump", callback=world.hook)).result()
    with sqlite3.connect(world.database) as connection:
        dump = "\n".join(connection.iterdump())
    assert '"prompt":"a fox"' in dump
    for secret in (KEY, SECRET, SECRET.removeprefix("whsec_"), "X-Amz", "storage", "gASV"):
        assert secret not in dump


@pytest.mark.parametrize(
    "options",
    [
        {"max_running": 0},
        {"submissions_per_minute": 1.5},
        {"max_rate": -1},
        {"heartbeat": 4.0, "patience": 6.0},
        {"heartbeat": 0.0},
        {"heartbeat": None},
        {"heartbeat": "2"},
        {"heartbeat": math.inf, "patience": math.inf},
        {"patience": None},
        {"patience": math.nan},
        {"callback_secrets": ["whsec_"]},
        {"queue": "No Name!"},
        {"queue": "a" * 40},
        {"share": None},
        {"database": "mysql://localhost/luma"},
        {"database": ""},
    ],
)
async def test_unusable_options_are_refused(options: dict[str, Any]) -> None:
    """When the fleet is made."""
    with pytest.raises(ConfigurationError):
        Fleet(**options)
