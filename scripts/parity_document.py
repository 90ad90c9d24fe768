"""The work of scripts/parity.sh that is not running commands: its inputs, and the documents from the reports.

    python scripts/parity_document.py inputs OUT WEIGHTS PICTURES COUNT DATASET
    python scripts/parity_document.py write OUT DOCUMENT
    python scripts/parity_document.py whole OUT DOCUMENT

The sentences of the document are below; every figure in it comes from a report, a log or an exit code in OUT.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "golden")]

CHANGED = "backbone.fpn.att_block_2.weight"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FEW = 4  # pictures of each negative control


def inputs(out: Path, weights: Path, pictures: Path, count: int, dataset: str) -> None:
    """Write OUT/inputs: the deterministic weights, weights with one changed number, and links to the chosen pictures."""
    import numpy as np
    from safetensors.numpy import save_file
    from seeded import seeded_state

    from jrdp import interchange
    from jrdp.dataset_tools.sample import write_sample

    folder = out / "inputs"
    if (folder / "tested").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    keys = json.loads((ROOT / "tests/golden/keys_r50.json").read_text())["keys"]
    if not (folder / "golden.safetensors").is_file():
        save_file(seeded_state([(key[0], tuple(key[1])) for key in keys]), str(folder / "golden.safetensors"))
    file = interchange.read(weights)
    file.tensors[CHANGED] = np.array(file.tensors[CHANGED], np.float32)
    file.tensors[CHANGED][0, 0, 1, 1] += 1
    interchange.write(folder / "changed.safetensors", file)
    found = sorted(path for path in pictures.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        sys.exit(f"error: no picture in {pictures}")
    chosen = [found[i * len(found) // min(count, len(found))] for i in range(min(count, len(found)))]
    for name, some in (("pictures", chosen), ("few", chosen[:: max(1, len(chosen) // FEW)][:FEW])):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
        for path in some:
            (folder / name / path.name).symlink_to(path.resolve())
    place = dataset
    if dataset == "sample":
        sample = write_sample(folder / "sample")
        place = f"{sample.images}:{sample.val}"
    solver = (file.metadata.get("config") or {}).get("solver", {})
    told = f"trained for {solver['max_iterations']} iterations of {solver['batch_size']}" if solver else "of unknown training"
    (folder / "about").write_text(os.environ.get("PARITY_ABOUT", told))
    (folder / "tested").write_text("\n".join([place, "--set", f"data.test=['{place}']"]) + "\n")


def write(out: Path, document: Path) -> None:
    """Write the document; exits with 1 where a command did not end as it should."""
    document.write_text(_document(out), encoding="utf-8")
    missing = [name for name in [*TESTS, *LAYERS, *CONTROLS, "training", "trip_segm", "trip_bbox"] if not _ran(out, name)]
    if missing:
        print(f"without {', '.join(missing)}, which did not run")
    wrong = [path.parent.name for path in sorted(out.glob("*/exit")) if len(set(path.read_text().split())) > 1]
    print(f"document: {document}")
    if wrong:
        sys.exit(f"not as expected: {', '.join(wrong)}; see their logs in {out}")


def _document(out: Path) -> str:
    from parity_training import gradients_chapter, training_chapter

    trained = _report(out, "layers_trained")
    floor = trained["noise_floor"]
    limits = trained["tolerances"]
    versions = re.search(r"jittor [\w.+]+(, torch [\w.+]+)?", _page(out, "layers_trained"))
    count = len(trained["pictures"])
    lines = [
        "# Parity with PyTorch",
        "",
        "*Written by `bash scripts/parity.sh WEIGHTS PICTURES`: every figure comes from a report of the command beside it.*",
        "",
        INTRODUCTION.format(
            machine=trained["machine"], versions=versions.group(0) if versions else "", pictures=count,
            factor=floor["factor"], floor=_short(floor["floor"]), pixels=_short(floor["pixel_floor"]),
            about=_about(out), stage=limits["stage"], box=limits["box"], score=limits["score"], mask=limits["mask"],
        ),
        *_tolerances(out),
        *_tests(out),
        *_layers(out),
        *_sums(out),
        *gradients_chapter(out, "W --dataset sample"),
        *(training_chapter(out, "W --dataset sample") if _ran(out, "training") else []),
        *(_trip(out) if _ran(out, "trip_bbox") and _ran(out, "trip_segm") else []),
        *_controls(out),
        NOT_EQUAL,
        *_summary(out),
    ]
    return "\n".join(lines).rstrip() + "\n"


INTRODUCTION = """\
Three witnesses, and each pair is compared:

