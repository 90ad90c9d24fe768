"""`curves.png`: losses, learning rate and, where a run tested itself on the way, AP over its iterations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jrdp.engine.log import read_log
from jrdp.evaluation.curves import new_figure, plain_text, png_bytes
from jrdp.files import write_bytes


def plot_curves(log: Path, target: Path) -> None:
    """Plot `log.jsonl` to a PNG; every loss thin as logged and thick as a running mean over 1/50 of the run."""
    records = read_log(log)
    if not records:
        return
    names = [name for name in records[-1] if name.startswith("loss")] + ["lr"]
    records = [record for record in records if set(names) <= set(record)]  # a network may change its losses
    iterations = np.array([record["iteration"] for record in records])
    window = max(1, len(records) // 50)
    tested = [record for record in records if record.get("metrics")]
    columns = -(-(len(names) + bool(tested)) // 2)
    figure = new_figure(10 * columns / 3, 6)
    axes = figure.subplots(2, columns).ravel()
    for axis in axes[len(names) + bool(tested) :]:
        axis.set_axis_off()
    if tested:
        _plot_metrics(axes[len(names)], tested)
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


def _plot_metrics(axis, records: list[dict]) -> None:
    """The masks' AP of every test set, at the iterations that were tested."""
    for test_set in records[0]["metrics"]:
        known = [record for record in records if test_set in record["metrics"]]
        values = [record["metrics"][test_set]["segm"]["AP"] for record in known]
        label = plain_text(test_set[-30:])
        axis.plot([record["iteration"] for record in known], values, marker="o", label=label)
    axis.set_title("mask AP")
    axis.set_xlabel("iteration")
    axis.grid(alpha=0.3)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")
