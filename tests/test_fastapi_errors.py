"""luma-poll in a FastAPI app: every error has its answer."""

import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

import luma_poll
from luma_poll import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    DownloadError,
    GenerationError,
    InvalidResponseError,
    LumaError,
    PollTimeoutError,
    RateLimitError,
    ServerError,
    SubmissionUnknownError,
)
from luma_poll.errors import FAILURE_ERRORS, STATUS_ERRORS
from luma_poll.fastapi import Problem, Prompt, add_error_handlers, to_problem
from tests.fakes import ID, snapshot
from tests.fastapi_apps import Order

KEY = "luma-api-secret"
SECRET = "5ec4e7"

ANSWERS = {
    "LumaError": (500, "internal", False),
    "ConfigurationError": (503, "unavailable", False),
    "APIError": (502, "upstream_error", False),
    "APIConnectionError": (502, "upstream_error", True),
    "APITimeoutError": (502, "upstream_error", True),
    "InvalidResponseError": (502, "upstream_error", True),
    "APIStatusError": (502, "upstream_error", False),
    "BadRequestError": (400, "bad_request", False),
    "AuthenticationError": (503, "unavailable", False),
    "InsufficientBalanceError": (503, "unavailable", False),
    "PermissionDeniedError": (503, "unavailable", False),
    "NotFoundError": (404, "not_found", False),
    "PayloadTooLargeError": (413, "payload_too_large", False),
    "UnprocessableEntityError": (422, "unprocessable_input", False),
    "RateLimitError": (503, "rate_limited", True),
    "ServerError": (502, "upstream_error", True),
    "GenerationError": (502, "unknown_failure", False),
    "ContentModeratedError": (422, "content_moderated", False),
    "GenerationFailedError": (502, "generation_failed", True),
    "BudgetExhaustedError": (503, "unavailable", False),
    "OutputNotFoundError": (502, "output_not_found", True),
    "ImageTooLargeError": (413, "image_too_large", False),
    "UnsupportedFormatError": (415, "unsupported_format", False),
    "CorruptInputError": (422, "corrupt_input", False),
    "InvalidRequestError": (422, "invalid_request", False),
    "GenerationRateLimitedError": (503, "generation_rate_limited", True),
    "DownloadError": (502, "download_failed", True),
    "UploadError": (502, "upload_failed", False),
    "JournalError": (503, "unavailable", False),
    "SubmissionLimitError": (503, "unavailable", False),
    "SubmissionUnknownError": (502, "submission_unknown", False),
    "PollTimeoutError": (504, "timed_out", True),
}
ERRORS = [name for name in luma_poll.__all__ if name.endswith("Error")]
SAID = f"the account of Acme, see https://api.internal/x?X-Amz-Signature={SECRET} and {KEY}"


def make(name: str, *, generation_id: str | None = ID) -> LumaError:
    """An error of this class that knows too much."""
    error_class = getattr(luma_poll, name)
    if issubclass(error_class, GenerationError):
        codes = {found: code for code, found in FAILURE_ERRORS.items()}
        code = codes.get(error_class, "account_of_acme_is_broke")
        error: LumaError = error_class(snapshot("failed", failure_code=code, failure_reason=SAID))
    elif issubclass(error_class, APIStatusError):
        statuses = {found: status for status, found in STATUS_ERRORS.items()}
        status = 503 if error_class is ServerError else statuses.get(error_class, 418)
        error = error_class(SAID, status_code=status, detail=SAID, generation_id=generation_id)
    elif issubclass(error_class, APIError):
        error = error_class(SAID, generation_id=generation_id)
    elif error_class is DownloadError:
        error = DownloadError(SAID, generation_id=ID, path=Path("/srv/acme/out"), retryable=True)
    elif error_class is SubmissionUnknownError:
        error = SubmissionUnknownError(SAID, key="k", request={})
    elif error_class is PollTimeoutError:
        error = PollTimeoutError(
            SAID, generation_id=ID, last_generation=None, elapsed=1, attempts=1
        )
    else:
        error = error_class(SAID)
    return error


