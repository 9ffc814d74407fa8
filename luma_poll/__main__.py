"""The command `luma-poll`, also `python -m luma_poll`."""

import sys


def main() -> None:
    """Run the command line, or say how to install it."""
    try:
        from luma_poll.cli import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("luma_poll"):
            raise
        print(f"The command line needs {error.name}: pip install 'luma-poll[cli]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name="luma-poll")


if __name__ == "__main__":
    main()
