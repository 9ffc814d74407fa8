"""The simulated account: its two limits in units, its refusals, and the record of it all."""

from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx
import pytest

from luma_poll.sandbox import DEFAULT_ACCOUNT, Sandbox, SubmissionRecord
from tests.sandbox.test_sandbox import SOURCE, connect, get, submit

HEAVY: dict[str, Any] = {"model": "uni-1-max", "type": "image_edit", "source": SOURCE}
RATE_HEADERS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")


async def post(client: httpx.AsyncClient, prompt: str = "A cat", **fields: Any) -> httpx.Response:
    return await client.post("/generations", json={"prompt": prompt, **fields})


def remaining(response: httpx.Response) -> int:
    assert response.status_code == 201, response.text
    return int(response.headers["X-RateLimit-Remaining"])


def rounded(record: SubmissionRecord) -> SubmissionRecord:
    ends = None if record.ends is None else round(record.ends, 6)
    return replace(record, at=round(record.at, 6), ends=ends)


@pytest.mark.anyio
async def test_rate_limit() -> None:
    """The window of 60 seconds slides, polling is free, and Retry-After is when to try again."""
    async with connect(Sandbox(requests_per_minute=2)) as client:
        first = await submit(client)
        await anyio.sleep(20.5)
        await submit(client)
        for _ in range(10):
            await get(client, first)
        refused = await client.post("/generations", json={"prompt": "A cat"})
        assert refused.status_code == 429
        assert refused.json() == {"detail": "Rate limit exceeded"}
        assert refused.headers["Retry-After"] == "40"
        assert refused.headers["X-RateLimit-Limit"] == "2"
        assert refused.headers["X-RateLimit-Remaining"] == "0"
        sent = parsedate_to_datetime(refused.headers["Date"]).timestamp()
        assert int(refused.headers["X-RateLimit-Reset"]) - sent in (40, 41)

        await anyio.sleep(39.4)
        refused = await client.post("/generations", json={"prompt": "A cat"})
        assert refused.headers["Retry-After"] == "1"
        await anyio.sleep(0.1)
        response = await client.post("/generations", json={"prompt": "A cat"})
        assert response.status_code == 201
        assert response.headers["X-RateLimit-Remaining"] == "0"


@pytest.mark.anyio
async def test_concurrency_limit() -> None:
    """Unfinished jobs are counted per client, and only a finished one frees its slot."""
    sandbox = Sandbox(max_concurrent=2)
    async with connect(sandbox) as client, connect(sandbox, "luma-api-other") as other:
        for seconds in (4, 3):
            await submit(client, f"sandbox:duration={seconds}")
        refused = await client.post("/generations", json={"prompt": "A cat"})
        assert refused.status_code == 429
        assert refused.json() == {"detail": "Concurrent generation limit reached (2)"}
        assert refused.headers["Retry-After"] == "60"
        assert not [name for name in refused.headers if name.startswith("x-ratelimit")]
        await submit(other)

        await anyio.sleep(3)
        await submit(client, "sandbox:duration=90000")
        refused = await client.post("/generations", json={"prompt": "A cat"})
        assert refused.status_code == 429
        await anyio.sleep(3600)
        for _ in range(2):  # the endless one does not count after an hour
            await submit(client, "sandbox:duration=1")


@pytest.mark.anyio
async def test_a_heavy_edit_takes_three_units_of_the_minute() -> None:
    """On the default account heavy edits leave 27, 24 and 21 of the minute's 30 units."""
    async with connect(Sandbox(**DEFAULT_ACCOUNT)) as client:
        short = "A cat sandbox:duration=1"  # a minute later none of them runs
        responses = [await post(client, short, **HEAVY) for _ in range(3)]
        assert [remaining(response) for response in responses] == [27, 24, 21]
        assert {response.headers["X-RateLimit-Limit"] for response in responses} == {"30"}
        assert remaining(await post(client, short)) == 20
        await anyio.sleep(60)
        assert remaining(await post(client)) == 29


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {"model": "uni-1-max"},
        {"type": "image_edit", "source": SOURCE},
        {"model": "ray-3.2", "type": "video"},
    ],
)
async def test_all_else_weighs_one_unit(fields: dict[str, Any]) -> None:
    """Nothing is known of other weights: images, other edits and videos count once."""
    async with connect(Sandbox(**DEFAULT_ACCOUNT)) as client:
        assert remaining(await post(client, **fields)) == 29


@pytest.mark.anyio
async def test_a_heavy_edit_takes_three_units_of_those_running() -> None:
    """Three heavy edits run at once; the fourth is refused, a light one fits beside them."""
    async with connect(Sandbox(**DEFAULT_ACCOUNT)) as client:
        for _ in range(3):
            await submit(client, "sandbox:duration=30", **HEAVY)
        refused = await post(client, **HEAVY)
        assert refused.status_code == 429
        assert refused.json() == {
            "detail": "Concurrent generation capacity reached (limit=10 weight units; "
            "this request needs 3). Wait for existing jobs to complete."
        }
        assert refused.headers["Retry-After"] == "60"
        assert not [name for name in RATE_HEADERS if name in refused.headers]

        await submit(client, "sandbox:duration=30")
        refused = await post(client)
        assert refused.json() == {"detail": "Concurrent generation limit reached (10)"}
        assert refused.headers["Retry-After"] == "60"


