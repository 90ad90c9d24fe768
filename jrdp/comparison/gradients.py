"""`jrdp compare gradients`: the losses and every parameter's gradient of one training batch in both frameworks.

Judged with one set of decisions and against float64, see `explanation.py` and `floor.py`; how far the gradients are
apart with each side's own decisions is reported beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jrdp.comparison.batches import training_batches
from jrdp.comparison.exchange import load_arrays
from jrdp.comparison.explanation import COLUMNS, impose
from jrdp.comparison.floor import FLOOR, Verdict, judge, weigh
from jrdp.comparison.measures import difference, relative
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
    """Compare and write the report; true when everything is within the noise floor and the tolerances.

    Where the twin is on another device than Jittor there is no floor, and the tolerances alone decide.
    The tolerances are outer bounds of what the floor decides: loss_tolerance, relative, of each loss; norm_tolerance,
    relative L2 of each gradient; element_tolerance, the worst element as a share of the gradient's largest.
    """
    report = Report("Gradients of one training batch: Jittor against PyTorch")
    with open_pair(options) as pair:
        make_folder(out)  # a folder that cannot be written to is noticed before the work
        (batch,) = training_batches(pair.config, datasets, options.seed, 1, pair.folder)
        paths = {name: pair.folder / f"{name}.npz" for name in ("jittor", "torch", "single", "double", "decisions")}
        losses = pair.jittor.ask(
            "gradients", batch=str(batch), out=str(paths["jittor"]), decisions=str(paths["decisions"])
        )
        own_losses = pair.torch.ask("gradients", batch=str(batch), out=str(paths["torch"]))
        imposed = impose(pair, batch, paths["decisions"], (paths["single"], paths["double"]))
        found = {name: load_arrays(paths[name]) for name in ("jittor", "torch", "single", "double")}
        trainable, versions, differing = pair.trainable, pair.versions, pair.differing
        batch_size = pair.config.solver.batch_size

    floor = FLOOR if options.same_device else float("inf")
    loss_verdicts = {
        name: weigh(
            "relative",
            relative(losses[name], imposed.double[name]),
            relative(imposed.single[name], imposed.double[name]),
            loss_tolerance,
            floor=floor,
        )
        for name in own_losses
    }
    report.failures += [f"{name}: {verdict}" for name, verdict in loss_verdicts.items() if not verdict.passed]
    report.failures += imposed.failures()
    verdicts = _with_common_floor(
        {
            name: _judge(
                *(found[side].get(name) for side in ("jittor", "single", "double")), norm_tolerance, element_tolerance
            )
            for name in trainable
        },
        floor,
    )
    over = [(name, verdict) for name, both in verdicts.items() for verdict in both if not verdict.passed]
    if over:
        name, verdict = max(over, key=lambda entry: entry[1].ours)
        count = len({name for name, _ in over})
        report.failures.append(f"{count} of {len(verdicts)} gradients over, worst {name}: {verdict}")

    own = {name: _apart(found["jittor"].get(name), found["torch"].get(name)) for name in trainable}
    report.text(f"One batch of {batch_size}; weights: {options.weights or 'synthetic'}; {versions_text(versions)}")
    if differing:
        words = f"The two weight files differ in {len(differing)} tensor(s): {', '.join(differing[:10])}"
        report.text(words)
        print_line(words)
    report.heading("Losses")
    loss_columns = ["loss", "Jittor", "PyTorch", "float64", "Jittor off by", "PyTorch off by", "allowed"]
    loss_rows = [
        [n, losses[n], imposed.single[n], imposed.double[n], v.ours, v.theirs, min(v.allowed, v.outer)]
        for n, v in loss_verdicts.items()
    ]
    report.table(loss_columns, loss_rows, [not verdict.passed for verdict in loss_verdicts.values()])
    report.heading("Decisions that differ")
    report.text(
        "How many decisions Jittor, and PyTorch in float32, took otherwise than the float64 network, the largest input "
        "at such a place, and how far the two precisions' inputs are apart at most."
    )
    report.text(imposed.words())
    report.table(COLUMNS, imposed.rows())
    report.heading("Gradients")
    report.plot(_plot(list(verdicts.values()), own), "Every trainable parameter, in network order")
    columns = ["parameter", "relative L2: Jittor", "PyTorch", "worst element: Jittor", "PyTorch", "own decisions: L2", "worst"]
    rows = [
        [n, l2.ours, l2.theirs, worst.ours, worst.theirs, own[n][0], own[n][1]] for n, (l2, worst) in verdicts.items()
    ]
    report.table(columns, rows, [not (l2.passed and worst.passed) for l2, worst in verdicts.values()])
    summary = {
        column: {"median": float(np.median(values)), "worst": float(np.max(values))}
        for column, values in {
            "relative L2 from float64, Jittor": [row[1] for row in rows],
            "relative L2 from float64, PyTorch": [row[2] for row in rows],
            "worst element over the largest, Jittor": [row[3] for row in rows],
            "worst element over the largest, PyTorch": [row[4] for row in rows],
            "own decisions, Jittor to PyTorch: relative L2": [row[5] for row in rows],
            "own decisions, Jittor to PyTorch: worst element": [row[6] for row in rows],
        }.items()
    }
    report.write(
        out,
        {
            "tolerances": {"loss": loss_tolerance, "norm": norm_tolerance, "element": element_tolerance},
            "losses": {"jittor": losses, "torch": own_losses},
            "loss_verdicts": {name: verdict.as_json() for name, verdict in loss_verdicts.items()},
            "summary": {name: {k: _finite(v) for k, v in values.items()} for name, values in summary.items()},
            "imposed": imposed.as_json(),
            "gradients": [
                {
                    "name": name,
                    "relative_l2": l2.as_json(),
                    "worst_of_scale": worst.as_json(),
                    "own_decisions": {"relative_l2": _finite(own[name][0]), "worst_of_scale": _finite(own[name][1])},
                }
                for name, (l2, worst) in verdicts.items()
            ],
            "differing_tensors": differing,
        },
    )
    print_line(text_table(loss_columns, loss_rows))
    print_line(f"{imposed.differing} decisions differ from float64's")
    if imposed.rows():
        print_line(text_table(COLUMNS, imposed.rows()))
    print_line(text_table(["gradients", "median", "worst"], [[n, v["median"], v["worst"]] for n, v in summary.items()]))
    return report.verdict(out, print_line)


def _judge(
    ours: np.ndarray | None,
    single: np.ndarray | None,
    double: np.ndarray | None,
    norm_tolerance: float,
    element_tolerance: float,
) -> list[Verdict]:
    """A parameter that no side has a gradient for (an unused one) agrees; one side alone does not."""
    if double is None:
        wrong = 0.0 if ours is None or not ours.any() else float("inf")
        limits = (("relative L2", norm_tolerance), ("worst element over the largest", element_tolerance))
        return [weigh(measure, wrong, 0.0, outer) for measure, outer in limits]
    return judge(np.zeros_like(double) if ours is None else ours, single, double, norm_tolerance, element_tolerance)


def _with_common_floor(verdicts: dict[str, list[Verdict]], floor: float) -> dict[str, list[Verdict]]:
    """The same with PyTorch's distance at least the median over all gradients of the batch.

    A gradient of one number, or of a few, comes out exact by luck now and then; that says nothing about its rounding.
    """
    medians = [float(np.median([both[k].theirs for both in verdicts.values()])) for k in range(2)]
    return {
        name: [weigh(v.measure, v.ours, max(v.theirs, least), v.outer, floor=floor) for v, least in zip(both, medians)]
        for name, both in verdicts.items()
    }


def _apart(ours: np.ndarray | None, theirs: np.ndarray | None) -> tuple[float, float]:
    """Relative L2 and worst element over the largest."""
    if ours is None or theirs is None:
        present = theirs if ours is None else ours
        error = 0.0 if present is None or not present.any() else float("inf")
        return error, error
    measured = difference(ours, theirs)
    return measured.relative, measured.worst_of_scale


def _finite(value):
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _plot(verdicts: list[list[Verdict]], own: dict[str, tuple[float, float]]):
    figure, axes = new_figure(11, 3.8)
    heights = {
        "Jittor to PyTorch, own decisions": [worst for _, worst in own.values()],
        "Jittor to float64, one set of decisions": [worst.ours for _, worst in verdicts],
        "PyTorch to float64, one set of decisions": [worst.theirs for _, worst in verdicts],
    }
    for (label, values), colour in zip(heights.items(), ("#b9bec4", "#c77b30", "#3b75af")):
        axes.plot([min(max(value, 1e-9), 10.0) for value in values], ".", color=colour, label=label, markersize=4)
    axes.set_yscale("log")
    axes.set_xlabel("parameter, from the backbone (left) to the mask head (right)")
    axes.set_ylabel("worst element / largest")
    axes.legend()
    return figure
