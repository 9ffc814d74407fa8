"""The tree of errors, what each one keeps and tells, and what none of them ever shows."""

import copy
import json
import pickle
import ssl
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import luma_agents
import pytest

import luma_poll
from luma_poll import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BudgetExhaustedError,
    ConfigurationError,
    ContentModeratedError,
    CorruptInputError,
    DownloadError,
    GenerationError,
    GenerationFailedError,
    GenerationRateLimitedError,
    ImageTooLargeError,
    InsufficientBalanceError,
    InvalidRequestError,
    InvalidResponseError,
    JournalError,
    LumaClient,
    LumaError,
    NotFoundError,
    OutputNotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    Poller,
    PollTimeoutError,
    RateLimitError,
    Runner,
    ServerError,
    SubmissionLimitError,
    SubmissionUnknownError,
    UnprocessableEntityError,
    UnsupportedFormatError,
    UploadError,
    errors,
)
from luma_poll._api.translation import translate_error
from luma_poll._cli.results import Result, to_json
from luma_poll._fleet.ends import from_json
from luma_poll._fleet.ends import to_json as failure_to_json
from luma_poll._logging import fields
from luma_poll._redaction import redact
from luma_poll.errors import FAILURE_ERRORS, STATUS_ERRORS
from luma_poll.problems import ProblemKind, to_problem
from tests.fakes import ID, URL, FakeClient, snapshot
from tests.running.fakes import FakeAccount
from tests.virtual_time import VirtualTimeLoop

TREE: dict[type[LumaError], tuple[type[BaseException], ...]] = {
    ConfigurationError: (LumaError, ValueError),
    APIError: (LumaError,),
    APIConnectionError: (APIError,),
    APITimeoutError: (APIConnectionError,),
    InvalidResponseError: (APIError,),
    APIStatusError: (APIError,),
    BadRequestError: (APIStatusError,),
    AuthenticationError: (APIStatusError,),
    InsufficientBalanceError: (APIStatusError,),
    PermissionDeniedError: (APIStatusError,),
    NotFoundError: (APIStatusError,),
    PayloadTooLargeError: (APIStatusError,),
    UnprocessableEntityError: (APIStatusError,),
    RateLimitError: (APIStatusError,),
    ServerError: (APIStatusError,),
    GenerationError: (LumaError,),
    ContentModeratedError: (GenerationError,),
    GenerationFailedError: (GenerationError,),
    BudgetExhaustedError: (GenerationError,),
    OutputNotFoundError: (GenerationError,),
    ImageTooLargeError: (GenerationError,),
    UnsupportedFormatError: (GenerationError,),
    CorruptInputError: (GenerationError,),
    InvalidRequestError: (GenerationError,),
    GenerationRateLimitedError: (GenerationError,),
    DownloadError: (LumaError,),
    UploadError: (LumaError,),
    SubmissionLimitError: (LumaError,),
    JournalError: (LumaError,),
    SubmissionUnknownError: (LumaError,),
    PollTimeoutError: (LumaError, TimeoutError),
}
CLASSES: list[type[LumaError]] = [LumaError, *TREE]
TOKEN = "luma-api-0123456789abcdef"
SECRETS = (TOKEN, "0123456789abcdef", "s3cr3t", "5ec4e7")
"""None of them may be found in what is shown of an error made with `LEAKY`."""
LEAKY = f"refused the key {TOKEN} (Bearer s3cr3t) for {URL}, sorry"


def make(error_class: type[LumaError], text: str = "told") -> LumaError:
    """An error with every attribute set, and `text` wherever a text may stand."""
    if issubclass(error_class, DownloadError):
        return error_class(text, generation_id=ID, path=Path("out") / ID, retryable=True)
    if issubclass(error_class, SubmissionUnknownError):
        return error_class(text, key="order-17", request={"prompt": "a red fox"})
    if issubclass(error_class, APIStatusError):
        return error_class(
            text,
            status_code=429,
            detail=text,
            request_id="request-17",
            retry_after=2.5,
            generation_id=ID,
        )
    if issubclass(error_class, APIConnectionError):
        return error_class(text, generation_id=ID, request_sent=False)
    if issubclass(error_class, APIError):
        return error_class(text, generation_id=ID)
    if issubclass(error_class, GenerationError):
        return error_class(snapshot("failed", failure_code="odd", failure_reason=text))
    if issubclass(error_class, PollTimeoutError):
        latest = snapshot("processing")
        return error_class(
            f" ({text})", generation_id=ID, last_generation=latest, elapsed=60.5, attempts=7
        )
    return error_class(text)


