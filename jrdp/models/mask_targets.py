"""Mask targets: an instance's shape inside a proposal box, as a small bitmap."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from jrdp.structures import Targets

# Coordinates of a polygon relative to a tiny box can be astronomical, and the rasteriser walks along every edge.
_FAR = np.float32(20000)


def project_masks(targets: Targets, matched: np.ndarray, boxes: np.ndarray, size: int = 32) -> np.ndarray:
    """What the mask head should predict for each box: uint8 `[P, size, size]` of 0 and 1.

    matched: integer `[P]`, the instance of `targets` that each box stands for.
    boxes: float32 `[P, 4]` in network pixels.

    Convention 27: a polygon is shifted by the box's corner clamped to the image, scaled by size / (x2 - x1) and
    size / (y2 - y1) of the box as it is (no clamp, no +1), and rasterised by pycocotools; the mask is the union of the
    parts. Bitmaps (RLE annotations) are sampled at the same places: at the centre of each target pixel.
    A box without width or height counts as one pixel wide or high (convention 30); a box that is
    not finite gets an empty target.
    """
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    result = np.zeros((len(boxes), size, size), dtype=np.uint8)
    for row, (instance, box) in enumerate(zip(matched, boxes)):
        if not np.isfinite(box).all():
            continue
        origin, scale = _frame(box, targets.size, size)
        polygons = targets.polygons[instance]
        if polygons is not None:
            result[row] = _rasterise(polygons, origin, scale, size)
        else:
            result[row] = _sample(targets.bitmaps[instance], origin, scale, size)
    return result


def _frame(box: np.ndarray, image_size: tuple[int, int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the target's grid lies: origin (x, y) in network pixels and target pixels per network pixel, float32."""
    height, width = image_size
    origin = np.clip(box[:2], 0, np.array([width - 1, height - 1], dtype=np.float32))
    extent = box[2:] - box[:2]
    extent[extent <= 0] = 1
    return origin, (float(size) / extent.astype(np.float64)).astype(np.float32)


def _rasterise(polygons: list[np.ndarray], origin: np.ndarray, scale: np.ndarray, size: int) -> np.ndarray:
    parts = []
    for polygon in polygons:
        points = (polygon.astype(np.float32).reshape(-1, 2) - origin) * scale  # float32, as released
        parts.append(np.clip(points, -_FAR, _FAR).ravel().astype(np.float64))
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, size, size)))


def _sample(bitmap: np.ndarray, origin: np.ndarray, scale: np.ndarray, size: int) -> np.ndarray:
    height, width = bitmap.shape
    centres = np.arange(size) + 0.5
    columns = np.floor(origin[0] + centres / scale[0]).astype(np.int64)
    rows = np.floor(origin[1] + centres / scale[1]).astype(np.int64)
    inside = (rows < height)[:, None] & (columns < width)[None, :]  # the origin is never negative
    return np.where(inside, bitmap[np.minimum(rows, height - 1)[:, None], np.minimum(columns, width - 1)[None, :]], 0)
