"""A Markdown extension of the site: a figure and its unit stay on one line."""

import re
from typing import Any
from xml.etree.ElementTree import Element

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor

UNITS = "s|ms|µs|min|minutes?|hours?|seconds?|[kMG]B|[KMG]iB|%|units?|times|generations|prompts"
GAP = re.compile(rf"(?<=\d) (?=(?:{UNITS})\b|%)|(?<=\d) (?=± )|(?<=± )(?=\d)")


def bind(text: str) -> str:
    """Put no-break spaces into the figures of a text."""
    return GAP.sub("\N{NO-BREAK SPACE}", text).replace("± ", "±\N{NO-BREAK SPACE}")


class Figures(Treeprocessor):
    """Binds the figures of all text that is not code."""

    def run(self, root: Element) -> None:
        """Do so in this element and all below it."""
        for element in root.iter():
            if element.tag not in ("code", "pre") and element.text:
                element.text = bind(element.text)
            if element.tail:
                element.tail = bind(element.tail)


class FiguresExtension(Extension):
    """Adds `Figures`."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Add it after all that makes text, and before text becomes HTML."""
        md.treeprocessors.register(Figures(md), "figures", 0)


def makeExtension(**options: Any) -> Extension:  # noqa: N802
    """Return the extension, as Python-Markdown asks for it."""
    return FiguresExtension(**options)
