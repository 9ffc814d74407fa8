"""Requests from a file: a prompt per line, JSON, or a table; checked as a whole."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, cast, get_args, overload

from luma_poll._api.known_parameters import unknown_names
from luma_poll._api.parameters import Params
from luma_poll._api.request_body import LISTS_OF_MEDIA, MEDIA_PLACES
from luma_poll._arguments import shown
from luma_poll._journal.fingerprint import fingerprint
from luma_poll._running.requests import Keys, read_request
from luma_poll._texts import reason_of
from luma_poll.errors import ConfigurationError

RequestFormat: TypeAlias = Literal["text", "jsonl", "json", "csv", "tsv"]
FORMATS: Final[Mapping[str, RequestFormat]] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
"""The format for each ending of a file's name."""
TEXT_COLUMNS: Final = (
    "prompt",
    "key",
    "model",
    "type",
    "aspect_ratio",
    "output_format",
    "style",
    "user_id",
)
"""Columns whose cells are always text, even if they look like a number: a key may be 17."""
MOST_PROBLEMS: Final = 50
"""Problems that one error lists."""
_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_Numbered: TypeAlias = Iterator[tuple[int, Any]]


class _UnreadableError(Exception):
    """A problem with one line, after which nothing can be read."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def requests_from(
    path: str | os.PathLike[str] | IO[bytes],
    *,
    format: RequestFormat | None = None,  # noqa: A002 (the word that people look for)
    defaults: Mapping[str, object] | None = None,
    extra_parameters: Collection[str] = (),
) -> RequestFile:
    """Read the requests in a file, for `run_all` and `as_completed`.

    The whole file is read and checked now, before anything is submitted. One error lists all
    problems with their lines.

        results = await runner.run_all(luma_poll.requests_from("products.csv"))

    - `.txt`: a prompt per line. Blank lines, and lines that begin with `#`, are skipped.
    - `.jsonl`, `.ndjson`: a prompt, or an object of parameters, per line.
    - `.json`: an array of these.
    - `.csv`, `.tsv`: the first row names the parameters, with dots for nested ones
      (`video.duration`, `image_ref.0`). An empty cell means "not given".

    `prompt` and `key` are names like the others. A reference to an image or a video may be a URL,
    or a path relative to the file.

    Args:
        path: The path of the file, or a file that is open for reading bytes.
        format: The format of the file, if its name does not tell.
        defaults: Parameters for every request that does not have its own.
        extra_parameters: Names to accept besides the known ones, such as new parameters of the API.

    Returns:
        A sequence of mappings.

    Raises:
        ConfigurationError: The file cannot be read, has no request, or has problems.
    """
    return RequestFile(path, format, defaults or {}, extra_parameters)


class RequestFile(Sequence[Params]):
    """The requests in a file that has been checked, as `requests_from` returns them.

    Attributes:
        name: The name of the file, for messages.
        lines: The number of the line on which each request begins.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | IO[bytes],
        form: RequestFormat | None,
        defaults: Mapping[str, object],
        extra_parameters: Collection[str],
    ) -> None:
        self.name: str
        if isinstance(path, (str, os.PathLike)):
            self._path, self.name = Path(path), str(path)
            read = self._path.read_bytes
        else:
            self._path, read = Path(), path.read
            self.name = "standard input" if getattr(path, "name", 0) == "<stdin>" else "the file"
        self._format = self._checked_format(form)
        try:
            content = read()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read {self.name}: {_reason(error)}") from None
        if not isinstance(content, bytes):
            raise ConfigurationError("the file is open as text: use mode 'rb'")
        self._is_sure = form is not None
        self._defaults = {name: value for name, value in defaults.items() if value is not None}
        self._extra = extra_parameters
        self.lines: list[int] = []
        self._requests: list[Params] = []
        self._read(content)

    def __len__(self) -> int:
        return len(self._requests)

    @overload
    def __getitem__(self, index: int) -> Params: ...
    @overload
    def __getitem__(self, index: slice) -> list[Params]: ...
    def __getitem__(self, index: int | slice) -> Params | list[Params]:
        return self._requests[index]

    def __repr__(self) -> str:
        return f"<{len(self)} requests from {self.name}>"

    def _checked_format(self, form: str | None) -> RequestFormat:
        known = get_args(RequestFormat)
        if form is not None and form not in known:
            raise ConfigurationError(f"format is one of {', '.join(known)}, not {shown(form)}")
        found = form or FORMATS.get(self._path.suffix.lower())
        if found is None:
            ends = ", ".join(FORMATS)
            raise ConfigurationError(
                f"{self.name}: the name does not tell the format: use one of {ends}, or give the "
                f"format ({', '.join(known)})"
            )
        return cast(RequestFormat, found)

    def _read(self, content: bytes) -> None:
        """Check the whole file, and raise one error with all problems."""
        problems: list[str] = []
        lines_of_keys: dict[str, int] = {}
        try:
            for line, given in self._rows(content):
                try:
                    self._requests.append(self._checked(given, line, lines_of_keys))
                    self.lines.append(line)
                except ConfigurationError as error:
                    problems.append(f"line {line}: {error}")
        except _UnreadableError as error:
            problems.append(f"line {error.line}: {error}")
        if problems:
            raise self._error(problems)
        if not self._requests:
            raise ConfigurationError(f"there is no prompt in {self.name}")

    def _error(self, problems: list[str]) -> ConfigurationError:
        if len(problems) == 1:
            return ConfigurationError(f"{self.name}, {problems[0]}")
        left = len(problems) - MOST_PROBLEMS
        told = [*problems[:MOST_PROBLEMS], *([f"and {left} more"] if left > 0 else [])]
        return ConfigurationError(
            f"{self.name} has {len(problems)} problems, and nothing was submitted: "
            + "; ".join(told),
            problems=told,
        )

    def _checked(self, given: object, line: int, lines_of_keys: dict[str, int]) -> Params:
        if isinstance(given, ConfigurationError):
            raise given
        request = self._request(given)
        for name, nearest in unknown_names({**request, "key": None}, self._extra):
            hint = f": do you mean {nearest}?" if nearest else ""
            raise ConfigurationError(f"there is no parameter {name!r}{hint}")
        key = read_request(request).key
        if key is not None and (first := lines_of_keys.setdefault(key, line)) != line:
            raise ConfigurationError(f"the key {key!r} is also on line {first}")
        return request

    def _request(self, given: object) -> Params:
        if isinstance(given, str):
            given = {"prompt": given}
        if not isinstance(given, dict):
            raise ConfigurationError("a request is a prompt or an object of parameters")
        request: Params = self._with_paths("", {**self._defaults, **given})
        return request

    def _with_paths(self, place: str, value: object) -> Any:
        """Return parameters in which each text in place of a reference is a URL or a path."""
        if isinstance(value, dict):
            dot = f"{place}." if place else ""
            return {name: self._with_paths(f"{dot}{name}", item) for name, item in value.items()}
        if place in LISTS_OF_MEDIA and isinstance(value, str):
            value = [value]  # a cell of a table holds one reference
        if isinstance(value, list):
            return [self._with_paths(f"{place}[{n}]", item) for n, item in enumerate(value)]
        if isinstance(value, str) and MEDIA_PLACES.fullmatch(place):
            if value.lower().startswith(("https://", "http://")):
                return {"url": value}
            return self._path.parent / Path(value).expanduser()
        return value

    def _rows(self, content: bytes) -> _Numbered:
        """Yield the line of each request with its content, or with its problem."""
        text = _decoded(content)
        lines = io.StringIO(text, newline="\n")
        match self._format:
            case "text":
                return self._read_text(lines)
            case "jsonl":
                return _read_jsonl(lines)
            case "json":
                return _read_json(text)
            case "csv":  # Excel writes semicolons where the comma is part of numbers
                return self._read_table(lines, ",;")
            case _:
                return self._read_table(lines, "\t")

    def _read_text(self, text: Iterable[str]) -> _Numbered:
        is_first = True
        for number, line in enumerate(text, 1):
            prompt = line.strip()
            if not prompt or prompt.startswith("#"):
                continue
            if not self._is_sure and (odd := _looks_structured(prompt, is_first)):
                raise _UnreadableError(
                    number,
                    f"{odd}, not a prompt: give the file another name, or the format 'text'",
                )
            is_first = False
            yield number, prompt

    def _read_table(self, text: Iterable[str], delimiters: str) -> _Numbered:
        lines = iter(text)
        header = next(lines, "")
        # Excel writes semicolons in locales in which the comma is part of a number.
        delimiter = next((each for each in delimiters if each in header), delimiters[0])
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error as error:
            raise _UnreadableError(1, f"it is not a row of a table ({error})") from None
        if twice := [name for name, times in Counter(names).items() if name and times > 1]:
            raise _UnreadableError(1, f"two columns are called {twice[0]!r}")
        if "prompt" not in names and "prompt" not in self._defaults and "type" not in names:
            raise _UnreadableError(1, "no column is called 'prompt'")
        rows, begin = csv.reader(lines, delimiter=delimiter, strict=True), 2
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise _UnreadableError(begin, f"it is not a row of a table ({error})") from None
            if any(cell.strip() for cell in row):
                try:
                    yield begin, _request_of(names, row)
                except ConfigurationError as error:
                    yield begin, error
            begin = rows.line_num + 2


