"""The official SDK, unchanged, against the simulated API over a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import luma_agents
import pytest
from luma_agents import AsyncLuma
from luma_agents.types import Generation
from tenacity import wait_fixed

from luma_poll import InvalidResponseError, Poller, PollEvent
from luma_poll.sandbox import Sandbox
from tests.fakes import ID, FakeClient


@asynccontextmanager
async def connect(
    sandbox: Sandbox, auth_token: str = "luma-api-test", max_retries: int = 0
) -> AsyncIterator[AsyncLuma]:
    async with (
        sandbox.serve() as base_url,
        AsyncLuma(auth_token=auth_token, base_url=base_url, max_retries=max_retries) as client,
    ):
        yield client


async def poll(client: AsyncLuma, generation: Generation) -> Generation:
    while generation.state not in ("completed", "failed"):
        await anyio.sleep(0.01)
        generation = await client.generations.get(generation.id)
    return generation


@pytest.mark.asyncio
async def test_create_and_get() -> None:
    """A generation is created and polled to its end, with every field of the SDK's types set."""
    async with connect(Sandbox(speed=1000)) as client:
        created = await client.generations.create(prompt="A cat", aspect_ratio="16:9")
        assert (created.state, created.output) == ("queued", [])
        completed = await poll(client, created)
    assert completed.state == "completed"
    assert (completed.id, completed.created_at) == (created.id, created.created_at)
    assert (completed.model, completed.type) == ("uni-1", "image")
    assert (completed.failure_code, completed.failure_reason) == (None, None)
    assert completed.output is not None
    assert [(output.type, output.layer) for output in completed.output] == [("image", None)]
    for model in (created, completed, *completed.output):
        assert not model.model_extra


@pytest.mark.asyncio
async def test_authentication_error() -> None:
    """A key that is not accepted raises AuthenticationError."""
    async with connect(Sandbox(auth_tokens=["luma-api-other"])) as client:
        with pytest.raises(luma_agents.AuthenticationError, match="Invalid API key"):
            await client.generations.create(prompt="A cat")


@pytest.mark.asyncio
async def test_permission_denied_error() -> None:
    """The key of a suspended client raises PermissionDeniedError."""
    async with connect(Sandbox(), auth_token="luma-api-suspended") as client:
        with pytest.raises(luma_agents.PermissionDeniedError, match="API client is suspended"):
            await client.generations.get("x")


@pytest.mark.asyncio
async def test_not_found_error() -> None:
    """An unknown id raises NotFoundError, whose body is the API's."""
    async with connect(Sandbox()) as client:
        with pytest.raises(luma_agents.NotFoundError) as caught:
            await client.generations.get("d290f1ee-6c54-4b01-90e6-d701748f0851")
    assert caught.value.body == {"detail": "Generation not found"}
    assert caught.value.response.headers["X-API-Version"] == "2026-04-01"


@pytest.mark.asyncio
async def test_bad_request_error() -> None:
    """A prompt that is too long raises BadRequestError."""
    async with connect(Sandbox()) as client:
        with pytest.raises(luma_agents.BadRequestError, match="between 1 and 6000 characters"):
            await client.generations.create(prompt="x" * 6001)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("sandbox", "detail", "retry_after"),
    [
        (Sandbox(requests_per_minute=1), "Rate limit exceeded", "60"),
        (Sandbox(max_concurrent=1), "Concurrent generation limit reached (1)", "60"),
    ],
)
async def test_rate_limit_error(sandbox: Sandbox, detail: str, retry_after: str) -> None:
    """Both limits raise RateLimitError, with the headers to wait by."""
    async with connect(sandbox) as client:
        await client.generations.create(prompt="A cat")
        with pytest.raises(luma_agents.RateLimitError) as caught:
            await client.generations.create(prompt="A cat")
    assert caught.value.body == {"detail": detail}
    assert caught.value.response.headers["Retry-After"] == retry_after


@pytest.mark.asyncio
async def test_failed_generation() -> None:
    """A failed generation is no error of the SDK's: its fields say why."""
    async with connect(Sandbox(speed=1000)) as client:
        created = await client.generations.create(prompt="A sandbox:fail=content_moderated cat")
        failed = await poll(client, created)
    assert (failed.state, failed.failure_code) == ("failed", "content_moderated")
    assert failed.failure_reason is not None
    assert "content moderation" in failed.failure_reason
    assert failed.output == []


@pytest.mark.asyncio
async def test_unknown_state() -> None:
    """A state that the SDK does not know comes through as it is."""
    async with connect(Sandbox()) as client:
        created = await client.generations.create(
            prompt="A cat sandbox:duration=2 sandbox:state=throttled"
        )
        states = {created.state}
        while "completed" not in states:
            states.add((await client.generations.get(created.id)).state)
            await anyio.sleep(0.01)
    assert set(states) == {"queued", "throttled", "completed"}


@pytest.mark.asyncio
async def test_layers() -> None:
    """The outputs of a layering have layers of the SDK's type."""
    async with connect(Sandbox()) as client:
        created = await client.generations.create(
            prompt="sandbox:duration=0", type="layering", source={"url": "https://example.org/"}
        )
        completed = await client.generations.get(created.id)
    layers = [output.layer for output in completed.output or []]
    assert [layer and layer.index for layer in layers] == [0, 1, 2]
    assert [layer and layer.alpha_hint for layer in layers] == ["hard", "soft", "none"]
    assert all(layer and layer.label and layer.description for layer in layers)


@pytest.mark.asyncio
async def test_fresh_url() -> None:
    """Each GET gives a fresh URL, and both download without a key."""
    async with connect(Sandbox()) as client, httpx.AsyncClient() as storage:
        created = await client.generations.create(
            prompt="sandbox:duration=0", model="ray-3.2", type="video"
        )
        urls: list[str] = []
        for _ in range(2):
            (output,) = (await client.generations.get(created.id)).output or []
            assert output.type == "video"
            urls.append(output.url)
        films = [(await storage.get(url)).raise_for_status().content for url in urls]
    assert urls[0] != urls[1]
    assert films[0] == films[1]
    assert films[0][4:8] == b"ftyp"


@pytest.mark.asyncio
async def test_request_id() -> None:
    """The request id that support asks for can be read from the raw response."""
    async with connect(Sandbox()) as client:
        response = await client.generations.with_raw_response.create(
            prompt="A cat", extra_headers={"X-Request-Id": "order-17"}
        )
    assert response.headers["X-Request-Id"] == "order-17"
    assert (await response.parse()).state == "queued"


@pytest.mark.asyncio
async def test_an_answer_that_it_cannot_validate_is_polled_through() -> None:
    """With strict validation the SDK raises, where it would else hand the rubbish on."""
    response = httpx.Response(200, request=httpx.Request("GET", "https://agents.lumalabs.ai/v1"))
    invalid = luma_agents.APIResponseValidationError(response, body=None)
    events: list[PollEvent] = []
    client = FakeClient(invalid, "completed")
    assert await Poller(client, wait=wait_fixed(0.01), on_poll=events.append).wait(ID)
    assert isinstance(events[0].error, InvalidResponseError)
    assert events[0].error.generation_id == ID
    assert "unreadable (APIResponseValidationError)" in str(events[0].error)
