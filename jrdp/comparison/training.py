"""`jrdp compare training`: a number of SGD steps in both frameworks from one start and one order of data.

Three trainings take Jittor's decisions at every step (Jittor's own, torch in float32 and in float64, see
`explanation.py`): they stay together but for rounding, and are judged by the noise floor. A fourth, torch deciding for
itself, is what a user would run; rounding decides there which proposals learn, and it is held by the tolerances alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jrdp.comparison.batches import training_batches
from jrdp.comparison.exchange import load_arrays
from jrdp.comparison.explanation import impose
from jrdp.comparison.floor import FLOOR, Verdict, weigh
from jrdp.comparison.measures import relative
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
    """Train all of them and write the report; true when everything is within the floor and the tolerances.

    first_tolerance: relative, of each loss at step 1, where all sides still hold the same weights. loss_tolerance:
    relative, of the total loss at any step. parameter_tolerance: distance of two final parameter vectors over the way
    travelled from the start. The last two bound both the trainings with one set of decisions and torch's own.
    """
    report = Report(f"{steps} training steps from one start: Jittor against PyTorch")
    history = []
    with open_pair(options) as pair:
        make_folder(out)  # a folder that cannot be written to is noticed before the work
        decisions = pair.folder / "decisions.npz"
        for step, batch in enumerate(
            training_batches(pair.config, datasets, options.seed, steps, pair.folder), start=1
        ):
            ours = pair.jittor.ask("step", batch=str(batch), iteration=step, decisions=str(decisions))
            imposed = impose(pair, batch, decisions, iteration=step)
            theirs = pair.torch.ask("step", batch=str(batch), iteration=step)
            report.failures += [f"step {step}: {failure}" for failure in imposed.failures()]
            sides = {"jittor": ours, "torch": theirs, "single": imposed.single, "double": imposed.double}
            history.append({"step": step, **sides, "differing": imposed.differing})
            print_line(
                f"step {step}: loss {_total(ours):.6f} (Jittor) {_total(theirs):.6f} (PyTorch), "
                f"{imposed.differing} decisions differ from float64's"
            )
        paths = {name: pair.folder / f"{name}.npz" for name in ("jittor", "torch", "single", "double")}
        pair.jittor.ask("save", out=str(paths["jittor"]))
        pair.torch.ask("save", out=str(paths["torch"]))
        pair.torch.ask("save", out=str(paths["single"]), precision="float32", copy="imposed")
        pair.torch.ask("save", out=str(paths["double"]), precision="float64", copy="imposed")
        final = {name: load_arrays(path) for name, path in paths.items()}
        distances = [
            {
                "name": name,
                "apart": _norm(final["jittor"][name], final["double"][name]),
                "torch_apart": _norm(final["single"][name], final["double"][name]),
                "own_apart": _norm(final["jittor"][name], final["torch"][name]),
                "travelled": _norm(final["double"][name], pair.start[name]),
            }
            for name in pair.trainable
        ]
        frozen = [name for name in pair.start if name not in pair.trainable]
        moved = [n for n in frozen if not np.array_equal(final["jittor"][n], final["torch"][n])]
        versions, differing = pair.versions, pair.differing

    floor = FLOOR if options.same_device else float("inf")  # on another device the tolerances alone decide
    verdicts = {f"{name} of step 1": _judge_loss(history[:1], name, first_tolerance, floor) for name in LOSSES}
    verdicts["total loss, worst step"] = _judge_loss(history, None, loss_tolerance, floor)
    travelled = _together(distances, "travelled")
    shares = {key: _share(_together(distances, key), travelled) for key in ("apart", "torch_apart", "own_apart")}
    verdicts["parameters apart over the way travelled"] = weigh(
        "share", shares["apart"], shares["torch_apart"], parameter_tolerance, floor=floor
    )
    report.failures += [f"{name}: {verdict}" for name, verdict in verdicts.items() if not verdict.passed]
    errors = [relative(_total(entry["jittor"]), _total(entry["torch"])) for entry in history]
    if not max(errors) <= loss_tolerance:
        first = next(i for i, error in enumerate(errors) if not error <= loss_tolerance)
        report.failures.append(
            f"each with its own decisions, the total loss differs by {errors[first]:.3g} at step {first + 1} "
            f"(tolerance {loss_tolerance:g})"
        )
    if not shares["own_apart"] <= parameter_tolerance:
        report.failures.append(
            f"each with its own decisions, the parameters ended {shares['own_apart']:.3g} of the way travelled apart "
            f"(tolerance {parameter_tolerance:g})"
        )
    if moved:
        report.failures.append(f"{len(moved)} frozen tensors differ at the end, first {moved[0]}")

    report.text(f"Weights at the start: {options.weights or 'synthetic'}; {versions_text(versions)}")
    if differing:
        words = f"The two weight files differ in {len(differing)} tensor(s): {', '.join(differing[:10])}"
        report.text(words)
        print_line(words)
    report.plot(_plot(history), "Each loss over the steps, own decisions: Jittor drawn thin over PyTorch drawn broad")
    report.heading("With Jittor's decisions on all sides")
    columns = ["distance to float64", "Jittor", "PyTorch", "allowed"]
    rows = [[name, v.ours, v.theirs, min(v.allowed, v.outer)] for name, v in verdicts.items()]
    report.table(columns, rows, [not verdict.passed for verdict in verdicts.values()])
    report.heading("Each with its own decisions")
    own_rows = [["total loss, worst step", max(errors)], ["parameters apart over the way travelled", shares["own_apart"]]]
    report.table(["difference of Jittor and PyTorch", "relative"], own_rows)
    report.heading("Parameters at the end")
    distances.sort(key=lambda d: -d["apart"])
    names = ["apart", "torch_apart", "own_apart", "travelled"]
    headings = ["parameter", "Jittor to float64", "PyTorch to float64", "own decisions", "travelled"]
    report.table(headings, [[d["name"], *[d[name] for name in names]] for d in distances])
    report.heading("Losses")
    loss_columns = ["step", *[f"{n} {side}" for n in LOSSES for side in ("J", "P")], "total differs by", "decisions"]
    cells = [
        [e["step"], *[e[side][n] for n in LOSSES for side in ("jittor", "torch")], error, e["differing"]]
        for e, error in zip(history, errors)
    ]
    report.table(loss_columns, cells, [not error <= loss_tolerance for error in errors])
    report.write(
        out,
        {
            "tolerances": {"first": first_tolerance, "loss": loss_tolerance, "parameters": parameter_tolerance},
            "verdicts": {name: verdict.as_json() for name, verdict in verdicts.items()},
            "steps": history,
            "total_loss_errors": errors,
            "parameters": {**shares, "travelled": travelled, "each": distances},
            "differing_tensors": differing,
        },
    )
    print_line(text_table(columns, rows))
    print_line(text_table(["each with its own decisions", "relative"], own_rows))
    return report.verdict(out, print_line)


def _judge_loss(history: list[dict], name: str | None, outer: float, floor: float) -> Verdict:
    """The worst step of one loss, None for the total, against float64."""
    value = _total if name is None else lambda losses: losses[name]
    apart = {
        side: max(relative(value(entry[side]), value(entry["double"])) for entry in history)
        for side in ("jittor", "single")
    }
    return weigh("relative", apart["jittor"], apart["single"], outer, floor=floor)


def _norm(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours.astype(np.float64) - theirs))


def _together(distances: list[dict], key: str) -> float:
    return float(np.sqrt(sum(each[key] ** 2 for each in distances)))


def _share(apart: float, travelled: float) -> float:
    return apart / travelled if travelled else apart


def _total(losses: dict[str, float]) -> float:
    return sum(losses[name] for name in LOSSES)


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
