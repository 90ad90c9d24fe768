"""pycocotools' matching and accumulation, run quietly and class-agnostically."""

from __future__ import annotations

import contextlib
import io
from typing import Sequence

import numpy as np
from pycocotools.cocoeval import COCOeval

from jrdp.evaluation.ground_truth import GroundTruth, coco_index

# Areas in square pixels of the photograph, as COCO bounds them; both ends belong to the range.
ALL = (0.0, 1e10)
COCO_AREAS = {"all": ALL, "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MAX_DETECTIONS = (1, 10, 100)


def run_cocoeval(
    ground_truth: GroundTruth,
    detections: list[dict],
    iou_thresholds: Sequence[float] | None = None,
    areas: dict[str, tuple[float, float]] | None = None,
) -> COCOeval:
    """A `COCOeval` after `evaluate()` and `accumulate()`; pictures in sorted id order.

    detections: as `results.check_results` returns them. iou_thresholds: default 0.50, 0.55, ... 0.95. areas: name ->
    (least, greatest) area, default `COCO_AREAS`. Ground truth and results carry one category, so pycocotools'
    `useCats` makes no difference: that is the released behaviour, where every category id is mapped to 1.
    """
    areas = COCO_AREAS if areas is None else areas
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            ground_truth.coco(),
            coco_index(list(ground_truth.images.values()), [dict(detection) for detection in detections]),
            ground_truth.iou_type,
        )
        evaluation.params.areaRng = [list(area) for area in areas.values()]
        evaluation.params.areaRngLbl = list(areas)
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        if iou_thresholds is not None:
            evaluation.params.iouThrs = np.asarray(iou_thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def threshold_index(iou_thresholds: np.ndarray, value: float) -> int:
    """Where `value` stands in the thresholds, by closeness: 0.9 is stored as 0.8999999999999999."""
    distance = np.abs(np.asarray(iou_thresholds) - value)
    index = int(np.argmin(distance))
    if distance[index] > 1e-6:
        raise ValueError(f"no IoU threshold {value} among {list(iou_thresholds)}")
    return index
