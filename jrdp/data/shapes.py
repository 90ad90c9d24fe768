"""The shapes of annotations and results: reading them from COCO's forms with every number bounded, and measuring them.

pycocotools trusts what it is given: it walks along every edge of a polygon with memory for each step, and writes runs
where they say. So nothing from a file reaches it before it has passed `parse_segmentation`.
"""

from __future__ import annotations

from typing import Any, Optional, Sequence

import numpy as np
from pycocotools import mask as coco_mask

from jrdp.data.rle import parse_rle

# No picture is that wide. Polygons and boxes beyond it are mistakes, and cost memory in proportion.
FAR = 1e6
# Pixels along all edges of one shape: pycocotools takes about 80 bytes for each.
MOST_OUTLINE = 2e6

Parts = Optional[list[np.ndarray]]
Runs = Optional[np.ndarray]


def finite_numbers(values: Any) -> bool:
    """Whether this is a list (or tuple) of finite numbers."""
    return isinstance(values, (list, tuple)) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # false for NaN too
        for value in values
    )


def parse_segmentation(segmentation: Any, height: int, width: int) -> tuple[Parts, Runs]:
    """(polygons, None) or (None, runs) of a COCO segmentation of a picture of `height` x `width`.

    polygons: the parts with at least six numbers, each float64 `[2 * P]`. runs: int64 `[R]`, see `rle.parse_rle`.
    Raises ValueError, with a clause about what is wrong.
    """
    if isinstance(segmentation, dict):
        return None, parse_rle(segmentation, height, width)
    if not isinstance(segmentation, list):
        raise ValueError("a segmentation that is neither a list of polygons nor RLE with size and counts")
    if segmentation and finite_numbers(segmentation):
        raise ValueError(
            f"a segmentation that is one list of numbers, {_shown(segmentation)}: it needs a list of polygons, "
            "[[x, y, x, y, ...]]"
        )
    if len(segmentation) > 2 and all(isinstance(part, list) and finite_numbers(part) for part in segmentation):
        lengths = {len(part) for part in segmentation}
        if lengths == {2}:
            raise ValueError(
                f"a polygon that is a list of points, {_shown(segmentation)}: it needs the numbers in one list, "
                "[[x, y, x, y, ...]]"
            )
        if (len(segmentation), *lengths) == (height, width):
            raise ValueError("a segmentation that is a mask in numbers, a row in each list: it needs polygons or RLE")
    parts = []
    outline = 0.0
    for part in segmentation:
        if not finite_numbers(part) or len(part) % 2:
            raise ValueError(f"a malformed polygon: {_shown(part)}; a list of finite numbers x, y, x, y, ... is needed")
        if len(part) < 6:  # fewer than three corners enclose nothing
            continue
        points = np.array(part, dtype=np.float64)
        furthest = points[np.abs(points).argmax()]
        if abs(furthest) > FAR:
            raise ValueError(f"a polygon with the coordinate {furthest:g}, far outside its picture of {width}x{height}")
        corners = points.reshape(-1, 2)
        outline += float(np.abs(np.roll(corners, 1, axis=0) - corners).max(axis=1).sum())
        parts.append(points)
    if outline > max(MOST_OUTLINE, 4.0 * height * width):
        raise ValueError(f"polygons whose edges are {outline:g} pixels long, in a picture of {width}x{height}")
    return parts, None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def rle_of(polygons: Parts, runs: Runs, height: int, width: int) -> dict:
    """What `parse_segmentation` gave as a compressed RLE with bytes counts; no shape at all is an empty mask."""
    if runs is not None:
        return coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    if not polygons:
        return coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)
    return coco_mask.merge(coco_mask.frPyObjects([part.tolist() for part in polygons], height, width))


def checked_rle(segmentation: Any, height: int, width: int) -> dict:
    """A compressed RLE (bytes counts) from any COCO segmentation. Raises ValueError as `parse_segmentation`."""
    return rle_of(*parse_segmentation(segmentation, height, width), height, width)


def area_of(polygons: Parts, runs: Runs, height: int, width: int) -> int:
    """Pixels of a shape inside its picture, as pycocotools draws it."""
    if runs is not None:
        return int(runs[1::2].sum())
    return int(coco_mask.area(rle_of(polygons, None, height, width))) if polygons else 0


def bounds_of(polygons: Parts, runs: Runs, height: int) -> Optional[tuple[float, float, float, float]]:
    """(x1, y1, x2, y2) as COCO measures it, without any +1: x2 is the right end of the last pixel; None without one."""
    if runs is None:
        if not polygons:
            return None
        points = np.concatenate(polygons).reshape(-1, 2)
        (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
        return float(x1), float(y1), float(x2), float(y2)
    return _bounds_of_runs(runs, height)


def _bounds_of_runs(runs: np.ndarray, height: int) -> Optional[tuple[float, float, float, float]]:
    ends = np.cumsum(runs)
    starts, ends = ends[0:-1:2], ends[1::2]  # of the runs of ones, in column-major pixels
    used = ends > starts
    if not used.any():
        return None
    starts, last = starts[used], ends[used] - 1
    columns = starts // height, last // height
    whole = columns[0] != columns[1]  # a run over several columns touches the top or the bottom of the picture
    top = 0 if whole.any() else int((starts % height).min())
    bottom = height if whole.any() else int((last % height).max()) + 1
    return float(columns[0].min()), float(top), float(columns[1].max() + 1), float(bottom)


def far_number(values: Sequence[float]) -> Optional[float]:
    """The first of some numbers that no picture reaches to; None where all are near."""
    return next((value for value in values if abs(value) > FAR), None)
