"""Without an event loop: real threads, real sockets, real signals, in real time."""

import contextvars
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import pytest
from anyio.from_thread import start_blocking_portal
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tenacity import wait_fixed

from luma_poll import (
    APITimeoutError,
    ConfigurationError,
    ContentModeratedError,
    Journal,
    NotFoundError,
    PollEvent,
    PollTimeoutError,
    SubmissionLimitError,
    sync,
)
from luma_poll.events import Event, RunBegan
from luma_poll.opentelemetry import instrument
from luma_poll.sandbox import Sandbox
from luma_poll.sync import Session
from luma_poll.typing import AnyRequest, Media
from tests.fakes import ID, OUTPUT

SOON = wait_fixed(0.02)
OTHER_ID = "0b8ff9e2-93bb-4a4c-9d6c-6b6f0d9b7a11"


@pytest.fixture(scope="module")
def sandbox_url() -> Iterator[str]:
    """A sandbox in a thread of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Sandbox(speed=1000).serve()) as url,
    ):
        yield url


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", "luma-api-sync")


@pytest.fixture
def poller(sandbox_url: str) -> Iterator[Session]:
    """Of the sandbox; it leaves no thread behind."""
    with Session(base_url=sandbox_url, wait=SOON, timeout=10) as poller:
        yield poller
    assert loop_threads() == []


class Api(ThreadingHTTPServer):
    """An API whose generations are in the state that the test says; "hang": it does not answer.

    Attributes:
        gets: The ids that were asked for.
        posts: The prompts that were submitted.
        may_accept: Until it is set, a submission is not answered.
        most_at_once: How many requests were under way at the same time.
        connections: How many connections are open.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.state = "processing"
        self.gets: list[str] = []
        self.posts: list[str] = []
        self.may_accept = threading.Event()
        self.at_once = self.most_at_once = self.connections = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def count(self, *, at_once: int = 0, connections: int = 0) -> None:
        with self.lock:
            self.at_once += at_once
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.connections += connections

    def process_request(self, request: Any, client_address: Any) -> None:
        self.count(connections=1)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.count(connections=-1)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self) -> None:
        generation_id = self.path.rpartition("/")[2]
        self.server.count(at_once=1)
        self.server.gets.append(generation_id)
        if self.server.state == "hang":
            self.rfile.read(1)  # until the client goes
        output = OUTPUT if self.server.state == "completed" else []
        self.server.count(at_once=-1)
        self.answer({"id": generation_id, "state": self.server.state, "output": output})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append(json.loads(body)["prompt"])
        self.server.may_accept.wait(30)
        self.answer({"id": ID, "state": "queued", "output": []})

    def answer(self, fields: dict[str, Any]) -> None:
        body = json.dumps(fields).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    """An API on a socket of its own."""
    with Api() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def eventually(holds: Callable[[], bool]) -> None:
    """What happens in another thread or process takes a moment."""
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.005)
    pytest.fail("it does not happen within ten seconds")


def loop_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("luma-poll")]


# --- one call ------------------------------------------------------------------------------------


def test_one_wait(poller: Session, sandbox_url: str) -> None:
    """By id, with a client of its own, of which nothing is left."""
    generation = poller.create("a fox sandbox:duration=20")
    poller.close()
    (output,) = sync.wait(generation.id, timeout=5, wait=SOON, base_url=sandbox_url)
    assert output.url.startswith("http")
    assert loop_threads() == []


def test_many_waits(poller: Session, sandbox_url: str) -> None:
    """In the order given, each failure in its place."""
    prompts = ["a fox sandbox:duration=50", "sandbox:fail=content_moderated", "a hen"]
    ids = [poller.create(f"{prompt} sandbox:duration=1").id for prompt in prompts]
    results = sync.wait_all(iter(ids), timeout=5, wait=SOON, base_url=sandbox_url)
    assert [result.generation_id for result in results] == ids
    assert [type(result.error) for result in results] == [
        type(None),
        ContentModeratedError,
        type(None),
    ]


def test_one_download(poller: Session, sandbox_url: str, tmp_path: Path) -> None:
    """Into files, as the async client does."""
    generation = poller.create("a fox sandbox:duration=0 sandbox:outputs=2")
    poller.wait(generation)
    paths = sync.download(generation.id, tmp_path, base_url=sandbox_url)
    assert [path.name for path in paths] == [f"{generation.id}.png", f"{generation.id}-2.png"]
    assert poller.download(poller.get(generation.id), tmp_path) == paths
    first, _ = poller.download(generation.id, tmp_path, name="fox")
    assert first.name == "fox.png"


