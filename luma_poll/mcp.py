"""Generations for agents: tools of the Model Context Protocol, over a Runner and a Journal.

Needs the extra `mcp`. Most people run `luma-poll mcp`; this is for a server of your own.

    async with (
        LumaClient() as client,
        open_server(client, journal="luma.db", download="out", max_submissions=20) as server,
    ):
        await serve_stdio(server)

An agent's client gives up on a slow call, and the model calls again. So each call has a key that
the journal records, and the same call again finds the running generation instead of paying again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import traceback
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any, cast

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from luma_poll._api.parameters import Params
from luma_poll._arguments import check_count, check_number
from luma_poll._client.client import LumaClient
from luma_poll._journal.entry import JournalEntry
from luma_poll._journal.journal import Journal
from luma_poll._logging import fields, logger
from luma_poll._mcp.pipes import standard_pipes
from luma_poll._mcp.references import with_references
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.poller import Poller, last_of
from luma_poll._redaction import redact
from luma_poll._running.requests import check_key
from luma_poll._running.runner import Runner
from luma_poll._tasks.beside import tasks_beside
from luma_poll._version import __version__
from luma_poll.errors import ConfigurationError, GenerationError, LumaError, NotFoundError
from luma_poll.events import (
    Event,
    RunEvent,
    RunFound,
    RunRefused,
    RunStateChanged,
    RunSubmitting,
    RunUnreachable,
)
from luma_poll.models import Generation

__all__ = ["GenerationReport", "JournalReport", "open_server", "serve_stdio"]

WINDOW = 600.0
"""Seconds after the last change of a generation for which the same call still means it."""
HEARTBEAT = 5.0
"""Seconds between two progress notifications: a client takes a silent server for dead."""
PREVIEW = 512
"""Pixels of the longer side of a preview."""
MOST_LISTED = 50
"""The most entries of the journal that one call lists."""
GRACE = 1.0
"""Seconds that a client gets to read the last answers after it has closed its side."""
HANDOVER = 10.0
"""Seconds to wait for the journal of a server that is ending: clients restart their server."""
WAITING = "waiting for room"
INSTRUCTIONS = """\
Images and videos by Luma. `generate` costs money once for each distinct call. A generation takes
from 20 seconds to some minutes: a call that returns before it has ended has lost nothing, so call
`wait_for` with its key, never `generate` with other words."""


class GenerationReport(BaseModel):
    """A generation, as a model reads it: without URLs, each of which is a secret for an hour.

    Attributes:
        key: The name of the request, for `wait_for`.
        generation_id: The id at Luma, as soon as there is one.
        state: `waiting for room`, `being submitted`, `queued`, `processing`, `completed`, or one
            that Luma has added.
        files: Paths of the files on disk, one for each output.
        submissions: How often the request was accepted, and so may be billed.
        next: The next step for the model, in a sentence.
    """

    key: str | None = None
    generation_id: str | None = None
    state: str
    files: list[str] = Field(default_factory=list)
    submissions: int = 0
    next: str = ""


class JournalLine(BaseModel):
    """One request in the journal."""

    key: str
    state: str
    prompt: str
    generation_id: str | None
    updated_at: datetime


class JournalReport(BaseModel):
    """The requests that were submitted, the latest first.

    Attributes:
        entries: The latest 50 of them.
        total: How many there are in all.
        submissions_left: How many submissions the limits still allow; None for no limit.
    """

    entries: list[JournalLine]
    total: int
    submissions_left: int | None


@dataclass(eq=False)
class _Request:
    """A request or a wait under way, which outlives the call that began it."""

    key: str
    digest: str = ""
    is_new: bool = False
    state: str = WAITING
    generation_id: str | None = None
    files: list[Path] = field(default_factory=list)
    submissions: int = 0
    error: Exception | None = None
    done: anyio.Event = field(default_factory=anyio.Event)


def choose_key(
    digest: str, entries: Sequence[JournalEntry], under_way: Collection[str], now: datetime
) -> str:
    """Return a key for a call without one: the key of the same call before, if that is recent.

    Args:
        digest: The digest of the call's parameters.
        entries: The entries of the journal.
        under_way: The keys of the requests under way.
        now: The time, as an aware datetime.
    """
    prefix = digest[:16]
    number, newest = 0, None
    known = {entry.key: entry for entry in entries}
    while (key := f"{prefix}-{number + 1}") in known or key in under_way:
        number, newest = number + 1, known.get(key)
    latest = f"{prefix}-{number}"
    if number == 0:
        return f"{prefix}-1"
    # A request that has not ended is never paid for again, however long ago it began.
    if newest is None or latest in under_way or newest.state not in ("completed", "failed"):
        return latest
    is_recent = now - newest.updated_at < timedelta(seconds=WINDOW)
    return latest if is_recent else f"{prefix}-{number + 1}"


def spent_since(entries: Sequence[JournalEntry], since: datetime) -> int:
    """Return the submissions of all entries that changed since then, which may be too many."""
    return sum(entry.attempt for entry in entries if entry.updated_at >= since)


class _Tools:
    """The tools, and the requests under way behind them."""

    def __init__(
        self,
        client: LumaClient,
        journal: Journal,
        download: Path,
        *,
        inputs: Path | None,
        patience: float,
        max_submissions: int | None,
        max_per_day: int | None,
        models: Sequence[str],
        types: Sequence[str],
        poller: Poller | None,
    ) -> None:
        self._client = client
        self._journal = journal
        self._download = download.absolute()  # its reader may be in another directory
        self._inputs = inputs
        self._patience = patience
        self._max_submissions = max_submissions
        self._max_per_day = max_per_day
        self._models = models
        self._types = types
        self._poller = poller or Poller(client, wait=AdaptiveWait())
        self._runner = Runner(client, self._poller, journal=journal)
        self._under_way: dict[str, _Request] = {}
        self._waits: dict[str, _Request] = {}
        self._refused: dict[str, _Request] = {}
        self._paid: set[str] = set()
        self._runner.observe(self._follow)
        self.background: TaskGroup

    async def generate(
        self,
        context: Context[Any, Any],
        prompt: Annotated[str, Field(description="What to see, up to 6000 characters.")],
        model: Annotated[str | None, Field(description="uni-1, uni-1-max or ray-3.2.")] = None,
        type: Annotated[  # noqa: A002  (the API's name)
            str | None,
            Field(description="image, image_edit, video, video_edit, video_reframe or layering."),
        ] = None,
        source: Annotated[
            str | None, Field(description="What to edit: a file, a public URL or an id.")
        ] = None,
        image_ref: Annotated[
            list[str] | None, Field(description="References: files, public URLs or ids.")
        ] = None,
        aspect_ratio: Annotated[str | None, Field(description="For example 16:9.")] = None,
        options: Annotated[
            dict[str, Any] | None,
            Field(
                description="Further parameters of the API, such as output_format or video. "
                "Media in them, such as video.start_frame, are named as in source."
            ),
        ] = None,
        key: Annotated[
            str | None,
            Field(
                description="To repeat a call, give the same key, or none: it is paid once. Give "
                "another key only for another picture of the same words."
            ),
        ] = None,
    ) -> Annotated[CallToolResult, GenerationReport]:
        """Make an image or a video, save its files, and return them with a preview.

        Costs money once for each distinct call. The same call again within ten minutes, or with
        the same key at any time, continues with the generation of the first one.
        """
        params = dict(options or {})
        if not params.keys().isdisjoint(("prompt", "key")):
            raise ToolError("prompt and key are not options: give them as arguments of their own")
        given: Params = {"model": model, "type": type, "aspect_ratio": aspect_ratio}
        given |= {"source": source, "image_ref": image_ref}
        params |= {name: value for name, value in given.items() if value is not None}
        self._check_allowed(params)
        params = {"prompt": prompt, **with_references(params, self._inputs)}
        with _tool_errors():
            if key is not None:
                check_key(key)
            digest = await anyio.to_thread.run_sync(_digest, params)
        entries = await self._entries()
        # No await from here on: another call could spend what this one has counted.
        if key is None:
            key = choose_key(digest, entries, self._under_way, datetime.now(UTC))
        request = self._under_way.get(key)
        if request is None:
            request = _Request(key, digest)
            if all(entry.key != key for entry in entries):
                self._pay(request, entries)
            self._refused.pop(key, None)
            self._under_way[key] = request
            self.background.start_soon(self._run, request, {**params, "key": key})
        elif request.digest != digest:
            raise ToolError(
                f"the key {key!r} belongs to a request with other parameters, which is under way. "
                "Nothing was sent: use another key, or none."
            )
        return await self._report(context, request)

    async def wait_for(
        self,
        context: Context[Any, Any],
        key_or_id: Annotated[str, Field(description="A key, or the id of a generation.")],
    ) -> Annotated[CallToolResult, GenerationReport]:
        """Wait for a generation that was submitted before, and save its files. Never pays."""
        known = (self._under_way, self._waits, self._refused)
        request = next((each[key_or_id] for each in known if key_or_id in each), None)
        if request is None:
            entry = next((e for e in await self._entries() if e.key == key_or_id), None)
            generation_id = key_or_id if entry is None else entry.generation_id
            if generation_id is None:
                raise ToolError(
                    f"{key_or_id!r} may have been submitted, but its id is not known. Do not "
                    "submit it again: ask the user to look at the account, and to settle it with "
                    "`luma-poll journal resolve`."
                )
            request = self._waits.setdefault(key_or_id, _Request(key_or_id, state="running"))
            if request.generation_id is None:  # else another call was faster
                request.generation_id = generation_id
                request.submissions = 0 if entry is None else len(entry.submitted)
                self.background.start_soon(self._wait, request, entry is not None)
        return await self._report(context, request)

    async def generation(
        self, generation_id: Annotated[str, Field(description="The id at Luma.")]
    ) -> GenerationReport:
        """Look at a generation once, without waiting."""
        with _tool_errors():
            found = await self._client.generations.get(generation_id)
        return GenerationReport(
            generation_id=found.id,
            state=found.state,
            next="" if found.is_terminal else "call wait_for with the generation_id",
        )

    async def journal(self) -> JournalReport:
        """List the requests that were submitted, with their states."""
        entries = sorted(await self._entries(), key=lambda entry: entry.updated_at, reverse=True)
        return JournalReport(
            entries=[
                JournalLine(
                    key=entry.key,
                    state=entry.state,
                    prompt=str(entry.request.get("prompt", ""))[:200],
                    generation_id=entry.generation_id,
                    updated_at=entry.updated_at,
                )
                for entry in entries[:MOST_LISTED]
            ],
            total=len(entries),
            submissions_left=self._submissions_left(entries),
        )

    def _check_allowed(self, params: Params) -> None:
        for name, allowed in (("model", self._models), ("type", self._types)):
            if not allowed:
                continue
            # The API's own default may not be among them.
            if params.setdefault(name, allowed[0]) not in allowed:
                raise ToolError(f"only these are allowed as {name} here: {', '.join(allowed)}")

    def _submissions_left(self, entries: Sequence[JournalEntry]) -> int | None:
        """Return how many submissions are left. Those made here count before they are on disk."""
        left = []
        if self._max_submissions is not None:
            left.append(self._max_submissions - len(self._paid))
        if self._max_per_day is not None:
            pending = len(self._paid - {entry.key for entry in entries})
            spent = spent_since(entries, datetime.now(UTC) - timedelta(days=1))
            left.append(self._max_per_day - spent - pending)
        return max(0, min(left)) if left else None

    def _pay(self, request: _Request, entries: Sequence[JournalEntry]) -> None:
        """Count one submission against the limits, or refuse it."""
        if self._submissions_left(entries) == 0:
            raise ToolError(
                "the limit of submissions is reached, so nothing was submitted. Ask the user to "
                "raise --max-submissions or --max-per-day; calling again does not help."
            )
        request.is_new = True
        self._paid.add(request.key)

    async def _run(self, request: _Request, given: Mapping[str, object]) -> None:
        async with self._settling(request, self._under_way):
            (result,) = await self._runner.run_all([given], download=self._download)
            request.submissions = len(result.submitted)
            if error := result.error or result.download_error:
                raise error
            request.files, request.state = result.paths, result.generation.state

    def _follow(self, event: Event) -> None:
        """Update the requests under way from the events of the runner."""
        if not isinstance(event, RunEvent):
            return
        request = self._under_way.get(event.run.key or "")
        if request is None:
            return
        match event:
            case RunSubmitting():
                request.state = "being submitted"
            case RunRefused() | RunUnreachable():
                request.state = WAITING
            case RunFound():
                request.submissions, request.state = event.attempt, "running"
                request.generation_id = event.generation_id
            case RunStateChanged():
                request.submissions, request.state = event.attempt, event.state
                request.generation_id = event.generation.id

    async def _wait(self, request: _Request, is_key: bool) -> None:
        async with self._settling(request, self._waits):
            assert request.generation_id is not None

            def see(snapshot: Generation) -> None:
                request.state = snapshot.state

            try:
                latest = await last_of(self._poller.watch(request.generation_id), see)
            except NotFoundError as error:
                if not is_key:
                    error.add_note("It is not a key either: no request from here has it.")
                raise
            request.files = await self._client.download(
                latest.raise_for_failure(), self._download, key=request.key if is_key else None
            )

    @asynccontextmanager
    async def _settling(
        self, request: _Request, under_way: dict[str, _Request]
    ) -> AsyncGenerator[None]:
        """Keep a failure for the call that asks for it, then leave the request to the journal."""
        try:
            yield
        except Exception as error:
            request.error = error
            if getattr(error, "may_have_been_accepted", False):
                request.submissions = max(request.submissions, 1)
            if request.is_new and not request.submissions:
                self._paid.discard(request.key)
                self._refused[request.key] = request  # the journal does not know why
                if len(self._refused) > MOST_LISTED:
                    del self._refused[next(iter(self._refused))]
        finally:
            del under_way[request.key]
            request.done.set()

    async def _report(self, context: Context[Any, Any], request: _Request) -> CallToolResult:
        """Return the state of a request once it has ended, or after `patience` seconds."""
        began = anyio.current_time()
        with anyio.move_on_after(self._patience):
            while not request.done.is_set():
                seconds = anyio.current_time() - began
                await context.report_progress(seconds, self._patience, request.state)
                with anyio.move_on_after(HEARTBEAT):
                    await request.done.wait()
        if request.error is not None:
            raise _tool_error(request.error, request)
        if not request.done.is_set():
            how = "not submitted yet" if request.state == WAITING else request.state
            if request.generation_id is not None:
                how = "still running"
            advice = f'{how}: call wait_for with "{request.key}"; do not call generate'
            return _result(request, advice, None)
        preview = await anyio.to_thread.run_sync(_preview, request.files)
        return _result(request, "done: the files are on disk", preview)

    async def _entries(self) -> list[JournalEntry]:
        with _tool_errors():
            return await anyio.to_thread.run_sync(self._journal.entries)


def _result(request: _Request, advice: str, preview: bytes | None) -> CallToolResult:
    report = GenerationReport(
        key=request.key,
        generation_id=request.generation_id,
        state=request.state,
        files=[str(path) for path in request.files],
        submissions=request.submissions,
        next=advice,
    )
    content: list[Any] = [TextContent(type="text", text=report.model_dump_json())]
    if preview is not None:
        data = base64.b64encode(preview).decode()
        content.append(ImageContent(type="image", data=data, mime_type="image/jpeg"))
    return CallToolResult(content=content, structured_content=report.model_dump(mode="json"))


def _content(path: Path) -> str:
    """Return the digest of a file, for the digest of its request."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ToolError(f"{path.name} cannot be read: {error.strerror}") from None