def attributes(error: BaseException) -> dict[str, Any]:
    """All that can be read of an error, apart from its methods and its traceback."""
    names = [name for name in dir(error) if not name.startswith("_")]
    values = {name: getattr(error, name, None) for name in names}
    return {name: value for name, value in values.items() if not callable(value)}


# --- the tree ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error_class", TREE)
def test_the_tree_of_errors_is_the_documented_one(error_class: type[LumaError]) -> None:
    """Who catches a class catches what stands below it, and nothing else."""
    assert error_class.__bases__ == TREE[error_class]


def test_every_public_error_is_tested_here() -> None:
    """A class that is added is added to the tree above too."""
    public = {value for name, value in vars(luma_poll).items() if not name.startswith("_")}
    errors = {value for value in public if isinstance(value, type) and issubclass(value, Exception)}
    assert errors == set(CLASSES)


@pytest.mark.parametrize("error_class", CLASSES)
def test_every_error_says_what_it_is_for(error_class: type[LumaError]) -> None:
    """A docstring of its own."""
    assert error_class.__doc__
    assert "__doc__" in vars(error_class)


# --- pickling and copying ------------------------------------------------------------------------

COPIES: list[Callable[[Any], Any]] = [
    lambda error: pickle.loads(pickle.dumps(error)),
    lambda error: pickle.loads(pickle.dumps(error, protocol=2)),
    copy.copy,
]


@pytest.mark.parametrize("copied", COPIES, ids=["pickle", "pickle-2", "copy"])
@pytest.mark.parametrize("error_class", CLASSES)
def test_every_error_survives_pickling_and_copying(
    error_class: type[LumaError], copied: Callable[[Any], Any]
) -> None:
    """Class, message, attributes, notes and a cause of ours: a worker process may raise it."""
    error = make(error_class)
    error.add_note("while the demo ran")
    error.__cause__ = make(ServerError)
    again = copied(error)
    assert type(again) is error_class
    assert str(again) == str(error) != ""
    assert repr(again) == repr(error)
    assert again.args == error.args
    assert attributes(again) == attributes(error)
    assert again.__notes__ == ["while the demo ran"]
    assert type(again.__cause__) is ServerError
    assert attributes(again.__cause__) == attributes(error.__cause__)


@pytest.mark.parametrize("error_class", CLASSES)
def test_a_cause_that_is_not_ours_does_not_hinder_pickling(error_class: type[LumaError]) -> None:
    """Foreign errors may not pickle: they are left behind."""
    error = make(error_class)
    error.__cause__ = httpx.HTTPStatusError(
        "503", request=httpx.Request("GET", URL), response=httpx.Response(503)
    )
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.__cause__ is None


PUBLIC = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("error_class", [each for each in PUBLIC if issubclass(each, Exception)])
def test_every_error_can_be_made_of_its_message_alone(error_class: type[LumaError]) -> None:
    """Celery's JSON keeps no more of an error; what reads errors must not stumble over that."""
    error = make(error_class)
    again = error_class(*error.args)
    assert (str(again), again.args) == (str(error), error.args)
    known = attributes(again)
    assert known.keys() == attributes(error).keys()
    for name, value in vars(again).items():
        assert value in (None, "", 0, (), {}, str(error), True, getattr(error_class, name, None))
    assert fields(error=again)["error_type"] == error_class.__name__
    assert fields(error=again)["generation_id"] is None
    problem = to_problem(again)
    assert (problem.status, problem.code, problem.generation_id) == (*again.problem[:2], None)
    assert problem.detail
    line = json.loads(to_json(Result(ID, snapshot("queued"), again)))
    assert line["error"]["message"] == str(error)
    assert line["generation"]["state"] == "queued"
    assert str(from_json(failure_to_json(again))) == str(error)
    assert attributes(pickle.loads(pickle.dumps(again))) == known


def test_an_error_of_your_own_declares_its_problem() -> None:
    """One line in the class, and the web doors know it."""

    class QuotaError(LumaError):
        problem = ProblemKind(429, "quota", "Your quota is used up", "Come back tomorrow.")

    problem = to_problem(QuotaError("acme has no more"))
    assert (problem.status, problem.code, problem.detail) == (429, "quota", "Come back tomorrow.")


