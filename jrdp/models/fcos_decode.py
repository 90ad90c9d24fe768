"""From the FCOS head's answers to boxes and scores (conventions 4 and 19): in NumPy, the definition, or on the GPU."""

from __future__ import annotations

from typing import NamedTuple

import jittor as jt
import numpy as np

from jrdp import boxes as box_ops
from jrdp.config import FcosConfig
from jrdp.models.fcos_targets import locations
from jrdp.models.shapes import STRIDES
from jrdp.models.transfer import fetch
from jrdp.ops import Limits, decode_on_device, found_in, nms


class Detections(NamedTuple):
    """Boxes of one image in network pixels, level by level and row-major, not sorted by score."""

    boxes: np.ndarray  # float32 [K, 4]
    scores: np.ndarray  # float32 [K]


def decode(
    logits: list[np.ndarray],
    distances: list[np.ndarray],
    centerness: list[np.ndarray],
    sizes: list[tuple[int, int]],
    config: FcosConfig,
) -> list[Detections]:
    """The detections of each image of a batch.

    logits, centerness: per level (P3..P7) float32 `[N, 1, H, W]` before the sigmoid; distances: `[N, 4, H, W]` > 0.
    sizes: (height, width) of each image without its padding; boxes are clipped to it.
    """
    candidates = [
        level_candidates(*level, stride, sizes, config)
        for *level, stride in zip(logits, distances, centerness, STRIDES)
    ]
    return [_suppress(merge(per_level), config) for per_level in zip(*candidates)]


def decode_vars(
    logits: list[jt.Var],
    distances: list[jt.Var],
    centerness: list[jt.Var],
    sizes: list[tuple[int, int]],
    config: FcosConfig,
) -> list[Detections]:
    """`decode` for answers that are still being computed: where they are, waiting once, for the boxes or the answers.

    Raises:
        ValueError: for a candidate whose box or score is not finite.
    """
    if not jt.flags.use_cuda:
        values = jt.fetch_sync([*logits, *distances, *centerness])
        levels = len(logits)
        return decode(values[:levels], values[levels : 2 * levels], values[2 * levels :], sizes, config)
    answers = [[level.float32() for level in levels] for levels in (logits, distances, centerness)]
    found = decode_on_device(*answers, STRIDES[: len(logits)], np.array(sizes), limits_of(config))
    boxes, scores, status = found_in(fetch(found), len(sizes))
    broken = np.flatnonzero(status[:, 1] >= 0)
    if len(broken):
        raise ValueError(f"boxes: box {status[broken[0], 1]} of image {broken[0]} or its score is not finite")
    return [Detections(boxes[image, :count], scores[image, :count]) for image, count in enumerate(status[:, 0])]


def limits_of(config: FcosConfig) -> Limits:
    """The configured limits, as the operator takes them."""
    return Limits(config.pre_nms_threshold, config.pre_nms_top_n, config.nms_threshold, config.post_nms_top_n)


def level_candidates(
    logits: np.ndarray,
    distances: np.ndarray,
    centerness: np.ndarray,
    stride: int,
    sizes: list[tuple[int, int]],
    config: FcosConfig,
) -> list[Detections]:
    """One level's boxes before suppression, for each image.

    The threshold is on the classification alone, the score is classification times centerness. A level without any
    location above the threshold in the whole batch gives its best one all the same: so the result for
    an image can depend on its batch.
    """
    n, _, height, width = logits.shape
    probability = sigmoid(logits).reshape(n, -1)
    score = probability * sigmoid(centerness).reshape(n, -1)
    distance = distances.reshape(n, 4, -1).transpose(0, 2, 1)
    points = locations(height, width, stride)

    is_candidate = probability > np.float32(config.pre_nms_threshold)
    if not is_candidate.any():
        is_candidate = probability >= probability.max()
    found = []
    for image in range(n):
        chosen = np.flatnonzero(is_candidate[image])
        if len(chosen) > config.pre_nms_top_n:
            best = np.argsort(-score[image, chosen], kind="stable")[: config.pre_nms_top_n]
            chosen = chosen[np.sort(best)]
        x, y = points[chosen].T
        left, top, right, bottom = distance[image, chosen].T
        boxes = np.stack([x - left, y - top, x + right, y + bottom], axis=1)
        found.append(Detections(box_ops.clip(boxes, *sizes[image]).astype(np.float32), score[image, chosen]))
    return found


def merge(parts: tuple[Detections, ...]) -> Detections:
    """One after the other."""
    return Detections(np.concatenate([part.boxes for part in parts]), np.concatenate([part.scores for part in parts]))


def _suppress(found: Detections, config: FcosConfig) -> Detections:
    """Non-maximum suppression over all levels together, then the best `post_nms_top_n`; ties at the end stay."""
    kept = nms(found.boxes, found.scores, config.nms_threshold)
    boxes, scores = found.boxes[kept], found.scores[kept]
    if len(scores) > config.post_nms_top_n:
        last = np.sort(scores)[-config.post_nms_top_n]
        boxes, scores = boxes[scores >= last], scores[scores >= last]
    return Detections(boxes, scores)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float32; exp is only taken of negative numbers, so nothing overflows."""
    small = np.exp(-np.abs(x))
    return (np.where(x >= 0, np.float32(1), small) / (1 + small)).astype(np.float32)