def _digest(params: Mapping[str, object]) -> str:
    """Return a digest of a call, in which files count by their bytes and not by their names."""
    return hashlib.sha256(json.dumps(params, sort_keys=True, default=_content).encode()).hexdigest()


def _preview(files: Sequence[Path]) -> bytes | None:
    """Return a small JPEG of the first image that Pillow can read, or None."""
    from PIL import Image

    for path in files:
        try:
            with Image.open(path) as picture:
                picture.thumbnail((PREVIEW, PREVIEW))
                small = io.BytesIO()
                picture.convert("RGB").save(small, "JPEG", quality=80)
                return small.getvalue()
        except Exception:  # a video, or broken: a preview must not fail what is paid for
            continue
    return None


@contextmanager
def _tool_errors() -> Iterator[None]:
    """Turn our errors into tool errors, which the model reads."""
    try:
        yield
    except LumaError as error:
        raise _tool_error(error) from None


def _tool_error(error: Exception, request: _Request | None = None) -> ToolError:
    """Return the error for the model, without secrets, with what to do next."""
    said = [str(error), *getattr(error, "__notes__", [])]
    if not isinstance(error, LumaError):
        told = redact("".join(traceback.format_exception(error)))
        logger.error("a tool failed: %s", told, extra=fields(error=error))
        said = [f"unexpected {type(error).__name__}: {redact(str(error))}."]
    if isinstance(error, GenerationError) and error.retryable:
        said.append("The same call gives the same failure: a new submission needs another key.")
    if request is not None and request.submissions:
        said.append(f'(key "{request.key}")')
    return ToolError("\n".join(said))


