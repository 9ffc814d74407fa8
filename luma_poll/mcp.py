"""Generations for agents: tools of the Model Context Protocol, over a Runner and a Journal.

Needs the extra `mcp`. Most people run `luma-poll mcp`; this is for a server of your own.

    async with (
        LumaClient() as client,
        open_server(client, journal="luma.db", download="out", max_submissions=20) as server,
    ):
        await serve_stdio(server)

An agent's client gives up on a slow call and the model calls again. So each call has a key, the
journal knows it, and the same call again finds the generation that runs, rather than pay again.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import os
import sys
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel, Field

from luma_poll._arguments import check_count, check_positive
from luma_poll._client.client import LumaClient
from luma_poll._journal.entry import JournalEntry
from luma_poll._journal.journal import Journal
from luma_poll._polling.adaptive import AdaptiveWait
from luma_poll._polling.poller import Poller
from luma_poll._running.runner import Runner
from luma_poll._version import __version__
from luma_poll.errors import ConfigurationError, LumaError
from luma_poll.events import Event, RunEvent
from luma_poll.models import Generation

__all__ = ["GenerationReport", "JournalReport", "open_server", "serve_stdio"]

T = TypeVar("T")

WINDOW = 600.0
"""Seconds after its last change during which the same call means the same generation."""
HEARTBEAT = 5.0
"""Seconds between two progress notifications: a client takes silence for death."""
PREVIEW = 512
"""Pixels: the longer side of a preview."""
MOST_LISTED = 50
"""Entries of the journal that one call lists."""
LONGEST_LINE = 64 * 1024 * 1024
"""Bytes of one message."""
INSTRUCTIONS = """\
Images and videos by Luma. `generate` costs money once for each distinct call. A generation takes
from 20 seconds to some minutes: a call that says "still running" has lost nothing, so call
`wait_for` with its key, never `generate` with other words."""


class GenerationReport(BaseModel):
    """A generation, as a model reads it: no URL, since each is a secret for an hour.

    Attributes:
        key: The name of the request; `wait_for` takes it.
        generation_id: The id at Luma, as soon as there is one.
        state: `waiting for room`, `queued`, `processing`, `completed`, or one that Luma has added.
        files: Paths of the files on disk, one for each output.
        submissions: How often the request was submitted, and so may be billed.
        next: The next step for the model, in words.
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
        entries: At most 50 of them.
        total: How many there are.
        submissions_left: What the purse still allows; None for no limit.
    """

    entries: list[JournalLine]
    total: int
    submissions_left: int | None


@dataclass(eq=False)
class _Request:
    """A request under way, which outlives the call that began it."""

    key: str
    done: anyio.Event = field(default_factory=anyio.Event)
    latest: Generation | None = None
    files: list[Path] = field(default_factory=list)
    submissions: int = 0
    error: Exception | None = None


def choose_key(
    digest: str, entries: Sequence[JournalEntry], under_way: Collection[str], now: datetime
) -> str:
    """Return the key of a call without one: that of the same call before, if it is recent.

    Args:
        digest: Of the parameters.
        entries: Of the journal.
        under_way: The keys that are being worked on.
        now: The time, aware.
    """
    prefix = digest[:16]
    number, newest = 0, None
    known = {entry.key: entry for entry in entries}
    while (key := f"{prefix}-{number + 1}") in known or key in under_way:
        number, newest = number + 1, known.get(key)
    latest = f"{prefix}-{number}"
    if number == 0:
        return f"{prefix}-1"
    # What has not ended is never paid for a second time, however long ago it began.
    if newest is None or latest in under_way or newest.state not in ("completed", "failed"):
        return latest
    is_recent = now - newest.updated_at < timedelta(seconds=WINDOW)
    return latest if is_recent else f"{prefix}-{number + 1}"


def spent_since(entries: Sequence[JournalEntry], since: datetime) -> int:
    """Return the submissions of the entries that changed since then; rather too many than few."""
    return sum(entry.attempt for entry in entries if entry.updated_at >= since)


def read_reference(text: str, inputs: Path | None) -> Path | dict[str, str]:
    """Return the media that a model names: a public URL, the id of a generation, or a file.

    Args:
        text: As the model wrote it.
        inputs: The only directory from which files are read; None for none.

    Raises:
        ToolError: It is none of these, or lies outside the directory.
    """
    if "://" in text:
        _check_public(text)
        return {"url": text}
    try:
        return {"generation_id": str(UUID(text))}
    except ValueError:
        pass
    if inputs is None:
        raise ToolError("files are not allowed as inputs here: give a public https URL or an id")
    root = inputs.resolve()
    path = (root / text).resolve()  # follows symbolic links, so that none leads outside
    if not path.is_relative_to(root) or not path.is_file():
        raise ToolError(f"there is no file of that name below {inputs}")
    return path


def _check_public(url: str) -> None:
    """Refuse addresses that only mean something inside somebody's network."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        raise ToolError("that is not a URL") from None
    if parts.scheme != "https" or parts.username is not None or "." not in host:
        raise ToolError("only public https URLs are allowed, without a user name in them")
    if host.endswith((".local", ".localhost", ".internal", ".home.arpa")):
        raise ToolError("only public hosts are allowed")
    try:
        is_public = ip_address(host.strip("[]")).is_global
    except ValueError:
        # "127.1" and "0x7f.1" are addresses as well, in spellings that only resolvers know.
        is_public = not host.rpartition(".")[2][:1].isdigit()
    if not is_public:
        raise ToolError("only public hosts are allowed")


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
        self._download = download
        self._inputs = inputs
        self._patience = patience
        self._left = max_submissions
        self._max_per_day = max_per_day
        self._models = models
        self._types = types
        self._poller = poller or Poller(client, wait=AdaptiveWait())
        self._runner = Runner(client, self._poller, journal=journal)
        self._under_way: dict[str, _Request] = {}
        self._runner.observe(self._follow)
        self.background = anyio.create_task_group()

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
            Field(description="Further parameters of the API, such as output_format or video."),
        ] = None,
        key: Annotated[
            str | None,
            Field(description="A name for this request. The same key never pays twice."),
        ] = None,
    ) -> Annotated[CallToolResult, GenerationReport]:
        """Make an image or a video, save its files, and return them with a preview.

        Costs money once for each distinct call. The same call again within ten minutes, or with
        the same key at any time, continues with the generation of the first one.
        """
        params = dict(options or {})
        for name, value in (("model", model), ("type", type), ("aspect_ratio", aspect_ratio)):
            if value is not None:
                params[name] = value
        self._check_allowed(params)
        if source is not None:
            params["source"] = read_reference(source, self._inputs)
        if image_ref is not None:
            params["image_ref"] = [read_reference(each, self._inputs) for each in image_ref]
        entries = await self._entries()
        if key is None:
            digest = await anyio.to_thread.run_sync(_digest, {"prompt": prompt, **params})
            key = choose_key(digest, entries, self._under_way, datetime.now(UTC))
        request = self._under_way.get(key)
        if request is None:
            if all(entry.key != key for entry in entries):
                self._pay(entries)
            request = self._under_way[key] = _Request(key)
            self.background.start_soon(self._run, request, prompt, params)
        return await self._report(context, request)

    async def wait_for(
        self,
        context: Context[Any, Any],
        key_or_id: Annotated[str, Field(description="A key, or the id of a generation.")],
    ) -> Annotated[CallToolResult, GenerationReport]:
        """Wait for a generation that was submitted before, and save its files. Never pays."""
        request = self._under_way.get(key_or_id)
        if request is None:
            entry = next((e for e in await self._entries() if e.key == key_or_id), None)
            generation_id = key_or_id if entry is None else entry.generation_id
            if generation_id is None:
                raise ToolError(
                    f"{key_or_id!r} may have been submitted, but its id is not known. Do not "
                    "submit it again: ask the user to look at the account, and to settle it with "
                    "`luma-poll journal resolve`."
                )
            request = self._under_way[key_or_id] = _Request(key_or_id)
            request.submissions = 0 if entry is None else len(entry.submitted)
            self.background.start_soon(self._wait, request, generation_id)
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
        """List what has been submitted, what runs, and what is unknown."""
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

    def _check_allowed(self, params: dict[str, Any]) -> None:
        for name, allowed in (("model", self._models), ("type", self._types)):
            if not allowed:
                continue
            # The API's default may be none of them.
            if params.setdefault(name, allowed[0]) not in allowed:
                raise ToolError(f"only these are allowed as {name} here: {', '.join(allowed)}")

    def _submissions_left(self, entries: Sequence[JournalEntry]) -> int | None:
        left = [] if self._left is None else [self._left]
        if self._max_per_day is not None:
            known = {entry.key for entry in entries}
            pending = sum(key not in known for key in self._under_way)
            spent = spent_since(entries, datetime.now(UTC) - timedelta(days=1))
            left.append(max(0, self._max_per_day - spent - pending))
        return min(left) if left else None

    def _pay(self, entries: Sequence[JournalEntry]) -> None:
        """Take one submission out of the purse."""
        if self._submissions_left(entries) == 0:
            raise ToolError(
                "the limit of submissions is reached, so nothing was submitted. Ask the user to "
                "raise --max-submissions or --max-per-day; calling again does not help."
            )
        if self._left is not None:
            self._left -= 1

    async def _run(self, request: _Request, prompt: str, params: Mapping[str, Any]) -> None:
        async with self._settling(request):
            generation = await self._runner.run(prompt, key=request.key, **params)
            request.submissions = max(request.submissions, 1)
            await self._save(request, generation)

    def _follow(self, event: Event) -> None:
        """Follow the requests under way in the events of the runner: one observer for them all."""
        if not isinstance(event, RunEvent):
            return
        request = self._under_way.get(event.run.key or "")
        if request is None:
            return
        request.latest = event.generation or request.latest
        request.submissions = max(request.submissions, event.attempt)

    async def _wait(self, request: _Request, generation_id: str) -> None:
        async with self._settling(request):
            async for snapshot in self._poller.watch(generation_id):
                request.latest = snapshot
            if request.latest is not None:
                await self._save(request, request.latest.raise_for_failure())

    async def _save(self, request: _Request, generation: Generation) -> None:
        request.latest = generation
        files = await self._client.download(generation, self._download, name=request.key)
        request.files = list(files)

    @asynccontextmanager
    async def _settling(self, request: _Request) -> AsyncGenerator[None]:
        """Keep the failure for the call that asks, and forget the request: the journal knows it."""
        try:
            yield
        except Exception as error:
            request.error = error
        finally:
            self._under_way.pop(request.key, None)
            request.done.set()

    async def _report(self, context: Context[Any, Any], request: _Request) -> CallToolResult:
        """Return how far it is, after at most the patience; with progress meanwhile."""
        began = anyio.current_time()
        with anyio.move_on_after(self._patience):
            while not request.done.is_set():
                seconds = anyio.current_time() - began
                await context.report_progress(seconds, self._patience, _state(request))
                with anyio.move_on_after(HEARTBEAT):
                    await request.done.wait()
        if request.error is not None:
            raise _tool_error(request.error, request)
        if not request.done.is_set():
            advice = f'still running: call wait_for with "{request.key}"; do not call generate'
            return _result(request, advice, None)
        preview = await anyio.to_thread.run_sync(_preview, request.files)
        return _result(request, "done: the files are on disk", preview)

    async def _entries(self) -> list[JournalEntry]:
        with _tool_errors():
            return await anyio.to_thread.run_sync(self._journal.entries)