def test_the_settings_reach_the_client(api: Api) -> None:
    """The key, the address and the limit of one request."""
    api.state = "hang"
    with Session("luma-api-1", base_url=api.url, request_timeout=0.05, max_retries=1) as poller:
        with pytest.raises(APITimeoutError, match=r"within 0\.05 s"):
            poller.get(ID)
        assert len(api.gets) == 2


# --- errors --------------------------------------------------------------------------------------


def test_errors_are_those_of_the_async_poller(poller: Session) -> None:
    """Their class, their fields, and a traceback from the caller's line to the cause."""
    failing = poller.create("sandbox:fail=content_moderated sandbox:duration=1")
    with pytest.raises(ContentModeratedError) as failed:
        poller.wait(failing)
    assert failed.value.generation_id == failing.id
    with pytest.raises(NotFoundError) as missing:
        poller.get(ID)
    names = [frame.name for frame in traceback.extract_tb(missing.value.__traceback__)]
    assert names[0] == "test_errors_are_those_of_the_async_poller"
    assert names[-1] == "answer"
    assert missing.value.generation_id == ID
    slow = poller.create("a fox sandbox:duration=600000")
    with pytest.raises(PollTimeoutError) as timed_out:
        poller.wait(slow.id, timeout=0.1)
    assert timed_out.value.generation_id == slow.id
    assert pickle.loads(pickle.dumps(timed_out.value)).generation_id == slow.id


def test_an_error_keeps_nothing_alive(poller: Session) -> None:
    """It is freed with its last reference, without the collector."""

    class Picky:
        def __fspath__(self) -> str:
            return "nowhere"

    freed: list[bool] = []
    directory = Picky()
    weakref.finalize(directory, freed.append, True)
    gc.disable()
    try:
        with pytest.raises(NotFoundError):
            poller.download(ID, directory)
        del directory
        eventually(lambda: bool(freed))
    finally:
        gc.enable()


@pytest.mark.parametrize("timeout", [0, -1, "5", float("nan")])
def test_bad_arguments_are_refused_at_the_call(poller: Session, timeout: Any) -> None:
    """Not at the first item of an iterator."""
    for call in (poller.wait, poller.watch):
        with pytest.raises(ConfigurationError, match="timeout must be"):
            call(ID, timeout=timeout)
    for batch in (poller.wait_all, poller.as_completed):
        with pytest.raises(ConfigurationError, match="timeout must be"):
            batch([ID], timeout=timeout)


def test_one_id_is_not_an_iterable_of_ids(poller: Session) -> None:
    """It would be taken for the ids of its letters."""
    for batch in (poller.wait_all, poller.as_completed):
        with pytest.raises(ConfigurationError, match="iterable of ids"):
            batch(ID)


# --- iterators -----------------------------------------------------------------------------------


def test_watch_yields_each_state(poller: Session, api: Api) -> None:
    """The last one is terminal."""
    with Session(base_url=api.url, wait=SOON) as watching:
        states = []
        for generation in watching.watch(ID, timeout=10):
            states.append(generation.state)
            api.state = "completed"
    assert states == ["processing", "completed"]


def test_results_come_as_they_end(poller: Session) -> None:
    """Not in the order given."""
    slow = poller.create("a fox sandbox:duration=400").id
    quick = poller.create("a hen sandbox:duration=1").id
    assert [each.generation_id for each in poller.as_completed([slow, quick])] == [quick, slow]


def test_an_iterable_is_read_in_the_callers_thread(poller: Session) -> None:
    """One by one, as there is room; it may itself use the poller, or a database of that thread."""
    threads, created = set(), 0

    def submissions() -> Iterator[str]:
        nonlocal created
        for _ in range(6):
            threads.add(threading.current_thread())
            created += 1
            yield poller.create("a fox sandbox:duration=1").id

    for number, result in enumerate(poller.as_completed(submissions(), limit=2), start=1):
        assert result.ok
        assert created <= number + 2
    assert number == created == 6
    assert len(poller.wait_all(submissions())) == 6
    assert threads == {threading.current_thread()}


