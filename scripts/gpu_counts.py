"""Count what a prediction and a training step make the GPU do: launches, library calls, copies, waits, bytes, memory.

    tests/softgpu/run.sh python scripts/gpu_counts.py --size 160x256 --training-size 96x128 --write docs/gpu.md

Runs on the software GPU (tests/softgpu), which counts; a card would need a profiler. Random weights, R-50, pictures of noise
with one annotated instance each; every case runs twice before it is counted. Prints two tables: what is counted, and for our
own kernels the bytes that they load and store beside their floor, every input read once and every output written once.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jrdp.machine import runtime

CASES = {"prediction, 1 picture": 1, "prediction, 4 pictures": 4, "training step, 4 pictures": 4}
LIMITS = {  # launches and library calls together, copies up, copies down, waits
    "prediction": {"launches and calls": 400, "up": 4, "down": 4, "waits": 4},
    "training": {"launches and calls": 1300, "up": 12, "down": 8, "waits": 12},
}
BEFORE = (
    "Before levels, norms, parameters and checks were joined, a prediction took 608 launches and 139 library calls, 4 copies "
    "down and 6 waits, and a training step 1,430 launches and 393 library calls."
)
BEGIN, END = "<!-- counts: scripts/gpu_counts.py -->", "<!-- end of counts -->"


def kind_of(name: str) -> str:
    """"prediction" or "training"."""
    return name.split()[0].rstrip(",")


class Counter:
    """What the software GPU counts while something runs, and what our operators are given and give."""

    def __init__(self):
        self._library = ctypes.CDLL(os.path.join(os.environ["SOFTGPU_TOP"], "lib", "all.so"))
        self._floors: dict[str, float] = defaultdict(float)
        self._watch_operators()

    def count(self, run) -> dict:
        """The software GPU's statistics of `run()` (tests/softgpu/README.md), and "floors": bytes by header of ours."""
        import jittor as jt

        jt.sync_all(True)
        self._floors.clear()
        self._library.softgpu_forget_statistics()
        run()
        with tempfile.NamedTemporaryFile() as file:
            self._library.softgpu_write_statistics(file.name.encode())
            counted = json.loads(Path(file.name).read_text())
        return {**counted, "floors": dict(self._floors)}

    def _watch_operators(self) -> None:
        from jrdp.ops.compile import Kernels

        run = Kernels.run

        def watched(kernels, source, inputs, shapes, dtypes, data):
            outputs = run(kernels, source, inputs, shapes, dtypes, data)
            # A placeholder for an input that is not there is another of the inputs.
            arrays = {id(value): value for value in [*inputs, *outputs]}.values()
            self._floors[kernels.cuda] += sum(value.numel() * value.dtype.dsize() for value in arrays)
            return outputs

        Kernels.run = watched


def cases(size: tuple[int, int], names: list[str]) -> dict:
    """name -> a function that runs the case once, twice run already."""
    from jrdp.config import parse_config
    from jrdp.engine.network import for_prediction
    from jrdp.engine.steps import training_steps
    from jrdp.models.rdpnet import RDPNet
    from jrdp.structures import ImageBatch, Targets

    height, width = size
    config = parse_config({"solver": {"max_iterations": 3}}, "gpu_counts")
    network = RDPNet(config.model)

    def batch(count: int) -> ImageBatch:
        images = np.random.default_rng(0).normal(0, 50, (count, 3, height, width)).astype(np.float32)
        return ImageBatch(images, [size] * count, [size] * count, list(range(count)))

    def target() -> Targets:
        x1, y1, x2, y2 = width * 0.1, height * 0.2, width * 0.6, height * 0.8
        outline = [np.array([x1, y1, x2, y1, x2, y2, x1, y2])]
        return Targets(np.array([[x1, y1, x2, y2]], np.float32), [outline], [None], size)

    def prediction(count: int):
        predicting = for_prediction(network, config)
        return lambda: predicting.detect(batch(count))

    def training(count: int):
        # One batch more than steps: the next batch is uploaded while a step is computed.
        batches = ((number, batch(count), [target() for _ in range(count)]) for number in range(4))
        longer = config.model_copy(update={"solver": config.solver.model_copy(update={"max_iterations": 4})})
        steps = training_steps(network, batches, longer)
        return lambda: next(steps)

    runs = {}
    for name in names:
        runs[name] = run = (prediction if name.startswith("prediction") else training)(CASES[name])
        run(), run()
    return runs


def summary(counted: dict) -> dict:
    """The numbers of a row."""
    launches = sum(kernel["launches"] for kernel in counted["kernels"].values())
    calls = sum(call["calls"] for call in counted["calls"].values())
    copies = {way: counted["copies"].get(f"{way} to {other}", {"count": 0, "bytes": 0}) for way, other in
              (("host", "device"), ("device", "host"))}
    return {
        "launches": launches,
        "calls": calls,
        "launches and calls": launches + calls,
        "up": copies["host"]["count"],
        "up bytes": copies["host"]["bytes"],
        "down": copies["device"]["count"],
        "down bytes": copies["device"]["bytes"],
        "waits": counted["synchronisations"] + counted["implied_by_blocking_copies"],
        "peak memory": counted["peak_memory"],
    }


