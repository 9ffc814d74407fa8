"""The pictures of the docs, each made by a command.

    python -m tests.pictures                    all of them, into docs/
    python -m tests.pictures makespan structure

demo: the terminal of `luma-poll demo`. makespan: two hundred prompts on one account. structure: who
imports whom. example-page: the page of the example app, which needs chromium and chromedriver.
docs/adaptive-wait.svg is made by tests/benchmarks/adaptive_wait.py.
"""

import argparse
import base64
import json
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.segment import ControlType, Segment
from rich.text import Text
from selenium.webdriver.common.by import By

from luma_poll._cli.demo_command import run_demo
from luma_poll.sandbox import DEFAULT_ACCOUNT, Sandbox
from tests import test_fastapi_page as example
from tests.benchmarks import makespan
from tests.benchmarks.page import FIGURES
from tests.browser import open_browser
from tests.test_exports import ABOVE, BASE
from tests.virtual_time import VirtualTimeLoop

DOCS = Path(__file__).parent.parent / "docs"
STYLE = """<style>
  text { font: 13px system-ui, sans-serif; fill: #333 } .small { font-size: 11px; fill: #666 }
  .page { fill: #fff }
  .strong { font-weight: 600 } .grid { stroke: #ddd; fill: none }
  .unit { stroke: #8fb8e8; fill: none } .heavy { stroke: #2a78d6; fill: none }
  .ours .unit { stroke: #f0a27e } .ours .heavy { stroke: #d9551f } .ours .strong { fill: #c2501c }
  .box { fill: #f4f4f2; stroke: #ccc } .door { fill: #fdebe3; stroke: #e0662f }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .small { fill: #999 } .grid { stroke: #3a3a3a } .page { fill: #17181c }
    .unit { stroke: #3d6695 } .heavy { stroke: #6aa9f0 }
    .ours .unit { stroke: #9a5636 } .ours .heavy { stroke: #ff9a66 } .ours .strong { fill: #ff9a66 }
    .box { fill: #26272b; stroke: #555 } .door { fill: #3a2a22; stroke: #e0662f }
  }
</style>"""


