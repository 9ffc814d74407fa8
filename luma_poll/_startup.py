"""Ctrl-C while the command `luma-poll` is still importing: exit code 130, without a traceback.

Most of that time passes in the imports of this package, before its `__main__` can catch anything.
"""

import os
import signal
import sys


def _is_the_command() -> bool:
    """True in the process of `luma-poll`, never in a program that uses the library."""
    if sys.argv[:1] == ["-m"]:  # as long as runpy imports the package
        return sys.orig_argv[-len(sys.argv)] in ("luma_poll", "-mluma_poll")
    name, _ = os.path.splitext(os.path.basename(sys.argv[0] if sys.argv else ""))
    return name == "luma-poll"


if _is_the_command():  # nothing is open yet that would have to be closed
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
