"""Python without what only POSIX has, as far as this machine can pretend.

`WITHOUT_POSIX=1 pytest` hides it, and skips the tests that are marked `posix`. What the
library does behind `os.name` and `sys.platform` is for Windows itself to show.
"""

import os
import signal
import sys
from typing import Any

import anyio  # noqa: F401  (what others need of these modules, they have by now)
import trio  # noqa: F401

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
OF_OS = ("O_NOFOLLOW", "fork", "forkpty", "pread", "pwrite", "register_at_fork", "ttyname")
SIGNALS = ("SIGHUP", "SIGQUIT", "SIGSTOP")

_open = os.open


def _open_file(path: Any, *args: Any, **options: Any) -> int:
    """Open a file, but no directory."""
    if os.path.isdir(path) and "dir_fd" not in options:
        raise PermissionError(13, "Permission denied", path)
    return _open(path, *args, **options)


def hide() -> None:
    """Hide it from everything that is imported from now on."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for owner, names in ((os, OF_OS), (signal, SIGNALS)):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)
    os.open = _open_file
