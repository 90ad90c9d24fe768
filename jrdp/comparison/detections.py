"""`jrdp compare detections`: two COCO result files of the same pictures, whatever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from jrdp.boxes import from_xywh
from jrdp.boxes import iou as box_iou
from jrdp.comparison.measures import match_greedily
from jrdp.comparison.report import Report, new_figure, text_table
from jrdp.config import Config
from jrdp.data.catalog import locate
from jrdp.data.naming import find_picture
from jrdp.data.transforms import read_image
from jrdp.errors import UserError
from jrdp.evaluation.coco_metrics import METRIC_NAMES, evaluate_checked
from jrdp.evaluation.ground_truth import GroundTruth, load_ground_truth
from jrdp.evaluation.results import check_results, has_segmentation, read_results

SAME_INSTANCE = 0.5  # least IoU of a matched pair
SHOWN_PICTURES = 8
SHOWN_SCORE = 0.3  # instances drawn have at least this score


def compare_detections(
    first: Path,
    second: Path,
    dataset: str,
    config: Config,
    out: Path,
    score_tolerance: float = 1e-3,
    iou_tolerance: float = 0.99,
    ap_tolerance: float = 0.001,
    print_line=print,
) -> bool:
    """Compare and write the report; true when everything is within tolerance.

    Detections of a picture are matched one to one by IoU (masks where both files have them, else boxes), the most
    similar first, from `SAME_INSTANCE` up. Over tolerance are: a matched pair's score difference or IoU, a detection
    without a partner, and a difference of AP.
    """
    place = locate(dataset, config.data.root)
    raw = [read_results(path) for path in (first, second)]
    if not any(raw):
        raise UserError(f"neither {first} nor {second} holds a detection: there is nothing to compare")
    iou_type = "segm" if all(_has_masks(results) for results in raw) else "bbox"
    masks = [_some_masks(results) for results in raw]
    if iou_type == "bbox" and any(masks):
        without = (first, second)[masks.index(min(masks))] if not all(masks) else first
        raise UserError(f"masks cannot be compared: not all results in {without} have one; give files of one kind")
    truth = load_ground_truth(place.annotations, iou_type)
    checked = [check_results(results, truth, f"results {path}") for results, path in zip(raw, (first, second))]
    sides = [_by_image(results) for results in checked]
    pictures = [_compare_picture(i, sides[0].get(i, []), sides[1].get(i, []), iou_type) for i in truth.images]
    metrics = [evaluate_checked(truth, results).metrics for results in checked]
    ap_gap = abs(metrics[0]["AP"] - metrics[1]["AP"])

    report = Report(f"Detections of {first} against {second}")
    changed = sorted((p for p in pictures if p["change"] > 0), key=lambda p: -p["change"])
    scores = np.concatenate([p["score_gaps"] for p in pictures])
    ious = np.concatenate([p["ious"] for p in pictures])
    alone = [sum(p["alone"][side] for p in pictures) for side in (0, 1)]
    if scores.max(initial=0) > score_tolerance:
        report.failures.append(f"scores differ by up to {scores.max():.3g} (tolerance {score_tolerance:g})")
    if ious.min(initial=1) < iou_tolerance:
        report.failures.append(f"the least IoU of a matched pair is {ious.min():.4f} (tolerance {iou_tolerance:g})")
    if any(alone):
        report.failures.append(f"{alone[0]} detections are in the first file only, {alone[1]} in the second only")
    if ap_gap > ap_tolerance:
        report.failures.append(f"{iou_type} AP differs by {ap_gap:.4f} (tolerance {ap_tolerance:g})")

    summary = [
        ["detections", len(raw[0]), len(raw[1])],
        ["without a partner", alone[0], alone[1]],
        *[[f"{iou_type} {name}", *(_defined(side[name]) for side in metrics)] for name in METRIC_NAMES],
    ]
    pairs = [
        ["score difference", float(np.median(scores)) if len(scores) else 0.0, float(scores.max(initial=0))],
        ["1 - IoU", float(np.median(1 - ious)) if len(ious) else 0.0, float((1 - ious).max(initial=0))],
    ]
    report.table(["", "first", "second"], summary)
    report.heading(f"{len(scores)} matched pairs")
    report.table(["difference", "median", "worst"], pairs)
    report.plot(_plot(scores, ious), "Matched pairs: how far scores and shapes moved")
    report.heading(f"{len(changed)} of {len(pictures)} pictures changed")
    columns = ["picture", "first", "second", "matched", "worst score difference", "least IoU"]
    rows = [_row(truth, p) for p in changed]
    report.table(columns, rows)
    for picture in changed[:SHOWN_PICTURES]:
        drawn = _draw_pair(truth, place.images, picture["image_id"], sides)
        if drawn is not None:
            report.pictures(drawn)
    report.write(
        out,
        {
            "tolerances": {"score": score_tolerance, "iou": iou_tolerance, "AP": ap_tolerance},
            "iou_type": iou_type,
            "metrics": metrics,
            "matched": len(scores),
            "alone": alone,
            "pairs": {name: {"median": median, "worst": worst} for name, median, worst in pairs},
            "changed": [dict(zip(columns, row)) for row in rows],
        },
    )
    print_line(text_table(["", "first", "second"], summary))
    print_line(text_table(["difference", "median", "worst"], pairs))
    return report.verdict(out, print_line)


def _defined(value: float) -> float | str:
    """pycocotools gives -1 where no instance defines a metric."""
    return "-" if value < 0 else value


def _has_masks(results: list) -> bool:
    return all(isinstance(entry, dict) and has_segmentation(entry) for entry in results)


def _some_masks(results: list) -> bool:
    return any(isinstance(entry, dict) and has_segmentation(entry) for entry in results)


def _by_image(results: list[dict]) -> dict:
    grouped: dict = {}
    for entry in results:
        grouped.setdefault(entry["image_id"], []).append(entry)
    return grouped


def _compare_picture(image_id, first: list[dict], second: list[dict], iou_type: str) -> dict:
    similarity = _iou(first, second, iou_type)
    matched = match_greedily(similarity - 1e-6 * _score_gaps(first, second), SAME_INSTANCE)
    gaps = np.array([abs(first[a]["score"] - second[b]["score"]) for a, b in matched])
    ious = np.array([similarity[a, b] for a, b in matched])
    # What a person would call changed: the scores of instances that came, went or moved, weighted by how far.
    lost = [e["score"] for i, e in enumerate(first) if i not in {a for a, _ in matched}]
    new = [e["score"] for i, e in enumerate(second) if i not in {b for _, b in matched}]
    best = np.array([max(first[a]["score"], second[b]["score"]) for a, b in matched])
    change = sum(lost) + sum(new) + float(gaps.sum()) + float((best * (1 - ious)).sum())
    return {
        "image_id": image_id,
        "counts": (len(first), len(second)),
        "alone": (len(lost), len(new)),
        "score_gaps": gaps,
        "ious": ious,
        "change": change,
    }


def _iou(first: list[dict], second: list[dict], iou_type: str) -> np.ndarray:
    """IoU of every pair, float64 [A, B]; two empty masks are the same, and two boxes without area are where they are."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    key = "segmentation" if iou_type == "segm" else "bbox"
    iou = np.array(coco_mask.iou([e[key] for e in first], [e[key] for e in second], [0] * len(second)))
    empty, other = (np.array([entry["area"] == 0 for entry in side]) for side in (first, second))
    both = empty[:, None] & other[None, :]
    if iou_type == "segm" or not both.any():
        return np.where(both, 1.0, iou)
    corners, others = (from_xywh([entry["bbox"] for entry in side]) for side in (first, second))
    return np.where(both, box_iou(corners, others), iou)