def test_an_error_without_its_attributes_never_says_that_it_was_not_accepted() -> None:
    """Not knowing which status it was is no reason to submit, and pay, again."""
    assert APIStatusError("HTTP").may_have_been_accepted
    assert APIConnectionError("reset").may_have_been_accepted
    assert ServerError("HTTP").may_have_been_accepted
    assert not BadRequestError("HTTP").may_have_been_accepted
    assert not RateLimitError("HTTP").may_have_been_accepted
    assert not OutputNotFoundError("completed without any output").retryable


def test_a_class_declares_the_code_or_the_status_that_it_stands_for() -> None:
    """The tables are made of the classes, so that none can be missing in them."""
    codes = {cls: code for code, cls in FAILURE_ERRORS.items()}
    statuses = {cls: status for status, cls in STATUS_ERRORS.items()}
    assert set(codes) == {cls for cls in TREE if TREE[cls] == (GenerationError,)}
    assert set(statuses) == {cls for cls in TREE if TREE[cls] == (APIStatusError,)}
    for failure, code in codes.items():
        assert failure("told").failure_code == code
    for refusal, status in statuses.items():
        assert refusal("told").status_code == status


@pytest.mark.anyio
async def test_an_error_without_its_attributes_ends_a_run_as_any_other() -> None:
    """A client of somebody else's may raise such a one."""
    told = GenerationError("told")

    class Odd(FakeAccount):
        async def get(self, generation_id: str) -> Any:
            raise told

    (result,) = await Runner(Odd()).run_all(["a red fox"])
    assert result.error is told
    (polled,) = await Poller(FakeClient(told)).wait_all([ID])
    assert (polled.error, polled.generation) == (told, None)


def test_a_copy_is_independent() -> None:
    """A note on one is not a note on the other."""
    error = make(ServerError)
    error.add_note("first")
    copy.copy(error).add_note("second")
    assert error.__notes__ == ["first"]


# --- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "next_step"),
    [
        ("content_moderated", "change the prompt"),
        ("generation_failed", "Submit it again"),
        ("budget_exhausted", "Add funds"),
        ("output_not_found", "Submit it again"),
        ("image_too_large", "Resize or compress"),
        ("unsupported_format", "Convert"),
        ("corrupt_input", "Encode the input again"),
        ("invalid_request", "Fix the parameters"),
        ("rate_limited", "again later"),
        ("of_tomorrow", ""),
    ],
)
def test_a_failure_tells_what_which_and_what_next(code: str, next_step: str) -> None:
    """The id, the code, the API's words, and what to do."""
    failed = snapshot("failed", failure_code=code, failure_reason="It went wrong.")
    with pytest.raises(GenerationError) as caught:
        failed.raise_for_failure()
    message = str(caught.value)
    assert message.startswith(f"generation {ID} failed: {code}: It went wrong.")
    assert next_step in message
    assert ".." not in message


@pytest.mark.parametrize(("code", "reason"), [(None, None), ("", ""), (None, "why"), ("odd", None)])
def test_a_failure_without_words_is_told_all_the_same(code: str | None, reason: str | None) -> None:
    """No "None" in a message for people."""
    error = GenerationError(snapshot("failed", failure_code=code, failure_reason=reason))
    said = [word for word in (code, reason) if word]
    assert str(error) == ": ".join([f"generation {ID} failed", *said]) + "."


def test_completed_without_outputs_is_told_apart_from_failed() -> None:
    """The code is set, for programs that branch on it."""
    error = OutputNotFoundError(snapshot("completed", output=[]))
    assert str(error).startswith(f"generation {ID} completed without any output.")
    assert error.failure_code == "output_not_found"
    assert not error.retryable
    assert "billed: look at the account" in str(error)
    failed = OutputNotFoundError(snapshot("failed", failure_code="output_not_found"))
    assert "failed" in str(failed)
    assert failed.retryable


def test_fields_in_place_of_outputs_are_named() -> None:
    """An answer with `assets` is of the old API; values may be signed URLs and are not shown."""
    url = "https://storage.example.com/a.mp4?X-Amz-Signature=5ec4e7"
    old = OutputNotFoundError(snapshot("completed", output=[], assets={"video": url}))
    assert "older API: check the base URL" in str(old)
    new = OutputNotFoundError(snapshot("completed", output=[], results=[url], took=3))
    assert "The answer has other fields: 'results', 'took'." in str(new)
    assert "storage" not in f"{old}{new}"


