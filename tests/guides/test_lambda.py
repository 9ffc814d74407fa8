"""The functions of docs/lambda.md, called as Lambda calls them: one after another in a process."""

from typing import Any

import httpx
import pytest
import respx

from luma_poll import ContentModeratedError
from luma_poll.sandbox import Sandbox
from tests.test_docs import ROOT, snippets


class Context:
    """What Lambda hands to a function besides the event."""

    def __init__(self, seconds: float = 60) -> None:
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


@pytest.fixture
def functions(luma_redirect: Sandbox) -> dict[str, Any]:
    """The snippet of the page, with the environment of the sandbox."""
    names: dict[str, Any] = {}
    (code,) = snippets(ROOT / "docs/lambda.md")
    exec(code, names)
    return names


def test_submit_in_one_and_collect_in_another(
    functions: dict[str, Any], luma_redirect: Sandbox
) -> None:
    """Several invocations of one process, each with a loop of its own; paid once each."""
    stored: list[bytes] = []
    functions["store"] = lambda paths: stored.extend(path.read_bytes() for path in paths)
    for prompt in ("a red fox", "a grey owl"):
        submitted = functions["submit"]({"prompt": prompt}, Context())
        told = functions["collect"](submitted, Context())
        assert (told["id"], told["state"]) == (submitted["id"], "completed")
        assert len(told["files"]) == 1
    assert len(stored) == 2
    assert all(stored)
    assert luma_redirect.calls["POST /generations"] == 2


@pytest.mark.luma_sandbox(speed=1)
def test_collect_returns_before_its_time_is_up(functions: dict[str, Any]) -> None:
    """And says that it is to be called again; it keeps what the download needs in reserve."""
    submitted = functions["submit"]({"prompt": "a fox sandbox:duration=1000"}, Context())
    functions["RESERVE"] = 1.0
    for seconds in (2, 0.5):
        told = functions["collect"](submitted, Context(seconds))
        assert told == {"id": submitted["id"], "state": "running"}


def test_a_failure_is_raised(functions: dict[str, Any]) -> None:
    """As often as it is asked for."""
    prompt = "a fox sandbox:fail=content_moderated"
    submitted = functions["submit"]({"prompt": prompt}, Context())
    for _ in range(2):
        with pytest.raises(ContentModeratedError):
            functions["collect"](submitted, Context())


def test_what_may_have_been_accepted_is_not_raised(
    functions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error would make Lambda submit, and pay, twice more."""
    monkeypatch.setenv("LUMA_BASE_URL", "https://sandbox.test/v1")
    with respx.mock() as router:
        route = router.post("https://sandbox.test/v1/generations")
        route.mock(side_effect=httpx.ReadTimeout("no answer"))
        told = functions["submit"]({"prompt": "a red fox"}, Context())
        assert route.call_count == 1
    assert (told["id"], told["state"]) == (None, "unknown")
    assert "no answer" in told["reason"]
