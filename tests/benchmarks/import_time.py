"""What `import luma_poll` costs beside its peers, in milliseconds without Python's own.

    python tests/benchmarks/import_time.py

Each figure is the least of several fresh processes, which take turns. Needs the `dev` extra.
"""

import argparse
import subprocess
import sys
import time

MODULES = ["luma_poll", "luma_agents", "httpx", "pydantic"]


def seconds(code: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    codes = {"": "pass"} | {module: f"import {module}" for module in MODULES}
    for code in codes.values():
        seconds(code)  # writes the compiled files, and warms the disk's cache
    rounds = [{name: seconds(code) for name, code in codes.items()} for _ in range(options.rounds)]
    best = {name: min(figures[name] for figures in rounds) for name in codes}
    took = {name: best[name] - best[""] for name in MODULES}
    print("| import | took | / official SDK |\n|---|---|---|")
    for name in MODULES:
        print(f"| {name} | {took[name] * 1000:.0f} ms | {took[name] / took['luma_agents']:.2f} |")


if __name__ == "__main__":
    main()
