"""This release finishes what an earlier one began: `begun-1.sql` is what `record.py` recorded."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest
from dbos import DBOS
from tenacity import wait_fixed

from luma_poll import LumaClient
from luma_poll._fleet import callbacks
from luma_poll.dbos import Fleet, fleet_config
from tests.fleet.processes import until

BEGUN = Path(__file__).with_name("begun-1.sql")
WAITS = "78e51061-7311-48a3-82ce-6f447ed4d57b"
OUTPUT = [{"type": "image", "url": "https://storage.example/1.png"}]


@pytest.mark.asyncio
async def test_work_of_release_1_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait with the id it had, a submission that was queued, and a callback that paused."""
    with sqlite3.connect(tmp_path / "fleet.db") as connection:
        connection.executescript(BEGUN.read_text())
    connection.close()
    requests: list[str] = []
    called: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request.method)
        if request.method == "POST":
            return httpx.Response(201, json={"id": "a-new-one", "state": "queued"})
        name = request.url.path.rpartition("/")[2]
        return httpx.Response(200, json={"id": name, "state": "completed", "output": OUTPUT})

    async def post(http: object, url: object, headers: object, body: bytes, private: bool) -> int:
        called.append(json.loads(body))
        return 204

    monkeypatch.setattr(callbacks, "_post", post)
    monkeypatch.setattr("luma_poll.dbos.RESULT_INTERVAL", 0.05)
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        fleet = Fleet(
            lambda: LumaClient("key", http_client=http),
            wait=wait_fixed(0.05),
            callback_secrets=["c2VjcmV0"],
            allow_private_callbacks=True,
            heartbeat=0.2,
            patience=0.8,
        )
        DBOS(config=fleet_config(f"sqlite:///{tmp_path}/fleet.db"))
        DBOS.launch()
        try:
            async with fleet:
                assert (await fleet.handle("waits").result()).submitted == [WAITS]
                assert (await fleet.handle("queued").result()).submitted == ["a-new-one"]
                await until(lambda: bool(called))
        finally:
            await asyncio.to_thread(DBOS.destroy)
    assert requests.count("POST") == 1
    assert called[0]["data"]["key"] == "ended"
