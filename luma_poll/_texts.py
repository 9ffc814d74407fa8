"""Texts from outside, made harmless: for UTF-8, for one line of a log, for a limited memory."""

from __future__ import annotations

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """Replace what no encoding can write: halves of surrogate pairs.

    JSON has them wherever something like JavaScript's `slice` has cut an emoji, and Python's own
    parser reads them. Two halves side by side are the character that they make.
    """
    if text.isascii() or not _SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
