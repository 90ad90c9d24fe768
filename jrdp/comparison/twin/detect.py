"""The twin's way from head maps to boxes and mask probabilities, in torch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jrdp.comparison.twin import ops
from jrdp.comparison.twin.model import RELEASED, STRIDES, Trunk, Twin, Variant
from jrdp.config import FcosConfig


def legacy_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, plus_one: bool = True) -> Tensor:
    """`ops.nms` with the threshold rounded to float32, as released: kept indices [K], ascending."""
    return ops.nms(boxes, scores, float(np.float32(iou_threshold)), plus_one)


def locations(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """Centres (x, y) of a map's cells in network pixels, row-major: [height * width, 2], dtype and device of `like`."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device), torch.arange(width, device=like.device), indexing="ij"
    )
    return (torch.stack([x.flatten(), y.flatten()], dim=1) * stride + stride // 2).to(like.dtype)


def candidates(
    cls: Tensor,
    reg: Tensor,
    ctr: Tensor,
    stride: int,
    sizes: list[tuple[int, int]],
    config: FcosConfig,
    variant: Variant = RELEASED,
) -> list[tuple[Tensor, Tensor]]:
    """One level's boxes before suppression, per image: boxes [K, 4] clipped to the image, scores [K], by location.

    cls, ctr: logits [N, 1, h, w]; reg: [N, 4, h, w] in network pixels; sizes: (height, width) without padding.
    A location is a candidate when sigmoid(cls) is over the threshold; if none of the whole batch is, those that reach
    the batch's highest value are. The score sigmoid(cls) * sigmoid(ctr) has no threshold of its own.
    """
    points = locations(cls.shape[2], cls.shape[3], stride, reg)
    probability = cls.flatten(1).sigmoid()  # [N, h * w]
    score = probability * ctr.flatten(1).sigmoid()
    if variant.sqrt_score:
        score = score.sqrt()
    distances = reg.flatten(2).permute(0, 2, 1)  # [N, h * w, 4]
    highest = probability.max()
    threshold = float(np.float32(config.pre_nms_threshold))  # rounded as released, in float64 too
    chosen = probability > threshold if bool(highest > threshold) else probability >= highest
    out = []
    for image, (height, width) in enumerate(sizes):
        index = chosen[image].nonzero().squeeze(1)
        if len(index) > config.pre_nms_top_n:
            best = score[image, index].sort(descending=True, stable=True).indices[: config.pre_nms_top_n]
            index = index[best.sort().values]
        x, y = points[index].unbind(1)
        left, top, right, bottom = distances[image, index].unbind(1)
        boxes = torch.stack(
            [
                (x - left).clamp(0, width - 1),
                (y - top).clamp(0, height - 1),
                (x + right).clamp(0, width - 1),
                (y + bottom).clamp(0, height - 1),
            ],
            dim=1,
        )
        out.append((boxes, score[image, index]))
    return out


def proposals(
    trunk: Trunk, sizes: list[tuple[int, int]], config: FcosConfig, variant: Variant = RELEASED
) -> list[tuple[Tensor, Tensor]]:
    """Per image boxes [K, 4] and scores [K] after suppression and top-n, level by level, by location; no gradient."""
    with torch.no_grad():
        maps = zip(trunk.head("cls_logits"), trunk.head("bbox_reg"), trunk.head("centerness"), STRIDES)
        levels = [candidates(cls, reg, ctr, stride, sizes, config, variant) for cls, reg, ctr, stride in maps]
        return [select([level[image] for level in levels], config, variant) for image in range(len(sizes))]


def select(
    levels: list[tuple[Tensor, Tensor]], config: FcosConfig, variant: Variant = RELEASED
) -> tuple[Tensor, Tensor]:
    """Suppression over one image's levels together, then the best `post_nms_top_n`; ties for the last place stay."""
    boxes = torch.cat([boxes for boxes, _ in levels])
    scores = torch.cat([scores for _, scores in levels])
    kept = legacy_nms(boxes, scores, config.nms_threshold, not variant.nms_without_one)
    boxes, scores = boxes[kept], scores[kept]
    if len(scores) > config.post_nms_top_n:
        last = scores.sort(descending=True).values[config.post_nms_top_n - 1]
        boxes, scores = boxes[scores >= last], scores[scores >= last]
    return boxes, scores


def as_rois(boxes: list[Tensor]) -> Tensor:
    """Boxes per image [K_i, 4] -> [R, 5] with the image's index in front."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), image), b], dim=1) for image, b in enumerate(boxes)])


@torch.no_grad()
def stages(model: Twin, images: Tensor, sizes: list[tuple[int, int]], rois: Tensor | None = None) -> dict[str, Tensor]:
    """Every stage by name, in order of computation, up to `mask_logits`; mask stages on `rois`, else own detections."""
    trunk = model.trunk(images)
    if rois is None:
        rois = as_rois([boxes for boxes, _ in proposals(trunk, sizes, model.config.fcos, model.variant)])
    return {**trunk.stages, **model.masks(trunk.pyramid, rois)}


@torch.no_grad()
def detect(model: Twin, images: Tensor, sizes: list[tuple[int, int]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per image boxes [K, 4] in network pixels, scores [K], mask probabilities [K, 32, 32], in the released order."""
    trunk = model.trunk(images)
    found = proposals(trunk, sizes, model.config.fcos, model.variant)
    logits = model.masks(trunk.pyramid, as_rois([boxes for boxes, _ in found]))["mask_logits"]
    masks = logits[:, 1].sigmoid().split([len(boxes) for boxes, _ in found])
    return [(boxes, scores, mask) for (boxes, scores), mask in zip(found, masks)]