def test_an_exception_of_an_iterable_comes_last(poller: Session) -> None:
    """After the results of the items before it, as it was raised."""

    def items() -> Iterator[str]:
        yield poller.create("a fox sandbox:duration=1").id
        raise LookupError("no more rows")

    results = poller.as_completed(items())
    assert next(results).ok
    with pytest.raises(LookupError, match="no more rows"):
        next(results)
    with pytest.raises(LookupError, match="no more rows"):
        poller.wait_all(items())


@pytest.mark.parametrize("way", ["break", "with", "close"])
def test_an_iterator_that_is_left_cancels_its_waits(api: Api, way: str) -> None:
    """Nobody asks any more, and no request is left under way."""
    with Session(base_url=api.url, wait=SOON) as poller:
        if way == "break":
            for _ in poller.watch(ID):
                break
        elif way == "with":
            with poller.watch(ID) as snapshots:
                next(snapshots)
        else:
            api.state = "completed"
            results = poller.as_completed([ID, OTHER_ID] * 3, limit=2)
            next(results)
            results.close()
            assert list(results) == []
        assert repr(poller).endswith("in_flight=0, generations=0)")


def test_an_iterator_keeps_its_poller(sandbox_url: str, poller: Session) -> None:
    """Also where nobody else has it; and then its thread ends."""
    ids = [poller.create("a fox sandbox:duration=1").id for _ in range(3)]
    poller.close()
    assert len(list(Session(base_url=sandbox_url, wait=SOON).as_completed(ids))) == 3
    gc.collect()
    eventually(lambda: loop_threads() == [])


# --- threads -------------------------------------------------------------------------------------


def test_fifty_threads_on_one_id_cost_one_stream(api: Api) -> None:
    """The server sees the requests of one wait, one after the other."""
    events: list[PollEvent] = []
    seen = threading.Barrier(51)

    def follow(poller: Session) -> str:
        for generation in poller.watch(ID, timeout=30):
            if not generation.is_terminal:
                seen.wait(timeout=30)
        return str(generation.state)

    with (
        Session(base_url=api.url, wait=SOON, on_poll=events.append) as poller,
        ThreadPoolExecutor(50) as pool,
    ):
        states = [pool.submit(follow, poller) for _ in range(50)]
        seen.wait(timeout=30)
        api.state = "completed"
        assert {state.result() for state in states} == {"completed"}
    assert [event.attempt for event in events] == list(range(1, len(events) + 1))
    assert api.gets == [ID] * len(events)
    assert api.most_at_once == 1


def test_limits_hold_over_all_threads(api: Api) -> None:
    """So many requests at once as the poller may have, not as there are threads."""
    with (
        Session(base_url=api.url, wait=SOON, max_in_flight=2, max_rate=None) as poller,
        ThreadPoolExecutor(20) as pool,
    ):
        api.state = "completed"
        ids = [str(uuid4()) for _ in range(30)]
        assert len(list(pool.map(poller.wait, ids))) == 30
    assert sorted(api.gets) == sorted(ids)
    assert api.most_at_once <= 2


def test_closing_ends_the_waits_of_other_threads(api: Api) -> None:
    """With an error that says what to do; requests under way end with them."""
    api.state = "hang"
    poller = Session(base_url=api.url, wait=SOON, max_rate=None)
    uses: list[Callable[[str], Any]] = [
        poller.wait,
        poller.get,
        lambda each: list(poller.watch(each)),
        lambda each: poller.wait_all([each]),
        lambda each: list(poller.as_completed([each])),
    ]
    with ThreadPoolExecutor(10) as pool:
        ends = [pool.submit(use, str(uuid4())) for use in uses * 2]
        eventually(lambda: len(api.gets) == 10)
        poller.close()
        for end in ends:
            with pytest.raises(ConfigurationError, match=r"was closed during .* by its id"):
                end.result(timeout=10)
    assert loop_threads() == []
    eventually(lambda: api.connections == 0)


def test_a_closed_poller_refuses(poller: Session) -> None:
    """Every use of it, an iterator that has begun included; to close it again is harmless."""
    snapshots = poller.watch(poller.create("a fox sandbox:duration=600000"))
    next(snapshots)
    poller.close()
    poller.close()
    uses: list[Callable[[], Any]] = [
        lambda: poller.wait(ID),
        lambda: poller.wait_all([ID]),
        lambda: poller.watch(ID),
        lambda: poller.as_completed([ID]),
        lambda: poller.create("a fox"),
        poller.__enter__,
        lambda: next(snapshots),
    ]
    for use in uses:
        with pytest.raises(ConfigurationError, match="this Session is closed"):
            use()


