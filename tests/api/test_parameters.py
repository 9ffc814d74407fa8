"""The parameters of a submission, as people find them by `help()` and completion."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from luma_poll import LumaClient, Runner, sync
from luma_poll.dbos import Fleet
from luma_poll.typing import CreateParams

CLIENT = LumaClient("luma-api-key")


@pytest.mark.parametrize(
    "function",
    [
        CLIENT.generations.create,
        Runner.run,
        Fleet.submit,
        sync.run,
        sync.Session.run,
        sync.Session.create,
    ],
    ids=lambda function: function.__qualname__,
)
def test_each_is_in_the_signature(function: Callable[..., Any]) -> None:
    """All that `create` takes, keyword only and optional, with a type that reads like code."""
    shown = inspect.signature(function).parameters
    assert CreateParams.__annotations__.keys() <= shown.keys()
    for name in CreateParams.__annotations__:
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].default is None
    assert f"model: {'Model | None'!r} = None" in str(inspect.signature(function))
    assert "ForwardRef" not in str(inspect.signature(function))
