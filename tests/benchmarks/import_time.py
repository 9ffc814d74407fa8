"""What `import luma_poll` costs beside its peers: milliseconds of processor time.

    python tests/benchmarks/import_time.py

Each figure is the least of several fresh processes, which take turns. Needs the `dev` extra.
"""

import argparse
import json
import subprocess
import sys

MODULES = ["luma_poll", "luma_agents", "httpx", "pydantic"]
CODE = "import time; began = time.process_time(); import {}; print(time.process_time() - began)"


def seconds(module: str) -> float:
    return float(subprocess.check_output([sys.executable, "-c", CODE.format(module)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    options = parser.parse_args()
    rounds = [{name: seconds(name) for name in MODULES} for _ in range(options.rounds)]
    took = {name: min(figures[name] for figures in rounds) for name in MODULES}
    if options.json:
        sdk = took["luma_agents"]
        rows = [{"module": k, "seconds": v, "to_sdk": v / sdk} for k, v in took.items()]
        print(json.dumps(rows))
        return
    print("| import | took | / official SDK |\n|---|---|---|")
    for name in MODULES:
        print(f"| {name} | {took[name] * 1000:.0f} ms | {took[name] / took['luma_agents']:.2f} |")


if __name__ == "__main__":
    main()