@pytest.mark.usefixtures("sockets_left_to_the_collector")
def test_calls_and_the_end_at_any_moment(api: Api) -> None:
    """Each thread gets its outputs or a clear error; none hangs."""
    api.state = "completed"
    for _ in range(10):
        poller = Session(base_url=api.url, max_rate=None)
        with ThreadPoolExecutor(8) as pool:
            ends = [pool.submit(poller.wait, str(uuid4())) for _ in range(24)]
            ends[0].result(timeout=10)
            poller.close()
            for end in ends:
                assert isinstance(end.exception(timeout=10), ConfigurationError | None)


def test_a_callback_cannot_wait(poller: Session, caplog: pytest.LogCaptureFixture) -> None:
    """It runs in the thread of the event loop, which would stand still; nor can it close."""
    generation = poller.create("a fox sandbox:duration=1")

    def on_poll(event: PollEvent) -> None:
        for use in (lambda: asking.wait(ID), asking.close):
            with pytest.raises(ConfigurationError):
                use()

    with Session(base_url=poller._client.base_url, wait=SOON, on_poll=on_poll) as asking:
        asking.wait(generation)
    assert caplog.records == []


def test_the_context_of_the_caller_reaches_the_loop(api: Api) -> None:
    """So that a span around a call is the parent of what it does."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []
    api.state = "completed"
    with Session(base_url=api.url, on_poll=lambda _: seen.append(request.get())) as poller:
        poller.wait(ID)
        request.set("mine")
        poller.wait(ID)
        list(poller.watch(ID))
    assert seen == ["none", "mine", "mine"]


def test_waits_and_runs_can_be_traced(api: Api) -> None:
    """Their spans are children of the one that is current in the calling thread."""
    exporter = InMemorySpanExporter()
    tracer_provider = TracerProvider()
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    api.may_accept.set()
    api.state = "completed"
    with Session(base_url=api.url, wait=SOON) as session:
        instrument(session, tracer_provider=tracer_provider)
        with tracer_provider.get_tracer("mine").start_as_current_span("task") as task:
            session.wait(OTHER_ID)
            session.run("a fox")
    trace_id = task.get_span_context().trace_id
    contexts = [span.get_span_context() for span in exporter.get_finished_spans()]
    assert len(contexts) == 4  # the task, a wait, a run and its wait
    assert {context.trace_id for context in contexts if context is not None} == {trace_id}
    with Session(base_url=api.url) as poller:
        instrument(poller, tracer_provider=tracer_provider)()


# --- submissions ---------------------------------------------------------------------------------


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` expects real generations, which take their time."""
    monkeypatch.setattr("luma_poll.sync.AdaptiveWait", lambda **_: SOON)


@pytest.fixture(scope="module")
def full_url() -> Iterator[str]:
    """A sandbox that lets three generations run at once."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Sandbox(speed=100, max_concurrent=3).serve()) as url,
    ):
        yield url


@pytest.mark.usefixtures("_soon")
def test_one_run(sandbox_url: str) -> None:
    """From the prompt to the completed generation, with the parameters of the API."""
    submitted: list[str] = []
    generation = sync.run(
        "a fox sandbox:duration=1",
        model="uni-1",
        timeout=10,
        on_submit=lambda event: submitted.append(event.generation.id),
        base_url=sandbox_url,
    )
    assert generation.state == "completed"
    assert submitted == [generation.id]
    assert loop_threads() == []


@pytest.mark.usefixtures("_soon")
def test_many_runs(sandbox_url: str) -> None:
    """In the order given, each failure in its place; no more than were asked for."""
    moderated = {"prompt": "sandbox:fail=content_moderated"}
    requests: list[AnyRequest] = ["a fox", moderated, "a hen", "a cow"]
    results = sync.run_all(iter(requests), max_submissions=3, base_url=sandbox_url)
    assert [result.request for result in results] == requests
    assert [type(result.error) for result in results] == [
        type(None),
        ContentModeratedError,
        type(None),
        SubmissionLimitError,
    ]


def test_threads_share_what_the_account_allows(full_url: str) -> None:
    """Twenty threads submit; nobody waits for the 60 seconds that the API asks for."""
    with Session(base_url=full_url, wait=SOON) as runner, ThreadPoolExecutor(20) as pool:
        prompts = [f"fox {number} sandbox:duration=5" for number in range(20)]
        ids = {generation.id for generation in pool.map(runner.run, prompts)}
        assert len(ids) == 20
        assert runner.outstanding == {}


@pytest.mark.usefixtures("_soon")
def test_runs_and_their_files(sandbox_url: str, tmp_path: Path) -> None:
    """`run_all` saves what it makes, under names of the caller's."""
    prompts = ["a fox sandbox:duration=1", "a hen sandbox:duration=1"]
    results = sync.run_all(
        [{"prompt": prompt, "key": prompt[2:5]} for prompt in prompts],
        download=tmp_path,
        name="{key}",
        base_url=sandbox_url,
    )
    assert [path.name for result in results for path in result.paths] == ["fox.png", "hen.png"]


