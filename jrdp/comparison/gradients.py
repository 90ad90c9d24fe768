"""`jrdp compare gradients`: the losses and every parameter's gradient of one training batch in both frameworks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jrdp.comparison.batches import training_batches
from jrdp.comparison.exchange import load_arrays
from jrdp.comparison.measures import difference
from jrdp.comparison.pair import Options, open_pair
from jrdp.comparison.report import Report, new_figure, text_table, versions_text
from jrdp.files import make_folder


def compare_gradients(
    options: Options,
    datasets: list[str],
    out: Path,
    loss_tolerance: float = 1e-5,
    norm_tolerance: float = 1e-3,
    element_tolerance: float = 3e-3,
    print_line=print,
) -> bool:
    """Compare and write the report; true when everything is within tolerance.

    loss_tolerance: relative, of each loss. norm_tolerance: relative, of each gradient's L2 norm. element_tolerance: the
    worst element, as a share of the gradient's largest element.
    """
    report = Report("Gradients of one training batch: Jittor against PyTorch")
    with open_pair(options) as pair:
        make_folder(out)  # a folder that cannot be written to is noticed before the work
        (batch,) = training_batches(pair.config, datasets, options.seed, 1, pair.folder)
        ours_path, theirs_path = pair.folder / "jittor.npz", pair.folder / "torch.npz"
        losses = pair.jittor.ask("gradients", batch=str(batch), out=str(ours_path))
        twin_losses = pair.torch.ask("gradients", batch=str(batch), out=str(theirs_path))
        ours, theirs = load_arrays(ours_path), load_arrays(theirs_path)
        trainable, versions, differing = pair.trainable, pair.versions, pair.differing
        batch_size = pair.config.solver.batch_size

    loss_rows = [[n, losses[n], twin_losses[n], _relative(losses[n], twin_losses[n])] for n in twin_losses]
    for name, _, _, error in loss_rows:
        if not error <= loss_tolerance:
            report.failures.append(f"{name} differs by {error:.3g} (tolerance {loss_tolerance:g})")
    entries = [_compare_one(name, ours.get(name), theirs.get(name)) for name in trainable]
    for entry in entries:
        entry["over"] = not (entry["norm_error"] <= norm_tolerance and entry["worst_of_scale"] <= element_tolerance)
    over = [entry for entry in entries if entry["over"]]
    if over:
        worst = max(over, key=lambda entry: entry["worst_of_scale"])
        report.failures.append(
            f"{len(over)} of {len(entries)} gradients over tolerance, worst {worst['name']}: norm off by "
            f"{worst['norm_error']:.3g}, worst element by {worst['worst_of_scale']:.3g} of the largest"
        )

    report.text(f"One batch of {batch_size}; weights: {options.weights or 'synthetic'}; {versions_text(versions)}")
    if differing:
        report.text(f"The two weight files differ in {len(differing)} tensor(s): {', '.join(differing[:10])}")
    report.heading("Losses")
    loss_columns = ["loss", "Jittor", "PyTorch", "relative difference"]
    report.table(loss_columns, loss_rows)
    report.heading("Gradients")
    report.plot(_plot(entries, norm_tolerance, element_tolerance), "Every trainable parameter, in network order")
    columns = ["parameter", "relative L2", "norm error", "worst element / largest", "norm"]
    rows = [[e["name"], e["relative_l2"], e["norm_error"], e["worst_of_scale"], e["norm"]] for e in entries]
    report.table(columns, rows, [entry["over"] for entry in entries])
    summary = {
        column: {"median": float(np.median(values)), "worst": float(np.max(values))}
        for column, values in _columns(entries).items()
    }
    report.write(
        out,
        {
            "tolerances": {"loss": loss_tolerance, "norm": norm_tolerance, "element": element_tolerance},
            "losses": {"jittor": losses, "torch": twin_losses},
            "summary": {name: {k: _finite(v) for k, v in values.items()} for name, values in summary.items()},
            "gradients": [{k: _finite(v) for k, v in entry.items()} for entry in entries],
            "differing_tensors": differing,
        },
    )
    print_line(text_table(loss_columns, loss_rows))
    print_line(text_table(["gradients", "median", "worst"], [[n, v["median"], v["worst"]] for n, v in summary.items()]))
    return report.verdict(out, print_line)


def _compare_one(name: str, ours: np.ndarray | None, theirs: np.ndarray | None) -> dict:
    """A parameter that neither side has a gradient for (an unused one) agrees; one side alone does not."""
    if ours is None or theirs is None:
        present = theirs if ours is None else ours
        error = 0.0 if present is None or not present.any() else float("inf")
        return {"name": name, "relative_l2": error, "norm_error": error, "worst_of_scale": error, "norm": 0.0}
    measured = difference(ours, theirs)
    return {
        "name": name,
        "relative_l2": measured.relative,
        "norm_error": measured.norm_error,
        "worst_of_scale": measured.worst_of_scale,
        "norm": measured.norms[1],
    }


def _relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs) if theirs else abs(ours)


def _columns(entries: list[dict]) -> dict[str, list[float]]:
    return {name: [entry[name] for entry in entries] for name in ("relative_l2", "norm_error", "worst_of_scale")}


def _finite(value):
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _plot(entries: list[dict], norm_tolerance: float, element_tolerance: float):
    figure, axes = new_figure(11, 3.8)
    names = {"worst_of_scale": "worst element / largest", "norm_error": "norm"}
    for (key, label), limit, colour in zip(names.items(), (element_tolerance, norm_tolerance), ("#c77b30", "#3b75af")):
        heights = [min(max(entry[key], 1e-9), 10.0) for entry in entries]
        axes.plot(heights, ".", color=colour, label=label, markersize=4)
        axes.axhline(limit, color=colour, linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.set_xlabel("parameter, from the backbone (left) to the mask head (right)")
    axes.set_ylabel("relative error")
    axes.legend()
    return figure