def test_a_timeout_tells_what_which_and_what_next() -> None:
    """The job may go on and be billed: wait again, do not submit again."""
    latest = snapshot("processing")
    error = PollTimeoutError(generation_id=ID, last_generation=latest, elapsed=300.04, attempts=1)
    assert str(error) == (
        f"generation {ID} is 'processing' after 300.0 s and 1 poll. It may still finish and be "
        "billed: wait again with the same id rather than submit it again."
    )
    assert (error.generation_id, error.last_generation) == (ID, latest)
    assert (error.elapsed, error.attempts) == (300.04, 1)
    silent = PollTimeoutError(generation_id=ID, last_generation=None, elapsed=5, attempts=3)
    assert f"generation {ID} has not answered after 5.0 s and 3 polls." in str(silent)


@pytest.mark.parametrize("error_class", [APIError, APIConnectionError, ServerError])
def test_an_api_error_names_the_generation_if_there_is_one(error_class: type[APIError]) -> None:
    """Submitting a new one has no id yet."""
    assert str(make(error_class)) == f"generation {ID}: told"
    error = APIError("told")
    assert (str(error), error.generation_id) == ("told", None)


# --- retryable -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529, 599])
def test_a_transient_status_is_retryable(status: int) -> None:
    """The same request may succeed later."""
    assert APIStatusError("", status_code=status).retryable


@pytest.mark.parametrize(
    "status", [301, 302, 304, 307, 308, 400, 401, 402, 403, 404, 405, 410, 413, 418, 422, 451]
)
def test_a_permanent_status_is_not_retryable(status: int) -> None:
    """The same request would be refused again."""
    assert not APIStatusError("", status_code=status).retryable


def test_no_answer_and_an_unreadable_one_are_retryable() -> None:
    """They say nothing of the generation."""
    assert APIConnectionError("").retryable
    assert APITimeoutError("").retryable
    assert InvalidResponseError("").retryable
    assert not APIError("").retryable


@pytest.mark.parametrize(
    ("error", "accepted"),
    [
        (APIConnectionError("", request_sent=False), False),
        (APIConnectionError("", request_sent=False, retryable=False), False),
        (APIConnectionError("", request_sent=True), True),
        (APITimeoutError("", request_sent=False), False),
        (APITimeoutError("", request_sent=True), True),
        (InvalidResponseError(""), True),
        (APIError(""), True),
        *[
            (APIStatusError("", status_code=status), False)
            for status in (304, 307, 400, 401, 402, 403, 404, 413, 418, 422)
        ],
        *[
            (APIStatusError("", status_code=status), True)
            for status in (408, 409, 425, 500, 502, 503, 504, 599)
        ],
        (RateLimitError("", status_code=429), False),
        (ServerError("", status_code=503), True),
    ],
)
def test_only_what_certainly_went_nowhere_was_certainly_not_accepted(
    error: APIError, accepted: bool
) -> None:
    """A refusal, or nothing sent; after anything else a submission may be running."""
    assert error.may_have_been_accepted is accepted
    assert pickle.loads(pickle.dumps(error)).may_have_been_accepted is accepted


# --- secrets -------------------------------------------------------------------------------------


def assert_shows_no_secret(error: BaseException) -> None:
    """Neither the error nor its chain, in any way in which errors are shown or sent."""
    views = {
        "str": str(error),
        "repr": repr(error),
        "args": repr(error.args),
        "attributes": repr(attributes(error)),
        "texts": " ".join(v for v in attributes(error).values() if isinstance(v, str)),
        "pickle": pickle.dumps(error).decode("latin-1"),
        "traceback": "".join(traceback.format_exception(error)),
    }
    shown = [name for name, view in views.items() if any(secret in view for secret in SECRETS)]
    assert shown == []


@pytest.mark.parametrize("error_class", CLASSES)
def test_no_error_ever_shows_a_secret(error_class: type[LumaError]) -> None:
    """Neither a key nor the query of a URL, wherever the API or a library has put it."""
    error = make(error_class, LEAKY)
    assert "sorry" in str(error)
    assert_shows_no_secret(error)


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"'{TOKEN}'",
        f"key={TOKEN}&x=1",
        f"authorization: BEARER {TOKEN}",
        "Bearer s3cr3t",
        "b'bearer s3cr3t'",
        '{"Authorization": "Bearer s3cr3t"}',
        URL,
        f"<a href='{URL}'>",
        f'["{URL}"]',
        f"({URL})",
        "/a.png?X-Amz-Date=1&X-Amz-Signature=5ec4e7",
        "x-amz-security-token=5ec4e7",
        "https://storage.example.com/a.png?a=1 and https://storage.example.com/b.png?sig=5ec4e7",
    ],
)
def test_a_secret_is_found_wherever_it_stands_in_a_text(text: str) -> None:
    """Quoted, in JSON, in a sentence, in capitals, twice."""
    assert_shows_no_secret(LumaError(f"before {text} after"))
    assert "before" in str(LumaError(f"before {text} after"))
    assert "after" in str(LumaError(f"before {text} after"))