def test_waits_and_runs_share_a_session(sandbox_url: str) -> None:
    """One thread, one client and one set of limits for both; its end is that of both."""
    with Session(base_url=sandbox_url, wait=SOON, timeout=10, max_running=2) as session:
        prompts = (f"{name} sandbox:duration=1" for name in ("a fox", "a hen", "a cow"))
        assert all(result.ok for result in session.run_as_completed(prompts))
        assert session.wait(session.create("a fox sandbox:duration=1"))
        assert len(loop_threads()) == 1
    with pytest.raises(ConfigurationError, match="this Session is closed"):
        session.run("a fox")


def test_a_session_is_observed(sandbox_url: str) -> None:
    """Waits and runs, through the same events as in asynchronous code."""
    seen: list[str] = []
    states: list[str] = []
    with Session(
        base_url=sandbox_url, wait=SOON, on_state=lambda event: states.append(event.state)
    ) as session:
        stop = session.observe(lambda event: seen.append(type(event).__name__))
        session.run("a fox sandbox:duration=1")
        stop()
        session.run("an owl sandbox:duration=1")
    assert [seen.count(name) for name in ("RunBegan", "WaitBegan", "RunEnded")] == [1, 1, 1]
    assert states.count("completed") == 2


def test_a_runner_with_a_journal(api: Api, tmp_path: Path) -> None:
    """The next process waits for what this one has submitted."""
    api.may_accept.set()
    with (
        Journal(tmp_path / "runs.db") as journal,
        Session(base_url=api.url, wait=SOON, journal=journal) as runner,
        pytest.raises(PollTimeoutError),
    ):
        runner.run("a fox", key="order-17", timeout=0.1)
    api.state = "completed"
    with (
        Journal(tmp_path / "runs.db") as journal,
        Session(base_url=api.url, journal=journal) as runner,
    ):
        assert runner.run("a fox", key="order-17").id == ID
    assert api.posts == ["a fox"]


def test_what_a_journal_has_of_a_list_comes_first(sandbox_url: str, tmp_path: Path) -> None:
    """As in async code: a refusal of what is new withholds nothing of what was paid for."""
    events: list[Event] = []
    requests = [{"prompt": word, "key": word} for word in ("new", "old")]
    with (
        Journal(tmp_path / "runs.db") as journal,
        Session(base_url=sandbox_url, wait=SOON, journal=journal) as session,
    ):
        assert session.run("old", key="old").outputs
        session.observe(events.append)
        assert all(result.ok for result in session.run_all(requests))
        assert all(result.ok for result in session.run_as_completed(iter(requests)))
    begun = [event.run.key for event in events if isinstance(event, RunBegan)]
    assert begun == ["old", "new", "new", "old"]


def test_closing_a_runner_keeps_the_ids(api: Api) -> None:
    """What was submitted is known, and the thread that waits for it hears of the end."""
    api.may_accept.set()
    with ThreadPoolExecutor(1) as pool:
        runner = Session(base_url=api.url)
        end = pool.submit(runner.run, "a fox")
        eventually(lambda: bool(runner.outstanding))
        runner.close()
        with pytest.raises(ConfigurationError, match=r"this Session was closed .* may still"):
            end.result(timeout=10)
    assert runner.outstanding == {ID: "a fox"}


