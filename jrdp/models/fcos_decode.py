"""From the FCOS head's answers to boxes and scores (conventions 4 and 19): in NumPy, the definition, or on the GPU."""

from __future__ import annotations

from typing import NamedTuple

import jittor as jt
import numpy as np

from jrdp import boxes as box_ops
from jrdp.config import FcosConfig
from jrdp.errors import UserError
from jrdp.models.fcos_targets import locations
from jrdp.models.shapes import LEVELS, STRIDES
from jrdp.models.transfer import fetch
from jrdp.ops import Limits, decode_on_device, decoding, found_in, nms
from jrdp.ops.compile import Kernels
from jrdp.structures import ImageBatch, Instances


class Detections(NamedTuple):
    """Boxes of one image in network pixels, level by level and row-major, not sorted by score.

    `fault` says which answers are not finite: prediction refuses them (`instances_of`); a training goes on with its losses,
    which tell whether it matters. Where answers are NaN there are no boxes; those of infinite distances are clipped.
    """

    boxes: np.ndarray  # float32 [K, 4]
    scores: np.ndarray  # float32 [K]
    fault: str = ""


_NONE = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


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
    answers = {"classification": logits, "distances": distances, "centerness": centerness}
    faults = _faults(answers, len(sizes))
    if any(faults) and any(np.isnan(values).any() for levels in answers.values() for values in levels):
        return [_NONE._replace(fault=fault) for fault in faults]
    candidates = [
        level_candidates(*level, stride, sizes, config)
        for *level, stride in zip(logits, distances, centerness, STRIDES)
    ]
    found = [_suppress(merge(per_level), config) for per_level in zip(*candidates)]
    return [detections._replace(fault=fault) for detections, fault in zip(found, faults)]


def _faults(answers: dict[str, list[np.ndarray]], images: int) -> list[str]:
    """For each image the first of its answers, by name and level, that is not finite; "" where all are."""
    faults = [""] * images
    for name, levels in answers.items():
        for level, values in zip(LEVELS, levels):
            for image in np.flatnonzero(~np.isfinite(values).reshape(images, -1).all(axis=1)):
                faults[image] = faults[image] or f"{name} at P{level}"
    return faults


def instances_of(found: list[Detections], masks: np.ndarray, batch: ImageBatch) -> list[Instances]:
    """The instances of each image in network pixels; `masks` are the probabilities `[K, M, M]` of all images together.

    Raises:
        UserError: where the network answered with what is not finite, naming it and the picture (convention 36).
    """
    instances, start = [], 0
    for image, detections in enumerate(found):
        end = start + len(detections.boxes)
        mine, start = masks[start:end], end
        fault = detections.fault or ("" if (mine <= 1).all() else "masks")
        if fault:
            raise UserError(
                f"the network's answers for {batch.name(image)} are not finite ({fault}): numbers in it grow beyond what its "
                "arithmetic holds, as after a training that diverged; use weights from before that"
            )
        instances.append(Instances(detections.boxes, detections.scores, mine, batch.sizes[image]))
    return instances


def decode_vars(
    logits: list[jt.Var],
    distances: list[jt.Var],
    centerness: list[jt.Var],
    sizes: list[tuple[int, int]],
    config: FcosConfig,
) -> list[Detections]:
    """`decode` for answers that are still being computed: where they are, waiting once, for the boxes or the answers."""
    if jt.flags.use_cuda:
        return decode_launched(logits, distances, centerness, sizes, config)
    values = iter(jt.fetch_sync([*logits, *distances, *centerness]))
    return decode(*[[next(values) for _ in levels] for levels in (logits, distances, centerness)], sizes, config)


def decode_launched(
    logits: list[jt.Var],
    distances: list[jt.Var],
    centerness: list[jt.Var],
    sizes: list[tuple[int, int]],
    config: FcosConfig,
    kernels: Kernels = decoding.KERNELS,
) -> list[Detections]:
    """`decode` by the operator for GPUs, which tells of a fault without its name and level."""
    answers = [[level.float32() for level in levels] for levels in (logits, distances, centerness)]
    found = decode_on_device(*answers, STRIDES[: len(logits)], np.array(sizes), limits_of(config), kernels)
    boxes, scores, status = found_in(fetch(found), len(sizes))
    faults = ["classification, distances or centerness" if fault else "" for fault in status[:, 1]]
    return [
        Detections(boxes[image, :count], scores[image, :count], fault)
        for image, (count, fault) in enumerate(zip(status[:, 0], faults))
    ]


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
