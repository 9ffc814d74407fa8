"""The notebook of docs/notebooks.md, run by a kernel as Jupyter runs it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from luma_poll.sandbox import Sandbox
from tests.guides.notebook import NOTEBOOK, as_notebook

pytestmark = pytest.mark.skipif(
    not (find_spec("nbclient") and find_spec("ipykernel")), reason="there is no kernel"
)

EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
slow = lambda cell: float(cell.metadata.get("seconds", 50))
NotebookClient(
    notebook,
    kernel_name="python3",
    timeout_func=slow,
    interrupt_on_timeout=True,
    allow_errors=len(sys.argv) > 2,
).execute()
nbformat.write(notebook, sys.argv[1])
"""


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sandbox]:
    """Served to the kernel, which is a process of its own."""
    sandbox = Sandbox(speed=100)
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(sandbox.serve()) as base_url,
    ):
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
        monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-notebook")
        monkeypatch.setenv("LUMA_POLL_SPEED", "100")
        monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
        yield sandbox


def execute(notebook: dict[str, Any], directory: Path, *options: str) -> list[dict[str, Any]]:
    """Run it in a process of its own, and return its cells with their outputs."""
    path = directory / "notebook.ipynb"
    path.write_text(json.dumps(notebook))
    told = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), *options],
        cwd=directory,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert told.returncode == 0, told.stderr
    cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return cells


def outputs(cells: list[dict[str, Any]]) -> str:
    return json.dumps([cell.get("outputs", []) for cell in cells])


def code(*sources: str, **metadata: Any) -> list[dict[str, Any]]:
    empty: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
    return [
        {**empty, "id": f"c{hash(text)}"[:9], "metadata": metadata, "source": text}
        for text in sources
    ]


def test_the_notebook_is_the_page() -> None:
    """`python -m tests.guides.notebook` writes it again, without outputs."""
    assert json.loads(NOTEBOOK.read_text()) == as_notebook()


@pytest.mark.timeout(120)
def test_its_pictures_are_in_it_and_no_signed_url(sandbox: Sandbox, tmp_path: Path) -> None:
    """A second run of all cells, in a new kernel, pays for nothing."""
    first = execute(as_notebook(), tmp_path)
    paid = sandbox.calls["POST /generations"]
    (picture,) = [
        output["data"]["text/html"]
        for cell in first
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {}) and "<figure>" in str(output["data"])
    ]
    assert "data:image/png;base64," in "".join(picture)
    assert "X-Amz-Signature" not in outputs(first)
    assert "/storage/" not in outputs(first)
    assert "luma-api-notebook" not in outputs(first)
    assert "picture" in outputs(first)  # the bar of tqdm
    assert paid == 4
    again = execute(as_notebook(), tmp_path)
    assert "data:image/png;base64," in outputs(again)
    assert sandbox.calls["POST /generations"] == paid


@pytest.mark.timeout(120)
def test_a_snapshot_shows_no_signed_url(sandbox: Sandbox, tmp_path: Path) -> None:
    """Whatever people display of a generation."""
    notebook = as_notebook()
    notebook["cells"] = code(
        "from luma_poll import *\nclient = LumaClient()\nrunner = Runner(client)",
        "generation = await runner.run('a fox')\ngeneration",
        "generation.output",
        "generation.output[0]",
        "await client.download(generation, 'p')\nawait runner.run_all(['an owl'], download='p')",
        "await client.aclose()",
    )
    cells = execute(notebook, tmp_path)
    assert "completed" in outputs(cells)
    assert "X-Amz-Signature=" not in outputs(cells).replace("X-Amz-Signature=...", "")


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform == "win32", reason="it has no signal for a kernel")
def test_an_interrupted_cell_loses_nothing(sandbox: Sandbox, tmp_path: Path) -> None:
    """The generation runs on; the same cell continues with it, and pays nothing."""
    notebook = as_notebook()
    run = "generation = await runner.run('a fox sandbox:duration=1000', timeout=1000)"
    notebook["cells"] = [
        *code("from luma_poll import *\nclient = LumaClient()\njournal = Journal('p.db')"),
        *code("runner = Runner(client, journal=journal)"),
        *code(run, seconds=3),
        *code("print(list(runner.outstanding), [e.state for e in journal.entries()])"),
        *code(run, "generation.state", "await client.aclose()"),
    ]
    cells = execute(notebook, tmp_path, "errors")
    assert "KeyboardInterrupt" in str(cells[2]["outputs"]) or "Cancelled" in str(
        cells[2]["outputs"]
    )
    assert "['running']" in str(cells[3]["outputs"])
    assert "'completed'" in str(cells[5]["outputs"])
    assert sandbox.calls["POST /generations"] == 1