def test_closing_during_a_submission_lets_it_end(api: Api) -> None:
    """With a runner; with `create` of a poller the log says what is not known."""
    with ThreadPoolExecutor(2) as pool:
        runner = Session(base_url=api.url)
        end = pool.submit(runner.run, "a fox")
        eventually(lambda: api.posts == ["a fox"])
        closing = pool.submit(runner.close)
        api.may_accept.set()
        closing.result(timeout=10)
        assert isinstance(end.exception(timeout=10), ConfigurationError)
    assert runner.outstanding == {ID: "a fox"}


def test_an_interrupted_create_is_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody knows whether it was accepted; nobody is told to submit again."""
    with ThreadPoolExecutor(1) as pool:
        poller = Session(base_url=api.url)
        end = pool.submit(poller.create, "a fox")
        eventually(lambda: api.posts == ["a fox"])
        poller.close()
        assert "may still finish, and be billed" in str(end.exception(timeout=10))
    (record,) = caplog.records
    assert "it may be running and be billed" in record.message


# --- event loops ---------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_running_event_loop_is_not_blocked() -> None:
    """Every call refuses at once, and says what to write there."""
    shared = runner = Session()
    uses: list[tuple[str, Callable[[], Any]]] = [
        ("await poller.wait", lambda: sync.wait(ID)),
        ("await poller.wait_all", lambda: sync.wait_all([ID])),
        ("await client.download", lambda: sync.download(ID, "nowhere")),
        ("await runner.run", lambda: sync.run("a fox")),
        ("await runner.run_all", lambda: sync.run_all(["a fox"])),
        ("await runner.run", lambda: runner.run("a fox")),
        ("await runner.run_all", lambda: runner.run_all(["a fox"])),
        ("async with runner.as_completed", lambda: runner.run_as_completed(["a fox"])),
        ("await poller.wait", lambda: shared.wait(ID)),
        ("await poller.wait_all", lambda: shared.wait_all([ID])),
        ("async for generation in poller.watch", lambda: shared.watch(ID)),
        ("async with poller.as_completed", lambda: shared.as_completed([ID])),
        ("await client.generations.create", lambda: shared.create("a fox")),
        ("await client.generations.get", lambda: shared.get(ID)),
        ("await client.download", lambda: shared.download(ID, "nowhere")),
        ("async with LumaClient", shared.__enter__),
    ]
    for instead, use in uses:
        with pytest.raises(ConfigurationError, match=f"write `{instead}"):
            use()
    assert loop_threads() == []


def test_threads_of_an_event_loop_may_wait(api: Api) -> None:
    """As the synchronous handlers of async frameworks do."""
    api.state = "completed"

    async def handle(poller: Session) -> int:
        return len(await anyio.to_thread.run_sync(poller.wait, ID))

    for backend in ("asyncio", "trio"):
        with Session(base_url=api.url) as poller:
            assert anyio.run(handle, poller, backend=backend) == 1


# --- processes -----------------------------------------------------------------------------------

PREFIX = """
import os, sys, threading
from tenacity import wait_fixed
from luma_poll import ConfigurationError, sync
from luma_poll.sync import Session

ID, OTHER_ID = {ids!r}
poller = Session(base_url={url!r}, wait=wait_fixed(0.02), timeout=None)
"""


class Child:
    """A Python process that runs a program with a poller of the API."""

    def __init__(self, api: Api, program: str) -> None:
        code = PREFIX.format(ids=(ID, OTHER_ID), url=api.url) + program
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def end(self, code: int = 0) -> str:
        """Wait for its end; returns what it printed."""
        try:
            out, err = self.process.communicate(timeout=50)
        finally:
            self.process.kill()
        assert (self.process.returncode, err if code == 0 else "") == (code, "")
        return out


@pytest.mark.posix
def test_ctrl_c_ends_a_call(api: Api) -> None:
    """At once, with the request under way; the poller still works, and leaves no thread."""
    api.state = "hang"
    child = Child(
        api,
        """
uses = [
    lambda: poller.wait(ID),
    lambda: poller.wait_all([ID]),
    lambda: list(poller.watch(ID)),
    lambda: list(poller.as_completed([ID])),
    lambda: poller.get(ID),
]
with poller:
    for use in uses:
        try:
            use()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            sys.stdin.readline()
    print(len(poller.wait(ID)))