@pytest.mark.parametrize(
    "text",
    [
        "is it done? no",
        "https://docs.agents.lumalabs.ai/api",
        "the bearer",
        "luma-api",
        "a?b=c",
        "",
    ],
)
def test_what_is_no_secret_is_told(text: str) -> None:
    """A message that hides too much does not help."""
    assert str(LumaError(text)) == text


async def raised_by(answer: httpx.Response | Exception) -> APIError:
    """What `get` raises when the API, or httpx, answers so."""

    def handler(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    http = httpx.AsyncClient(transport=httpx.MockTransport(handler))
    with pytest.raises(APIError) as caught:
        await LumaClient(TOKEN, http_client=http, max_retries=0).generations.get(ID)
    return caught.value


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(401, json={"detail": LEAKY}),
        httpx.Response(422, json={"detail": [{"msg": "no", "input": LEAKY}]}),
        httpx.Response(503, text=LEAKY),
        httpx.Response(307, headers={"Location": URL}),
        httpx.Response(200, text=LEAKY),
        httpx.Response(200, json={"id": LEAKY, "state": [LEAKY], LEAKY: LEAKY}),
        httpx.Response(200, json=[LEAKY]),
        httpx.ConnectError(LEAKY),
        httpx.ReadTimeout(LEAKY),
        httpx.RemoteProtocolError(LEAKY),
        httpx.DecodingError(LEAKY),
        OSError(5, LEAKY),
        TimeoutError(LEAKY),
    ],
)
def test_nothing_that_an_api_or_a_library_says_leaks(answer: httpx.Response | Exception) -> None:
    """The whole chain that a log would print is clean."""
    assert_shows_no_secret(anyio.run(raised_by, answer))


@pytest.mark.parametrize(
    "answer",
    [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("odd")],
)
def test_no_request_in_the_chain_of_an_error_has_the_key(answer: httpx.RequestError) -> None:
    """Error trackers look into the attributes of every error of a chain."""
    error: BaseException | None = anyio.run(raised_by, answer)
    while error is not None:
        request = vars(error).get("_request")
        assert request is None or "Authorization" not in request.headers
        error = error.__cause__ or error.__context__
    assert answer.request.url.path.endswith(ID)


def test_an_outage_at_the_deadline_leaks_nothing() -> None:
    """The last error is told in the message of the timeout, and is its cause."""

    async def wait() -> LumaError:
        with pytest.raises(PollTimeoutError) as caught:
            await Poller(FakeClient(httpx.ConnectError(LEAKY))).wait(ID, timeout=5)
        return caught.value

    error = anyio.run(wait, backend_options={"loop_factory": VirtualTimeLoop})
    assert isinstance(error.__cause__, APIConnectionError)
    assert_shows_no_secret(error)


def test_the_key_is_not_shown_by_the_client() -> None:
    """Nor by what stands in the settings that it refuses."""
    client = LumaClient(TOKEN)
    assert TOKEN not in repr(client) + str(client) + repr(client.generations)
    for bad in (f"Bearer {TOKEN}", f"{TOKEN}\n{TOKEN}", f"{TOKEN}é"):
        with pytest.raises(ConfigurationError) as caught:
            LumaClient(bad)
        assert_shows_no_secret(caught.value)
    base_url = f"https://user:{TOKEN}@luma.example.com/?key={TOKEN}"
    with pytest.raises(ConfigurationError) as caught:
        LumaClient("key", base_url=base_url)
    assert_shows_no_secret(caught.value)


def test_a_ring_of_causes_is_no_trap() -> None:
    """Somebody's client may raise an error that is its own cause's cause."""
    first, second = OSError("no route"), OSError("refused")
    first.__cause__, second.__cause__ = second, first
    assert isinstance(translate_error(first), APIConnectionError)


