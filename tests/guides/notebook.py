"""The notebook beside docs/notebooks.md, made of its text and its snippets.

python -m tests.guides.notebook
"""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/notebooks.md"
NOTEBOOK = PAGE.parent / "examples/notebook.ipynb"
SITE = "https://luma-poll.github.io/luma-poll/"


def as_notebook() -> dict[str, Any]:
    """The page as a notebook of version 4.5, without outputs."""
    cells: list[dict[str, Any]] = []
    parts = re.split(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    for number, part in enumerate(parts):
        text = part.strip()
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if number % 2:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": [], "source": text}
        else:
            linked = re.sub(r"\]\((\w[\w-]*)\.md", rf"]({SITE}\1", text)
            cell |= {"cell_type": "markdown", "source": linked}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [cell for cell in cells if cell["source"]],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


if __name__ == "__main__":
    NOTEBOOK.write_text(json.dumps(as_notebook(), indent=1, ensure_ascii=False) + "\n")
