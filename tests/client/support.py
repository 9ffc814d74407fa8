"""An API of prepared answers, and clients that ask it."""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from luma_poll import APIError, LumaClient
from tests.fakes import ID

TOKEN = "luma-api-test"
API = "https://agents.lumalabs.ai/v1"
QUEUED = {"id": ID, "state": "queued", "output": []}

Handler = Callable[[httpx.Request], Any]


class Api:
    """The API as a list: gives the answers one after the other, and the last one for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self._began: list[float] = []

    @property
    def times(self) -> list[float]:
        """When the requests arrived, from the first one on."""
        return [round(time - self._began[0], 6) for time in self._began]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self._began.append(anyio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def connected(handler: Handler, **options: Any) -> LumaClient:
    """A client whose requests go to `handler`."""
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    return LumaClient(**{"auth_token": TOKEN, "http_client": http_client, **options})


async def error_for(*answers: httpx.Response | Exception, **options: Any) -> Any:
    """The error that `get` raises for these answers."""
    with pytest.raises(APIError) as caught:
        await connected(Api(*answers), **{"max_retries": 0, **options}).generations.get(ID)
    return caught.value


OK = httpx.Response(200, json=QUEUED)
