"""The examples of docs/without-async.md, in the frameworks that they are for."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from tenacity import wait_fixed

from luma_poll.sandbox import Sandbox

PAGE = Path(__file__).parent.parent / "docs" / "without-async.md"
WITH_FILES = """
app.conf.update(
    broker_url="filesystem://",
    task_ignore_result=True,
    broker_transport_options={
        "data_folder_in": folder + "/queue",
        "data_folder_out": folder + "/queue",
        "control_folder": folder + "/control",
        "polling_interval": 0.05,
    },
)
"""
WORKER = ["--pool=prefork", "--concurrency=1", "--loglevel=warning", "--without-gossip"]
WORKER += ["--without-mingle", "--without-heartbeat"]


def example(title: str) -> str:
    """The Python of a section of the page."""
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))


@pytest.fixture(autouse=True)
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A sandbox in a thread of its own, to which the environment leads."""
    sandbox = Sandbox(speed=1000)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(sandbox.serve()) as url,
    ):
        monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-frameworks")
        monkeypatch.setenv("LUMA_BASE_URL", url)
        monkeypatch.setattr("luma_poll._polling.poller.DEFAULT_WAIT", wait_fixed(0.02))
        yield sandbox


def test_celery_in_this_process() -> None:
    """Eager tasks run the chain from the prompt to the URL."""
    names: dict[str, Any] = {"__name__": "tasks"}
    exec(example("Celery").partition("@worker_process_init")[0], names)
    names["app"].conf.update(task_always_eager=True, task_eager_propagates=True)
    chain = names["submit"].s("a fox sandbox:duration=1") | names["url_of"].s()
    assert httpx.get(chain.delay().get(timeout=10)).content.startswith(b"\x89PNG")
    names["luma"].close()


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_celery_in_forked_workers(sandbox: Sandbox, tmp_path: Path) -> None:
    """The parent has used its poller while it imported the tasks: each worker makes one."""
    code = example("Celery") + f"\nfolder = {str(tmp_path)!r}" + WITH_FILES
    tmp_path.joinpath("tasks.py").write_text(code + "luma.get(submit('the parent'))")
    for folder in ("queue", "control"):
        tmp_path.joinpath(folder).mkdir()
    names: dict[str, Any] = {"__name__": "tasks"}
    exec(code, names)
    generation = names["luma"].create("a fox sandbox:duration=1")
    names["luma"].close()
    before = sandbox.calls.copy()
    # Now: Celery's files have no locks for messages that are sent while a worker looks for some.
    names["url_of"].delay(generation.id)
    names["submit"].delay("a hen")
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tasks", "worker", *WORKER],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    expected = before + Counter({"POST /generations": 2, "GET /generations/{id}": 2})
    try:
        for _ in range(2000):
            if expected <= sandbox.calls:
                break
            time.sleep(0.01)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)  # a warm shutdown takes Celery five seconds
        told, _ = worker.communicate(timeout=50)
    assert expected <= sandbox.calls, told
    assert "Traceback" not in told


def test_django() -> None:
    """A view answers with the URL, or with the problem."""
    names: dict[str, Any] = {"__name__": "views"}
    exec(example("Django"), names)
    exec("import django, django.conf, django.test", names)
    django, luma = names["django"], names["luma"]
    django.conf.settings.configure(
        ROOT_URLCONF=tuple(names["urlpatterns"]), ALLOWED_HOSTS=["testserver"]
    )
    django.setup()
    browser = django.test.Client()
    generation = luma.create("a fox sandbox:duration=1")
    found = browser.get(f"/pictures/{generation.id}").json()
    assert httpx.get(found["url"]).content.startswith(b"\x89PNG")
    missing = browser.get(f"/pictures/{uuid4()}")
    assert missing.status_code == 404
    assert missing.json()["code"] == "not_found"
    luma.close()