@dataclass
class Overview:
    """A summary of what would be submitted.

    Attributes:
        count: The number of requests.
        models: The number of requests for each model; an empty name is the API's default.
        types: The number of requests for each type, likewise.
        keys: The key of each request, given or made from its parameters, in order.
        media: The files, bytes and images of all requests, by name: the size of each in bytes, and
            how often it occurs.
    """

    count: int = 0
    models: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    keys: list[str] = field(default_factory=list)
    media: dict[str, tuple[int, int]] = field(default_factory=dict)


def overview(requests: Iterable[object]) -> Overview:
    """Look at requests without submitting any; this reads the files that they refer to.

    Raises:
        ConfigurationError: A request is unusable.
    """
    found, keys = Overview(), Keys()
    for given in requests:
        request = read_request(given)
        found.count += 1
        found.models[str(request.params.get("model", ""))] += 1
        found.types[str(request.params.get("type", ""))] += 1
        key = keys.of(fingerprint(request.params)) if request.key is None else request.key
        found.keys.append(key)
        for each in request.local_media:
            size, times = found.media.get(each.name, (each.size, 0))
            found.media[each.name] = size, times + 1
    return found


def _decoded(content: bytes) -> str:
    mark, encoding = next((each for each in _MARKS if content.startswith(each[0])), (b"", "utf-8"))
    content = content[len(mark) :] if encoding == "utf-8" else content
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, "ignore")
        raise _UnreadableError(before.count("\n") + 1, f"it is not {encoding.upper()}") from None
    if encoding == "utf-8" and (nul := text.find("\0")) >= 0:
        raise _UnreadableError(
            text.count("\n", 0, nul) + 1,
            "has NUL characters: it may be UTF-16 without a mark; save it as UTF-8",
        )
    return text


