"""Pictures a second of `jrdp predict` with one job and with several, beside the network alone, in turn:

    python scripts/throughput.py PICTURES --weights FILE [--jobs 2 4] [--rounds 5] [-- OPTIONS OF jrdp predict]

Times are of the whole command, from the start of Python to the last file, so PICTURES should be a folder of a hundred
or more. The network alone is given the same batches, read and resized before, in a process that has started; what it
finds is dropped. A first round compiles kernels and fills the file cache; it is not counted. Unless OMP_NUM_THREADS is
set, one job has all cores and several jobs share them. Exits with 1 when the jobs' results differ.
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
    command = [sys.executable, "-m", "jrdp", "predict", str(pictures), "--weights", str(weights)]
    started = time.monotonic()
    done = subprocess.run([*command, "--out", str(out), "--jobs", str(jobs), *options], capture_output=True, text=True)
    if done.returncode not in (0, 1):  # 1: a picture was skipped
        raise UserError(f"jrdp predict --jobs {jobs} failed: {done.stderr.strip()}")
    return time.monotonic() - started


def network(pictures: Path, weights: Path, options: list) -> float:
    """Seconds that the network takes for all pictures, in a process of its own."""
    command = [sys.executable, __file__, str(pictures), "--weights", str(weights), "--network-only", "--", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the network alone failed: {done.stderr.strip()}")
    return float(done.stdout.split()[-1])


def time_network(pictures: Path, weights: Path, options: list) -> float:
    """What `network` asks another process for; `options` are `--set KEY=VALUE` of `jrdp predict`."""
    import jrdp
    from jrdp.data.transforms import batch_images, prepare_image, read_image
    from jrdp.engine.inference import detect_batch

    overrides = [value for name, value in zip(options, options[1:]) if name == "--set"]
    model = jrdp.load(weights, overrides=overrides)
    size = model.config.test.batch_size
    images = [prepare_image(read_image(path, upright=model.upright), model.config.input) for path in list_pictures([pictures])]
    batches = [batch_images(images[start : start + size]) for start in range(0, len(images), size)]
    detect_batch(model.engine, batches[0])  # starts threads
    started = time.monotonic()
    for batch in batches:
        detect_batch(model.engine, batch)
    return time.monotonic() - started


def measure(pictures: Path, weights: Path, jobs: list, rounds: int, options: list) -> bool:
    """Print the table; returns whether every number of jobs gave the same predictions.json."""
    total = len(list_pictures([pictures]))
    seconds = {count: [] for count in jobs}
    alone = []
    results = {}
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="jrdp-throughput-") as folder:
        for number in range(rounds + 1):
            alone.append(network(pictures, weights, options))
            print(f"round {number} of {rounds}, the network alone: {alone[-1]:.1f} s", flush=True)
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
    print(f"\nthe network alone: {statistics.median(alone[1:]):.3g} s")
    for count in jobs:
        ratios = [taken / needed for taken, needed in zip(seconds[count], alone[1:])]
        print(f"--jobs {count} takes {statistics.median(ratios):.3g} of it ({min(ratios):.3g} to {max(ratios):.3g})")
    print(f"same predictions.json: {'yes' if same else 'NO'}")
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
    parser.add_argument("--network-only", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(own)
    if chosen.network_only:
        print(time_network(chosen.pictures, chosen.weights, options))
        return 0
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
