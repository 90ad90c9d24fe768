"""`curves.png`: the four losses and the learning rate of a run over its iterations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jrdp.engine.log import read_log
from jrdp.evaluation.curves import new_figure, png_bytes
from jrdp.files import write_bytes


def plot_curves(log: Path, target: Path) -> None:
    """Plot `log.jsonl` to a PNG; every loss thin as logged and thick as a running mean over 1/50 of the run."""
    records = read_log(log)
    if not records:
        return
    iterations = np.array([record["iteration"] for record in records])
    window = max(1, len(records) // 50)
    figure = new_figure(10, 6)
    axes = figure.subplots(2, 3).ravel()
    names = ("loss", "loss_cls", "loss_reg", "loss_centerness", "loss_mask", "lr")
    for axis, name in zip(axes, names):
        values = np.array([record[name] for record in records])
        axis.set_title(name)
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        if name == "lr":
            axis.plot(iterations, values, color="tab:gray")
            continue
        axis.plot(iterations, values, color="tab:blue", alpha=0.25, linewidth=0.8)
        if window > 1:
            smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
            axis.plot(iterations[window - 1 :], smooth, color="tab:blue", linewidth=1.8)
        axis.set_ylim(bottom=0)
    write_bytes(target, png_bytes(figure))