def _state(request: _Request) -> str:
    return "waiting for room" if request.latest is None else request.latest.state


def _result(request: _Request, advice: str, preview: bytes | None) -> CallToolResult:
    report = GenerationReport(
        key=request.key,
        generation_id=None if request.latest is None else request.latest.id,
        state=_state(request),
        files=[str(path) for path in request.files],
        submissions=request.submissions,
        next=advice,
    )
    content: list[Any] = [TextContent(type="text", text=report.model_dump_json())]
    if preview is not None:
        data = base64.b64encode(preview).decode()
        content.append(ImageContent(type="image", data=data, mime_type="image/jpeg"))
    return CallToolResult(content=content, structured_content=report.model_dump(mode="json"))


@functools.singledispatch
def _plain(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} is not a parameter of the API")


@_plain.register
def _(value: Path) -> str:
    return hashlib.sha256(value.read_bytes()).hexdigest()


def _digest(params: Mapping[str, Any]) -> str:
    """Return a digest of a call; of the bytes of its files, whatever they are called."""
    return hashlib.sha256(json.dumps(params, sort_keys=True, default=_plain).encode()).hexdigest()


def _preview(files: Sequence[Path]) -> bytes | None:
    """Return a small JPEG of the first picture; None if there is none that Pillow can read."""
    from PIL import Image, UnidentifiedImageError

    for path in files:
        try:
            with Image.open(path) as picture:
                picture.thumbnail((PREVIEW, PREVIEW))
                small = io.BytesIO()
                picture.convert("RGB").save(small, "JPEG", quality=80)
                return small.getvalue()
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
            continue
    return None


