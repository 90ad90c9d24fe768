"""COCO metrics with the paper's AP70: AP, AP50, AP70, AP75, AP by size, AR1, AR10, AR100."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.cocoeval import COCOeval

from jrdp.evaluation.cocoeval import run_cocoeval, threshold_index
from jrdp.files import write_json
from jrdp.evaluation.ground_truth import GroundTruth, GroundTruthSource, IouType, load_ground_truth
from jrdp.evaluation.results import check_results, read_results

METRIC_NAMES = ("AP", "AP50", "AP70", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")


@dataclass(frozen=True)
class Curves:
    """Precision over recall, all sizes, at most 100 detections a picture.

    iou_thresholds: float64 `[T]`. recalls: float64 `[101]`, 0, 0.01, ... 1.
    precision: float64 `[T, 101]`, interpolated (the best precision at this recall or a higher one); -1 everywhere
        where there is no ground truth. scores: `[T, 101]`, the score at which the recall is reached, 0 if never.
    max_recall: `[T]`, the recall of all detections.
    """

    iou_thresholds: np.ndarray
    recalls: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    max_recall: np.ndarray

    def at(self, iou_threshold: float) -> np.ndarray:
        """The precision curve `[101]` at one IoU threshold."""
        return self.precision[threshold_index(self.iou_thresholds, iou_threshold)]

    def mean(self) -> np.ndarray:
        """The precision curve `[101]` averaged over the thresholds; its mean is AP."""
        return self.precision.mean(axis=0)


@dataclass(frozen=True)
class Evaluation:
    """metrics: as `evaluate` returns them. curves: what the averages were taken of."""

    metrics: dict[str, float | int]
    curves: Curves


def evaluate(
    ground_truth: GroundTruthSource, results: str | Path | list, iou_type: IouType, ours: bool = False
) -> dict[str, float | int]:
    """COCO metrics of a result list (or file) against an annotation file, its content or a `COCO`; `ours`: see `check_results`.

    Returns `METRIC_NAMES` as fractions in 0..1, or -1 where nothing defines them (no instance of that size, or none
    at all), as pycocotools has it; and the counts `images`, `instances` (without crowd regions), `detections`.
    Class-agnostic: every category of either side is taken as one. An empty result list gives 0.
    Raises `UserError` for malformed input and for results of pictures that the ground truth does not have.
    """
    return evaluate_with_curves(ground_truth, results, iou_type, ours).metrics


def evaluate_with_curves(
    ground_truth: GroundTruthSource, results: str | Path | list, iou_type: IouType, ours: bool = False
) -> Evaluation:
    """As `evaluate`, with the precision-recall curves."""
    truth = load_ground_truth(ground_truth, iou_type)
    where = "results" if isinstance(results, list) else f"results {results}"
    return evaluate_checked(truth, check_results(read_results(results), truth, where, ours))


def evaluate_checked(truth: GroundTruth, detections: list[dict]) -> Evaluation:
    """The same of results as `check_results` returns them."""
    coco_eval = run_cocoeval(truth, detections)
    metrics = summarize(coco_eval)
    metrics["images"] = len(truth.images)
    metrics["instances"] = sum(not annotation["iscrowd"] for annotation in truth.annotations)
    metrics["detections"] = len(detections)
    if truth.without_mask:
        metrics["without_mask"] = truth.without_mask
    return Evaluation(metrics, curves_of(coco_eval))


def summarize(coco_eval: COCOeval) -> dict[str, float | int]:
    """`METRIC_NAMES` from an accumulated `COCOeval` over `cocoeval.COCO_AREAS`."""
    precision = coco_eval.eval["precision"][:, :, 0]  # [T, R, areas, max detections]
    recall = coco_eval.eval["recall"][:, 0]  # [T, areas, max detections]
    thresholds = coco_eval.params.iouThrs

    def average(values: np.ndarray) -> float:
        return float(values.mean())  # where there is no instance of a size, they are -1 all of them

    metrics = {"AP": average(precision[:, :, 0, -1])}
    for percent in (50, 70, 75):
        metrics[f"AP{percent}"] = average(precision[threshold_index(thresholds, percent / 100), :, 0, -1])
    for index, area in enumerate(("small", "medium", "large"), start=1):
        metrics[f"AP_{area}"] = average(precision[:, :, index, -1])
    for index, count in enumerate((1, 10, 100)):
        metrics[f"AR{count}"] = average(recall[:, 0, index])
    return metrics


def curves_of(coco_eval: COCOeval, area_index: int = 0) -> Curves:
    """The curves of an accumulated `COCOeval` for one of its areas, at its greatest number of detections."""
    return Curves(
        iou_thresholds=np.asarray(coco_eval.params.iouThrs),
        recalls=np.asarray(coco_eval.params.recThrs),
        precision=coco_eval.eval["precision"][:, :, 0, area_index, -1],
        scores=coco_eval.eval["scores"][:, :, 0, area_index, -1].clip(min=0),
        max_recall=coco_eval.eval["recall"][:, 0, area_index, -1],
    )


def format_metrics(metrics: dict[str, dict]) -> str:
    """A text table: one row for each of {"bbox": metrics, "segm": metrics}, percentages with one decimal."""
    label_width = max([len("%")] + [len(name) for name in metrics])
    widths = [max(len(name), 5) for name in METRIC_NAMES]
    lines = ["  ".join(["%".ljust(label_width)] + [n.rjust(w) for n, w in zip(METRIC_NAMES, widths)])]
    for name, values in metrics.items():
        cells = [format_percent(values[metric]).rjust(width) for metric, width in zip(METRIC_NAMES, widths)]
        lines.append("  ".join([name.ljust(label_width)] + cells))
    if metrics:
        counts = next(iter(metrics.values()))
        lines.append(f"{counts['images']} images, {counts['instances']} instances, {counts['detections']} detections")
        without = max(values.get("without_mask", 0) for values in metrics.values())
        if without:
            lines.append(f"{without} instances have no mask, so that mask AP cannot reach 100")
    return "\n".join(lines)


def format_percent(fraction: float) -> str:
    """"58.6" for 0.586 and "-" for -1, which means undefined."""
    return "-" if fraction < 0 else f"{100 * fraction:.1f}"


def write_metrics(path: str | Path, metrics: dict[str, dict]) -> None:
    """Write `metrics.json`, {"bbox": metrics, "segm": metrics}, in one step."""
    write_json(path, metrics)
