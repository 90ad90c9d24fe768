"""Box arithmetic in the network's convention 10, in one place.

A box is (x1, y1, x2, y2) in pixels and covers the pixels x1..x2, y1..y2 including both ends: its width is
x2 - x1 + 1. All functions take and return float32 NumPy arrays `[K, 4]` (K may be 0) and leave their arguments alone.
Only `resize` knows nothing of the +1: box edges are scaled like coordinates.
"""

from __future__ import annotations

import numpy as np


def as_boxes(values) -> np.ndarray:
    """`values` as a float32 array `[K, 4]`; an empty list gives `[0, 4]`."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 4)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas in pixels, `[K]`: (x2 - x1 + 1) * (y2 - y1 + 1)."""
    boxes = as_boxes(boxes)
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, float32 `[A, B]`, with +1 widths."""
    a, b = as_boxes(a), as_boxes(b)
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # [A, B, 2]
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])  # [A, B, 2]
    overlap = np.clip(bottom_right - top_left + 1, 0, None).prod(axis=2)  # [A, B]
    return overlap / (area(a)[:, None] + area(b)[None, :] - overlap)


def clip(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes moved into the image: x to [0, width - 1], y to [0, height - 1]."""
    limit = np.array([width - 1, height - 1, width - 1, height - 1], dtype=np.float32)
    return np.clip(as_boxes(boxes), 0, limit)


def nonempty(boxes: np.ndarray) -> np.ndarray:
    """Mask `[K]` of the boxes with x2 > x1 and y2 > y1, strictly (the rule for ground truth)."""
    boxes = as_boxes(boxes)
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def large_enough(boxes: np.ndarray, min_size: float) -> np.ndarray:
    """Mask `[K]` of the boxes whose +1 width and height are both at least `min_size` (the rule for detections)."""
    boxes = as_boxes(boxes)
    return (boxes[:, 2] - boxes[:, 0] + 1 >= min_size) & (boxes[:, 3] - boxes[:, 1] + 1 >= min_size)


def flip(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes in the mirrored image: the pixel x moves to width - 1 - x."""
    x1, y1, x2, y2 = as_boxes(boxes).T
    return np.stack([width - x2 - 1, y1, width - x1 - 1, y2], axis=1)


def resize(boxes: np.ndarray, old_size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Boxes in the image resized from `old_size` to `new_size`, both (height, width).

    Edges are scaled as coordinates, x and y each by its own ratio, without any +1 and without clipping.
    """
    ratio_y = float(new_size[0]) / float(old_size[0])
    ratio_x = float(new_size[1]) / float(old_size[1])
    return as_boxes(boxes) * np.array([ratio_x, ratio_y, ratio_x, ratio_y], dtype=np.float32)


def from_xywh(boxes: np.ndarray) -> np.ndarray:
    """COCO's (x, y, width, height) to (x1, y1, x2, y2): x2 = x + max(width - 1, 0)."""
    x, y, width, height = as_boxes(boxes).T
    return np.stack([x, y, x + np.maximum(width - 1, 0), y + np.maximum(height - 1, 0)], axis=1)


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """(x1, y1, x2, y2) to COCO's (x, y, width, height): width = x2 - x1 + 1."""
    x1, y1, x2, y2 = as_boxes(boxes).T
    return np.stack([x1, y1, x2 - x1 + 1, y2 - y1 + 1], axis=1)


def overlap(xywh: tuple[float, float, float, float], bounds: tuple[float, float, float, float]) -> float:
    """Intersection over union of a COCO box and bounds, as areas without +1; sides count as at least one pixel."""
    x, y, width, height = xywh
    x1, y1, x2, y2 = bounds
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    width, height = max(width, 1), max(height, 1)
    inner = max(min(x + width, x2) - max(x, x1), 0) * max(min(y + height, y2) - max(y, y1), 0)
    return inner / (width * height + (x2 - x1) * (y2 - y1) - inner)
