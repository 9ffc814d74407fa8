"""Public signatures, as `help()`, an editor and the reference show them."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from textwrap import dedent
from typing import Any

import pytest

import luma_poll
from luma_poll import Poller, Runner, sync, typing
from luma_poll._cli import commands

NOT_FOR_USERS = {
    "luma_poll._client.generations.Generations.__init__",
    "luma_poll._client.uploads.Files.__init__",
    "luma_poll._client.uploads.Files.upload_once",
    "luma_poll._sync.call.SyncIterator.__init__",
    "luma_poll.fastapi.get_poller",
}
"""What the library, or FastAPI, calls."""
DOORS = [
    "luma_poll",
    "luma_poll.dbos",
    "luma_poll.events",
    "luma_poll.fastapi",
    "luma_poll.mcp",
    "luma_poll.opentelemetry",
    "luma_poll.problems",
    "luma_poll.sandbox",
    "luma_poll.sync",
    "luma_poll.testing",
]


def functions_of(public: Any) -> Iterator[Callable[..., Any]]:
    """A public function; or a class's public methods, inherited ones too, and its constructor."""
    if inspect.isfunction(public):
        yield inspect.unwrap(public)
    if not isinstance(public, type):
        return
    for base in public.__mro__:
        if base.__module__.startswith("luma_poll"):
            for name, member in vars(base).items():
                if inspect.isfunction(member) and (name == "__init__" or name[0] != "_"):
                    yield member


def public_functions() -> dict[str, Callable[..., Any]]:
    """All that users call, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for door in map(importlib.import_module, DOORS):
        for name in getattr(door, "__all__", vars(door)):
            value = getattr(door, name)
            if getattr(value, "__module__", "").startswith("luma_poll") and name[0] != "_":
                for function in functions_of(value):
                    found[f"{function.__module__}.{function.__qualname__}"] = function
    client = luma_poll.LumaClient("luma-api-key")
    for value in (client.generations, client.files):
        for function in functions_of(type(value)):
            found[f"{function.__module__}.{function.__qualname__}"] = function
    for command in commands.app.registered_commands:
        assert command.callback is not None
        found[f"command {command.callback.__name__}"] = inspect.unwrap(command.callback)
    return found


FUNCTIONS = public_functions()
PUBLIC = [name for name in FUNCTIONS if "." in name and name not in NOT_FOR_USERS]


def definition_of(function: Callable[..., Any]) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Its code; None if nobody has written it (the constructor of a dataclass)."""
    try:
        source = dedent(inspect.getsource(function))
    except OSError:
        return None
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


def names_of_ours(module: str) -> set[str]:
    """What a module has made, or taken from another one of ours."""
    source = inspect.getsource(importlib.import_module(module))
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("luma_poll"):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_are_values(name: str) -> None:
    """`timeout: float | None = 600.0` tells what `= TIMEOUT` does not."""
    shown = definition_of(FUNCTIONS[name])
    if shown is not None:
        defaults = [
            each for each in (*shown.args.defaults, *shown.args.kw_defaults) if each is not None
        ]
        names = {node.id for each in defaults for node in ast.walk(each) if type(node) is ast.Name}
        assert {each for each in names if each.isupper()} <= {"USE_DEFAULT"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_type_of_ours_in_a_signature_can_be_imported(name: str) -> None:
    """People annotate their own functions with it."""
    function = FUNCTIONS[name]
    shown = definition_of(function)
    if shown is None:
        return
    parameters = [node for node in ast.walk(shown.args) if isinstance(node, ast.arg)]
    annotations = [each.annotation for each in parameters if each.annotation is not None]
    annotations += [] if shown.returns is None else [shown.returns]
    names = {node.id for each in annotations for node in ast.walk(each) if type(node) is ast.Name}
    public = {*luma_poll.__all__, *typing.__all__}
    for door in map(importlib.import_module, DOORS):
        public |= {*getattr(door, "__all__", ())}
    assert names & names_of_ours(function.__module__) <= public


@pytest.mark.parametrize("name", [name for name in sync.__all__ if name[0].islower()])
def test_a_call_takes_what_a_session_takes(name: str) -> None:
    """`sync.run(…)` is a session for one call, and lacks none of its options."""
    call, method = getattr(sync, name), getattr(sync.Session, name)
    taken = inspect.signature(call).parameters
    for option, parameter in inspect.signature(method).parameters.items():
        if option != "self":
            assert option in taken
            if option not in ("prompt", "timeout"):
                assert taken[option].default == parameter.default


@pytest.mark.parametrize("behind", [Poller, Runner], ids=lambda behind: behind.__name__)
def test_a_session_has_the_defaults_of_what_is_behind_it(behind: type) -> None:
    """The values stand in each signature, so they could differ."""
    session = inspect.signature(sync.Session).parameters
    for option, parameter in inspect.signature(behind).parameters.items():
        if option not in ("client", "poller"):
            assert session[option].default == parameter.default
