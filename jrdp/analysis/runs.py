"""Everything that is measured of one system's results: metrics, curves, matches, tables, breakdown, errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.cocoeval import COCOeval

from jrdp.data.annotations import crowd_hint
from jrdp.errors import UserError
from jrdp.evaluation.cocoeval import ALL, COCO_AREAS, run_cocoeval, threshold_index
from jrdp.evaluation.coco_metrics import Curves, curves_of, summarize
from jrdp.analysis.errors import ErrorAnalysis, analyze_errors
from jrdp.evaluation.ground_truth import GroundTruth, GroundTruthSource, IouType, load_ground_truth
from jrdp.analysis.matching import PictureMatches, average_precision, match_pictures, mean_average_precision
from jrdp.evaluation.results import check_results, read_results

BREAKDOWN_IOUS = tuple(round(0.1 * step, 1) for step in range(9, 0, -1))  # 0.9, 0.8, ... 0.1
# "Large" here is the paper's: an area of more than 64 x 64 pixels.
BREAKDOWN_AREAS = {"all": ALL, "large": (float(np.nextafter(64.0**2, np.inf)), 1e10)}
ERROR_IOUS = (0.5, 0.7)
GREATEST_COUNT = 5  # pictures with this many salient instances or more are one group


@dataclass(frozen=True)
class Breakdown:
    """Figure 4 for instances of one size: precision `[101]` at each of `BREAKDOWN_IOUS`, and two more curves.

    background_removed (BG): every detection that has an IoU below 0.1 with all instances, or that repeats one, is
    removed, so precision is 1 up to the recall at IoU 0.1. FN, the last curve, is 1 everywhere: what is left between
    BG and FN was not detected at all. instances: how many there are of that size.
    """

    precision: dict[float, np.ndarray]
    background_removed: np.ndarray
    instances: int

    def averages(self) -> dict[str, float]:
        """AP under each curve: "0.9" ... "0.1", "BG", "FN"; -1 where there is no instance of that size."""
        values = {f"{iou:.1f}": float(curve.mean()) for iou, curve in self.precision.items()}
        defined = self.instances > 0
        return {**values, "BG": float(self.background_removed.mean()), "FN": 1.0 if defined else -1.0}


@dataclass(frozen=True)
class RunAnalysis:
    """All that is said of one system's results.

    detections: the checked results. metrics: as `coco_metrics.evaluate`. pictures: matches at the ten COCO
    thresholds. picture_ap: per picture AP, -1 without instances. errors: IoU -> `ErrorAnalysis`. shown_above: the
    score with the best F1 at IoU 0.5, above which the gallery shows detections.
    """

    name: str
    detections: list[dict]
    metrics: dict[str, float | int]
    curves: Curves
    pictures: list[PictureMatches]
    picture_ap: np.ndarray
    sizes: list[dict]
    counts: list[dict]
    breakdown: dict[str, Breakdown]
    errors: dict[float, ErrorAnalysis]
    shown_above: float


def analyze_runs(
    ground_truth: GroundTruthSource, runs: dict[str, str | Path | list], iou_type: IouType = "segm"
) -> tuple[GroundTruth, list[RunAnalysis]]:
    """The checked ground truth and one analysis for each of `runs`, as `analyze.analyze` takes them."""
    if not runs:
        raise UserError("nothing to analyse: give at least one results file")
    truth = load_ground_truth(ground_truth, iou_type)
    if all(annotation["iscrowd"] for annotation in truth.annotations):
        crowds = len(truth.annotations)
        raise UserError("nothing to analyse: the ground truth has no instances" + crowd_hint(crowds, crowds))
    checked = {}
    for name, results in runs.items():
        where = f"results of {name}" if isinstance(results, list) else f"results {results}"
        checked[name] = check_results(read_results(results), truth, where)
    return truth, [_analyze_run(name, detections, truth) for name, detections in checked.items()]


def _analyze_run(name: str, detections: list[dict], truth: GroundTruth) -> RunAnalysis:
    coco_eval = run_cocoeval(truth, detections, areas={**COCO_AREAS, "paper_large": BREAKDOWN_AREAS["large"]})
    thresholds = np.asarray(coco_eval.params.iouThrs)
    pictures = match_pictures(coco_eval)
    metrics = summarize(coco_eval)
    metrics["images"] = len(truth.images)
    metrics["instances"] = sum(not annotation["iscrowd"] for annotation in truth.annotations)
    metrics["detections"] = len(detections)
    errors = {
        iou: analyze_errors(pictures, index, thresholds[index])
        for iou, index in ((iou, threshold_index(thresholds, iou)) for iou in ERROR_IOUS)
    }
    return RunAnalysis(
        name=name,
        detections=detections,
        metrics=metrics,
        curves=curves_of(coco_eval),
        pictures=pictures,
        picture_ap=np.array([mean_average_precision([picture]) for picture in pictures]),
        sizes=_by_size(coco_eval, truth),
        counts=_by_count(pictures, thresholds),
        breakdown=_breakdown(truth, detections),
        errors=errors,
        shown_above=_best_score(pictures, threshold_index(thresholds, 0.5)),
    )


def _by_size(coco_eval: COCOeval, truth: GroundTruth) -> list[dict]:
    """One row for each size: its name, bounds in square pixels, instances, AP, AP50, AP70, AR100."""
    thresholds = coco_eval.params.iouThrs
    rows = []
    for index, (name, bounds) in enumerate(zip(coco_eval.params.areaRngLbl, coco_eval.params.areaRng)):
        curves = curves_of(coco_eval, index)
        inside = [a for a in truth.annotations if not a["iscrowd"] and bounds[0] <= a["area"] <= bounds[1]]
        row = {"size": name, "least": bounds[0], "greatest": bounds[1], "instances": len(inside)}
        row["AP"] = float(curves.precision.mean())
        for percent in (50, 70):
            row[f"AP{percent}"] = float(curves.precision[threshold_index(thresholds, percent / 100)].mean())
        row["AR100"] = float(curves.max_recall.mean())
        rows.append(row)
    return rows


def count_group(instances: int) -> str:
    """The name of the group of pictures with that many salient instances: "1", "2", ... "5+"."""
    return f"{GREATEST_COUNT}+" if instances >= GREATEST_COUNT else str(instances)


def _by_count(pictures: list[PictureMatches], thresholds: np.ndarray) -> list[dict]:
    """One row for each group of pictures by instances: AP of the group's pictures taken together."""
    rows = []
    for count in range(GREATEST_COUNT + 1):
        group = [p for p in pictures if min(len(p.instances), GREATEST_COUNT) == count]
        if not group:
            continue
        rows.append(
            {
                "salient_instances": count_group(count),
                "images": len(group),
                "instances": sum(len(picture.instances) for picture in group),
                "detections": sum(len(picture.detections) for picture in group),
                "AP": mean_average_precision(group),
                "AP50": average_precision(group, threshold_index(thresholds, 0.5)),
                "AP70": average_precision(group, threshold_index(thresholds, 0.7)),
            }
        )
    return rows


