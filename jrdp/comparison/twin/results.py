"""The twin's detections as COCO results: boxes in the photograph's pixels, pasted masks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor


def to_photograph(boxes: Tensor, size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """Boxes [K, 4] from network pixels (`size`, height and width) to the photograph's; no +1, no clipping."""
    vertical, horizontal = (new / old for new, old in zip(original_size, size))
    return boxes * boxes.new_tensor([horizontal, vertical, horizontal, vertical])


def paste(probabilities: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> np.ndarray:
    """Masks of the whole picture, uint8 [K, height, width], from [K, M, M] probabilities relative to boxes [K, 4].

    As released: one pixel of zeros around the mask, the box enlarged by the same share about its centre and truncated
    toward zero, bilinear resizing, `> threshold`.
    """
    count, size = len(boxes), probabilities.shape[-1]
    padded = F.pad(probabilities[:, None], (1, 1, 1, 1))
    out = np.zeros((count, height, width), np.uint8)
    centre = (boxes[:, :2] + boxes[:, 2:]) * 0.5
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((size + 2) / size)
    corners = torch.cat([centre - half, centre + half], dim=1).to(torch.int32).tolist()
    for index, (x1, y1, x2, y2) in enumerate(corners):
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        resized = F.interpolate(padded[index : index + 1], size=(h, w), mode="bilinear", align_corners=False)
        solid = (resized[0, 0] > threshold).cpu().numpy()
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, width), min(y2 + 1, height)
        if left < right and top < bottom:
            out[index, top:bottom, left:right] = solid[top - y1 : bottom - y1, left - x1 : right - x1]
    return out


def coco_entries(
    found: tuple[Tensor, Tensor, Tensor],
    size: tuple[int, int],
    original_size: tuple[int, int],
    image_id: int,
    category_id: int,
    threshold: float = 0.5,
) -> tuple[list[dict], list[dict]]:
    """Box results and mask results of one picture; `found` as `twin_detect.detect` gives it."""
    boxes, scores, probabilities = (part.float() for part in found)
    boxes = to_photograph(boxes, size, original_size)
    height, width = original_size
    masks = paste(probabilities, boxes, height, width, threshold)
    common = [{"image_id": image_id, "category_id": category_id, "score": score} for score in scores.tolist()]
    extent = boxes[:, 2:] - boxes[:, :2] + 1
    xywh = torch.cat([boxes[:, :2], extent], dim=1).tolist()
    rles = []
    for mask in masks:
        rle = coco_mask.encode(np.asfortranarray(mask))
        rles.append({"size": [height, width], "counts": rle["counts"].decode("ascii")})
    return (
        [{**entry, "bbox": box} for entry, box in zip(common, xywh)],
        [{**entry, "segmentation": rle} for entry, rle in zip(common, rles)],
    )
