"""The facade: what `luma_poll` exports is what it means to export."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import luma_poll
from luma_poll import errors


def test_all_is_what_is_there() -> None:
    """No public name is forgotten, and none is exported by accident."""
    modules = {module.name for module in pkgutil.iter_modules(luma_poll.__path__)}
    public = {name for name in vars(luma_poll) if not name.startswith("_")} - modules
    assert {*public, "__version__"} == set(luma_poll.__all__)


def test_every_error_is_exported() -> None:
    """Whatever can be raised can be caught by name."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in classes if name.endswith("Error")} <= set(luma_poll.__all__)


@pytest.mark.parametrize("name", luma_poll.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    """`help()` says what it is."""
    assert name == "__version__" or getattr(luma_poll, name).__doc__


ORDER = [
    "_version",
    "redaction",
    "escaping",
    "errors",
    "event_loops",
    "models",
    "batch",
    "arguments",
    "translation",
    "transport",
    "http_client",
    "session",
    "media",
    "files",
    "storage",
    "download",
    "client",
    "schedules",
    "adaptive",
    "decisions",
    "heap",
    "alarm",
    "limits",
    "events",
    "streams",
    "poller",
    "problems",
    "callers",
    "fastapi",
    "ids",
    "submissions",
    "results",
    "bars",
    "display",
    "sandbox",
    "demo",
    "waits",
    "terminal",
    "cli",
    "__main__",
]


def imports_at_runtime(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {
        str(node.module).split(".")[1]
        for node in found
        if str(node.module).startswith("luma_poll.")
    }


@pytest.mark.parametrize("module", [name for name in ORDER if name != "sandbox"])
def test_imports_go_one_way(module: str) -> None:
    """A module imports only from those before it."""
    imported = imports_at_runtime(Path(luma_poll.__path__[0]) / f"{module}.py")
    assert imported <= set(ORDER[: ORDER.index(module)])


def test_the_order_names_every_module() -> None:
    """A new module finds its place in it."""
    assert {module.name for module in pkgutil.iter_modules(luma_poll.__path__)} == set(ORDER)
    importlib.import_module("luma_poll.sandbox")
