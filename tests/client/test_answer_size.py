"""An answer of any size does not fill the memory."""

import gzip
import json
import tracemalloc
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import httpx2
import pytest

from luma_poll import APIError, InvalidResponseError, LumaClient, RateLimitError
from luma_poll._client.connections import MAX_ANSWER
from tests.client.support import OK, QUEUED, TOKEN, Handler, connected
from tests.fakes import ID, timed


async def error_for_handler(handler: Handler) -> Any:
    """The error that `get` raises for what this answers."""
    with pytest.raises(APIError) as caught:
        await connected(handler, max_retries=0).generations.get(ID)
    return caught.value


class Endless(httpx.AsyncByteStream):
    """A body that never ends, and counts what is taken of it."""

    def __init__(self, chunk: bytes) -> None:
        self.chunk = chunk
        self.taken = 0

    async def __aiter__(self) -> Any:
        while True:
            self.taken += len(self.chunk)
            yield self.chunk
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["get", "create"])
async def test_an_answer_is_read_up_to_its_limit(method: str) -> None:
    """More than that is no generation, and would fill the memory."""
    body = Endless(b" " * 10_000)
    client = connected(lambda request: httpx.Response(200, stream=body), max_retries=0)
    elapsed, error = await timed(getattr(client.generations, method)(ID))
    assert elapsed == 0
    assert type(error) is InvalidResponseError
    assert f"larger than {MAX_ANSWER:,} bytes" in str(error)
    assert MAX_ANSWER < body.taken < MAX_ANSWER + 10 * len(body.chunk)
    assert hasattr(error, "__notes__") == (method == "create")


@pytest.mark.anyio
async def test_what_an_answer_holds_compressed_is_bounded_too() -> None:
    """A chunk of 20 kB that would become 20 MB never does; the next ones are not looked at."""
    chunk = gzip.compress(b" " * 20 * 1024**2)
    body = Endless(chunk)
    answer = httpx.Response(200, stream=body, headers={"Content-Encoding": "gzip"})
    tracemalloc.start()
    try:
        error = await error_for_handler(lambda request: answer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert type(error) is InvalidResponseError
    assert "larger than" in str(error)
    assert body.taken < 10 * len(chunk)
    assert peak < 4 * MAX_ANSWER


@pytest.mark.anyio
@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
async def test_an_error_status_counts_although_its_body_is_of_no_use(
    headers: dict[str, str],
) -> None:
    """Too large or no gzip: the status says what to do, and that a submission was refused."""
    answer = httpx.Response(
        429, stream=Endless(b"x" * 10_000), headers={"Retry-After": "7"} | headers
    )
    client = connected(lambda request: answer, max_retries=0)
    _, error = await timed(client.generations.create("A cat"))
    assert type(error) is RateLimitError
    assert (error.detail, error.retry_after) == (None, 7)
    assert not hasattr(error, "__notes__")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("encoding", "zipped"),
    [
        *[(name, False) for name in ("", "identity", "Identity ", "utf-8", "aws-chunked", ",")],
        *[(name, True) for name in ("gzip", "x-gzip", "identity, gzip", "GZIP,identity")],
    ],
)
async def test_a_content_encoding_is_a_list_in_which_some_names_say_nothing(
    encoding: str, zipped: bool
) -> None:
    """What is no coding leaves the bytes as they are."""
    body = gzip.compress(OK.content) if zipped else OK.content
    answer = httpx.Response(
        200, stream=httpx.ByteStream(body), headers={"Content-Encoding": encoding}
    )
    client = connected(lambda request: answer)
    assert (await client.generations.get(ID)).id == ID


@pytest.mark.anyio
@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip", "utf-8, br"])
async def test_an_encoding_that_was_not_asked_for_is_an_unreadable_answer(encoding: str) -> None:
    """Only gzip is asked for, which can be decoded bit by bit."""
    answer = httpx.Response(200, stream=Endless(b"x"), headers={"Content-Encoding": encoding})
    error = await error_for_handler(lambda request: answer)
    assert type(error) is InvalidResponseError
    assert "encoded in a way that was not asked for" in str(error)


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
async def test_a_hook_may_read_the_answer_first(library: Any) -> None:
    """What it has read is read no more, and is an answer like any other."""

    async def read(response: Any) -> None:
        await response.aread()

    def handler(request: Any) -> Any:
        class Stream(library.AsyncByteStream):  # type: ignore[misc]
            async def __aiter__(self) -> Any:
                yield gzip.compress(json.dumps(QUEUED).encode())

        return library.Response(200, stream=Stream(), headers={"Content-Encoding": "gzip"})

    http_client = library.AsyncClient(
        transport=library.MockTransport(handler), event_hooks={"response": [read]}
    )
    client = LumaClient(TOKEN, http_client=http_client)
    assert (await client.generations.get(ID)).state == "queued"
