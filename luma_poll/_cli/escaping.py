"""Text from outside, made safe for a terminal."""

import json
import re

# Control characters, line ends, and marks that change the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    r"""Write characters that would command a terminal, or end a line, as in JSON: `\u001b`, `\n`.

    So the meaning of a line of JSON does not change.
    """
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)
