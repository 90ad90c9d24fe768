"""`jrdp compare speed`: both frameworks in turn in one run, part by part, on the same input and, unless asked, device."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jrdp.comparison.exchange import save_arrays, save_batch
from jrdp.comparison.pair import Options, Pair, open_pair, refuse_idle_precision
from jrdp.comparison.report import Report, new_figure, text_table, versions_text
from jrdp.comparison.worker import TRAINING_STEPS
from jrdp.data.transforms import batch_images, prepare_image, read_image
from jrdp.files import make_folder
from jrdp.structures import ImageBatch, Targets

ROIS = 100
WARM_UP = 2  # untimed runs of each part: kernels are compiled and caches filled


def compare_speed(
    options: Options,
    pictures: list[Path],
    out: Path,
    rounds: int = 7,
    training: bool = False,
    compiled: bool = False,
    most: float | None = None,
    print_line=print,
) -> bool:
    """Time and write the report; false when the network's ratio is above `most`.

    In each round every part runs once in Jittor and once in PyTorch, the first of the two changing from round to
    round. A ratio is the median of the rounds' own ratios, so that a slow moment of the machine meets both sides.
    """
    options.threads, options.timing = options.threads or os.cpu_count(), True
    report = Report("Speed: Jittor against PyTorch")
    with open_pair(options) as pair:
        refuse_idle_precision(pair.config, pair.options.engine)
        make_folder(out)  # a folder that cannot be written to is noticed before the work
        batch, rois = pair.folder / "batch.npz", pair.folder / "rois.npz"
        images, targets = _input(pair, pictures)
        save_batch(batch, images, targets)
        save_arrays(rois, {"rois": _rois(images.sizes[0], options.seed)})
        ours = pair.jittor.ask("prepare_timing", batch=str(batch), rois=str(rois), compiled=False)
        theirs = pair.torch.ask("prepare_timing", batch=str(batch), rois=str(rois), compiled=compiled)
        parts = [part for part in ours if training or part not in TRAINING_STEPS]
        seconds = {part: _alternate(pair, part, part in theirs, rounds) for part in parts}
        memory = {"jittor": pair.jittor.ask("memory"), "torch": pair.torch.ask("memory")}
        versions = pair.versions
    rows = [_row(part, seconds[part]) for part in parts]
    by_part = dict(zip(parts, rows))
    network = by_part["network"]["ratio"]
    if most is not None and not network <= most:
        report.failures.append(f"the network takes {network:.2f} of PyTorch's time, more than {most:g}")

    height, width = images.sizes[0]
    mode = "compiled with frozen weights" if compiled else "eager"
    conditions = (
        f"one picture of {height}x{width}, {ROIS} RoIs, {options.threads} threads on each side, "
        f"{rounds} rounds in turn after {WARM_UP} warm-up runs, device {options.device}"
        f"{' with TF32' if options.tf32 else ''}"
        f"{'' if options.same_device else f' and the twin on {options.device_of_twin}'}, "
        f"Jittor {options.engine}{' in bfloat16' if pair.config.test.precision == 'bfloat16' else ''}, "
        f"PyTorch {mode}; {versions_text(versions)}"
    )
    report.text(conditions)
    columns = ["part", "Jittor ms", "PyTorch ms", "ratio", "least", "most"]
    cells = [[r["part"], r["jittor_ms"], r["torch_ms"], r["ratio"], r["least"], r["most"]] for r in rows]
    cells = [["-" if value is None else value for value in row] for row in cells]
    report.plot(_plot(rows), "Medians; a bar that is shorter is faster")
    report.table(columns, cells)
    report.text("ratio: Jittor's time over PyTorch's, the median of the rounds; least and most: of the rounds.")
    report.heading("Peak memory")
    kinds = list(memory["jittor"] | memory["torch"])
    memory_rows = [[kind, *(memory[side].get(kind, "-") for side in ("jittor", "torch"))] for kind in kinds]
    report.table(["MiB", "Jittor", "PyTorch"], memory_rows)
    report.write(out, {"conditions": conditions, "parts": rows, "seconds": seconds, "memory_mib": memory})
    print_line(conditions)
    print_line(text_table(columns, cells))
    print_line(text_table(["peak MiB", "Jittor", "PyTorch"], memory_rows))
    return report.verdict(out, print_line)


def _alternate(pair: Pair, part: str, both: bool, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; `both` is false for a part that the twin does not have."""
    seconds: dict[str, list[float]] = {"jittor": [], "torch": []}
    sides = [("jittor", pair.jittor), ("torch", pair.torch)] if both else [("jittor", pair.jittor)]
    for number in range(-WARM_UP, rounds):
        for name, worker in sides if number % 2 == 0 else reversed(sides):
            took = worker.ask("time", part=part)
            if number >= 0:
                seconds[name].append(took)
    return seconds


def _row(part: str, seconds: dict[str, list[float]]) -> dict:
    ours, theirs = np.array(seconds["jittor"]), np.array(seconds["torch"])
    row = {"part": part, "jittor_ms": 1e3 * float(np.median(ours)), "torch_ms": None}
    row |= {"ratio": None, "least": None, "most": None}
    if len(theirs):
        ratios = ours / theirs
        row["torch_ms"] = 1e3 * float(np.median(theirs))
        row |= {"ratio": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max())}
    return row


def _input(pair: Pair, pictures: list[Path]) -> tuple[ImageBatch, list[Targets]]:
    """One picture, or noise of 320x480, with one square instance for the training step."""
    if pictures:
        batch = batch_images([prepare_image(read_image(pictures[0]), pair.config.input)])
    else:
        noise = np.random.default_rng(0).normal(0, 60, (1, 3, 320, 480)).astype(np.float32)
        batch = ImageBatch(noise, [(320, 480)], [(320, 480)], [0])
    height, width = batch.sizes[0]
    x1, y1, x2, y2 = width * 0.25, height * 0.25, width * 0.75, height * 0.75
    outline = np.array([x1, y1, x2, y1, x2, y2, x1, y2])
    box = np.array([[x1, y1, x2, y2]], np.float32)
    return batch, [Targets(box, [[outline]], [None], (height, width))]


def _rois(size: tuple[int, int], seed: int) -> np.ndarray:
    """`ROIS` boxes of 20 pixels and more inside a picture of (height, width): float32 [R, 5]."""
    generator = np.random.default_rng(seed)
    height, width = size
    x1, y1 = generator.uniform(0, width - 21, ROIS), generator.uniform(0, height - 21, ROIS)
    x2, y2 = generator.uniform(x1 + 20, width - 1), generator.uniform(y1 + 20, height - 1)
    return np.stack([np.zeros(ROIS), x1, y1, x2, y2], axis=1).astype(np.float32)


def _plot(rows: list[dict]):
    figure, axes = new_figure(9, 3.6)
    positions = np.arange(len(rows))
    axes.barh(positions + 0.2, [row["jittor_ms"] for row in rows], 0.4, label="Jittor", color="#3b75af")
    axes.barh(positions - 0.2, [row["torch_ms"] or 0 for row in rows], 0.4, label="PyTorch", color="#c77b30")
    axes.set_yticks(positions, [row["part"] for row in rows])
    axes.set_xlabel("ms")
    axes.legend()
    return figure