@asynccontextmanager
async def open_server(
    client: LumaClient,
    *,
    journal: str | Path,
    download: str | Path,
    inputs: str | Path | None = None,
    patience: float = 50.0,
    max_submissions: int | None = 20,
    max_per_day: int | None = 100,
    models: Sequence[str] = (),
    types: Sequence[str] = (),
    poller: Poller | None = None,
) -> AsyncGenerator[MCPServer[Any]]:
    """Open a server with the tools `generate`, `wait_for`, `generation` and `journal`.

    At the end of the block, nothing more is submitted. A submission under way gets its answer, and
    the journal its id, so that the next server can continue.

    Args:
        client: The client.
        journal: The path of the journal, which keeps a call from paying twice.
        download: The only directory in which files are written.
        inputs: The only directory from which files are read; None to read none.
        patience: Seconds after which a call returns, finished or not: less than the limit of
            the agent's client, which is often a minute.
        max_submissions: The most submissions by this server; 0 for none, None for no limit.
        max_per_day: The most submissions in any 24 hours, across restarts; None for no limit.
        models: The models that are allowed; the first is the default. Empty for all.
        types: The types that are allowed; the first is the default. Empty for all.
        poller: The poller for the generations; by default one with an `AdaptiveWait`.

    Yields:
        The server, to be served by `serve_stdio`, or by its own `streamable_http_app`.

    Raises:
        ConfigurationError: An argument is unusable.
        JournalError: The journal cannot be used.
    """
    for name, limit in (("max_submissions", max_submissions), ("max_per_day", max_per_day)):
        if limit != 0:
            check_count(name, limit)
    check_number("patience", patience)
    root = None if inputs is None else Path(inputs)
    if root is not None and not await anyio.Path(root).is_dir():
        raise ConfigurationError(f"inputs: there is no directory {root}")
    for name, allowed in (("models", models), ("types", types)):
        if isinstance(allowed, str):
            raise ConfigurationError(f"{name} is a list of names, not {allowed!r}")
    try:
        await anyio.Path(download).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"download: {download}: {error.strerror}") from None
    async with AsyncExitStack() as stack:
        tools = _Tools(
            client,
            stack.enter_context(await anyio.to_thread.run_sync(Journal, journal, HANDOVER)),
            Path(download),
            inputs=root,
            patience=patience,
            max_submissions=max_submissions,
            max_per_day=max_per_day,
            models=list(models),
            types=list(types),
            poller=poller,
        )
        server = MCPServer[Any](
            "luma-poll", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING"
        )
        writes = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True)
        reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True)
        for title, tool, hints in (
            ("Make an image or video", tools.generate, writes),
            ("Wait for a generation", tools.wait_for, writes),
            ("Look at a generation", tools.generation, reads),
            ("List what was submitted", tools.journal, reads),
        ):
            server.add_tool(tool, title=title, description=getdoc(tool), annotations=hints)
        async with tasks_beside() as tools.background:
            yield server


async def serve_stdio(server: MCPServer[Any]) -> None:
    """Serve over standard input and output until the client goes, or the call is cancelled.

    What is printed meanwhile goes to standard error.

    Raises:
        ConfigurationError: Standard input or output is closed.
    """
    lowlevel = server._lowlevel_server
    try:
        with standard_pipes() as (lines, writer), anyio.CancelScope() as scope:

            async def incoming_lines() -> AsyncGenerator[str]:
                async for line in lines:
                    yield line
                scope.deadline = anyio.current_time() + GRACE

            # The library's own transport cannot be cancelled until the next line has come.
            async with stdio_server(
                stdin=cast("anyio.AsyncFile[str]", incoming_lines()),
                stdout=cast("anyio.AsyncFile[str]", writer),
            ) as (incoming, outgoing):
                await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
    except* (BrokenPipeError, ConnectionResetError):  # the client has gone, which is a normal end
        pass
