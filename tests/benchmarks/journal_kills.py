"""Kill a process that submits with a journal, again and again, and count what became of it all.

    python tests/benchmarks/journal_kills.py [--rounds 25] [--number 300]

First by kill -9, then by SIGTERM. Of the unknown it counts how many the API had accepted.
"""

import argparse
import asyncio
import signal
import tempfile
import time
from pathlib import Path

from tests.journal.kills import campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print("signal    rounds  keys  completed  unknown  of them accepted  twice  lost  seconds")
    for end_by in (signal.SIGKILL, signal.SIGTERM):
        with tempfile.TemporaryDirectory() as directory:
            began = time.monotonic()
            tally = asyncio.run(
                campaign(
                    Path(directory),
                    options.rounds,
                    options.number,
                    end_by=end_by,
                    backend=options.backend,
                    seed=options.seed,
                )
            )
        print(
            f"{end_by.name:8}{tally.rounds:>8}{options.number:>6}{tally.completed:>11}"
            f"{tally.unknown:>9}{tally.unknown_accepted:>18}{tally.twice:>7}{tally.lost:>6}"
            f"{time.monotonic() - began:>9.0f}"
        )


if __name__ == "__main__":
    main()
