"""The benchmark of docs/speed.md: `python scripts/benchmark.py OUT [--twin-python PYTHON] [--rounds N] [--threads N]`.

Writes OUT/bench.json and prints the tables; `jrdp bench` is the same with more options.
"""

import argparse
import sys
from pathlib import Path

from jrdp.comparison.timing.bench import BenchOptions, run_bench
from jrdp.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--twin-python", help="a Python that has torch; without it Jittor alone")
    parser.add_argument("--compiled", action="store_true", help="also against the twin compiled with frozen weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-training", action="store_true", help="leave out the training step")
    chosen = parser.parse_args()
    options = BenchOptions(
        twin_python=chosen.twin_python,
        compiled=chosen.compiled,
        rounds=chosen.rounds,
        threads=chosen.threads,
        training=not chosen.no_training,
    )
    try:
        run_bench(options, chosen.out)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