@pytest.mark.anyio
async def test_one_unit_too_few_is_too_few() -> None:
    """A light submission fits where eight units run, a heavy one only where seven do."""
    async with connect(Sandbox(**DEFAULT_ACCOUNT)) as client:
        for seconds in (1, 2, 30, 30, 30, 30, 30, 30, 30):
            await submit(client, f"sandbox:duration={seconds}")
        assert (await post(client, **HEAVY)).status_code == 429
        await anyio.sleep(1)
        assert (await post(client, **HEAVY)).status_code == 429
        await anyio.sleep(1)
        assert (await post(client, **HEAVY)).status_code == 201
        assert (await post(client)).status_code == 429


@pytest.mark.anyio
@pytest.mark.parametrize("token", ["", "sandbox:fail=generation_failed"])
async def test_an_end_frees_the_units_at_once(token: str) -> None:
    """Completed or failed, seen by a poll or not: from its end on a generation does not count."""
    async with connect(Sandbox(max_concurrent=3)) as client:
        await submit(client, f"sandbox:duration=30 {token}", **HEAVY)
        await anyio.sleep(29.99)
        assert (await post(client)).status_code == 429
        await anyio.sleep(0.01)
        for _ in range(3):
            assert (await post(client)).status_code == 201
        assert (await post(client)).status_code == 429


@pytest.mark.anyio
async def test_the_window_slides_by_units() -> None:
    """A heavy edit waits until enough units have left the window; Retry-After is the next one."""
    async with connect(Sandbox(requests_per_minute=5)) as client:
        for _ in range(3):
            await submit(client)
            await anyio.sleep(10)
        refused = await post(client, **HEAVY)
        assert refused.status_code == 429
        assert refused.json() == {"detail": "Rate limit exceeded"}
        assert refused.headers["X-RateLimit-Remaining"] == "2"
        assert refused.headers["Retry-After"] == "30"
        assert remaining(await post(client)) == 1
        await anyio.sleep(30)
        assert (await post(client, **HEAVY)).headers["Retry-After"] == "10"
        await anyio.sleep(10)
        assert remaining(await post(client, **HEAVY)) == 0


@pytest.mark.anyio
async def test_the_rate_is_looked_at_first() -> None:
    """A bad body and a full account are answered as a rate limit where both limits are reached."""
    async with connect(Sandbox(requests_per_minute=3, max_concurrent=1)) as client:
        statuses = [(await post(client, prompt)).status_code for prompt in ("a", "", "a", "")]
        assert statuses == [201, 400, 429, 429]
        assert "Rate limit" in (await post(client)).text


@pytest.mark.anyio
async def test_accounts_are_separate() -> None:
    """Each key has an account of its own, in units too; two clients with one key share it."""
    sandbox = Sandbox(max_concurrent=3)
    async with connect(sandbox) as one, connect(sandbox) as two, connect(sandbox, "b") as other:
        await submit(one, **HEAVY)
        assert (await post(two)).status_code == 429
        assert (await post(other, **HEAVY)).status_code == 201


@pytest.mark.anyio
async def test_weights_of_ones_own() -> None:
    """`weigh` sees the parameters, with the default model and type, and decides the units."""
    seen = []

    def weigh(request: Any) -> int:
        seen.append(dict(request))
        return 4 if request.get("web_search") else 1

    async with connect(Sandbox(requests_per_minute=10, weigh=weigh)) as client:
        assert remaining(await post(client, web_search=True)) == 6
        assert remaining(await post(client, **HEAVY)) == 5
    assert seen == [
        {"prompt": "A cat", "web_search": True, "model": "uni-1", "type": "image"},
        {"prompt": "A cat", **HEAVY},
    ]


@pytest.mark.anyio
async def test_every_submission_is_on_record() -> None:
    """The record says when each one came, its weight, and its end or why it was refused."""
    sandbox = Sandbox(requests_per_minute=6, max_concurrent=3, speed=2)
    async with connect(sandbox) as client:
        heavy = await submit(client, "sandbox:duration=60", **HEAVY)
        await anyio.sleep(5)
        await post(client)
        await post(client, "")
        await post(client, **HEAVY)
        await anyio.sleep(25)
        light = await submit(client, "sandbox:duration=8")
        await client.post("/generations", headers={"Authorization": "Bearer luma-api-invalid"})
    assert [rounded(record) for record in sandbox.submissions] == [
        SubmissionRecord(0, 3, heavy["id"], 30),
        SubmissionRecord(5, 1, refused="concurrency"),
        SubmissionRecord(5, 1, refused="400"),
        SubmissionRecord(5, 3, refused="rate"),
        SubmissionRecord(30, 1, light["id"], 34),
    ]
    assert sandbox.refusals == {"concurrency": 1, "400": 1, "rate": 1}


@pytest.mark.anyio
async def test_running() -> None:
    """`running` counts the generations of all keys that have not ended yet."""
    sandbox = Sandbox(max_concurrent=5)
    assert sandbox.running == 0
    async with connect(sandbox) as client, connect(sandbox, "luma-api-other") as other:
        generation = await submit(client, "sandbox:duration=10", **HEAVY)
        await submit(client, "sandbox:duration=20")
        await submit(other, "sandbox:duration=20 sandbox:fail=x")
        await post(client, **HEAVY)
        assert sandbox.running == 3
        await anyio.sleep(10)
        assert sandbox.running == 2
        assert (await get(client, generation))["state"] == "completed"
        await anyio.sleep(10)
        assert sandbox.running == 0


def test_the_default_account() -> None:
    """It has 30 units a minute and 10 at once, which are arguments like any others."""
    assert DEFAULT_ACCOUNT == {"requests_per_minute": 30, "max_concurrent": 10}