def test_what_an_error_keeps_may_be_of_any_shape() -> None:
    """Secrets are taken out of it; a ring is no trap, nor is what a server has nested deeply."""
    deep: list[Any] = [TOKEN]
    for _ in range(5_000):
        deep = [deep]
    ring: dict[str, Any] = {"key": TOKEN}
    ring["ring"] = ring
    for body in ({"key": [TOKEN, (TOKEN,)]}, deep, ring):
        request = httpx.Request("GET", URL)
        error = luma_agents.APIError(f"refused {TOKEN}", request, body=body)
        error.__cause__ = OSError(5, TOKEN)
        assert translate_error(error) is None  # the root of the SDK's errors says nothing
        assert TOKEN not in repr(vars(error)) + repr(error.__cause__)
    assert "..." in repr(error.body)


def test_errors_that_are_none_of_the_request_stay_as_they_are() -> None:
    """A request may be sent while an error of the caller's, or of an earlier one, is handled."""
    certificate = ssl.SSLCertVerificationError(1, "certificate verify failed")
    kept = {"a": [[]], "prompt": TOKEN}
    own = ValueError("told")
    own.kept = kept  # type: ignore[attr-defined]
    earlier = translate_error(certificate)
    assert earlier is not None
    earlier.__cause__ = certificate
    for error, context, retryable in (
        (httpx.ReadError("reset"), own, True),
        (httpx.ReadError("reset"), earlier, True),
        (httpx.ReadError("reset"), certificate, True),  # what was sent had a connection
        (httpx.ConnectError("failed"), certificate, False),
    ):
        error.__context__ = context
        translated = translate_error(error)
        assert isinstance(translated, APIConnectionError)
        assert translated.retryable is retryable
    assert own.kept is kept  # type: ignore[attr-defined]
    assert kept == {"a": [[]], "prompt": TOKEN}


@pytest.mark.parametrize(
    "url",
    [
        "https://storage.example.com/{}/a.png?X-Amz-Signature=5ec4e7".format("x" * 5_000),
        "s3+https://storage.example.com/?5ec4e7",
        "https://a/https://b?5ec4e7",
        f"https://storage.example.com/{TOKEN}/a.png",
        f"https://storage.example.com/{TOKEN}/a.png?a=b",
    ],
)
def test_a_secret_in_any_part_of_a_url_is_found(url: str) -> None:
    """However long it is."""
    assert_shows_no_secret(LumaError(f"before {url} after"))
    assert str(LumaError(f"before {url} after")).endswith(" after")


@pytest.mark.parametrize(
    "piece",
    [
        "a-",
        "http://",
        "http://a?",
        "a://",
        "a://a",
        "x-amz-signature=",
        "bearer ",
        "luma-api-",
        " ",
    ],
)
def test_long_texts_are_redacted_in_no_time(piece: str) -> None:
    """A text of a megabyte must not hold up the event loop; the time limit of the tests says so."""
    assert redact(piece * (1_000_000 // len(piece)))


def test_the_words_of_the_api_stay_in_one_line_of_a_log() -> None:
    """A line break in them could forge a record, an escape could command a terminal."""
    generation = snapshot("failed", failure_reason="a\r\nERROR root: b\x1b[2J\u2028\ud83e")
    refused = APIStatusError("HTTP 400: a\nb\x1b", status_code=400, detail="a\nb")
    for error in (GenerationError(generation), refused):
        assert str(error).isprintable()
        assert str(error).encode()
    assert refused.message == "HTTP 400: a\\nb\\x1b"


@pytest.mark.parametrize(
    "text", ["x" * 2_000_000, "://" * 700_000, "bearer " * 300_000, "<" * 2_000_000]
)
def test_a_problem_costs_the_same_whatever_the_text(text: str) -> None:
    """Luma's words are cut before they are searched; without that this takes minutes."""
    refused = APIStatusError("HTTP 400", status_code=400, detail=text)
    bad = BadRequestError("HTTP 400", status_code=400, detail=text)
    failed = ContentModeratedError(snapshot("failed", failure_reason=text))
    for error in (refused, bad, failed):
        assert len(to_problem(error).detail) <= 500


def test_a_gateway_that_refuses_is_not_the_callers_fault() -> None:
    """Its 404 does not mean that there is no such generation."""
    for status in (400, 403, 404):
        cls = STATUS_ERRORS[status]
        problem = to_problem(cls("HTTP", status_code=status, in_api_words=False))
        assert (problem.status, problem.code) == (502, "upstream_error")
