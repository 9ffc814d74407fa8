"""What is logged: always with the same fields, and as docs/reference/log.md tells."""

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from tenacity import wait_fixed

import luma_poll
from luma_poll import (
    AuthenticationError,
    ContentModeratedError,
    Poller,
    PollEvent,
    PollTimeoutError,
    RateLimitError,
)
from luma_poll._logging import fields
from luma_poll.problems import to_problem
from tests.fakes import ID, FakeClient, snapshot

HOUSE = Path(luma_poll.__path__[0])
PAGE = HOUSE.parent / "docs" / "reference" / "log.md"
LEVELS = ("debug", "info", "warning", "error", "exception")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log of `luma_poll`, in a format that names all fields."""
    logger, text = logging.getLogger("luma_poll"), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(
        logging.Formatter("%(levelname)s %(generation_id)s %(state)s %(attempt)s %(error_type)s")
    )
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield text
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def lines(log: io.StringIO) -> list[str]:
    """The lines of the log, without tracebacks."""
    return [line for line in log.getvalue().splitlines() if line.startswith(("DEBUG", "INFO", "W"))]


@pytest.mark.anyio
async def test_the_records_of_a_wait(log: io.StringIO) -> None:
    """The generation, its state, the number of the poll and the type of the error."""
    busy = RateLimitError("HTTP 429", status_code=429, retry_after=1)
    client = FakeClient("queued", busy, "thinking", "completed")
    await Poller(client, wait=wait_fixed(1)).wait(ID)
    assert lines(log) == [
        f"DEBUG {ID} queued 1 None",
        f"INFO {ID} queued 2 RateLimitError",
        f"DEBUG {ID} thinking 3 None",
        f"WARNING {ID} thinking 3 None",
        f"DEBUG {ID} completed 4 None",
    ]


@pytest.mark.anyio
async def test_the_record_of_a_callback_that_raises(log: io.StringIO) -> None:
    """Its own error is the type."""

    def broken(event: PollEvent) -> None:
        raise ZeroDivisionError

    await Poller(FakeClient("completed"), on_poll=broken).wait(ID)
    assert f"ERROR {ID} completed 1 ZeroDivisionError" in log.getvalue()


def test_the_record_of_a_problem(log: io.StringIO) -> None:
    """The generation is that of the error."""
    to_problem(AuthenticationError("HTTP 401", status_code=401, generation_id=ID))
    assert f"ERROR {ID} None None AuthenticationError" in log.getvalue()


def test_the_fields_of_errors() -> None:
    """What an error knows of the generation, the record has."""
    failed = snapshot("failed", failure_code="content_moderated")
    assert fields(error=ContentModeratedError(failed)) == {
        "generation_id": ID,
        "state": "failed",
        "attempt": None,
        "error_type": "ContentModeratedError",
    }
    late = PollTimeoutError(generation_id=ID, last_generation=None, elapsed=1, attempts=1)
    assert fields(error=late)["generation_id"] == ID
    assert set(fields().values()) == {None}


@pytest.mark.anyio
async def test_structlog(log: io.StringIO) -> None:
    """Its formatter renders the fields of our records, with `ExtraAdder`."""
    (handler,) = logging.getLogger("luma_poll").handlers[-1:]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    await Poller(FakeClient("completed")).wait(ID)
    # Other libraries of the process, such as DBOS, may add fields of their own to all records.
    assert (
        json.loads(log.getvalue()).items()
        >= {
            "event": f"generation {ID}: completed",
            "level": "debug",
            "generation_id": ID,
            "state": "completed",
            "attempt": 1,
            "error_type": None,
        }.items()
    )


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """The calls of a logger in the library."""
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name("logger"), attr=name)):
                    if name in LEVELS:
                        yield path, node


def test_every_record_has_the_fields() -> None:
    """None is logged without them: a formatter that names one would fail."""
    found = list(calls())
    assert len(found) >= 10
    without = [
        f"{path.relative_to(HOUSE)}:{call.lineno}"
        for path, call in found
        if "extra" not in {keyword.arg for keyword in call.keywords}
    ]
    assert without == []


def test_the_table_of_the_log_is_complete() -> None:
    """Each message stands in it, with its level."""
    rows = PAGE.read_text().splitlines()
    missing: list[Any] = []
    for _, call in calls():
        message = re.sub(r"%[a-z]", "…", ast.literal_eval(call.args[0]))
        assert isinstance(call.func, ast.Attribute)
        level = {"exception": "ERROR"}.get(call.func.attr, call.func.attr.upper())
        if not any(row.startswith(f"| {level} | {message} |") for row in rows):
            missing.append((level, message))
    assert missing == []
