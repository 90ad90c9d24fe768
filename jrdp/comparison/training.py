"""`jrdp compare training`: a number of SGD steps in both frameworks from one start and one order of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jrdp.comparison.batches import training_batches
from jrdp.comparison.exchange import load_arrays
from jrdp.comparison.pair import Options, open_pair
from jrdp.comparison.report import Report, new_figure, text_table, versions_text
from jrdp.files import make_folder

LOSSES = ("loss_cls", "loss_reg", "loss_centerness", "loss_mask")


def compare_training(
    options: Options,
    datasets: list[str],
    out: Path,
    steps: int = 10,
    first_tolerance: float = 1e-5,
    loss_tolerance: float = 0.02,
    parameter_tolerance: float = 0.05,
    print_line=print,
) -> bool:
    """Train both sides and write the report; true when everything is within tolerance.

    first_tolerance: relative, of each loss at step 1, where both sides still hold the same weights. loss_tolerance:
    relative, of the total loss at any step; later steps depend on discrete choices (which proposals are positive), so
    rounding grows. parameter_tolerance: distance of the two final parameter vectors over the way travelled from the
    start.
    """
    report = Report(f"{steps} training steps from one start: Jittor against PyTorch")
    history = []
    with open_pair(options) as pair:
        make_folder(out)  # a folder that cannot be written to is noticed before the work
        for step, batch in enumerate(
            training_batches(pair.config, datasets, options.seed, steps, pair.folder), start=1
        ):
            ours = pair.jittor.ask("step", batch=str(batch), iteration=step)
            theirs = pair.torch.ask("step", batch=str(batch), iteration=step)
            history.append({"step": step, "jittor": ours, "torch": theirs})
            print_line(f"step {step}: loss {_total(ours):.6f} (Jittor) {_total(theirs):.6f} (PyTorch)")
        ours_path, theirs_path = pair.folder / "jittor.npz", pair.folder / "torch.npz"
        pair.jittor.ask("save", out=str(ours_path))
        pair.torch.ask("save", out=str(theirs_path))
        ours, theirs = load_arrays(ours_path), load_arrays(theirs_path)
        distances = [_distance(name, ours[name], theirs[name], pair.start[name]) for name in pair.trainable]
        frozen = [name for name in pair.start if name not in pair.trainable]
        moved = [n for n in frozen if not np.array_equal(ours[n], theirs[n])]
        versions, differing = pair.versions, pair.differing

    for name in LOSSES:
        error = _relative(history[0]["jittor"][name], history[0]["torch"][name])
        if not error <= first_tolerance:
            report.failures.append(f"{name} of step 1 differs by {error:.3g} (tolerance {first_tolerance:g})")
    errors = [_relative(_total(entry["jittor"]), _total(entry["torch"])) for entry in history]
    if not max(errors) <= loss_tolerance:
        first = next(i for i, error in enumerate(errors) if not error <= loss_tolerance)
        report.failures.append(
            f"the total loss differs by {errors[first]:.3g} at step {first + 1} (tolerance {loss_tolerance:g})"
        )
    apart = float(np.sqrt(sum(d["apart"] ** 2 for d in distances)))
    travelled = float(np.sqrt(sum(d["travelled"] ** 2 for d in distances)))
    share = apart / travelled if travelled else apart
    if not share <= parameter_tolerance:
        report.failures.append(
            f"the parameters ended {share:.3g} of the way travelled apart (tolerance {parameter_tolerance:g})"
        )
    if moved:
        report.failures.append(f"{len(moved)} frozen tensors differ at the end, first {moved[0]}")

    report.text(f"Weights at the start: {options.weights or 'synthetic'}; {versions_text(versions)}")
    if differing:
        report.text(f"The two weight files differ in {len(differing)} tensor(s): {', '.join(differing[:10])}")
    report.plot(_plot(history), "Each loss over the steps: Jittor drawn thin over PyTorch drawn broad")
    report.heading("Parameters at the end")
    report.text(f"Distance of the two parameter vectors: {apart:.3g}, that is {share:.3g} of the way travelled.")
    distances.sort(key=lambda d: -d["apart"])
    rows = [[d["name"], d["apart"], d["travelled"], d["share"]] for d in distances]
    report.table(["parameter", "apart", "travelled", "share"], rows)
    columns = ["step", *[f"{n} {side}" for n in LOSSES for side in ("J", "P")], "total differs by"]
    cells = [
        [e["step"], *[e[side][n] for n in LOSSES for side in ("jittor", "torch")], error]
        for e, error in zip(history, errors)
    ]
    report.heading("Losses")
    report.table(columns, cells, [not error <= loss_tolerance for error in errors])
    report.write(
        out,
        {
            "tolerances": {"first": first_tolerance, "loss": loss_tolerance, "parameters": parameter_tolerance},
            "steps": history,
            "total_loss_errors": errors,
            "parameters": {"apart": apart, "travelled": travelled, "share": share, "each": distances},
            "differing_tensors": differing,
        },
    )
    summary = [
        ["worst loss at step 1", max(_relative(history[0]["jittor"][n], history[0]["torch"][n]) for n in LOSSES)],
        ["total loss, worst step", max(errors)],
        ["parameters apart / travelled", share],
    ]
    print_line(text_table(["difference", "relative"], summary))
    return report.verdict(out, print_line)


def _distance(name: str, ours: np.ndarray, theirs: np.ndarray, start: np.ndarray) -> dict:
    apart = float(np.linalg.norm(ours.astype(np.float64) - theirs))
    travelled = float(np.linalg.norm(theirs.astype(np.float64) - start))
    return {"name": name, "apart": apart, "travelled": travelled, "share": apart / travelled if travelled else apart}


def _total(losses: dict[str, float]) -> float:
    return sum(losses[name] for name in LOSSES)


def _relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs) if theirs else abs(ours)


def _plot(history: list[dict]):
    figure, axes = new_figure(10, 4)
    steps = [entry["step"] for entry in history]
    for index, name in enumerate(LOSSES):
        colour = f"C{index}"
        axes.plot(steps, [e["torch"][name] for e in history], color=colour, linewidth=5, alpha=0.35)
        axes.plot(steps, [e["jittor"][name] for e in history], color=colour, linewidth=1.2, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    return figure
