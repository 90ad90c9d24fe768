"""The twin's RoIAlign and suppression in plain torch, in the legacy conventions of the released network.

torchvision has both as compiled operators. The twin states them itself, so that it runs wherever torch does, and only
its timings take torchvision's (`use_torchvision`), where that is installed.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

BLOCK = 256  # boxes that are suppressed at a time

_compiled = None  # torchvision.ops, once `use_torchvision` has found it


def use_torchvision() -> Optional[str]:
    """From now on use torchvision's compiled operators in this process; its version, or None where it is missing."""
    global _compiled
    try:
        import torchvision
        import torchvision.ops
    except ImportError:
        return None
    _compiled = torchvision.ops
    return torchvision.__version__


def roi_align(x: Tensor, rois: Tensor, size: int, scale: float, sampling_ratio: int, aligned: bool = False) -> Tensor:
    """Mean of bilinear samples in the size x size bins of every RoI: [R, C, size, size], with gradient to `x`.

    x: [N, C, H, W]; rois: [R, 5] as (image, x1, y1, x2, y2), multiplied by `scale` to reach the map's pixels.
    sampling_ratio: samples of a bin along each axis; 0 for as many as a bin has map pixels, rounded up.
    aligned: False as released, RoIs are at least one map pixel wide; True moves them half a pixel, with no least size.
    A sample more than one pixel outside the map counts as zero; closer ones take the border's value.

    Samples lie on a grid, so an output is A_y x A_x^T with one interpolation matrix per axis and RoI: two products.
    """
    if _compiled is not None:
        return _compiled.roi_align(x, rois, size, scale, sampling_ratio, aligned=aligned)
    images, boxes = rois[:, 0], rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    rows = _interpolation(boxes[:, 1], boxes[:, 3], size, x.shape[2], sampling_ratio, aligned)
    columns = _interpolation(boxes[:, 0], boxes[:, 2], size, x.shape[3], sampling_ratio, aligned)
    if len(x) == 1:
        return _pool(x[0], rows, columns)
    places = [(images == image).nonzero().squeeze(1) for image in range(len(x))]
    parts = [_pool(own, rows[place], columns[place]) for own, place in zip(x, places)]
    return torch.cat(parts)[torch.cat(places).argsort()]


def _interpolation(start: Tensor, end: Tensor, size: int, length: int, ratio: int, aligned: bool) -> Tensor:
    """How much of each of `length` map pixels is in each bin of RoIs from `start` to `end` [R]: [R, size, length]."""
    extent = end - start if aligned else (end - start).clamp(min=1)
    width = extent / size  # of a bin
    count = torch.full_like(width, ratio) if ratio > 0 else width.ceil()  # samples of a bin, [R]
    most = ratio if ratio > 0 else max(int(count.max()) if len(count) else 0, 1)
    sample = torch.arange(most, device=start.device)
    bins = torch.arange(size, device=start.device, dtype=start.dtype)
    offset = (sample + 0.5) * width[:, None] / count[:, None].clamp(min=1)  # [R, G] from the bin's start
    place = start[:, None, None] + bins[:, None] * width[:, None, None] + offset[:, None, :]  # [R, size, G]
    used = (place >= -1) & (place <= length) & (sample < count[:, None])[:, None, :]
    share = used / count[:, None, None].clamp(min=1)
    place = place.clamp(0, length - 1)
    low = place.floor()
    part = place - low
    low = low.long()
    high = (low + 1).clamp(max=length - 1)
    matrix = start.new_zeros(len(start), size, length)
    matrix.scatter_add_(2, low, share * (1 - part))
    return matrix.scatter_add_(2, high, share * part)


def _pool(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """x [C, H, W], rows [R, size, H], columns [R, size, W] -> [R, C, size, size]."""
    count, size, _ = rows.shape
    channels, height, width = x.shape
    shrunk = rows.reshape(count * size, height) @ x.transpose(0, 1).reshape(height, channels * width)
    pooled = torch.bmm(shrunk.reshape(count, size * channels, width), columns.transpose(1, 2))
    return pooled.reshape(count, size, channels, size).transpose(1, 2)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, plus_one: bool = True) -> Tensor:
    """Greedy suppression at IoU > threshold: kept indices [K], ascending. boxes: [B, 4], scores: [B].

    plus_one: widths are x2 - x1 + 1, as released. Equal scores keep their order.
    """
    if _compiled is not None:
        # A box with the +1 is the plain box up to x2 + 1, y2 + 1.
        grown = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0]) if plus_one else boxes
        return _compiled.nms(grown, scores, iou_threshold).sort().values
    order = scores.sort(descending=True, stable=True).indices
    boxes = boxes[order]
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        conquers = iou(boxes[start:end], boxes[start:], plus_one) > iou_threshold
        inside = conquers[:, : end - start].triu(diagonal=1)  # [i, j]: the better i removes j, if i itself stays
        # Greedy suppression is the one fixed point of "stays when nobody better that stays overlaps": the first i are
        # final after i rounds, and chains are short.
        free, stays = kept[start:end], kept[start:end].clone()
        while True:
            settled = free & ~(inside & stays[:, None]).any(dim=0)
            if torch.equal(settled, stays):
                break
            stays = settled
        kept[start:end] = stays
        kept[end:] &= ~conquers[stays, end - start :].any(dim=0)
    return order[kept].sort().values


def iou(a: Tensor, b: Tensor, plus_one: bool = True) -> Tensor:
    """IoU of every pair of boxes [A, 4] and [B, 4]: [A, B]."""
    one = 1.0 if plus_one else 0.0
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T.contiguous(), b.T.contiguous()
    width = (torch.minimum(ax2[:, None], bx2) - torch.maximum(ax1[:, None], bx1)).add_(one).clamp_(min=0)
    height = (torch.minimum(ay2[:, None], by2) - torch.maximum(ay1[:, None], by1)).add_(one).clamp_(min=0)
    overlap = width.mul_(height)
    area, other = (ax2 - ax1 + one) * (ay2 - ay1 + one), (bx2 - bx1 + one) * (by2 - by1 + one)
    return overlap / (area[:, None] + other).sub_(overlap)
