"""The command `luma-poll`, also `python -m luma_poll`."""

import sys


def main() -> None:
    """Run the command line, or say how to install it."""
    try:
        from luma_poll.cli import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = (error.name or "luma_poll").partition(".")[0]
        if missing == "luma_poll":
            raise
        print(f"The command line needs {missing}: pip install 'luma-poll[cli]'", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
