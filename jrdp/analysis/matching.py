"""Which detection found which instance, picture by picture, taken from pycocotools' own matching.

Everything the analysis counts comes from here, so that its AP is pycocotools' AP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
from pycocotools.cocoeval import COCOeval

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class PictureMatches:
    """The detections of one picture against its instances, at T IoU thresholds.

    detections: int `[D]`, positions in the result list, by falling score, at most 100. scores: float64 `[D]`.
    instances: int `[G]`, positions in the annotation list, without crowd regions. ious: float64 `[D, G]`.
    matches: int `[T, D]`, the matched column of `instances`, or -1. ignored: bool `[T, D]`, matched a crowd region:
    neither right nor wrong.
    """

    image_id: int | str
    detections: np.ndarray
    scores: np.ndarray
    instances: np.ndarray
    ious: np.ndarray
    matches: np.ndarray
    ignored: np.ndarray


def match_pictures(coco_eval: COCOeval) -> list[PictureMatches]:
    """The matches of every picture, in sorted id order, from an evaluated `COCOeval` whose first area is "all"."""
    image_ids = np.asarray(coco_eval.params.imgIds).tolist()  # plain ints or strings
    pictures = []
    for image_id, record in zip(image_ids, coco_eval.evalImgs[: len(image_ids)]):  # areas are the outer order
        pictures.append(_empty(image_id, coco_eval) if record is None else _from_record(image_id, record, coco_eval))
    return pictures


def _from_record(image_id: int | str, record: dict, coco_eval: COCOeval) -> PictureMatches:
    truths = coco_eval.cocoGt.imgToAnns[image_id]  # the order of the IoU matrix' columns
    columns = [column for column, truth in enumerate(truths) if not truth["iscrowd"]]
    ids = [truths[column]["id"] for column in columns]
    ious = coco_eval.ious[image_id, coco_eval.params.catIds[0]]  # [D, all truths], or [] where either is missing
    count, thresholds = len(record["dtIds"]), len(coco_eval.params.iouThrs)
    ious = np.asarray(ious)[:, columns] if len(ious) else np.zeros((count, len(ids)))
    column_of = {annotation_id: column for column, annotation_id in enumerate(ids)}
    matches = np.array(
        [[column_of.get(int(matched), -1) for matched in row] for row in record["dtMatches"]], dtype=np.int64
    ).reshape(thresholds, count)
    return PictureMatches(
        image_id=image_id,
        detections=np.array(record["dtIds"], dtype=np.int64) - 1,
        scores=np.array(record["dtScores"]),
        instances=np.array(ids, dtype=np.int64) - 1,
        ious=ious,
        matches=matches,
        ignored=record["dtIgnore"],
    )


def _empty(image_id: int | str, coco_eval: COCOeval) -> PictureMatches:
    thresholds = len(coco_eval.params.iouThrs)
    none = np.zeros(0, dtype=np.int64)
    nothing = np.zeros((thresholds, 0), dtype=np.int64)
    return PictureMatches(image_id, none, np.zeros(0), none, np.zeros((0, 0)), nothing, nothing.astype(bool))


def precision_curve(scores: np.ndarray, hits: np.ndarray, total: int) -> np.ndarray:
    """Interpolated precision at the 101 `RECALLS`, as pycocotools computes it.

    scores: `[N]` in the order of evaluation (equal scores keep it). hits: bool `[N]`. total: the number of
    instances, at least 1.
    """
    order = np.argsort(-np.asarray(scores), kind="mergesort")
    found = np.cumsum(np.asarray(hits)[order])
    recall = found / total
    precision = found / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(precision, 0.0)[np.searchsorted(recall, RECALLS)]  # beyond the last detection nothing is found


def average_precision(pictures: Sequence[PictureMatches], threshold: int) -> float:
    """AP of some pictures together at the `threshold`-th IoU threshold; -1 where they have no instance."""
    total = sum(len(picture.instances) for picture in pictures)
    if total == 0:
        return -1.0
    counted = [~picture.ignored[threshold] for picture in pictures]
    scores = np.concatenate([picture.scores[keep] for picture, keep in zip(pictures, counted)])
    hits = np.concatenate([picture.matches[threshold][keep] >= 0 for picture, keep in zip(pictures, counted)])
    return float(precision_curve(scores, hits, total).mean())


def mean_average_precision(pictures: Sequence[PictureMatches]) -> float:
    """AP averaged over all IoU thresholds; -1 where the pictures have no instance."""
    if not any(len(picture.instances) for picture in pictures):
        return -1.0
    return float(np.mean([average_precision(pictures, t) for t in range(len(pictures[0].matches))]))