def kernels_of_headers() -> dict[str, str]:
    """Kernel name -> the header of ours that it is written in."""
    from jrdp.ops.compile import KERNELS

    kernel = re.compile(r"__global__ void\s*(?:__launch_bounds__\(.*?\))?\s*(\w+)\(", re.DOTALL)
    return {name: header.name for header in sorted(KERNELS.glob("*.cuh")) for name in kernel.findall(header.read_text())}


def own_kernels(counted: dict) -> dict[str, dict]:
    """By header: launches, bytes loaded and stored, and the floor."""
    headers = kernels_of_headers()
    found: dict[str, dict] = {}
    for mangled, kernel in counted["kernels"].items():
        length = re.match(r"_Z(\d+)", mangled)
        name = mangled[length.end() : length.end() + int(length.group(1))] if length else mangled
        if name in headers:
            row = found.setdefault(headers[name], {"launches": 0, "bytes": 0, "floor": 0})
            row["launches"] += kernel["launches"]
            row["bytes"] += kernel["loaded"] + kernel["stored"]
    for header, floor in counted["floors"].items():
        # nms.cuh is a part of the operator in decode.cuh.
        found.setdefault(header, {"launches": 0, "bytes": 0, "floor": 0})["floor"] += floor
    return found


def tables(sizes: dict[str, str], counted: dict[str, dict]) -> str:
    """Both tables as Markdown; sizes: of the pictures of "prediction" and "training"."""
    of = " and ".join(f"{sizes[kind]} for {kind}" for kind in sizes if any(name.startswith(kind) for name in counted))
    lines = [
        f"R-50, pictures of {of}. {BEFORE}",
        "",
        "| | launches | library calls | copies up | copies down | waits | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, numbers in counted.items():
        row = summary(numbers)
        lines.append(
            f"| {name} | {row['launches']} | {row['calls']} | {row['up']} ({row['up bytes'] / 1e6:.2f} MB) | "
            f"{row['down']} ({row['down bytes'] / 1e6:.2f} MB) | {row['waits']} | {row['peak memory'] / 1e6:.0f} MB |"
        )
    lines += [
        "",
        "Our kernels: launches, and the megabytes that they load and store / their floor, every input of the operator read once "
        "and every output written once, what they need in between included.",
        "",
        f"| kernels | {' | '.join(counted)} |",
        f"| --- |{' --- |' * len(counted)}",
    ]
    own = {name: own_kernels(numbers) for name, numbers in counted.items()}
    for header in sorted({header for rows in own.values() for header in rows}):
        cells = []
        for rows in own.values():
            row = rows.get(header)
            floor = f" / {row['floor'] / 1e6:.1f}" if row and row["floor"] else ""
            cells.append(f"{row['launches']}: {row['bytes'] / 1e6:.1f}{floor}" if row else "")
        lines.append(f"| `{header}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Put `text` between the two marks of the document."""
    document = path.read_text(encoding="utf-8")
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        sys.exit(f"{path} has not the marks {BEGIN} and {END} once each")
    head, rest = document.split(BEGIN)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(arguments: argparse.Namespace) -> None:
    if "SOFTGPU_TOP" not in os.environ:
        sys.exit("this counts on the software GPU only: tests/softgpu/run.sh python scripts/gpu_counts.py")
    os.environ.setdefault("SOFTGPU_STATS", os.devnull)  # without a file it does not count
    runtime.own_process()
    runtime.start("cuda", seed=1)
    counter = Counter()
    sizes = {"prediction": arguments.size, "training": arguments.training_size or arguments.size}
    names = [name for name in CASES if arguments.case is None or name.startswith(arguments.case)]
    counted = {}
    for name in names:
        height, width = (int(length) for length in sizes[kind_of(name)].split("x"))
        (run,) = cases((height, width), [name]).values()
        counted[name] = counter.count(run)
        print(f"{name}: {summary(counted[name])}", file=sys.stderr, flush=True)
    text = tables(sizes, counted)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({name: summary(numbers) for name, numbers in counted.items()}, indent=1))
    if arguments.kernels:
        Path(arguments.kernels).write_text(json.dumps(counted, indent=1))
    if arguments.write:
        write(Path(arguments.write), text)
    over = [
        f"{name}: {what} {summary(numbers)[what]}, at most {most}"
        for name, numbers in counted.items()
        for what, most in LIMITS[kind_of(name)].items()
        if summary(numbers)[what] > most
    ]
    if over:
        sys.exit("over the limits: " + "; ".join(over))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="320x480", help="height x width of the pictures (320x480); multiples of 32")
    parser.add_argument("--training-size", help="of the training step's pictures, which takes long (as --size)")
    parser.add_argument("--case", choices=["prediction", "training"], help="only these")
    parser.add_argument("--write", metavar="FILE", help="put the tables between the marks of this document")
    parser.add_argument("--json", metavar="FILE", help="the numbers of the first table")
    parser.add_argument("--kernels", metavar="FILE", help="everything that was counted, kernel by kernel")
    main(parser.parse_args())
