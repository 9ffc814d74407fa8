"""Run by the gate on the installed wheel, with the core dependencies alone."""

import asyncio
import subprocess
import sys
from importlib.metadata import requires, version
from importlib.resources import files
from pathlib import Path

import httpx

import luma_poll
from luma_poll import LumaClient, Poller

ID = "182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e"
URL = "https://storage.example.com/a.png"


def answer(request: httpx.Request) -> httpx.Response:
    assert request.url.path == f"/v1/generations/{ID}"
    body = {"id": ID, "state": "completed", "output": [{"type": "image", "url": URL}]}
    return httpx.Response(200, json=body)


async def hero() -> str:
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with http_client, LumaClient("key", http_client=http_client) as client:
        outputs = await Poller(client).wait(ID, timeout=300)
        return outputs[0].url


core = [name for name in requires("luma-poll") or () if "extra ==" not in name]
assert len(core) == 5, core
assert not {"typer", "rich", "starlette", "uvicorn", "fastapi"} & set(sys.modules)
assert luma_poll.__version__ == version("luma-poll")
assert files("luma_poll").joinpath("py.typed").is_file()
assert all(hasattr(luma_poll, name) for name in luma_poll.__all__)
assert asyncio.run(hero()) == URL

command = Path(sys.executable).with_name("luma-poll")
told = subprocess.run([command, "demo"], capture_output=True, text=True, check=False)
assert told.returncode == 2, told
assert 'pip install "luma-poll[cli]"' in told.stderr, told
print("the wheel works alone:", luma_poll.__version__)
