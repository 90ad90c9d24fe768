"""`jrdp compare layers`: every stage of the network in both frameworks, on the same input and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jrdp.comparison.exchange import load_arrays, save_arrays, save_batch
from jrdp.comparison.floor import FACTOR, FLOOR, Verdict, judge, weigh, worst
from jrdp.comparison.found import PIXEL_FLOOR, compare_found
from jrdp.comparison.measures import difference
from jrdp.comparison.pair import Options, Pair, open_pair, refuse_idle_precision
from jrdp.comparison.report import Report, new_figure, text_table, versions_text
from jrdp.data.transforms import batch_images, prepare_image, read_image
from jrdp.files import make_folder

JUMP = 20.0  # rounding grows smoothly through the network; a stage this much worse than all before it stands out
DRAWN = 8  # pictures shown in the report; those with problems first


def compare_layers(
    options: Options,
    pictures: list[Path],
    out: Path,
    tolerance: float = 1e-4,
    box_tolerance: float = 0.01,
    score_tolerance: float = 1e-4,
    mask_tolerance: float = 1e-3,
    print_line=print,
) -> bool:
    """Compare and write the report; true when everything is within tolerance.

    Every quantity is judged by Jittor's distance to the twin in float64 against that of the twin in float32 (`floor`);
    the tolerances are outer bounds of the same distance, and stand alone when the twin runs in float64 or elsewhere.
    tolerance: relative L2 of every stage, and its worst element as a share of the stage's largest value, which shows a
    change of a single channel. box_tolerance: network pixels. score_tolerance, mask_tolerance: absolute, the latter of
    the 32x32 probabilities. A detection more or less must be explained by a decision that was closer than rounding.
    Mask stages use the Jittor side's detections on all sides, so that a box that one side lacks shows up as such and
    not in every later stage.
    """
    report = Report("Layer by layer: Jittor against PyTorch")
    limits = {"box": box_tolerance, "score": score_tolerance, "mask": mask_tolerance}
    results = []
    with open_pair(options) as pair:
        refuse_idle_precision(pair.config, pair.options.engine)
        make_folder(out)  # a folder that cannot be written to is noticed before the work
        for path in pictures:
            results.append(_compare_picture(pair, path, tolerance, limits))
        versions, differing = pair.versions, pair.differing
    stages = _merge(results)
    for stage in stages:
        if stage["over"]:
            report.failures.append(f"first stage over tolerance: {stage['stage']} ({stage['why']}; {stage['picture']})")
            break
    jump = _first_jump(stages)
    notes = [] if jump is None else [jump]
    if differing:
        shown = ", ".join(differing[:10]) + (", ..." if len(differing) > 10 else "")
        notes.append(f"the two weight files differ in {len(differing)} tensor(s): {shown}")
    for result in results:
        report.failures += [f"{result['picture']}: {problem}" for problem in result["problems"]]
        notes += [f"{result['picture']}: {d['side']} takes the other side of {d['text']}" for d in result["explained"]]

    floored = options.has_floor
    report.text(f"{len(pictures)} picture(s); weights: {options.weights or 'synthetic'}; {versions_text(versions)}")
    report.text(
        f"Distances are to the twin in float64. Jittor's may be {FACTOR:g} times PyTorch float32's own and {FLOOR:.2g} "
        f"more ({PIXEL_FLOOR:.2g} px for boxes), and never more than the tolerance."
        if floored
        else "The twin runs in float64 or on another device, so there is no noise floor: the tolerances alone decide."
    )
    if options.negative_control:
        report.text(f"Negative control: the twin was given the mistake {options.negative_control!r} on purpose.")
    for note in notes:
        report.text(f"Note: {note}.")
    columns = ["stage", "shape", "relative L2", "PyTorch", "worst element", "PyTorch", "ratio"]
    rows = [_stage_row(stage) for stage in stages]
    report.heading("Stages, worst of the pictures")
    report.plot(_plot(stages, tolerance), f"Relative L2 distance to float64; the line is the tolerance, {tolerance:g}")
    report.table(columns, rows, [stage["over"] for stage in stages])
    report.heading("Detections")
    found = [_found_row(result) for result in results]
    names = ["picture", "Jittor", "float32", "float64", "same"]
    names += ["boxes px", "PyTorch", "scores", "PyTorch", "masks", "PyTorch", "pixels"]
    report.table(names, found, [bool(result["problems"]) for result in results])
    drawn = [result.pop("drawn") for result in results]
    for index in sorted(range(len(results)), key=lambda i: not results[i]["problems"])[:DRAWN]:
        report.pictures(drawn[index])
    limits["stage"] = tolerance
    floor = {"factor": FACTOR, "floor": FLOOR, "pixel_floor": PIXEL_FLOOR} if floored else None
    for result in results:
        result["stages"] = {stage["stage"]: stage["verdicts"] for stage in result["stages"]}
    report.write(
        out,
        {
            "tolerances": limits,
            "noise_floor": floor,
            "stages": stages,
            "pictures": results,
            "summary": _summary(stages, results),
            "differing_tensors": differing,
        },
    )
    print_line(text_table([columns[0], *columns[2:]], [[row[0], *row[2:]] for row in _shortened(stages, rows)]))
    print_line(text_table(names, found))
    for note in notes:
        print_line(f"note: {note}")
    return report.verdict(out, print_line)


def _compare_picture(pair: Pair, path: Path, tolerance: float, limits: dict[str, float]) -> dict:
    photo = read_image(path)
    prepared = prepare_image(photo, pair.config.input)
    batch, ours_path = pair.folder / "batch.npz", pair.folder / "jittor.npz"
    theirs_path, rois = pair.folder / "torch.npz", pair.folder / "rois.npz"
    save_batch(batch, batch_images([prepared]))
    pair.jittor.ask("stages", batch=str(batch), out=str(ours_path))
    ours = load_arrays(ours_path)
    boxes = ours["detections/0/boxes"]
    save_arrays(rois, {"rois": np.concatenate([np.zeros((len(boxes), 1), np.float32), boxes], axis=1)})
    sides = []
    for precision in ("float32", "float64"):
        if precision == "float32" and not pair.options.has_floor:
            sides.append(None)
            continue
        pair.torch.ask("stages", batch=str(batch), out=str(theirs_path), rois=str(rois), precision=precision)
        sides.append(load_arrays(theirs_path))
    single, double = sides
    names = [name for name in double if not name.startswith("detections/")]
    if pair.options.engine == "fast":
        names = [name for name in names if name in ours]  # a few stages are fused with the next one there
    stages = _judge_stages(names, ours, single, double, tolerance)
    found = compare_found(ours, single, double, prepared.size, pair.config.model.fcos, limits)
    small = photo.resize(prepared.size[::-1])
    drawn = [
        (f"{path.name}, {name}: the ten best", _draw(small, side["detections/0/boxes"], side["detections/0/scores"]))
        for name, side in (("Jittor", ours), ("PyTorch", single or double))
    ]
    return {"picture": path.name, "stages": stages, **found, "drawn": drawn}


def _judge_stages(names: list[str], ours: dict, single: dict | None, double: dict, tolerance: float) -> list[dict]:
    """The stages of one picture. One that Jittor has not, or in another shape, is the worst difference there is.

    PyTorch's distance is the largest of a family of stages, such as cls_logits_P3..P7: the same layers on five maps,
    the smallest of which have too few numbers to show how much rounding there is.
    """
    measured = {}
    for name in names:
        if name in ours and ours[name].shape == double[name].shape:
            measured[name] = judge(ours[name], None if single is None else single[name], double[name], tolerance)
    families: dict[str, list[list[Verdict]]] = {}
    for name, verdicts in measured.items():
        families.setdefault(name.rstrip("0123456789"), []).append(verdicts)
    stages = []
    for name in names:
        stage = {"stage": name, "shape": list(double[name].shape), "relative_l2": None, "worst_of_scale": None}
        if name not in measured:
            stages.append({**stage, "over": True, "why": "missing or of another shape", "verdicts": [], "used": np.inf})
            continue
        family = families[name.rstrip("0123456789")]
        verdicts = [
            v if v.theirs is None else weigh(v.measure, v.ours, max(other[i].theirs for other in family), v.outer)
            for i, v in enumerate(measured[name])
        ]
        gap = difference(ours[name], double[name]).as_json()
        chosen = worst(verdicts)
        why = f"{chosen} at {tuple(gap['index'])}"
        told = [verdict.as_json() for verdict in verdicts]
        stages.append({**stage, **gap, "over": not chosen.passed, "why": why, "verdicts": told, "used": chosen.used})
    return stages


def _stage_row(stage: dict) -> list:
    l2, element = stage["verdicts"] or ({}, {})
    cells = [l2.get("ours"), l2.get("theirs"), element.get("ours"), element.get("theirs"), l2.get("ratio")]
    return [stage["stage"], _shape(stage["shape"]), *("-" if cell is None else cell for cell in cells)]


def _found_row(result: dict) -> list:
    cells = [result[key][side] for key in ("box", "score", "mask") for side in ("ours", "theirs")]
    cells = ["-" if cell is None else cell for cell in cells]
    return [result["picture"], *result["counts"], result["matched"], *cells, result["flipped_pixels"]]


def _summary(stages: list[dict], results: list[dict]) -> dict:
    """The worst of each kind over all pictures, Jittor's and PyTorch float32's, for whoever reads the json."""
    out = {}
    for position, name in enumerate(("relative_l2", "worst_element")):
        pairs = [verdicts[position] for result in results for verdicts in result["stages"].values() if verdicts]
        out[name] = _worst_pair(pairs)
    for key in ("box", "score", "mask"):
        out[key] = _worst_pair([result[key] for result in results])
    out["detections"] = [sum(result["counts"][side] for result in results) for side in range(3)]
    out["explained"] = sum(len(result["explained"]) for result in results)
    out["stages_over"] = sum(stage["over"] for stage in stages)
    return out


def _worst_pair(verdicts: list[dict]) -> dict:
    def most(key: str):
        values = [verdict[key] for verdict in verdicts if verdict[key] is not None]
        return max(values) if values else None

    return {"jittor": most("ours"), "torch": most("theirs"), "ratio": most("ratio")}


def _merge(results: list[dict]) -> list[dict]:
    """Per stage, in the order of computation, the picture where it uses most of what it is allowed."""
    merged = []
    for same_stage in zip(*[result["stages"] for result in results]):
        position = int(np.argmax([stage["used"] for stage in same_stage]))
        chosen = {key: value for key, value in same_stage[position].items() if key != "used"}
        merged.append({**chosen, "picture": results[position]["picture"]})
    return merged


def _first_jump(stages: list[dict]) -> str | None:
    """The first stage whose error is `JUMP` times that of every stage before it, in words."""
    so_far = None
    for stage in stages:
        error = stage["relative_l2"]
        if error is not None and so_far is not None and error > JUMP * max(so_far, 1e-7):
            return f"the error jumps at {stage['stage']}, from {so_far:.2g} to {error:.2g}"
        so_far = max(filter(None, (so_far, error)), default=0.0)
    return None


def _shortened(stages: list[dict], rows: list) -> list:
    """For the terminal: the stages over tolerance, else the last stage of each part of the network."""
    over = [row for stage, row in zip(stages, rows) if stage["over"]]
    landmarks = ("stem", "C5", "P3", "P7", "RP7", "cls_logits_P3", "bbox_reg_P3", "mask_roi_1", "mask_logits")
    return over[:8] or [row for stage, row in zip(stages, rows) if stage["stage"] in landmarks]


def _plot(stages: list[dict], tolerance: float):
    figure, axes = new_figure(11, 3.8)
    heights = [max(s["relative_l2"], 1e-9) if s["relative_l2"] is not None else 10.0 for s in stages]
    axes.bar(range(len(stages)), heights, color=["#c0392b" if s["over"] else "#3b75af" for s in stages], label="Jittor")
    theirs = [s["verdicts"][0]["theirs"] if s["verdicts"] else None for s in stages]
    if all(value is not None for value in theirs):
        axes.plot(range(len(stages)), np.maximum(theirs, 1e-9), "k_", label="PyTorch, float32")
        axes.legend()
    axes.axhline(tolerance, color="#444", linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.set_ylabel("relative L2")
    axes.set_xticks(range(len(stages)), [s["stage"] for s in stages], rotation=90, fontsize=6)
    axes.margins(x=0.01)
    return figure


def _draw(photo: Image.Image, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    drawn = photo.copy()
    pen = ImageDraw.Draw(drawn)
    for index in np.argsort(-scores, kind="stable")[:10]:
        box = [float(v) for v in boxes[index]]
        pen.rectangle(box, outline=(255, 64, 32), width=2)
        pen.text((box[0] + 3, box[1] + 2), f"{scores[index]:.2f}", fill=(255, 255, 0))
    return np.asarray(drawn)


def _shape(shape: list[int]) -> str:
    return "x".join(str(size) for size in shape)