@contextmanager
def _tool_errors() -> Iterator[None]:
    """Turn our errors into tool errors, which the model reads."""
    try:
        yield
    except LumaError as error:
        raise _tool_error(error) from None


def _tool_error(error: Exception, request: _Request | None = None) -> Exception:
    """Return the error for the model: its words and hints are ours, and hold no secret."""
    if not isinstance(error, LumaError):
        return error
    said = " ".join([str(error), *getattr(error, "__notes__", [])])
    if request is not None:
        said += f' (key "{request.key}")'
    return ToolError(said)


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

    At the end of the block no more is submitted; a submission under way gets its answer, and the
    journal its id, so that the next server continues.

    Args:
        client: The client.
        journal: The file that keeps track, so that no call pays twice.
        download: The only directory in which files are written.
        inputs: The only directory from which files are read; None for none.
        patience: Seconds after which a call returns, finished or not: less than the limit of
            the agent's client, which is often a minute.
        max_submissions: New requests that this server may submit; None for no limit.
        max_per_day: The same in any 24 hours, over restarts; None for no limit.
        models: The models that are allowed; the first is the default. Empty for all.
        types: The types that are allowed; the first is the default. Empty for all.
        poller: Waits for the generations; by default one with an `AdaptiveWait`.

    Yields:
        The server, to be served by `serve_stdio`, or by its own `streamable_http_app`.

    Raises:
        ConfigurationError: An argument is unusable.
        JournalError: The journal cannot be used.
    """
    check_count("max_submissions", max_submissions)
    check_count("max_per_day", max_per_day)
    if check_positive("patience", patience) is None:
        raise ConfigurationError("patience is a number of seconds, not None")
    root = None if inputs is None else Path(inputs)
    if root is not None and not await anyio.Path(root).is_dir():
        raise ConfigurationError(f"inputs: there is no directory {root}")
    await anyio.Path(download).mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        tools = _Tools(
            client,
            stack.enter_context(Journal(journal)),
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
        pays = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True)
        reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True)
        server.tool(title="Make an image or video", annotations=pays)(tools.generate)
        saves = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True)
        server.tool(title="Wait for a generation", annotations=saves)(tools.wait_for)
        server.tool(title="Look at a generation", annotations=reads)(tools.generation)
        server.tool(title="List what was submitted", annotations=reads)(tools.journal)
        async with tools.background:
            yield server
            tools.background.cancel_scope.cancel()


async def serve_stdio(server: MCPServer[Any]) -> None:
    """Serve over standard input and output until the input ends, or the call is cancelled."""
    # The library's own reader cannot be cancelled before the next line comes, which may be never.
    lines = cast("anyio.AsyncFile[str]", _Lines(os.dup(sys.stdin.fileno())))
    lowlevel = server._lowlevel_server
    async with stdio_server(stdin=lines) as (incoming, outgoing):
        await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())


class _Lines:
    """The lines of a descriptor, read so that the reader can be cancelled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""

    def __aiter__(self) -> _Lines:
        return self

    async def __anext__(self) -> str:
        while b"\n" not in self._rest:
            found = await self._read()
            if not found:
                raise StopAsyncIteration
            self._rest += found
            if len(self._rest) > LONGEST_LINE:  # nobody who speaks the protocol sends that
                raise StopAsyncIteration
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")

    async def _read(self) -> bytes:
        if os.name == "posix":
            # Not in a thread: one that is left behind keeps the process from ending.
            with suppress(PermissionError):  # a file is always readable, and cannot be waited for
                await anyio.wait_readable(self._descriptor)
            return os.read(self._descriptor, 65536)
        read = functools.partial(os.read, self._descriptor, 65536)
        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
