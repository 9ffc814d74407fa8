"""The facade: what `luma_poll` exports is what it means to export."""

import ast
import pkgutil
import re
from collections import Counter
from pathlib import Path
from textwrap import wrap

import pytest

import luma_poll
from luma_poll import errors, typing


def test_all_is_what_is_there() -> None:
    """No public name is forgotten, and none is exported by accident."""
    modules = {module.name for module in pkgutil.iter_modules(luma_poll.__path__)}
    public = {name for name in vars(luma_poll) if not name.startswith("_")} - modules
    assert {*public, "__version__"} == set(luma_poll.__all__)


def test_the_types_are_all_exported() -> None:
    """`luma_poll.typing` imports nothing that it does not export."""
    public = {name for name in vars(typing) if not name.startswith("_")}
    assert public == set(typing.__all__)


def test_every_error_is_exported() -> None:
    """Whatever can be raised can be caught by name."""
    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {name for name in classes if name.endswith("Error")} <= set(luma_poll.__all__)


@pytest.mark.parametrize("name", luma_poll.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    """`help()` says what it is."""
    assert name == "__version__" or getattr(luma_poll, name).__doc__


BASE = [
    "_version",
    "_redaction",
    "_texts",
    "errors",
    "models",
    "events",
    "_logging",
    "_arguments",
    "_tasks",
    "_api",
]
"""The modules and wings that everything may import: each of these only those before it."""

ABOVE = {
    "_downloads": [],
    "_client": ["_downloads", "_polling"],
    "_polling": [],
    "_journal": [],
    "_running": ["_journal", "_polling"],
    "_sync": ["_client", "_downloads", "_journal", "_polling", "_running"],
    "opentelemetry": ["_polling", "_running", "_sync"],
    "typing": ["_downloads", "_journal", "_polling", "_running"],
    "problems": [],
    "_fastapi": [],
    "_fleet": ["_journal", "_polling", "_running"],
    "dbos": ["_client", "_fleet", "_journal", "_polling", "_running"],
    "fastapi": ["_client", "_fastapi", "_journal", "_polling", "_running", "problems"],
    "sync": ["_client", "_downloads", "_journal", "_polling", "_running", "_sync"],
    "sandbox": ["_polling"],
    "testing": ["_client", "_polling", "_running", "sandbox"],
    "_mcp": [],
    "mcp": ["_client", "_journal", "_mcp", "_polling", "_running"],
    "_cli": ["_client", "_downloads", "_journal", "_polling", "_running", "dbos", "sandbox", "mcp"],
    "__main__": ["_cli"],
}
"""What each wing and each public door may import besides."""

WINGS = {
    "_tasks": ["backoff", "event_loops", "heap", "alarm", "beside", "each", "threads"],
    "_api": [
        "headers",
        "media_types",
        "answers",
        "parameters",
        "known_parameters",
        "media_reference",
        "request_body",
        "evidence",
        "translation",
        "outcomes",
    ],
    "_downloads": [
        "names",
        "files",
        "ownership",
        "encodings",
        "storage",
        "output",
        "saving",
        "memory",
        "viewing",
        "download",
        "put",
    ],
    "_client": [
        "transport",
        "http_client",
        "connections",
        "exchange",
        "generations",
        "uploads",
        "client",
    ],
    "_polling": [
        "schedules",
        "plan",
        "adaptive",
        "decisions",
        "limits",
        "poll_log",
        "observers",
        "streams",
        "poll_result",
        "poller",
    ],
    "_journal": [
        "fingerprint",
        "entry",
        "database",
        "transitions",
        "store",
        "steps",
        "journal",
        "recorder",
    ],
    "_running": [
        "account",
        "room",
        "requests",
        "request_files",
        "outstanding",
        "run_result",
        "resubmission",
        "batch",
        "run",
        "standstill",
        "submitter",
        "fetching",
        "runner",
    ],
    "_sync": ["portal", "call", "session"],
    "_fastapi": ["callers"],
    "_fleet": [
        "settings",
        "liveness",
        "trouble",
        "callbacks",
        "capacity",
        "tables",
        "engine",
        "ends",
        "ledger",
        "lookups",
        "sender",
        "worker",
    ],
    "_mcp": ["references", "pipes"],
    "_cli": [
        "exit_codes",
        "terminal",
        "process",
        "hints",
        "results",
        "bars",
        "options",
        "ids",
        "prompts",
        "table",
        "demo_command",
        "get_command",
        "watch_command",
        "download_command",
        "wait_command",
        "create_command",
        "run_command",
        "journal_command",
        "sandbox_command",
        "health",
        "fleet_command",
        "worker_command",
        "mcp_command",
        "commands",
    ],
    "sandbox": [
        "clock",
        "pictures",
        "films",
        "presigning",
        "faults",
        "bad_socket",
        "account_limits",
        "object_store",
        "scripts",
        "lifecycles",
        "server",
        "refusals",
        "stored_files",
        "file_routes",
        "app",
    ],
}
"""The modules of each wing: each imports only those before it."""

HOUSE = Path(luma_poll.__path__[0])


def imports_of(path: Path) -> set[str]:
    """The modules of luma_poll that a module imports at runtime, with dots between their names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    prefix = "luma_poll."
    return {name.removeprefix(prefix) for name in found if name and name.startswith(prefix)}


def files_of(name: str) -> list[Path]:
    """The modules of a wing, or the one module of this name."""
    return sorted((HOUSE / name).glob("*.py")) or [HOUSE / f"{name}.py"]


@pytest.mark.parametrize("name", [*BASE, *ABOVE])
def test_imports_go_one_way_between_wings(name: str) -> None:
    """A waiting loop knows no client, a download no poller, and everything stands on the base."""
    allowed = BASE[: BASE.index(name)] if name in BASE else [*BASE, *ABOVE[name], name]
    imported = {each.partition(".")[0] for path in files_of(name) for each in imports_of(path)} - {
        name
    }
    assert imported <= set(allowed)


@pytest.mark.parametrize(
    ("wing", "module"), [(wing, module) for wing, modules in WINGS.items() for module in modules]
)
def test_imports_go_one_way_inside_a_wing(wing: str, module: str) -> None:
    """A module imports only those of its wing that come before it."""
    inside = {
        name.removeprefix(f"{wing}.")
        for name in imports_of(HOUSE / wing / f"{module}.py")
        if name.startswith(f"{wing}.")
    }
    assert inside <= set(WINGS[wing][: WINGS[wing].index(module)])


def test_the_orders_name_every_module() -> None:
    """A new module finds its place in them."""
    assert {module.name for module in pkgutil.iter_modules([str(HOUSE)])} == {*BASE, *ABOVE}
    for wing, modules in WINGS.items():
        assert {each.name for each in pkgutil.iter_modules([str(HOUSE / wing)])} == set(modules)


def test_no_file_name_occurs_twice() -> None:
    """A name leads to one module: in a traceback, in an editor, in a review."""
    names = Counter(path.stem for path in HOUSE.rglob("*.py") if path.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []


DRAWING = re.compile(r"(?<=```text\n)luma_poll/\n.*?(?=```)", re.DOTALL)
PAGE = Path(__file__).parents[1] / "docs/design.md"


def drawing() -> str:
    """The house as text: each wing with its rooms in the order of their imports, then the doors."""
    lines = ["luma_poll/"]
    for name in [*BASE, *ABOVE]:
        rooms = " · ".join(WINGS.get(name, []))
        if not rooms:
            rooms = (ast.get_docstring(ast.parse(files_of(name)[0].read_text())) or "").split("\n")[
                0
            ]
        label = f"  {name}{'/' if name in WINGS else '.py'}"
        lines += wrap(
            f"{label:<20} {rooms}", 96, subsequent_indent=" " * 21, break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def test_the_drawing_is_the_house() -> None:
    """`python -m tests.test_exports` draws it again."""
    found = DRAWING.search(PAGE.read_text())
    assert found is not None
    assert found[0] == drawing()


def docstrings() -> dict[str, str]:
    """The first word of each docstring of the library, by its place."""
    found = {}
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                place = f"{path.relative_to(HOUSE)}:{getattr(node, 'lineno', 1)}"
                found[place] = (ast.get_docstring(node) or "").partition(" ")[0]
    return found


def test_docstrings_say_what_a_thing_is() -> None:
    """None opens with "What" or "Whether": that is the question, not the answer."""
    words = docstrings()
    assert len(words) > 500
    assert [place for place, word in words.items() if word in ("What", "Whether")] == []


STUMBLES = re.compile(
    r"\b([Ww]hoever|anew|dear|purse|for a try|hears of|brought home|nobody\b.{1,40}\bany more|"
    r"[Ww]here (it|they|that|this|you|there) (is|are|was|has|have|do|does))\b"
    r"|^ +\*{0,2}\w+: (Of|That) ",
    re.MULTILINE,
)
"""What a native reader stumbles over, and entries of `Args` that do not say what a thing is."""


def test_the_library_is_in_plain_english() -> None:
    """In docstrings, comments and messages: CONTRIBUTING.md says what to write instead."""
    sources = {path: path.read_text() for path in HOUSE.rglob("*.py")}
    found = [
        (path.name, each[0]) for path, text in sources.items() for each in STUMBLES.finditer(text)
    ]
    assert found == []


if __name__ == "__main__":
    PAGE.write_text(DRAWING.sub(lambda _: drawing(), PAGE.read_text()))
