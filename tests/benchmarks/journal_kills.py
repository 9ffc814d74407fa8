"""Kill a process that submits with a journal, again and again, and count what became of it all.

    python tests/benchmarks/journal_kills.py [--rounds 25] [--number 300]

By kill -9, SIGTERM, SIGHUP, and by kill -9 of a process whose forks end all the time. Of the
unknown it counts how many the API had accepted.
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
    print("ended by         rounds  keys  completed  unknown  of them accepted  twice  lost  s")
    ways = [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGHUP, False)]
    for end_by, forks in [*ways, (signal.SIGKILL, True)]:
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
                    forks=forks,
                )
            )
        way = f"{end_by.name}{', forks' if forks else ''}"
        print(
            f"{way:15}{tally.rounds:>8}{options.number:>6}{tally.completed:>11}"
            f"{tally.unknown:>9}{tally.unknown_accepted:>18}{tally.twice:>7}{tally.lost:>6}"
            f"{time.monotonic() - began:>3.0f}"
        )


if __name__ == "__main__":
    main()
