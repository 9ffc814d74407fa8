"""Check the types of the snippets in the README and in docs/, as mypy's strict mode sees them.

    python -m tests.check_snippets

The snippets of a page are one module: what a snippet defines, the next ones may use.
"""

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

AT_TOP_LEVEL = "outside async function  [syntax]"
"""How mypy's complaint about `async with` and `async for` ends: it has no code of its own."""


def as_module(page: Path) -> str:
    """The page with all but its snippets blanked out: line numbers stay those of the page."""
    lines, inside = [], False
    for line in page.read_text().splitlines():
        fence = line.startswith("```")
        lines.append(line if inside and not fence else "")
        inside = line == "```python" or (inside and not fence)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print mypy's complaints with the names of the pages; return its exit code."""
    with tempfile.TemporaryDirectory() as directory:
        names = {}
        for page in WITH_SNIPPETS:
            name = re.sub(r"\W", "_", name_of(page).removesuffix(".md"))
            names[name] = name_of(page)
            Path(directory, f"{name}.py").write_text(as_module(page))
        allowed = [f"--disable-error-code={code}" for code in ALLOWED]
        command = [sys.executable, "-m", "mypy", "--config-file=", "--strict", *allowed]
        command += ["--allow-redefinition", f"--cache-dir={ROOT}/.mypy_cache", "--no-pretty"]
        result = subprocess.run(
            [*command, *(f"{directory}/{name}.py" for name in names)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    report = result.stdout
    for name, original in names.items():
        report = report.replace(f"{directory}/{name}.py", original)
    lines = [line for line in report.splitlines() if not line.endswith(AT_TOP_LEVEL)]
    errors = [line for line in lines if ": error: " in line]
    print(*(errors or [f"no errors in {len(names)} pages"]), result.stderr, sep="\n")
    return len(errors) > 0 or result.returncode > 1


if __name__ == "__main__":
    sys.exit(main())
