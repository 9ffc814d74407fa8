# pyright: strict
"""Uses of the public names that type checkers must accept. Never run: mypy and pyright read it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, assert_type
from uuid import UUID

import httpx
import httpx2
from luma_agents import AsyncLuma
from tenacity import RetryCallState, wait_chain, wait_fixed, wait_random

from luma_poll import (
    DEFAULT_WAIT,
    AdaptiveWait,
    APIError,
    DownloadProgress,
    Generation,
    GenerationError,
    GenerationOutput,
    LumaClient,
    Poller,
    PollEvent,
    PollResult,
    PollTimeoutError,
    Runner,
    RunResult,
    media,
    requests_from,
    sync,
)
from luma_poll.sync import Session
from luma_poll.typing import (
    USE_DEFAULT,
    AnyGeneration,
    CreateParams,
    GenerationLike,
    Observer,
    Schedule,
    SupportsGenerations,
    UseDefault,
)

ID = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"


async def submitting(client: LumaClient, model: str) -> None:
    generation = await client.generations.create(
        "a red fox",
        model="ray-3.2",
        type="video",
        aspect_ratio="16:9",
        source={"url": "https://example.com/fox.png"},
        image_ref=[{"file_id": ID}, {"data": "aGk=", "media_type": "image/png"}],
        video={"duration": "5s", "start_frame": {"generation_id": ID}, "keyframe_indexes": (0, 9)},
        user_id=None,
    )
    assert_type(generation, Generation)
    assert_type(generation.raise_for_failure(), Generation)
    await client.generations.create("at night", type="image_edit", source=Path("photo.webp"))
    await client.generations.create("at night", type="image_edit", source=generation)
    with open("photo.webp", "rb") as file:  # noqa: ASYNC230 (never run)
        await client.generations.create("a fox", image_ref=[file, b"...", media(file)])
    await client.generations.create(type="layering", source=b"...")
    assert_type(await client.files.upload(Path("a.mp4"), progress=print), str)
    assert_type(await Runner(client).run_all(requests_from("a.csv")), list[RunResult])
    params: CreateParams = {"model": model, "web_search": True}
    newer: dict[str, Any] = {"seed": 7}
    await client.generations.create("a fox", **params)
    await client.generations.create(prompt="a fox", **newer)


async def waiting(client: LumaClient, generation: Generation) -> None:
    poller = Poller(client, wait=AdaptiveWait(), timeout=None, max_in_flight=None, max_rate=10)
    assert_type(await poller.wait(ID), list[GenerationOutput])
    await poller.wait(UUID(ID), timeout=300)
    await poller.wait(generation, timeout=None)
    async for snapshot in poller.watch(ID):
        assert_type(snapshot, Generation)


async def waiting_with_the_official_sdk(official: AsyncLuma) -> None:
    poller = Poller(official)
    generation = await official.generations.create(prompt="a fox")
    assert_type(await poller.wait(generation), list[GenerationOutput])


async def many(poller: Poller, ids: AsyncIterator[str], mixed: list[str | Generation]) -> None:
    async with poller.as_completed(ids, limit=10) as results:
        async for result in results:
            assert_type(result, PollResult)
            if result.ok:
                print(result.generation.id, result.outputs[0].url)
            elif result.error is not None:
                raise result.error
    finished: list[PollResult] = await poller.wait_all(mixed, timeout=60)
    assert isinstance(finished[0], PollResult)
    PollResult(ID, None, APIError("made by a test"))


async def running(client: LumaClient) -> None:
    runner = Runner(client, max_running=4)
    assert_type(await runner.run("a fox", model="uni-1", timeout=60), Generation)
    results: list[RunResult] = await runner.run_all(
        ["a fox", {"prompt": "an owl", "style": "auto"}]
    )
    for result in results:
        if result.ok:
            print(result.generation.id, result.submitted)


async def first_url(
    poller: Poller, generation: AnyGeneration, timeout: float | UseDefault | None = USE_DEFAULT
) -> str:
    return (await poller.wait(generation, timeout=timeout))[0].url


def schedules(client: SupportsGenerations) -> list[Poller]:
    def linear(state: RetryCallState) -> float:
        return 2.0 * state.attempt_number

    wait: list[Schedule] = [
        DEFAULT_WAIT,
        linear,
        lambda state: 2,
        wait_fixed(6) + wait_random(-1, 1),
        wait_chain(wait_fixed(20), AdaptiveWait()),
    ]
    return [Poller(client, wait=each) for each in wait]


class Learning:
    def __call__(self, state: RetryCallState) -> float:
        return 2

    def observe(self, generation: Generation, /, *, after: float, by: float) -> None: ...


learning: Observer = Learning()


def callbacks(client: LumaClient) -> None:
    events: list[PollEvent] = []

    def show(event: PollEvent) -> None:
        print(event.generation_id, event.attempt, event.elapsed, event.next_delay)

    Poller(client, on_poll=show)
    Poller(client, on_poll=events.append)


async def downloading(client: LumaClient, generation: GenerationLike) -> None:
    def show(progress: DownloadProgress) -> None: ...

    paths = await client.download(generation, Path("outputs"), on_progress=show, max_bytes=None)
    assert_type(paths, list[Path])


def clients(http: httpx.AsyncClient, newer: httpx2.AsyncClient) -> None:
    LumaClient("key", http_client=http, timeout=None)
    LumaClient(http_client=newer, base_url=httpx.URL("https://agents.lumalabs.ai/v1"))
    assert_type(LumaClient().with_options(timeout=5, max_retries=0), LumaClient)


def without_an_event_loop(ids: list[str], mixed: list[str | Generation]) -> None:
    assert_type(sync.wait(UUID(ID), timeout=None), list[GenerationOutput])
    assert_type(sync.run("a red fox", model="uni-1"), Generation)
    assert_type(sync.run_all(["a red fox", {"prompt": "a grey owl"}]), list[RunResult])
    assert_type(sync.download(ID, Path("outputs")), list[Path])
    with Session("key", wait=wait_fixed(2)) as poller:
        assert_type(poller.wait_all(mixed), list[PollResult])
        for result in poller.as_completed(ids, limit=None):
            assert_type(result, PollResult)
        with poller.watch(poller.create("a fox", type="image")) as snapshots:
            assert_type(next(snapshots), Generation)
        with poller.run_as_completed(prompt for prompt in ids) as results:
            assert_type([result.submitted for result in results], list[tuple[str, ...]])


async def failing(poller: Poller) -> None:
    try:
        await poller.wait(ID)
    except PollTimeoutError as error:
        assert_type(error.last_generation, Generation | None)
        assert_type(error.generation_id, str)
    except GenerationError as error:
        assert_type(error.generation, Generation | None)
        assert_type(error.failure_code, str | None)
        assert_type(error.retryable, bool)