def _breakdown(truth: GroundTruth, detections: list[dict]) -> dict[str, Breakdown]:
    coco_eval = run_cocoeval(truth, detections, iou_thresholds=sorted(BREAKDOWN_IOUS), areas=BREAKDOWN_AREAS)
    parts = {}
    for index, (name, bounds) in enumerate(BREAKDOWN_AREAS.items()):
        curves = curves_of(coco_eval, index)
        loosest = curves.at(min(BREAKDOWN_IOUS))
        parts[name] = Breakdown(
            precision={iou: curves.at(iou) for iou in BREAKDOWN_IOUS},
            background_removed=np.where(loosest < 0, -1.0, (loosest > 0).astype(np.float64)),
            instances=sum(bounds[0] <= a["area"] <= bounds[1] and not a["iscrowd"] for a in truth.annotations),
        )
    return parts


def _best_score(pictures: list[PictureMatches], threshold: int) -> float:
    """The score to cut at for the best F1 = 2 hits / (detections + instances); 0 without detections."""
    scores = np.concatenate([p.scores[~p.ignored[threshold]] for p in pictures])
    hits = np.concatenate([p.matches[threshold][~p.ignored[threshold]] >= 0 for p in pictures])
    if scores.size == 0:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    f1 = 2 * np.cumsum(hits[order]) / (np.arange(1, scores.size + 1) + sum(len(p.instances) for p in pictures))
    return float(scores[order][int(np.argmax(f1))])