def answer_to(error: Exception) -> Any:
    """What the client of an app gets whose handler raises it."""
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/")
    async def handler() -> None:
        raise error

    return TestClient(app).get("/")


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_becomes_a_problem(name: str) -> None:
    """Status, code and advice are those of the table; the shape is RFC 9457's."""
    status, code, retryable = ANSWERS[name]
    response = answer_to(make(name))
    problem = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert list(problem) == list(Problem.model_fields)
    assert (problem["code"], problem["retryable"]) == (code, retryable)
    assert problem["type"] == f"urn:luma-poll:{code}"
    assert problem["title"]
    assert problem["detail"]
    knows_id = (
        name not in ("LumaError", "ConfigurationError", "UploadError")
        and "Submission" not in name
        and "Journal" not in name
    )
    assert problem["generation_id"] == (ID if knows_id else None)


@pytest.mark.parametrize("name", ERRORS)
def test_no_answer_tells_a_secret(name: str) -> None:
    """Neither a key, a signature nor an upstream address gets out, whatever the error says."""
    text = answer_to(make(name)).text
    assert not any(secret in text for secret in (SECRET, KEY, "://", "internal/x", "luma-api-s"))


@pytest.mark.parametrize("name", [name for name, answer in ANSWERS.items() if answer[0] >= 500])
def test_only_words_about_the_input_get_out(name: str) -> None:
    """What the API says of the operator's account stays inside."""
    assert "cme" not in answer_to(make(name)).text


def test_the_operators_faults_look_alike_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The public cannot tell a bad key from an empty account; the log can."""
    answers = []
    for name in ("AuthenticationError", "InsufficientBalanceError", "BudgetExhaustedError"):
        answers.append(answer_to(make(name)).json())
        record = caplog.records[-1]
        assert record.levelno == logging.ERROR
        assert record.exc_info
        assert name in caplog.text
        assert "cme" in record.getMessage()
    assert answers[0] == answers[1] == answers[2]
    assert KEY not in caplog.text
    assert SECRET not in caplog.text


def test_words_about_the_input_reach_the_caller() -> None:
    """Who wrote the prompt is told what is wrong with it, without the links."""
    failed = snapshot(
        "failed", failure_code="content_moderated", failure_reason="A face. See h://x"
    )
    problem = to_problem(FAILURE_ERRORS["content_moderated"](failed))
    assert problem.detail == "A face. See (link)"
    refused = luma_poll.BadRequestError("x", status_code=400, detail="aspect_ratio: 7:3, see h://x")
    assert to_problem(refused).detail == "aspect_ratio: 7:3, see (link)"


def test_the_caller_is_told_when_to_come_back() -> None:
    """`Retry-After` is passed on in whole seconds, also where a wait timed out because of it."""
    limited = RateLimitError("busy", status_code=429, retry_after=7.2)
    assert answer_to(limited).headers["Retry-After"] == "8"
    timed_out = PollTimeoutError(generation_id=ID, last_generation=None, elapsed=1, attempts=1)
    assert "Retry-After" not in answer_to(timed_out).headers
    timed_out.__cause__ = limited
    assert answer_to(timed_out).headers["Retry-After"] == "8"
    ours = AuthenticationError("bad key", status_code=401, retry_after=7.2)
    assert "Retry-After" not in answer_to(ours).headers


@pytest.mark.parametrize(
    ("error", "retryable"),
    [
        (ServerError("x", status_code=502), False),
        (APITimeoutError("x"), False),
        (InvalidResponseError("x"), False),
        (APIConnectionError("x", request_sent=False), True),
        (RateLimitError("x", status_code=429), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nobody_is_told_to_pay_twice(error: APIError, retryable: bool) -> None:
    """A submission may be repeated only where the first one certainly was not accepted."""
    problem = to_problem(error)
    assert problem.retryable is retryable
    assert ("not known whether" in problem.detail) is not retryable


@pytest.mark.parametrize(
    ("errors", "answer", "logged"),
    [
        ([make("NotFoundError")], (404, "not_found"), 0),
        ([make("ServerError"), make("AuthenticationError")], (503, "unavailable"), 2),
        (
            [make("ServerError", generation_id=None), make("AuthenticationError")],
            (502, "upstream_error"),
            2,
        ),
        ([ClientDisconnect(), make("RateLimitError")], (503, "rate_limited"), 1),
        ([ExceptionGroup("inner", [make("PollTimeoutError")])], (504, "timed_out"), 0),
    ],
    ids=["one", "the-highest", "perhaps-submitted", "nobody-listens", "nested"],
)
def test_errors_of_a_task_group_are_answered(
    errors: list[Exception], answer: tuple[int, str], logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As one, by the highest status or the risk to pay twice; each is logged as if alone."""
    response = answer_to(ExceptionGroup("in a task group", errors))
    assert (response.status_code, response.json()["code"]) == answer
    assert response.headers["Content-Type"] == "application/problem+json"
    assert len(caplog.records) == logged