def svg(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    # Its own ground: a page may be dark in a browser that asks for light pictures.
    ground = f'<rect class="page" width="{width:g}" height="{height:g}" rx="8"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, ground, *parts, "</svg>", ""])


def label(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


# --- the demo ------------------------------------------------------------------------------------


class Screen(StringIO):
    """A terminal, as far as the table asks."""

    def isatty(self) -> bool:
        return True


def draw_demo() -> None:
    """As the terminal looks at the end."""
    width, command = 92, "$ luma-poll demo"
    terminal = Console(
        file=Screen(), record=True, force_terminal=True, width=width, height=60, highlight=False
    )
    terminal.print(Text(command))
    anyio.run(run_demo, terminal, terminal)
    picture = Console(file=StringIO(), record=True, width=width)
    picture._record_buffer[:] = what_is_left(terminal._record_buffer)
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = template.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas")
    drawn = picture.export_svg(title="luma-poll demo", code_format=template, unique_id="demo")
    (DOCS / "demo.svg").write_text(drawn)


def what_is_left(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The segments without what a live display has drawn over."""
    lines: list[list[Segment]] = [[]]
    for segment in segments:
        for code in segment.control or ():
            match tuple(code):
                case (ControlType.CURSOR_UP, int(count)):
                    del lines[-count:]
                case (ControlType.ERASE_IN_LINE, _):
                    lines[-1] = []
        if segment.control:
            continue
        for number, text in enumerate(segment.text.split("\n")):
            if number:
                lines.append([])
            lines[-1].append(Segment(text, segment.style))
    for line in lines:
        yield from [*line, Segment("\n")]


# --- the makespan --------------------------------------------------------------------------------

LEFT, RIGHT, LANE, GAP = 16, 16, 5, 40
WIDTH = 760


def draw_makespan() -> None:
    """The account's slots over time: one strip for each solution, the same prompts in all."""
    requests = makespan.make_requests(True, 0, makespan.PROMPTS)
    strips = {"ideal": makespan.ideal_runs(requests, DEFAULT_ACCOUNT)}
    for name in ("runner", "endless", "semaphore", "gather"):
        random.seed(0)
        options = {"loop_factory": VirtualTimeLoop}
        strips[name] = anyio.run(runs_of, name, requests, backend_options=options)
    # The figures of the page of benchmarks, which counts until the last end was seen.
    figures = {row["solution"]: row for row in first_mixed_batch()}
    figures["ideal"] = {"makespan": figures["runner"]["ideal"], "lost": 0}
    names = {
        "ideal": "the least possible, if all durations were known",
        "runner": "luma-poll: Runner",
        "endless": "official SDK, ten at a time, endless retries",
        "semaphore": "official SDK, ten at a time",
        "gather": "official SDK, asyncio.gather",
    }
    last = max(run.ends for runs in strips.values() for run in runs)
    scale = (WIDTH - LEFT - RIGHT) / last
    slots = DEFAULT_ACCOUNT["max_concurrent"]
    parts, y = [], 0.0
    for name, title in names.items():
        runs, lost = strips[name], figures[name]["lost"]
        end = f"{figures[name]['makespan']:.0f} s" + (f", {lost} of 200 lost" if lost else "")
        parts.append(f'<g class="{"ours" if name == "runner" else ""}">')
        parts.append(label(LEFT, y + 22, title, "strong"))
        parts.append(label(WIDTH - RIGHT, y + 22, end, "", "end"))
        parts += lanes(runs, slots, y + 30, scale)
        parts.append("</g>")
        y += slots * LANE + GAP
    for second in range(0, int(last) + 1, 120):
        x = LEFT + second * scale
        parts.insert(0, f'<path class="grid" d="M{x:.1f} 28V{y:.0f}"/>')
        parts.append(
            label(x, y + 14, f"{second // 60} min", "small", "middle" if second else "start")
        )
    parts += legend(y + 38)
    title = "Two hundred prompts on an account with ten slots, by solution"
    (DOCS / "makespan.svg").write_text(svg(WIDTH, y + 52, title, parts))


def first_mixed_batch() -> list[Mapping[str, Any]]:
    """What was measured of the batch that is drawn."""
    rows = json.loads(FIGURES.read_text())["makespan"]["rows"]
    return [row for row in rows if (row["weights"], row["seed"]) == ("mixed", 0)]


def legend(y: float) -> Iterator[str]:
    """What the bars are, with bars: which of them are darker depends on the colour scheme."""
    x = float(LEFT)
    for kind, text in (("unit", "a generation that weighs one unit"), ("heavy", "three units")):
        for group in ("", "ours"):
            bar = f'<path class="{kind}" stroke-width="{LANE - 1}" d="M{x:g} {y - 4:g}h14"/>'
            yield f'<g class="{group}">{bar}</g>'
            x += 17
        yield label(x + 4, y, text, "small")
        x += 200


async def runs_of(name: str, requests: Sequence[makespan.Request]) -> list[makespan.Run]:
    """What a solution has running on the account, and when."""
    sandbox = Sandbox(seed=1, **DEFAULT_ACCOUNT)
    assert sandbox.running == 0  # also starts the sandbox's clock
    solution, _ = makespan.SOLUTIONS[name]
    await solution(makespan.Wire(sandbox, 0.1), requests, DEFAULT_ACCOUNT["max_concurrent"])
    return [
        makespan.Run(record.at, record.ends, record.units)
        for record in sandbox.submissions
        if record.ends is not None
    ]


def lanes(runs: Sequence[makespan.Run], slots: int, top: float, scale: float) -> Iterator[str]:
    """A path for the runs of one unit, and one for the heavy ones."""
    free_at = [0.0] * slots
    paths: dict[str, list[str]] = {"unit": [], "heavy": []}
    for run in sorted(runs, key=lambda run: run.begins):
        free = [lane for lane in range(slots) if free_at[lane] <= run.begins + 1e-6]
        for lane in free[: run.units]:
            free_at[lane] = run.ends
            x, y = LEFT + run.begins * scale, top + (lane + 0.5) * LANE
            length = (run.ends - run.begins) * scale
            paths["heavy" if run.units > 1 else "unit"].append(f"M{x:.1f} {y:g}h{length:.1f}")
    for kind, path in paths.items():
        yield f'<path class="{kind}" stroke-width="{LANE - 1}" d="{"".join(path)}"/>'


# --- the structure -------------------------------------------------------------------------------

ABOUT = {
    "__main__": "the command",
    "_cli": "commands",
    "fastapi": "dependencies",
    "dbos": "fleets",
    "sync": "no event loop",
    "opentelemetry": "telemetry",
    "_sync": "a loop in a thread",
    "_fleet": "workflows",
    "sandbox": "a simulated API",
    "_running": "Runner, Journal",
    "_client": "LumaClient",
    "_polling": "Poller, schedules",
    "_downloads": "files",
    "problems": "RFC 9457",
    "typing": "types",
}


def draw_structure() -> None:
    """The wings and doors in rows: each imports only from rows below it, as the tests check."""
    rows: dict[int, list[str]] = {}
    for name in ABOVE:
        if name in ABOUT:
            rows.setdefault(height_of(name), []).append(name)
    wide, high, space, width = 126, 44, 14, 720
    parts, y = [], 20.0
    for level in sorted(rows, reverse=True):
        names = rows[level]
        x = (width - len(names) * (wide + space) + space) / 2
        for name in names:
            kind = "box" if name.startswith("_") else "door"
            shape = f'x="{x:g}" y="{y:g}" width="{wide}" height="{high}" rx="6"'
            parts.append(f'<rect class="{kind}" {shape}/>')
            shown = "luma-poll" if name == "__main__" else name
            parts.append(label(x + wide / 2, y + 19, shown, "strong", "middle"))
            parts.append(label(x + wide / 2, y + 35, ABOUT[name], "small", "middle"))
            x += wide + space
        y += high + 22
    shape = f'x="20" y="{y:g}" width="{width - 40}" height="{high}" rx="6"'
    parts.append(f'<rect class="box" {shape}/>')
    shown = ", ".join(name.strip("_") for name in BASE)
    parts.append(label(width / 2, y + 19, "the shared vocabulary", "strong", "middle"))
    parts.append(label(width / 2, y + 35, shown.replace("_", " "), "small", "middle"))
    title = "The modules of luma_poll in rows; each imports only from rows below it"
    (DOCS / "structure.svg").write_text(svg(width, y + high + 20, title, parts))


def height_of(name: str) -> int:
    """One more than that of the highest that it imports."""
    return 1 + max((height_of(each) for each in ABOVE[name]), default=0)


# --- the example's page --------------------------------------------------------------------------


def draw_example_page() -> None:
    """Three generations under way, in a browser."""
    port = example.free_port()
    with (
        tempfile.TemporaryDirectory() as profile,
        example.running_app(port),
        open_browser(profile) as browser,
    ):
        browser.get(f"http://127.0.0.1:{port}")
        for prompt in (
            "a red fox in fresh snow sandbox:duration=4",
            "a lighthouse at dusk sandbox:duration=400",
            "a map drawn by a cat sandbox:fail=content_moderated sandbox:duration=4",
        ):
            example.submit(browser, prompt)
            time.sleep(1)
        time.sleep(3)
        browser.find_element(By.ID, "prompt").clear()
        browser.execute_script("window.scrollTo(0, 0)")
        browser.set_window_size(1000, 1100)
        picture = {"format": "webp", "quality": 80}
        taken = browser.execute_cdp_cmd("Page.captureScreenshot", picture)
        (DOCS / "example-page.webp").write_bytes(base64.b64decode(taken["data"]))


PICTURES = {
    "demo": draw_demo,
    "makespan": draw_makespan,
    "structure": draw_structure,
    "example-page": draw_example_page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("picture", nargs="*", help=", ".join(PICTURES))
    for name in parser.parse_args().picture or PICTURES:
        if name == "example-page" and not shutil.which("chromedriver"):
            print("no chromedriver: docs/example-page.webp stays as it is")
            continue
        PICTURES[name]()


if __name__ == "__main__":
    main()
