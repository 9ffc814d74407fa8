"""Errors survive the database."""

import json

import pytest

from luma_poll import APIError, LumaError, PollTimeoutError, RateLimitError, SubmissionUnknownError
from luma_poll._fleet.ends import from_json, to_json

ERRORS = [
    RateLimitError("HTTP 429", status_code=429, detail="too many", retry_after=3.0),
    PollTimeoutError(generation_id="id-1", last_generation=None, elapsed=3.0, attempts=2),
    SubmissionUnknownError(
        "who knows", key="k", request={"prompt": "a fox", "n": [1, {"a": None}]}
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_again(error: LumaError) -> None:
    """Its class, its message and its attributes, by way of JSON."""
    again = from_json(json.loads(json.dumps(to_json(error))))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_an_error_of_a_later_release_is_a_luma_error() -> None:
    """So is one whose name is that of anything else."""
    for name in ("NewError", "Any", "redact"):
        again = from_json({"type": name, "message": "m", "fields": {}})
        assert type(again) is LumaError
    assert isinstance(from_json(to_json(APIError("m"))), APIError)
