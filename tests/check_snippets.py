"""Check the types of the snippets in the README and in docs/, with both checkers.

    python -m tests.check_snippets

mypy sees them in its strict mode, pyright as an editor shows them by default. The snippets of a
page are one module: what a snippet defines, the next ones may use.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.test_docs import ROOT, WITH_SNIPPETS, name_of

ALLOWED = [
    "top-level-await",  # as in a notebook
    "import-untyped",  # Celery and Django have no types
    "untyped-decorator",
    "no-redef",  # a later snippet may define a function again
]

AT_TOP_LEVEL = (
    "outside async function  [syntax]",
    '"await" allowed only within async function',
    'Use of "async" not allowed outside of async function',
    "asynchronous comprehension outside async function  [syntax]",
)
"""How complaints about `await`, `async with` and `async for` end: they have no code."""

PYRIGHT = {
    "reportRedeclaration": False,
    "reportMissingTypeStubs": False,
    "reportMissingModuleSource": False,
}
"""What differs from its defaults: as in `ALLOWED`."""


def as_module(page: Path) -> str:
    """The page with all but its snippets blanked out: line numbers stay those of the page."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" or (inside and not fence)
    return "\n".join(lines) + "\n"


def mypy(directory: Path, names: list[str]) -> list[str]:
    """Return the complaints of its strict mode."""
    allowed = [f"--disable-error-code={code}" for code in ALLOWED]
    command = [sys.executable, "-m", "mypy", "--config-file=", "--strict", *allowed]
    command += ["--allow-redefinition", f"--cache-dir={ROOT}/.mypy_cache", "--no-pretty"]
    command += [str(directory / f"{name}.py") for name in names]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode > 1:
        raise RuntimeError(result.stdout + result.stderr)
    return [line for line in result.stdout.splitlines() if ": error: " in line]


def pyright(directory: Path) -> list[str]:
    """Return the complaints of its defaults."""
    (directory / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    command += ["--project", str(directory)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode > 1:
        raise RuntimeError(result.stdout + result.stderr)
    return [
        f"{found['file']}:{found['range']['start']['line'] + 1}: error: {found['message']}"
        for found in json.loads(result.stdout)["generalDiagnostics"]
        if found["severity"] == "error"
    ]


def main() -> int:
    """Print the complaints with the names of the pages; return 1 if there are any."""
    pages = {re.sub(r"\W", "_", name_of(page).removesuffix(".md")): page for page in WITH_SNIPPETS}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for module, page in pages.items():
            (directory / f"{module}.py").write_text(as_module(page))
        report = "\n".join([*mypy(directory, list(pages)), *pyright(directory)])
        for module, page in pages.items():
            report = report.replace(str(directory / f"{module}.py"), name_of(page))
    errors = [line for line in report.splitlines() if not line.endswith(AT_TOP_LEVEL)]
    print(*(errors or [f"no errors in {len(pages)} pages"]), sep="\n")
    return bool(errors)


if __name__ == "__main__":
    sys.exit(main())