1. **The released network**: what the authors' code computed with deterministic weights on four pictures, recorded stage by stage in
   `tests/golden` (described there), so that a clone alone checks it.
2. **The PyTorch twin**, `jrdp/comparison/twin/`: the same network in plain torch, written separately from the Jittor one, operators
   included. It shares with it the preprocessing and the rasterising of polygons; network, RoIAlign, box decoding, suppression, targets, losses,
   pasting and SGD are its own. It runs in float32 and in float64.
3. **jrdp**, in Jittor: the plain network, and the engine for CPUs (`--engine fast`).

`W` stands for the weights ({about}), `P` for the pictures ({pictures} of the folder given), `G` for the deterministic
weights of `tests/golden`, `T` for a Python with torch. Measured on {machine}; {versions}. Nothing here was run on a GPU.

## What counts as equal, declared first

Two correct float32 programs do not agree to the last digit, and by how much they differ depends on the weights and on the picture. So the twin
runs in float64 as well, in the same run, and every quantity is judged by two bounds on **Jittor's distance to float64**:

- the noise floor: at most {factor:g} times **PyTorch float32's own distance to float64**, plus {floor} ({pixels} px for boxes);
- the tolerance, whatever PyTorch does: {stage:g} for a stage (relative L2, and the worst element over the largest), {box:g} px for boxes, {score:g}
  for scores, {mask:g} for mask probabilities.

Why these numbers. *Factor:* the two frameworks add the products of a convolution in different orders. The error of a float32 sum of n numbers one after
the other is about sqrt(n / k) times that of a sum in k lanes; the widest 3x3 convolution adds 4608 products, in 8 lanes on these processors: 24. It is a
bound on luck, not on sloppiness: the ratios that were measured are in section 4. *Floor:* 16 units in the last place of float32 (2^-23), for quantities in which
PyTorch happens to be almost exact; for boxes 16 units in the last place of a coordinate below 512. *PyTorch's distance of a stage* is the largest of
its family, such as `cls_logits_P3` to `P7`: the same layers on five maps, of which the smallest have too few numbers to show how much rounding there is.
*Tolerances:* a mask probability moves by up to a quarter of its logit's error, and logits go beyond 10: a stage tolerance of 1e-4 of the largest
logit is 2.5e-4 and more of a probability, before the box moves, so 1e-3 for masks. The others are 20 to 100 times the float32 rounding of one network with the deterministic weights.

