"""`jrdp compare layers`: every stage of the network in both frameworks, on the same input and weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from jrdp.boxes import iou
from jrdp.comparison.exchange import load_arrays, save_arrays, save_batch
from jrdp.comparison.measures import difference, match_greedily
from jrdp.comparison.pair import Options, Pair, open_pair
from jrdp.comparison.report import Report, new_figure, text_table, versions_text
from jrdp.data.transforms import batch_images, prepare_image, read_image
from jrdp.files import make_folder

SAME_DETECTION = 0.9  # IoU from which two boxes are the same detection
JUMP = 20.0  # rounding grows smoothly through the network; a stage this much worse than all before it stands out


def compare_layers(
    options: Options,
    pictures: list[Path],
    out: Path,
    tolerance: float = 1e-4,
    box_tolerance: float = 0.01,
    score_tolerance: float = 1e-4,
    mask_tolerance: float = 1e-4,
    print_line=print,
) -> bool:
    """Compare and write the report; true when everything is within tolerance.

    tolerance: relative L2 of every stage, and its worst element as a share of the stage's largest value, which shows a
    change of a single channel. box_tolerance: network pixels. score_tolerance: absolute. mask_tolerance: absolute, of
    the 32x32 probabilities (the IoU of so small masks jumps where a pixel is at 0.5).
    Mask stages use the Jittor side's detections on both sides, so that a box that one side lacks shows up as such and
    not in every later stage.
    """
    report = Report("Layer by layer: Jittor against PyTorch")
    results = []
    with open_pair(options) as pair:
        make_folder(out)  # a folder that cannot be written to is noticed before the work
        for path in pictures:
            results.append(_compare_picture(pair, path))
        versions, differing = pair.versions, pair.differing
    stages = _merge(results, tolerance)
    for stage in stages:
        if stage["over"]:
            report.failures.append(f"first stage over tolerance: {stage['stage']} ({_explain(stage, tolerance)})")
            break
    jump = _first_jump(stages)
    notes = [] if jump is None else [jump]
    if differing:
        shown = ", ".join(differing[:10]) + (", ..." if len(differing) > 10 else "")
        notes.append(f"the two weight files differ in {len(differing)} tensor(s): {shown}")
    limits = {"box": box_tolerance, "score": score_tolerance, "mask": mask_tolerance}
    for result in results:
        report.failures += _judge_detections(result, limits)

    report.text(f"{len(pictures)} picture(s); weights: {options.weights or 'synthetic'}; {versions_text(versions)}")
    if options.negative_control:
        report.text(f"Negative control: the twin was given the mistake {options.negative_control!r} on purpose.")
    for note in notes:
        report.text(f"Note: {note}.")
    columns = ["stage", "shape", "relative L2", "worst element", "at", "largest value"]
    rows = [[s["stage"], _shape(s["shape"]), s["relative_l2"], s["worst"], s["index"], s["scale"]] for s in stages]
    report.heading("Stages, worst of the pictures")
    report.plot(_plot(stages, tolerance), f"Relative L2 error of every stage; the line is the tolerance, {tolerance:g}")
    report.table(columns, rows, [stage["over"] for stage in stages])
    report.heading("Detections")
    found = [
        [r["picture"], r["counts"][0], r["counts"][1], r["matched"], r["box"], r["score"], r["mask"], r["mask_iou"]]
        for r in results
    ]
    names = ["picture", "Jittor", "PyTorch", "matched", "worst box (px)", "worst score", "worst mask", "least IoU"]
    report.table(names, found, [bool(_judge_detections(r, limits)) for r in results])
    for result in results:
        report.pictures(result.pop("drawn"))
    limits["stage"] = tolerance
    report.write(out, {"tolerances": limits, "stages": stages, "pictures": results, "differing_tensors": differing})

    print_line(text_table([columns[0], *columns[2:4]], [[row[0], *row[2:4]] for row in _shortened(stages, rows)]))
    print_line(text_table(names, found))
    for note in notes:
        print_line(f"note: {note}")
    return report.verdict(out, print_line)


def _compare_picture(pair: Pair, path: Path) -> dict:
    photo = read_image(path)
    prepared = prepare_image(photo, pair.config.input)
    batch, ours_path = pair.folder / "batch.npz", pair.folder / "jittor.npz"
    theirs_path, rois = pair.folder / "torch.npz", pair.folder / "rois.npz"
    save_batch(batch, batch_images([prepared]))
    pair.jittor.ask("stages", batch=str(batch), out=str(ours_path))
    ours = load_arrays(ours_path)
    boxes = ours["detections/0/boxes"]
    save_arrays(rois, {"rois": np.concatenate([np.zeros((len(boxes), 1), np.float32), boxes], axis=1)})
    pair.torch.ask("stages", batch=str(batch), out=str(theirs_path), rois=str(rois))
    theirs = load_arrays(theirs_path)
    stages = []
    for name in theirs:
        if not name.startswith("detections/"):
            if name not in ours and pair.engine == "fast":
                continue  # the fast engine fuses a few stages with the next one
            # A stage that one side does not have is the worst difference there is.
            same = name in ours and ours[name].shape == theirs[name].shape
            measured = difference(ours[name], theirs[name]).as_json() if same else {"relative_l2": None}
            stages.append({"stage": name, "shape": list(theirs[name].shape), **measured})
    small = photo.resize(prepared.size[::-1])
    return {"picture": path.name, "stages": stages, **_detections(ours, theirs, small)}


def _detections(ours: dict, theirs: dict, photo: Image.Image) -> dict:
    boxes, scores, masks = (ours[f"detections/0/{key}"] for key in ("boxes", "scores", "masks"))
    twin_boxes, twin_scores, twin_masks = (theirs[f"detections/0/{key}"] for key in ("boxes", "scores", "masks"))
    pairs = match_greedily(iou(boxes, twin_boxes), SAME_DETECTION)  # +1 widths: a flattened box equals itself
    mine, other = [a for a, _ in pairs], [b for _, b in pairs]
    solid, twin_solid = masks[mine] > 0.5, twin_masks[other] > 0.5
    union = (solid | twin_solid).sum(axis=(1, 2))
    mask_iou = np.where(union > 0, (solid & twin_solid).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0)
    return {
        "counts": [len(boxes), len(twin_boxes)],
        "matched": len(pairs),
        "same_order": _in_order(pairs),
        "box": float(np.abs(boxes[mine] - twin_boxes[other]).max(initial=0)),
        "score": float(np.abs(scores[mine] - twin_scores[other]).max(initial=0)),
        "mask": float(np.abs(masks[mine] - twin_masks[other]).max(initial=0)),
        "mask_iou": float(mask_iou.min(initial=1)),
        "drawn": [
            ("Jittor: the ten best", _draw(photo, boxes, scores)),
            ("PyTorch: the ten best", _draw(photo, twin_boxes, twin_scores)),
        ],
    }


def _in_order(pairs: list[tuple[int, int]]) -> bool:
    """Whether matched detections come in the same order on both sides."""
    seconds = [second for _, second in sorted(pairs)]
    return seconds == sorted(seconds)


def _judge_detections(result: dict, limits: dict[str, float]) -> list[str]:
    name, (ours, theirs) = result["picture"], result["counts"]
    problems = []
    if not ours == theirs == result["matched"]:
        problems.append(f"{name}: {ours} and {theirs} detections, {result['matched']} of them the same")
    if not result["same_order"]:
        problems.append(f"{name}: the detections come in another order")
    if result["box"] > limits["box"]:
        problems.append(f"{name}: boxes differ by {result['box']:.3g} px (tolerance {limits['box']:g})")
    if result["score"] > limits["score"]:
        problems.append(f"{name}: scores differ by {result['score']:.3g} (tolerance {limits['score']:g})")
    if result["mask"] > limits["mask"]:
        problems.append(
            f"{name}: mask probabilities differ by {result['mask']:.3g} (tolerance {limits['mask']:g}), "
            f"least mask IoU {result['mask_iou']:.4f}"
        )
    return problems


def _merge(results: list[dict], tolerance: float) -> list[dict]:
    """Per stage, in the order of computation, the picture where it is worst."""
    merged = []
    for same_stage in zip(*[result["stages"] for result in results]):
        errors = [_error(stage) for stage in same_stage]
        position = int(np.argmax(errors))
        stage = {"worst": None, "worst_of_scale": None, "index": [], "scale": None, **same_stage[position]}
        merged.append({**stage, "over": errors[position] > tolerance, "picture": results[position]["picture"]})
    return merged


def _error(stage: dict) -> float:
    """The larger of a stage's two relative errors; infinite for one that is missing or not finite."""
    return np.inf if stage["relative_l2"] is None else max(stage["relative_l2"], stage["worst_of_scale"])


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


def _explain(stage: dict, tolerance: float) -> str:
    if stage["relative_l2"] is None:
        return f"missing, of another shape or not finite on {stage['picture']}"
    where = f"worst element off by {stage['worst']:.3g} of {stage['scale']:.3g} at {stage['index']}"
    return f"relative L2 {stage['relative_l2']:.3g}, {where}; tolerance {tolerance:g}; {stage['picture']}"


def _plot(stages: list[dict], tolerance: float):
    figure, axes = new_figure(11, 3.8)
    heights = [max(s["relative_l2"], 1e-9) if s["relative_l2"] is not None else 10.0 for s in stages]
    axes.bar(range(len(stages)), heights, color=["#c0392b" if s["over"] else "#3b75af" for s in stages])
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
