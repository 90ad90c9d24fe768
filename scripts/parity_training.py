"""Chapters 5 and 6 of docs/parity.md from the reports of `jrdp compare gradients` and `compare training`.

    python scripts/parity_training.py OUT [--settings 'WORDS']

OUT holds `gradients1`, `gradients2`, ... and `training`: the --out folders of those commands. Prints Markdown; every figure
comes from a report.json. WORDS are shown in the commands after --weights. `whole_training` makes docs/parity_training.md.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", default="W --set data.root=DATA")
    given = parser.parse_args()
    print("\n".join(gradients_chapter(given.out, given.settings) + training_chapter(given.out, given.settings)))


def gradients_chapter(out: Path, settings: str) -> list[str]:
    """Lines of chapter 5."""
    reports = [_report(path) for path in sorted(out.glob("gradients*")) if (path / "report.json").is_file()]
    lines = [
        "## 5. Gradients",
        "",
        f"    jrdp compare gradients --weights {settings} --seed N --twin-python T --out out/gradientsN",
        "",
        "Two correct networks do not have the same gradients to the last digit of float32. A ReLU whose input is within rounding "
        "of zero",
        "passes a whole gradient path in one and none in the other; the same holds for maximum pooling, for the minimum in "
        "the box loss,",
        "and for a proposal at IoU 1/2. So Jittor's decisions of the batch are recorded and imposed on the twin, in float32 "
        "and in float64:",
        "what is left between the three is the rounding of arithmetic, and is judged by the noise floor. The decisions are "
        "judged too: where",
        "float64 would have decided otherwise, its input must lie within the rounding measured at that place, and from the "
        "same maps and the same",
        "proposals the twin must choose the same proposals, RoIs and locations. PyTorch's distance of a gradient counts as no "
        "less than the median over",
        "all gradients of the batch: a gradient of one number, or of a few, comes out exact by luck now and then.",
        "",
        "| batch | verdict | decisions unlike float64's: Jittor, PyTorch | largest input there | losses | relative L2, worst: "
        "Jittor, PyTorch | worst element: Jittor, PyTorch | own decisions: worst element |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, report in enumerate(reports, start=1):
        rows = report["imposed"]["relus"] + report["imposed"]["others"]
        ours, theirs = (sum(row[name] or 0 for row in rows) for name in ("given", "other"))
        largest = max([row["given_largest"] for row in rows if row["given"]], default=0.0)
        losses = max(verdict["ours"] for verdict in report["loss_verdicts"].values())
        worst = {name: values["worst"] for name, values in report["summary"].items()}
        lines.append(
            f"| {number} | {'equal' if report['passed'] else 'over'} | {ours}, {theirs} of "
            f"{sum(row['elements'] for row in rows):,} | {_short(largest)} | {_short(losses)} | "
            f"{_short(worst['relative L2 from float64, Jittor'])}, {_short(worst['relative L2 from float64, PyTorch'])} | "
            f"{_short(worst['worst element over the largest, Jittor'])}, "
            f"{_short(worst['worst element over the largest, PyTorch'])} | "
            f"{_short(worst['own decisions, Jittor to PyTorch: worst element'])} |"
        )
    places = _places(reports)
    if places:
        lines += [
            "",
            "Where Jittor decided otherwise than float64, over all batches:",
            "",
            "| place | decisions | of | largest input there | rounding of the inputs, PyTorch to float64 |",
            "| --- | --- | --- | --- | --- |",
            *places,
        ]
    lines += [
        "",
        "The last column of the first table is what is seen with each side's own decisions: it is the decisions of the second "
        "table, and nothing else,",
        "that bring it about, as imposing them takes it away. RoI sampling needs no imposing: the weights of a bilinear sample "
        "go to zero where it",
        "changes its cell.",
        "",
    ]
    return lines


def training_chapter(out: Path, settings: str) -> list[str]:
    """Lines of chapter 6."""
    report = _report(out / "training")
    steps = len(report["steps"])
    shares = report["parameters"]
    lines = [
        "## 6. Training",
        "",
        f"    jrdp compare training --weights {settings} --steps {steps} --twin-python T --out out/training",
        "",
        f"{steps} SGD steps from the same weights and in one order of data, flips included; all sides take Jittor's "
        "decisions at every step:",
        "",
        "| distance to float64 | Jittor | PyTorch | allowed |",
        "| --- | --- | --- | --- |",
    ]
    for name, verdict in report["verdicts"].items():
        allowed = min(verdict["allowed"], verdict["outer"])
        lines.append(f"| {name} | {_short(verdict['ours'])} | {_short(verdict['theirs'])} | {_short(allowed)} |")
    lines += [
        "",
        f"Each with its own decisions, Jittor and PyTorch in float32: total loss {_short(max(report['total_loss_errors']))} "
        f"apart at the worst step, parameters {_short(shares['own_apart'])} of the way travelled.",
        "",
        "A whole training in both frameworks, and the AP of what comes out, is in [parity_training.md](parity_training.md), on "
        "generated pictures, and in",
        "[parity_training_photographs.md](parity_training_photographs.md).",
        "",
    ]
    return lines


def whole_training(out: Path, document: Path) -> None:
    """Write the document on the whole training of OUT/whole, and its loss curves beside it, a PNG for each seed.

    What is told of the inputs is PARITY_WHOLE_ABOUT, where it is set.
    """
    report = _report(out / "whole")
    page = (out / "whole" / "report.html").read_text(encoding="utf-8")
    curves = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    if len(curves) != len(report["seeds"]):
        raise SystemExit(f"{out / 'whole' / 'report.html'} has {len(curves)} pictures for {len(report['seeds'])} seeds")
    versions = re.search(r"jittor [\w.+]+(, torch [\w.+]+)?", page)
    figures = []
    for seed, curve in zip(report["seeds"], curves):
        picture = document.with_name(f"{document.stem}_seed{seed}.png")
        picture.write_bytes(base64.b64decode(curve))
        figures += [f"![Losses of seed {seed}: Jittor thin over PyTorch broad, mean of 10 steps]({picture.name})", ""]
    lines = [
        "# A whole training in both frameworks",
        "",
        "*Written by `bash scripts/parity.sh` with PARITY_WHOLE: every figure comes from the report of the command below.*",
        "",
        "Jittor and the PyTorch twin train from one start and in one order of data, mirroring included, each with its own",
        "decisions. Rounding makes any two trainings part after some hundred steps, so there is nothing that the end should be",
        "equal to: the losses are set beside their own scatter, and AP beside what another seed changes. What must be equal is",
        "each loss of the first step, and the AP of one set of weights in both frameworks.",
        "",
        *_whole(report),
        *figures,
        f"Verdict: {'equal' if report['passed'] else 'over: ' + '; '.join(report['failures'])}. Measured with "
        f"{versions.group(0) if versions else 'unknown versions'}, on {report['machine']}.",
    ]
    about = os.environ.get("PARITY_WHOLE_ABOUT")
    lines[4:4] = [about, ""] if about else []
    document.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"document: {document}")


def _whole(report: dict) -> list[str]:
    seeds = report["seeds"]
    words = [f"--config {report['config']}"] if report["config"] else []
    words += [f"--weights {report['weights']}"] if report["weights"] and not report["weights_of_config"] else []
    words += [f"--set {_without_folders(setting)}" for setting in report["settings"]]
    lines = [
        f"A training in both frameworks, then both tested: {report['steps']} steps of {report['pictures_per_step']} pictures of "
        f"{report['size'][0]} to {report['size'][1]} pixels, seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(str(seed) for seed in seeds)}, started from "
        f"{'`' + report['weights'] + '`' if report['weights'] else 'synthetic weights'}:",
        "",
        f"    jrdp compare training {' '.join(words)} --steps {report['steps']} --evaluate "
        + " ".join(f"--seeds {seed}" for seed in seeds)
        + " --twin-python T --out out/whole",
        "",
        "| seed | loss, mean of the last tenth | Jittor | PyTorch | difference | standard error of the mean |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["losses"]:
        values = list(row.values())
        lines.append(f"| {values[0]} | {values[1]} | " + " | ".join(f"{value:.4f}" for value in values[2:]) + " |")
    if report.get("common"):
        lines += [
            "",
            "That the two end apart is not the steps' doing: from one state, PyTorch's at the end, with its momentum, both took",
            f"{len(report['common']) // len(seeds)} steps more. The first is the same but for rounding, which then grows from "
            "step to step.",
            "",
            "| seed | step | losses, largest relative difference | parameters apart, of the way travelled |",
            "| --- | --- | --- | --- |",
            *(f"| {r['seed']} | {r['step']} | {_short(r['losses'])} | {_short(r['apart'])} |" for r in report["common"]),
        ]
    lines += [
        "",
        "| data set | of | measure | Jittor | PyTorch | difference | spread of the seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["spread"]:
        cells = [value if isinstance(value, str) else f"{value:.3f}" for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    gaps = [
        abs(sides["jittor"][place][kind][name] - sides["torch"][place][kind][name])
        for by_weights in report["metrics"].values()
        for sides in by_weights.values()
        for place in sides["jittor"]
        for kind in ("bbox", "segm")
        for name in ("AP", "AP50", "AP70")
    ]
    lines += [
        "",
        f"Return trip: each framework's weights evaluated in both, {len(gaps)} pairs of AP, AP50 and AP70: at most "
        f"{_short(max(gaps))} apart. (What one instance of a test set counts is allowed: a decision within rounding finds or loses it.)",
        "",
    ]
    return lines


def _without_folders(setting: str) -> str:
    """A setting as a reader would give it, without this machine's folders."""
    key, value = setting.split("=", 1)
    if key == "data.root":
        return f"{key}=DATA"
    return f"{key}=weights/{Path(value).name}" if key == "train.weights" and "/" in value else setting


def _places(reports: list[dict]) -> list[str]:
    found: dict[str, dict] = {}
    for report in reports:
        for row in report["imposed"]["relus"] + report["imposed"]["others"]:
            if row["given"]:
                place = found.setdefault(row["place"], {"given": 0, "elements": 0, "given_largest": 0.0, "rounding": 0.0})
                for name in ("given", "elements"):
                    place[name] += row[name]
                for name in ("given_largest", "rounding"):
                    place[name] = max(place[name], row[name] or 0.0)
    return [
        f"| `{name}` | {row['given']} | {row['elements']:,} | {_short(row['given_largest'])} | "
        f"{_short(row['rounding']) if row['rounding'] else ''} |"
        for name, row in found.items()
    ]


def _short(value: float) -> str:
    return f"{value:.2g}"


def _report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
