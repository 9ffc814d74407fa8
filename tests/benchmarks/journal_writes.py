"""Count the requests that a journal records in a second, and how long a large one takes to open.

    python tests/benchmarks/journal_writes.py [--number 300] [--entries 100000] [--directory .]

A request is three changes: the intent, the id and the end, each of them on disk before the next.
"""

import argparse
import tempfile
import time
from pathlib import Path

from luma_poll import Journal
from luma_poll._journal.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--directory", default=".", help="a directory of the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "runs.db"
        store = Store(path)
        began = time.perf_counter()
        for number in range(options.number):
            record(store, number)
        seconds = time.perf_counter() - began
        print(f"{1000 * seconds / options.number:.2f} ms a request, on this disk")
        store._database.connection.execute("PRAGMA synchronous = OFF")  # to fill it is not measured
        for number in range(options.number, options.entries):
            record(store, number)
        store.close()
        began = time.perf_counter()
        Journal(path).close()
        seconds = time.perf_counter() - began
        size = path.stat().st_size / 1e6
        print(f"{seconds:.2f} s to open one of {options.entries:,} requests ({size:.0f} MB)")


def record(store: Store, number: int) -> None:
    key, generation_id = f"k{number}", f"id-{number}"
    store.begin(key, "f" * 64, {"prompt": "x" * 100}, 1)
    store.accept(key, 1, generation_id)
    store.end(key, generation_id, "completed", None, None)


if __name__ == "__main__":
    main()