def _score_gaps(first: list[dict], second: list[dict]) -> np.ndarray:
    """Score difference of every pair, [A, B]: decides between instances of equal shape."""
    scores, others = (np.array([entry["score"] for entry in side]) for side in (first, second))
    return np.abs(scores[:, None] - others[None, :])


def _row(truth: GroundTruth, picture: dict) -> list:
    name = truth.images[picture["image_id"]].get("file_name", picture["image_id"])
    gaps, ious = picture["score_gaps"], picture["ious"]
    return [name, *picture["counts"], len(gaps), float(gaps.max(initial=0)), float(ious.min(initial=1))]


def _plot(scores: np.ndarray, ious: np.ndarray):
    figure, axes = new_figure(8, 3.4)
    floor = 1e-9
    axes.hist(np.log10(np.maximum(scores, floor)), bins=40, alpha=0.6, label="score difference")
    axes.hist(np.log10(np.maximum(1 - ious, floor)), bins=40, alpha=0.6, label="1 - IoU")
    axes.set_xlabel("log10, with -9 for no difference")
    axes.set_ylabel("pairs")
    axes.legend()
    return figure


def _draw_pair(truth: GroundTruth, folder: Path, image_id, sides: list[dict]) -> Optional[list]:
    """Both files' instances on the picture; None where the picture is not on disk."""
    name = truth.images[image_id].get("file_name")
    if name is None:
        return None
    try:
        photo = np.asarray(read_image(find_picture(folder, name)))
    except UserError:
        return None
    if photo.shape[:2] != (truth.images[image_id].get("height"), truth.images[image_id].get("width")):
        return None  # another picture than the one that the masks are of
    first, second = (sorted(side.get(image_id, []), key=lambda entry: -entry["score"]) for side in sides)
    iou_type = "segm" if "segmentation" in (*first, *second)[0] else "bbox"
    similarity = _iou(first, second, iou_type) - 1e-6 * _score_gaps(first, second)
    # Partners have the same colour on both sides.
    partner = {b: a for a, b in match_greedily(similarity, SAME_INSTANCE)}
    colours = [partner.get(index, len(first) + index) for index in range(len(second))]
    return [
        (f"{name}: first", _draw(photo, first, list(range(len(first))))),
        (f"{name}: second", _draw(photo, second, colours)),
    ]


def _draw(photo: np.ndarray, entries: list[dict], colours: list[int]) -> np.ndarray:
    """Entries by falling score; the best is drawn last, on top."""
    drawn = photo.astype(np.float32)
    shown = [(entry, colour) for entry, colour in zip(entries, colours) if entry["score"] >= SHOWN_SCORE]
    for entry, number in reversed(shown):
        colour = np.array(_COLOURS[number % len(_COLOURS)], np.float32)
        region = _region(entry, photo.shape[:2])
        drawn[region] = 0.5 * drawn[region] + 0.5 * colour
    image = Image.fromarray(drawn.round().astype(np.uint8))
    image.thumbnail((520, 520))
    return np.asarray(image)


def _region(entry: dict, size: tuple[int, int]) -> np.ndarray:
    if "segmentation" in entry:
        return coco_mask.decode(entry["segmentation"]).astype(bool)
    region = np.zeros(size, bool)
    x, y, width, height = (max(int(round(value)), 0) for value in entry["bbox"])
    region[y : y + height, x : x + width] = True
    return region


_COLOURS = [(230, 60, 50), (60, 130, 230), (60, 180, 80), (240, 180, 40), (170, 80, 200), (30, 190, 200)]