def _read_jsonl(lines: Iterable[str]) -> _Numbered:
    for number, line in enumerate(lines, 1):
        if (content := line.strip()) and not content.startswith("#"):
            try:
                yield number, _parse(content)
            except ConfigurationError as error:
                yield number, error


def _read_json(text: str) -> _Numbered:
    try:
        items = _parse(text)
    except ConfigurationError as error:
        raise _UnreadableError(getattr(error, "line", 1), str(error)) from None
    if not isinstance(items, list):
        raise _UnreadableError(1, "it is not a JSON array")
    yield from zip(_lines_of_items(text, len(items)), items, strict=True)


def _looks_structured(line: str, is_first: bool) -> str | None:
    """Return what a line of text looks like, if it does not look like a prompt."""
    try:
        value = json.loads(line.rstrip(","))
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, (dict, list)) or line in ("[", "]", "{", "}", "],", "},"):
        return "it looks like JSON"
    cells = [cell.strip(' "').lower() for cell in re.split(r"[,;\t]", line)]
    if is_first and "prompt" in cells:
        return "it looks like the header of a table"
    if re.fullmatch(r"(?i)-?\s*[\"']?prompts?[\"']?\s*:.*", line):
        return "it looks like YAML"
    return None


class _NoJSONError(ConfigurationError):
    """The error for text that is not JSON; `line` says where."""

    line = 1


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except ConfigurationError:
        raise
    except json.JSONDecodeError as error:
        problem = _NoJSONError(f"not JSON: {error.msg} at character {error.colno}")
        problem.line = error.lineno
    except (ValueError, RecursionError) as error:
        problem = _NoJSONError(f"not JSON: {error}")
    raise problem


def _without_repetition(pairs: list[tuple[str, object]]) -> Params:
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise ConfigurationError(f"{name!r} is given {times} times")
    return dict(pairs)


def _lines_of_items(content: str, count: int) -> Iterator[int]:
    """Yield the line on which each item of a valid array begins."""
    decoder = json.JSONDecoder()
    place, line, seen = content.index("[") + 1, 1, 0
    for _ in range(count):
        found = re.compile(r"[\s,]*").match(content, place)
        place = found.end() if found else place
        line += content.count("\n", seen, place)
        seen = place
        yield line
        _, place = decoder.raw_decode(content, place)


def _request_of(names: list[str], row: list[str]) -> Params:
    """Return the request in a row of a table."""
    if len(row) > len(names):
        raise ConfigurationError(f"it has {len(row)} cells, the header has {len(names)}")
    request: Params = {}
    for name, cell in zip(names, row, strict=False):
        if not cell.strip():
            continue
        if not name:
            raise ConfigurationError(f"the column with {cell[:50]!r} has no name")
        _put(request, name, _value(name, cell))
    return {name: _as_lists(value) for name, value in request.items()}


def _value(name: str, cell: str) -> Any:
    text = cell.strip()
    if name in TEXT_COLUMNS:
        if text.lower() == "nan":
            raise ConfigurationError(f"{name} is {text}: is it an empty cell from pandas?")
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text[0] in "[{" or re.fullmatch(r"-?[\d.]+([eE][-+]?\d+)?|NaN|null", text):
        try:
            return _parse(text)
        except _NoJSONError as error:
            raise ConfigurationError(f"{name}: {error}") from None
    return text


def _put(request: Params, name: str, value: object) -> None:
    """Put the value of a cell into the place that the dots in its column's name give."""
    *path, last = name.split(".")
    for step in path:
        request = request.setdefault(step, {})
        if not isinstance(request, dict):
            raise ConfigurationError(f"the columns for {name!r} contradict each other")
    if last in request:
        raise ConfigurationError(f"the columns for {name!r} contradict each other")
    request[last] = value


def _as_lists(value: object) -> Any:
    """Return nested columns, with those whose names are numbers made into lists."""
    if not isinstance(value, dict):
        return value
    items = {name: _as_lists(item) for name, item in value.items()}
    if items and all(name.isdigit() for name in items):
        return [items[name] for name in sorted(items, key=int)]
    return items


def _reason(error: Exception) -> str:
    return reason_of(error) if isinstance(error, OSError) else str(error)
