"""Text from outside, made safe for a terminal."""

import json
import re

# Control characters, those that end a line, and those that turn the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    r"""Write what would command a terminal, or end a line, as JSON does: `\u001b`, `\n`.

    A line of JSON means the same afterwards.
    """
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)