**Sets.** A detection is there or not, so rounding shows as a whole detection more or less where a decision was close. Such a difference is accepted only when
`jrdp compare` finds the decisions (at most three, or those that Jittor's own head answers decide otherwise) that, taken the other way in float64, give
exactly Jittor's set, and each margin is within the rounding of that quantity: of a class logit, score or box edge on that level, with the factor and floor above,
carried over to an IoU by its derivative. The kinds: score against the threshold, the best of its level (where no location reaches the threshold), the last place
of a level and of the picture, the order of two overlapping boxes, IoU against the suppression threshold. A mask pixel on the other side of one half is
accepted within the rounding of its probability. Everything else is a failure that names the decision and its margin.
"""

TOLERANCES = """\
The other tolerances, also outer bounds of what the floor decides in `compare gradients` and `compare training`:

| what | tolerance |
| --- | --- |
{rows}

They are the defaults of `jrdp compare`; exceeding one makes the command exit with 1 and name what it was.
"""

SUMS_OF = {"weights": "the gradient of its weights, to 4 channels, over 24 RoIs of 32x32"}
SUMS = """\
**Where the ratios come from.** Group norm, RoIAlign and losses add in double on the CPU; the convolutions do not. Jittor's oneDNN adds all
products of an output one after the other in float32; PyTorch's convolutions add in several lanes. One 3x3 convolution of 128 channels as
in the detection head, on the same input, and the gradient of the weights of one as in the mask head; relative L2 distance to float64, one thread:

{commands}

| sums of | Jittor | PyTorch | float32, one chain | float32, eight chains |
| --- | --- | --- | --- | --- |
{rows}

So in a convolution Jittor is at the one and PyTorch at the other, and the factor of the verdict is what the same reasoning gives for the widest convolution.
In the gradient of weights, a sum over all pixels of all RoIs, both are at the one: what differs between the two there comes from before. The box
regression's logits are sums of a few units that the exponential turns from an absolute error into a relative one; so there jrdp adds in eight lanes too
(`Conv.in_lanes`), on CPUs and in training; the engine for CPUs has its own convolutions.
"""

NOT_EQUAL = """\
## What is not equal, and why

- **Decisions.** Where two networks choose (a ReLU, a maximum, a proposal), rounding can make them choose differently, and the difference is then finite;
  sections 4 and 5 count such choices and judge their margins.
- **Later training steps.** From the second step on the mask loss depends on which proposals overlap a ground-truth box by at least one half. Rounding that
  moves a box across this line changes the loss by a finite amount, so trainings with decisions of their own part slowly.
- **NMS at exact equality.** The released CPU code suppresses at IoU >= threshold, its CUDA code at IoU >; the published results are CUDA's, and so is ours.
- **Order.** Of more than 1,000 candidates in a level, and of equal scores in NMS, the released order is unspecified: compared as sets.
- **The focal loss.** The recorded CPU numbers are `log(1 - p)` in float32, which loses digits for p near 1; both our sides use the stable form of the
  CUDA kernel.
- **The mask head in training.** The released code and the twin send all proposals through it; the Jittor network only the positive ones, which gives the
  same loss and gradients, as group norm works RoI by RoI.
- **Zero-width proposals.** The released code fails on a positive proposal without width; ours treats it as one pixel wide.
- **Speed** is no parity figure: `jrdp compare speed` and `jrdp bench` measure it.
"""

TESTS = {
    "configuration": "keys, shapes, trainability, learning rates of the twin: those of the released checkpoints",
    "configuration_jittor": "the same of jrdp, R-50, R-101, X-101",
    "preprocessing": "network inputs equal bit for bit (sha256)",
    "operators_twin": "the twin's RoIAlign with gradient, suppression, decoding, pasting, targets: the recorded ones",
    "operators_jittor": "jrdp's operators on the CPU: the recorded ones, with gradients",
    "released_twin": "the twin's stages, detections, pasted masks, losses, gradients, SGD steps: the released network's",
    "released_jittor": "the same of jrdp",
    "onnx": "a third program, ONNX Runtime, on the file of `jrdp export`: jrdp's detections, in order",
}


LAYERS = {
    "layers_golden": "R-50, deterministic weights, the four recorded pictures",
    "layers_fast": "the CPU engine, one of them (some stages are fused)",
    "layers_r101": "R-101, synthetic weights, small input",
    "layers_x101": "X-101, synthetic weights, small input",
    "layers_trained": "R-50, trained weights `W`, pictures `P`",
}

CONTROLS = {
    "control_rgb": "`rgb`: RGB where the network expects BGR",
    "control_group-norm-eps": "`group-norm-eps`: 1e-3 for 1e-5",
    "control_aligned": "`aligned`: RoIAlign with the half-pixel shift",
    "control_sqrt-score": "`sqrt-score`: square root of the score",
    "control_nms-without-one": "`nms-without-one`: IoU without the + 1",
    "control_tensor": f"1.0 added to one element of `{CHANGED}` in `--twin-weights`",
}


def _ran(out: Path, name: str) -> bool:
    """Whether a command of this name has ended."""
    return (out / name / "exit").is_file()


def _about(out: Path) -> str:
    """What the weights are, as given by PARITY_ABOUT, else as their file says."""
    return (out / "inputs" / "about").read_text(encoding="utf-8").strip()


def _tests(out: Path) -> list[str]:
    lines = [
        "## 1 to 3. Configuration, preprocessing, operators, and the released network",
        "",
        "The recorded numbers of the released network, held against the twin and against jrdp by the tests:",
        "",
        "| what | result | command |",
        "| --- | --- | --- |",
    ]
    for name, what in TESTS.items():
        if not _ran(out, name):
            continue
        lines.append(f"| {what} | {_passed(out, name)} | `{_command(out, name)}` |")
    return [*lines, "", "Every `jrdp compare` begins by holding the two networks' tensors against each other, and refuses to go on if they differ.", ""]


def _tolerances(out: Path) -> list[str]:
    """The outer bounds, as the reports tell them; those of commands that did not run are left out."""
    rows = []
    for run, words in (
        ("gradients1", (("loss", "losses of one batch from equal weights, relative"), ("norm", "gradients, relative L2"),
                        ("element", "gradients, worst element over the largest"))),
        ("training", (("first", "losses of the first training step, relative"), ("loss", "total loss at any later step, relative"),
                      ("parameters", "parameters after the steps, over the way travelled"))),
        ("trip_segm", (("score", "detections of two result files: score"), ("iou", "the same: least IoU of a pair"),
                       ("AP", "the same: AP"))),
    ):  # fmt: skip
        limits = _report(out, run)["tolerances"] if _ran(out, run) else {}
        rows += [f"| {what} | {limits[key]:g} |" for key, what in words if key in limits]
    return TOLERANCES.format(rows="\n".join(rows)).splitlines() + [""] if rows else []


def _sums(out: Path) -> list[str]:
    """The rounding of one convolution beside that of plain sums: scripts/parity_sums.py."""
    names = ("sums_jittor", "sums_torch", "sums_chains")
    if not all(_ran(out, name) for name in names):
        return []
    found: dict[str, dict[str, float]] = {}
    for name in names:
        found.update(json.loads((out / name / "log").read_text(encoding="utf-8").strip().splitlines()[-1]))
    rows = [
        f"| {SUMS_OF.get(outputs, f'a convolution to {outputs} channels')} | " + " | ".join(_short(found[side][outputs]) for side in ("jittor", "torch", "one chain", "eight chains")) + " |"
        for outputs in found["jittor"]
    ]
    commands = "\n".join(f"    {_command(out, name)}" for name in names)
    return SUMS.format(commands=commands, rows="\n".join(rows)).splitlines() + [""]


def _layers(out: Path) -> list[str]:
    lines = ["## 4. Every stage, and detections", ""]
    rows = {name: what for name, what in LAYERS.items() if _ran(out, name)}
    for name in rows:
        lines.append(f"    {_command(out, name)}")
    lines += [
        "",
        "| worst distance to float64, Jittor / PyTorch | stages | relative L2 | worst element over the largest | largest ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, what in rows.items():
        report = _report(out, name)
        summary, verdict = report["summary"], _verdict(out, name)
        l2, element = summary["relative_l2"], summary["worst_element"]
        ratio = max(stage["verdicts"][i]["ratio"] or 0 for stage in report["stages"] if stage["verdicts"] for i in (0, 1))
        lines.append(f"| {what}: {verdict} | {len(report['stages'])} | {_pair(l2)} | {_pair(element)} | {_short(ratio)} |")
    lines += [
        "",
        "| the same runs | pictures | detections: Jittor, PyTorch float32, float64 | boxes, px | scores | mask probabilities | mask pixels on the other side "
        "of one half | explained differences |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, what in rows.items():
        report = _report(out, name)
        summary = report["summary"]
        flipped = sum(picture["flipped_pixels"] for picture in report["pictures"])
        found = ", ".join(f"{number:,}" for number in summary["detections"])
        lines.append(
            f"| {what} | {len(report['pictures'])} | {found} | {_pair(summary['box'])} | {_pair(summary['score'])} | "
            f"{_pair(summary['mask'])} | {flipped} | {summary['explained']} |"
        )
    told = [
        f"- {picture['picture']}: {reason['side']} takes the other side of {reason['text']}"
        for name in rows
        for picture in _report(out, name)["pictures"]
        for reason in picture["explained"]
    ]
    if told:
        lines += ["", "The decisions behind a detection more or less, with their margins:", "", *told]
    for name in ("layers_golden", "layers_trained"):
        if _ran(out, name):
            lines += ["", f"{LAYERS[name]}; each stage on the picture where it uses most of what it is allowed:", "", *_stages(_report(out, name))]
    if _ran(out, "layers_golden"):
        lines += ["", "The recorded pictures one by one:", "", *_pictures(_report(out, "layers_golden"))]
    return [*lines, ""]


def _stages(report: dict) -> list[str]:
    rows = ["| stage | relative L2: Jittor, PyTorch, allowed | worst element: Jittor, PyTorch, allowed |", "| --- | --- | --- |"]
    for stage in report["stages"]:
        cells = [f"{_short(v['ours'])}, {_short(v['theirs'])}, {_short(min(v['allowed'], v['outer']))}" for v in stage["verdicts"]]
        rows.append(f"| {stage['stage']} | " + " | ".join(cells) + " |")
    return rows


def _pictures(report: dict) -> list[str]:
    rows = [
        "| picture | detections: Jittor, PyTorch float32, float64 | boxes, px | scores | mask probabilities | mask pixels on the other side of one half |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for picture in report["pictures"]:
        gaps = [_pair({"jittor": picture[key]["ours"], "torch": picture[key]["theirs"]}) for key in ("box", "score", "mask")]
        counts = ", ".join(str(count) for count in picture["counts"])
        rows.append(f"| {picture['picture']} | {counts} | " + " | ".join(gaps) + f" | {picture['flipped_pixels']} |")
    return rows


def _trip(out: Path) -> list[str]:
    lines = [
        "## 7. Return trip",
        "",
        "Weights trained in Jittor, written as `.pth`, read by torch itself (`weights_only=True`, strictly) and tested with the twin, against `jrdp test`:",
        "",
        *(f"    {_command(out, name)}" for name in ("trip_jittor", "trip_convert", "trip_twin", "trip_segm", "trip_bbox")),
        "",
        "| | verdict | matched pairs | without a partner | score difference, median and worst | 1 - IoU, median and worst | AP: Jittor, PyTorch |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, what in (("bbox", "boxes"), ("segm", "masks")):
        report = _report(out, f"trip_{kind}")
        gaps = [
            f"{_short(report['pairs'][name]['median'])}, {_short(report['pairs'][name]['worst'])}"
            for name in ("score difference", "1 - IoU")
        ]
        aps = ", ".join(f"{metrics['AP']:.4f}" for metrics in report["metrics"])
        alone = ", ".join(str(number) for number in report["alone"])
        verdict = "equal" if report["passed"] else "over"
        lines.append(f"| {what} | {verdict} | {report['matched']:,} | {alone} | {gaps[0]} | {gaps[1]} | {aps} |")
    return [*lines, ""]


def _controls(out: Path) -> list[str]:
    lines = [
        "## 8. Negative controls",
        "",
        f"The twin is given one mistake at a time, on trained weights and up to {FEW} pictures of `P`. All must exit with 1:",
        "",
        *[f"    {_command(out, name)}" for name in CONTROLS if _ran(out, name)],
        "",
        "| mistake | exit code | first thing noticed |",
        "| --- | --- | --- |",
    ]
    for name, mistake in CONTROLS.items():
        if _ran(out, name):
            failures = _report(out, name)["failures"]
            lines.append(f"| {mistake} | {_exit(out, name)} | {failures[0][:220] if failures else 'nothing'} |")
    return [*lines, ""]


def _summary(out: Path) -> list[str]:
    """The one-page table at the end."""
    lines = [
        "## In one table",
        "",
        "Worst distances to PyTorch in float64: Jittor's, and PyTorch float32's own.",
        "",
        "| what | equal to | Jittor | PyTorch's own rounding | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, what, to in (
        ("configuration_jittor", "tensors, order, shapes, rates", "released checkpoints"),
        ("preprocessing", "network input, bit for bit", "released preprocessing"),
        ("operators_jittor", "operators with gradients", "released operators"),
        ("released_jittor", "stages, losses, gradients, a step", "released network, recorded"),
        ("onnx", "detections of the exported file", "ONNX Runtime against jrdp"),
    ):
        if _ran(out, name):
            lines.append(f"| {what} | {to} | | | {_passed(out, name)} |")
    names = {
        "relative_l2": "every stage, relative L2", "worst_element": "every stage, worst element over the largest",
        "box": "boxes, px", "score": "scores", "mask": "mask probabilities",
    }  # fmt: skip
    for where, run in (("deterministic weights", "layers_golden"), ("trained weights", "layers_trained")):
        if not _ran(out, run):
            continue
        summary = _report(out, run)["summary"]
        for key, what in names.items():
            pair = summary[key]
            lines.append(
                f"| {what}, {where} | float64 | {_short(pair['jittor'])} | {_short(pair['torch'])} | {_verdict(out, run)} |"
            )
        found = summary["detections"]
        lines.append(f"| detections, {where} | the same set | {found[0]:,} | {found[1]:,} of {found[2]:,} | {_verdict(out, run)} |")
    for path in sorted(path for path in out.glob("gradients*") if _ran(out, path.name)):
        report = json.loads((path / "report.json").read_text())
        worst = {name: values["worst"] for name, values in report["summary"].items()}
        ours, theirs = (worst[f"relative L2 from float64, {side}"] for side in ("Jittor", "PyTorch"))
        lines.append(
            f"| every gradient, relative L2, batch {path.name[9:]} | float64, same decisions | {_short(ours)} | "
            f"{_short(theirs)} | {_verdict(out, path.name)} |"
        )
    for name, verdict in (_report(out, "training")["verdicts"] if _ran(out, "training") else {}).items():
        lines.append(
            f"| training: {name} | float64, same decisions | {_short(verdict['ours'])} | {_short(verdict['theirs'])} | "
            f"{_verdict(out, 'training')} |"
        )
    for kind, what in (("bbox", "boxes"), ("segm", "masks")):
        if not _ran(out, f"trip_{kind}"):
            continue
        report = _report(out, f"trip_{kind}")
        lines.append(
            f"| AP of {what}, weights trained in Jittor | the twin's test | {report['metrics'][0]['AP']:.4f} | "
            f"{report['metrics'][1]['AP']:.4f} | {_verdict(out, f'trip_{kind}')} |"
        )
    return [*lines, ""]


def _report(out: Path, name: str) -> dict:
    return json.loads((out / name / "report.json").read_text(encoding="utf-8"))


def _page(out: Path, name: str) -> str:
    return (out / name / "report.html").read_text(encoding="utf-8")


def _exit(out: Path, name: str) -> str:
    return (out / name / "exit").read_text().split()[0]


def _verdict(out: Path, name: str) -> str:
    return "equal" if _exit(out, name) == "0" else "over"


def _passed(out: Path, name: str) -> str:
    """"12 passed", as pytest says; what failed comes first."""
    last = (out / name / "log").read_text(encoding="utf-8").strip().splitlines()[-1]
    return re.sub(r"(, \d+ deselected)? in [\d.]+s.*", "", last.strip("= "))


def _command(out: Path, name: str) -> str:
    """A command as a person would type it: the inputs by their letters, without paths of this machine."""
    words = (out / name / "command").read_text(encoding="utf-8").strip()
    inputs_folder = str(out / "inputs")
    words = re.sub(r"^\S+ -m jrdp ", "jrdp ", words)
    words = re.sub(r"^\S+ -m pytest -q -p no:cacheprovider ", "pytest ", words)
    words = re.sub(r"^\S+ scripts/", "python scripts/", words)
    words = re.sub(r"-k (.+)$", r'-k "\1"', words)
    words = words.replace("-m not gpu", '-m "not gpu"')
    words = re.sub(r"--twin-python \S+( --threads \d+)?", "--twin-python T", words)
    words = words.replace(f"{inputs_folder}/golden.safetensors", "G").replace(f"{inputs_folder}/pictures", "P")
    words = words.replace(f"{inputs_folder}/few", "P").replace(f"{inputs_folder}/", "").replace(str(out), "out")
    return re.sub(r"(--weights|convert) /\S+", r"\1 W", words)


def _pair(values: dict) -> str:
    return f"{_short(values['jittor'])} / {_short(values['torch'])}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


if __name__ == "__main__":
    mode, *given = sys.argv[1:] or [""]
    if mode == "inputs" and len(given) == 5:
        inputs(Path(given[0]), Path(given[1]), Path(given[2]), int(given[3]), given[4])
    elif mode == "write" and len(given) == 2:
        write(Path(given[0]), Path(given[1]))
    elif mode == "whole" and len(given) == 2:
        from parity_training import whole_training

        whole_training(Path(given[0]), Path(given[1]))
    else:
        sys.exit(__doc__)