print(threading.enumerate())
""",
    )
    assert child.process.stdout is not None
    assert child.process.stdin is not None
    for number in range(1, 6):
        eventually(lambda: len(api.gets) == number)  # noqa: B023
        child.interrupt()
        assert child.process.stdout.readline() == "interrupted\n"
        eventually(lambda: api.connections == 0)
        api.state = "hang" if number < 5 else "completed"
        child.process.stdin.write("\n")
        child.process.stdin.flush()
    assert child.end().startswith("1\n[<_MainThread(MainThread, started")
    assert len(api.gets) == 6


@pytest.mark.posix
def test_ctrl_c_ends_a_script(api: Api) -> None:
    """As it ends any other, also while other threads wait."""
    api.state = "hang"
    child = Child(
        api,
        """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool, poller:
    pool.submit(poller.wait, OTHER_ID)
    poller.wait(ID)
""",
    )
    eventually(lambda: len(api.gets) == 2)
    child.interrupt()
    child.end(-signal.SIGINT)


@pytest.mark.posix
def test_ctrl_c_keeps_the_id_of_a_submission(api: Api) -> None:
    """One that is under way comes to its end: its id is in the traceback, or in `submitted`."""
    children = [
        Child(api, "sync.run('one', base_url=poller._client.base_url)"),
        Child(
            api,
            """
try:
    poller.run("another")
except KeyboardInterrupt:
    print(poller.outstanding)
""",
        ),
    ]
    eventually(lambda: sorted(api.posts) == ["another", "one"])
    for child in children:
        child.interrupt()
    api.may_accept.set()
    first, second = children
    _, traceback = first.process.communicate(timeout=50)
    assert f"submitted, and perhaps running: {ID}. Wait for them by id" in traceback
    assert second.end() == f"{{'{ID}': 'another'}}\n"


@pytest.mark.posix
def test_ctrl_c_at_any_moment(api: Api) -> None:
    """Each call ends, and nothing of it is left in the poller."""
    child = Child(
        api,
        """
import random, signal
random.seed(7)
signal.signal(signal.SIGALRM, signal.default_int_handler)
with poller:
    poller.get(ID)
    for _ in range(150):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.01))
            poller.wait(ID)
        except KeyboardInterrupt:
            pass
    print(poller)
print(threading.active_count())
""",
    )
    assert child.end().endswith("in_flight=0, generations=0)\n1\n")


@pytest.mark.posix
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_after_use_is_a_clear_error(api: Api) -> None:
    """In the child nothing hangs, not even its exit; the parent's poller works on."""
    api.state = "completed"
    out = Child(
        api,
        """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
unused = Session(base_url=poller._client.base_url)
poller.wait(ID)
results = poller.as_completed([ID, OTHER_ID])
next(results)
if child := os.fork():
    assert os.waitpid(child, 0) == (child, 0)
    print(len(poller.wait(ID)), len(list(results)))
    poller.close()
else:
    for use in (lambda: poller.wait(ID), lambda: next(results), lambda: poller.watch(ID)):
        try:
            use()
        except ConfigurationError as error:
            print(error)
    poller.close()
    print(len(unused.wait(ID)), len(sync.wait(ID, base_url=poller._client.base_url)), flush=True)
""",
    ).end()
    *refusals, after, parents = out.splitlines()
    assert len(refusals) == 3
    assert {"before the process was forked" in refusal for refusal in refusals} == {True}
    assert "worker_process_init" in refusals[0]
    assert (after, parents) == ("1 1", "1 1")


@pytest.mark.posix
@pytest.mark.parametrize(
    "forgotten",
    [
        "poller.mine = poller; poller.get(ID)",
        "snapshots = poller.watch(ID); next(snapshots); sys.exit()",
        "threading.Thread(target=poller.wait, args=[ID], daemon=True).start(); poller.get(ID)",
        "poller.get(ID); del poller",
    ],
)
def test_who_forgets_to_close_can_exit(api: Api, forgotten: str) -> None:
    """At once and in silence."""
    assert Child(api, forgotten).end() == ""


def test_files_are_uploaded_and_passed_as_they_are(poller: Session, tmp_path: Path) -> None:
    """An input is a path here, too, or an id that `upload` returned."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    file_id = poller.upload(path)
    sources: list[Media] = [path, {"file_id": file_id}]
    for source in sources:
        prompt = "at night sandbox:duration=0"
        assert poller.create(prompt, type="image_edit", source=source).state == "queued"
