"""The page of benchmarks, from the figures that the benchmarks' own commands print as JSON.

    python -m tests.benchmarks.page                      measure all, and write docs/benchmarks.md
    python -m tests.benchmarks.page --only cpu_per_get   measure this, and keep the others' figures
    python -m tests.benchmarks.page --show               write it from the figures of the last time

The figures are kept in docs/benchmarks.json. No figure on the page is typed by hand.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FIGURES, PAGE = ROOT / "docs/benchmarks.json", ROOT / "docs/benchmarks.md"
VERSIONS = ["luma-poll", "luma-agents", "httpx", "anyio", "pydantic", "tenacity", "httpx-aiohttp"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A section of the page.

    Attributes:
        title: Of the section.
        about: What is measured, without any figure of the results.
        command: What follows `python`; `--json` is added.
        columns: The heading of each column, and the format of its cells.
    """

    title: str
    about: str
    command: str
    columns: Mapping[str, str]


BENCHMARKS = {
    "makespan": Benchmark(
        "Two hundred prompts on one account",
        "The account runs 10 units at once and takes 30 a minute. Each prompt takes about 30 s; in "
        "the mixed batch one in five is an edit that weighs three units. *Ideal* is the least "
        "possible time, for a scheduler that knows all durations beforehand. `gather` starts all "
        "at once with the official SDK, `semaphore` ten at a time, `endless` is that with endless "
        "retries. Simulated time, so the figures do not depend on the machine.",
        "-m tests.benchmarks.makespan --account 10/30 --solution gather semaphore endless runner",
        {
            "batch": "{weights}",
            "solution": "{name}",
            "took": "{makespan:,.0f} s",
            "/ ideal": "{ratio:.2f}",
            "prompts lost": "{lost:.0f}",
            "refused submissions": "{refused:.0f}",
            "polls each": "{polls:.1f}",
        },
    ),
    "many_waits": Benchmark(
        "Many waits at once",
        "All generations end after 10 s, an answer takes 100 ms, everybody polls every 2 s, "
        "without limits. Client and server have one core each. *Ideal* is 10.1 s. The peer is "
        "`asyncio.gather` over a loop around the official SDK's `generations.get`.",
        "tests/benchmarks/many_waits.py --waits 100 1000",
        {
            "waits": "{waits:,}",
            "client": "{peer}",
            "took": "{seconds:.1f} s",
            "/ ideal": "{to_ideal:.2f}",
            "processor": "{cpu:.1f} s",
            "polls": "{polls:,}",
        },
    ),
    "cpu_per_get": Benchmark(
        "The processor time of a `get`",
        "With so many of them under way at the same time, on loopback. `httpx` only fetches; the "
        "others read the generation, too.",
        "tests/benchmarks/cpu_per_get.py",
        {
            "under way": "{under_way}",
            "httpx": "{httpx:.2f} ms",
            "official SDK": "{official SDK:.2f} ms",
            "luma-poll": "{luma-poll:.2f} ms",
            "luma-poll, aiohttp": "{luma-poll, aiohttp:.2f} ms",
            "/ httpx": "{to_httpx:.2f}",
            "/ SDK": "{to_sdk:.2f}",
        },
    ),
    "growth": Benchmark(
        "The cost of a poll as the waits become more",
        "The library alone: every wait polls every 20 s, and the client answers at once. The "
        "garbage collector is off.",
        "-m tests.benchmarks.growth --polls 5000",
        {
            "waits": "{waits:,}",
            "429s": "{throttled}",
            "a poll": "{microseconds:.0f} µs",
            "ratio": "{to_first:.2f}",
            "longest stall": "{stall_ms:.1f} ms",
        },
    ),
    "memory_per_wait": Benchmark(
        "The memory of a wait",
        "What a process grows by, for each of 5,000.",
        "tests/benchmarks/memory_per_wait.py",
        {"each": "{kind}", "memory": "{kib:.1f} KiB", "beyond a task": "{beyond_kib:.1f} KiB"},
    ),
    "import_time": Benchmark(
        "The time of an import",
        "Processor time, in fresh processes, with everything installed that the tests need.",
        "tests/benchmarks/import_time.py",
        {"import": "`{module}`", "took": "{ms:.0f} ms", "/ official SDK": "{to_sdk:.2f}"},
    ),
}


# --- measuring -----------------------------------------------------------------------------------


def measure(name: str) -> dict[str, Any]:
    """The machine, and the rows of a benchmark."""
    command = [sys.executable, *shlex.split(BENCHMARKS[name].command), "--json"]
    here = machine()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {"machine": here, "rows": json.loads(done.stdout)}


def machine() -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in VERSIONS},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


# --- the page ------------------------------------------------------------------------------------


def as_shown(name: str, rows: Sequence[Row]) -> list[Row]:
    """The rows with what a table needs besides."""
    match name:
        case "makespan":
            return _means(rows)
        case "memory_per_wait":
            return [
                {**row, "kib": row["bytes"] / 1024, "beyond_kib": row["beyond_task"] / 1024}
                for row in rows
            ]
        case "import_time":
            return [{**row, "ms": row["seconds"] * 1000} for row in rows]
    return list(rows)


def _means(rows: Sequence[Row]) -> list[Row]:
    """Of the batches with the same weights and solution."""
    shown: list[Row] = []
    for weights, solution in dict.fromkeys((row["weights"], row["solution"]) for row in rows):
        same = [r for r in rows if (r["weights"], r["solution"]) == (weights, solution)]
        refused = fmean(row["refused_concurrency"] + row["refused_rate"] for row in same)
        keys = ("makespan", "ratio", "lost", "polls")
        means = {key: fmean(row[key] for row in same) for key in keys}
        name = "luma-poll's `Runner`" if solution == "runner" else solution
        shown.append({"weights": weights, "name": name, "refused": refused, **means})
    return shown


def cell(template: str, row: Row) -> str:
    """A figure; empty where it was not measured, and no ratio where work was lost."""
    if row.get("lost") and "ratio" in template:
        return "-"
    try:
        return template.format(**row)
    except KeyError:
        return ""


def table(benchmark: Benchmark, rows: Sequence[Row]) -> str:
    titles, templates = list(benchmark.columns), benchmark.columns.values()
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        cells = [cell(template, row) for template in templates]
        if "failed" in row:
            cells[titles.index("took")] = row["failed"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def circumstances(about: Row) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (
        f"Measured on {about['date']} with {about['python']} on {about['system']}, "
        f"{about['cores']} cores ({about['processor']}), load {about['load']} at the start. "
        f"{versions}."
    )


def page(figures: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [
        "# Benchmarks",
        "This page is written by `python -m tests.benchmarks.page`, from what the commands below "
        "measured. Every ratio is of two things that took turns on the same machine, so it says "
        "more than the figures beside it.",
    ]
    for name, benchmark in BENCHMARKS.items():
        if name not in figures:
            continue
        parts += [f"## {benchmark.title}", benchmark.about]
        if name == "makespan":
            parts.append("![The ten slots over time, for one of the mixed batches](makespan.svg)")
        rows = as_shown(name, figures[name]["rows"])
        parts += [table(benchmark, rows), circumstances(figures[name]["machine"])]
        parts.append(f"```console\npython {benchmark.command}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--show", action="store_true", help="without measuring again")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args()
    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name in [] if options.show else options.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures[name] = measure(name)
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(page(figures))


if __name__ == "__main__":
    main()
