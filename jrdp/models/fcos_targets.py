"""What each location of the FCOS head should answer, in NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jrdp import boxes as box_ops

# A location of P3..P7 answers for a box when its largest distance to a side lies in the level's range, both ends
# included: at a boundary two levels are positive (convention 25).
RANGES = ((0, 64), (64, 128), (128, 256), (256, 512), (512, np.inf))


class LocationTargets(NamedTuple):
    """For the L locations of each of N images."""

    positive: np.ndarray  # bool [N, L]
    distances: np.ndarray  # float32 [N, L, 4], zero where not positive
    centerness: np.ndarray  # float32 [N, L], in (0, 1], zero where not positive


def locations(height: int, width: int, stride: int) -> np.ndarray:
    """The points in network pixels a map `[height, width]` stands for, row-major: float32 `[height * width, 2]`."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    points = np.stack([x.ravel(), y.ravel()], axis=1) * stride + stride // 2
    return points.astype(np.float32)


def assign_targets(level_locations: list[np.ndarray], image_boxes: list[np.ndarray]) -> LocationTargets:
    """The targets for per-level locations `[L_k, 2]` and per-image ground-truth boxes `[G, 4]` in network pixels.

    A location is positive when it lies strictly inside a box of its level's range; of several boxes it takes the one
    with the smallest area (the first of equals). No centre sampling (convention 25).
    """
    points = np.concatenate(level_locations)  # [L, 2]
    ranges = np.concatenate(
        [np.full((len(level), 2), bounds, np.float32) for level, bounds in zip(level_locations, RANGES)]
    )
    per_image = [_assign_image(points, ranges, np.asarray(boxes, np.float32)) for boxes in image_boxes]
    return LocationTargets(*[np.stack(arrays) for arrays in zip(*per_image)])


def _assign_image(points: np.ndarray, ranges: np.ndarray, boxes: np.ndarray) -> LocationTargets:
    count = len(points)
    if len(boxes) == 0:
        return LocationTargets(
            np.zeros(count, bool), np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
        )
    distances = np.concatenate([points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]], axis=2)
    inside = distances.min(axis=2) > 0  # [L, G]
    longest = distances.max(axis=2)
    in_range = (longest >= ranges[:, :1]) & (longest <= ranges[:, 1:])
    areas = np.where(inside & in_range, box_ops.area(boxes)[None], np.float32(np.inf))
    chosen = areas.argmin(axis=1)  # [L]
    rows = np.arange(count)
    positive = np.isfinite(areas[rows, chosen])
    distances = np.where(positive[:, None], distances[rows, chosen], np.float32(0))
    return LocationTargets(positive, distances, centerness(distances, positive))


def centerness(distances: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) where `positive`, else 0: `[L, 4]`, bool `[L]` -> `[L]`."""
    left, top, right, bottom = np.where(positive[:, None], distances, np.float32(1)).T
    horizontal = np.minimum(left, right) / np.maximum(left, right)
    vertical = np.minimum(top, bottom) / np.maximum(top, bottom)
    return np.where(positive, np.sqrt(horizontal * vertical), np.float32(0)).astype(np.float32)
