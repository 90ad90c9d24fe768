"""Pictures a second of `jrdp predict` with one job and with several, in turn:

    python scripts/throughput.py PICTURES --weights FILE [--jobs 2 4] [--rounds 5] [-- OPTIONS OF jrdp predict]

Times are of the whole command, from the start of Python to the last file, so PICTURES should be a folder of a hundred
or more. A first round compiles kernels and fills the file cache; it is not counted. Unless OMP_NUM_THREADS is set, one
job has all cores and several jobs share them. Exits with 1 when the jobs' results differ.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jrdp.comparison.report import machine, text_table
from jrdp.engine.pictures import list_pictures
from jrdp.errors import UserError


def predict(pictures: Path, weights: Path, jobs: int, out: Path, options: list) -> float:
    """Seconds that the command took."""
    command = [sys.executable, "-m", "jrdp.cli", "predict", str(pictures), "--weights", str(weights)]
    started = time.monotonic()
    done = subprocess.run([*command, "--out", str(out), "--jobs", str(jobs), *options], capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: a picture was skipped
        raise UserError(f"jrdp predict --jobs {jobs} failed: {done.stderr.strip()}")
    return time.monotonic() - started


def measure(pictures: Path, weights: Path, jobs: list, rounds: int, options: list) -> bool:
    """Print the table; returns whether every number of jobs gave the same predictions.json."""
    total = len(list_pictures([pictures]))
    seconds = {count: [] for count in jobs}
    results = {}
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="jrdp-throughput-") as folder:
        for number in range(rounds + 1):
            for count in jobs if number % 2 == 0 else reversed(jobs):
                out = Path(folder) / str(count)
                taken = predict(pictures, weights, count, out, options)
                results[count] = (out / "predictions.json").read_bytes()
                if number > 0:
                    seconds[count].append(taken)
                print(f"round {number} of {rounds}, {count} jobs: {taken:.1f} s", flush=True)
    rows = []
    for count in jobs:
        ratios = [taken / first for taken, first in zip(seconds[count], seconds[jobs[0]])]
        median = statistics.median(seconds[count])
        rows.append([str(count), median, total / median, statistics.median(ratios), min(ratios), max(ratios)])
    same = len(set(results.values())) == 1
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"\n{machine()}; {len(os.sched_getaffinity(0))} cores, OMP_NUM_THREADS {threads}")
    print(f"{total} pictures, {rounds} rounds in turn; load average {before:.1f} before (below 1 is quiet)\n")
    print(text_table(["jobs", "seconds", "pictures/s", "ratio of times", "least", "most"], rows))
    print(f"\nsame predictions.json: {'yes' if same else 'NO'}")
    return same


def main() -> int:
    own = sys.argv[1:]
    end = own.index("--") if "--" in own else len(own)
    own, options = own[:end], own[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--jobs", type=int, nargs="+", help="compared with 1; default: the number of cores")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(own)
    others = chosen.jobs or [max(2, len(os.sched_getaffinity(0)))]
    jobs = [1, *(count for count in others if count != 1)]
    if chosen.rounds < 1:
        parser.error("--rounds must be at least 1")
    try:
        return 0 if measure(chosen.pictures, chosen.weights, jobs, chosen.rounds, options) else 1
    except UserError as error:
        print(f"throughput: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
