"""The command `luma-poll`, also `python -m luma_poll`."""

import sys

HOW_TO_INSTALL = """\
The command line needs {missing}, which comes with the extra "cli". Install it with your tool:
  pip install "luma-poll[cli]"
  pipx install --force "luma-poll[cli]"
  uv tool install "luma-poll[cli]"
  uvx --from "luma-poll[cli]" luma-poll"""


def main() -> None:
    """Run the command line, or say how to install it."""
    try:
        from luma_poll._cli.commands import run

        run()
    except KeyboardInterrupt:
        # An import may run code of its own by exec(), as namedtuple does. CPython remembers that
        # this was interrupted, and `python -m` would end by the signal; the next exec() forgets it.
        exec("")
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = (error.name or "luma_poll").partition(".")[0]
        if missing == "luma_poll":
            raise
        print(HOW_TO_INSTALL.format(missing=missing), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