def test_a_task_group_whose_client_hung_up_is_silent() -> None:
    """Its waits have all ended with Starlette's error."""
    assert (
        answer_to(ExceptionGroup("", [ClientDisconnect(), ClientDisconnect()])).status_code == 499
    )


def test_a_group_with_an_error_of_the_app_stays_an_error_of_the_app() -> None:
    """The mistake is not hidden behind what Luma said."""
    with pytest.raises(ExceptionGroup) as raised:
        answer_to(ExceptionGroup("", [make("NotFoundError"), ValueError("a mistake")]))
    assert len(raised.value.exceptions) == 2


def ordering_app() -> FastAPI:
    """An app that takes a prompt, and has another handler that takes nothing."""
    app = FastAPI()
    add_error_handlers(app)

    @app.post("/")
    async def order(order: Order) -> str:
        return order.prompt

    @app.get("/")
    async def nothing() -> None: ...

    return app


@pytest.mark.parametrize("code", [*range(0x21), 0x7F, 0x85, 0xA0, 0x2028, 0x200B, 0x3000])
def test_a_prompt_that_passes_can_be_submitted(code: int) -> None:
    """Only what `create` takes gets past the declaration; the caller hears of the rest."""
    prompt = chr(code) * 2
    status = TestClient(ordering_app()).post("/", json={"prompt": prompt}).status_code
    assert status == (422 if prompt.isspace() else 200)


@pytest.mark.parametrize(("length", "status"), [(0, 422), (1, 200), (6000, 200), (6001, 422)])
def test_a_prompt_has_the_length_that_the_api_takes(length: int, status: int) -> None:
    """From 1 to 6000 characters."""
    answer = TestClient(ordering_app()).post("/", json={"prompt": "é" * length})
    assert answer.status_code == status


def test_the_openapi_document_tells_of_problems() -> None:
    """At each operation, as problem+json, beside FastAPI's own validation error."""
    http = TestClient(ordering_app())
    document = http.get("/openapi.json").json()
    assert http.get("/openapi.json").json() == document
    operations = document["paths"]["/"]
    for operation, validates in ((operations["post"], True), (operations["get"], False)):
        content = operation["responses"]["default"]["content"]
        assert list(content) == ["application/problem+json"]
        name = content["application/problem+json"]["schema"]["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
        assert list(schema["properties"]) == list(Problem.model_fields)
        assert ("422" in operation["responses"]) is validates
    validation = operations["post"]["responses"]["422"]["content"]
    assert list(validation) == ["application/json", "application/problem+json"]


def test_a_refused_prompt_is_explained_in_words() -> None:
    """As FastAPI explains any other value: nothing of the error behind it is shown."""
    app = FastAPI()

    @app.post("/")
    def submit(prompt: Prompt) -> None: ...

    answer = TestClient(app).post("/", params={"prompt": " "})
    assert answer.status_code == 422
    (why,) = answer.json()["detail"]
    assert why["loc"] == ["query", "prompt"]
    assert "blank" in why["msg"]
    assert why["ctx"] == {"error": {}}
