"""From small mask probabilities to masks of the picture's size, as released."""

from __future__ import annotations

from typing import Iterator

import numpy as np
from pycocotools import mask as coco_mask


def paste_masks(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Resize each mask to its box, cut at `threshold` and lay it into the picture.

    As released: the mask gets a border of one zero pixel and its box grows by (M + 2) / M about its centre; corners are
    truncated towards zero; the box is x2 - x1 + 1 pixels wide, at least 1; bilinear without aligned corners and without
    antialiasing; strictly above the threshold. Parts outside the picture are lost.

    Args:
        probabilities: [K, M, M] float32.
        boxes: [K, 4] float32, x1, y1, x2, y2 in picture pixels.
        height, width: the picture's, in pixels.
        threshold: a pixel belongs to the mask if its probability is above this.

    Returns:
        bool array [K, height, width].

    Raises:
        ValueError: wrong shapes, or a box that is not finite, named by its index.
    """
    probabilities, boxes = _check(probabilities, boxes, height, width)
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, (rows, columns, inside) in zip(masks, _pasted(probabilities, boxes, height, width, threshold)):
        mask[rows, columns] = inside
    return masks


def paste_mask_rle(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> list[dict]:
    """As `paste_masks`, as COCO RLE `{"size": [height, width], "counts": str}`; one mask at a time is full size."""
    probabilities, boxes = _check(probabilities, boxes, height, width)
    canvas = np.zeros((height, width), np.uint8, order="F")  # column-major, as COCO's encoder wants it
    encoded = []
    for rows, columns, inside in _pasted(probabilities, boxes, height, width, threshold):
        canvas[rows, columns] = inside
        rle = coco_mask.encode(canvas)
        canvas[rows, columns] = 0
        encoded.append({"size": [height, width], "counts": rle["counts"].decode("ascii")})
    return encoded


def _pasted(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield for each mask the rows and columns of the picture that its box covers, and the mask there (bool)."""
    size = probabilities.shape[1]
    padded = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    level = np.float32(threshold)
    for probability, (x1, y1, x2, y2) in zip(padded, _expand(boxes, size)):
        rows, row_taps = _axis(y1, y2, height, size + 2)
        columns, column_taps = _axis(x1, x2, width, size + 2)
        # Columns first, while there are only M + 2 rows of them.
        yield rows, columns, _blend(_blend(probability.T, *column_taps).T, *row_taps) > level


def _expand(boxes: np.ndarray, size: int) -> list[list[int]]:
    """Boxes of the padded masks, [K, 4] whole pixels."""
    scale = np.float32((size + 2) / size)
    low, high = boxes[:, :2], boxes[:, 2:]
    half = (high - low) * np.float32(0.5) * scale
    centre = (high + low) * np.float32(0.5)
    expanded = np.concatenate([centre - half, centre + half], axis=1)
    return np.trunc(expanded).astype(np.int64).tolist()


def _axis(low: int, high: int, length: int, size: int) -> tuple[slice, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The picture's pixels in [low, high]; for each the two mask pixels it lies between and the share of the second."""
    target = max(high - low + 1, 1)
    first, last = max(low, 0), min(low + target, high + 1, length)
    last = max(last, first)
    position = np.arange(first - low, last - low, dtype=np.float32)
    position = np.float32(size / target) * (position + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    near = np.minimum(position.astype(np.int64), size - 1)
    far = np.minimum(near + 1, size - 1)
    return slice(first, last), (near, far, position - near.astype(np.float32))


def _blend(lines: np.ndarray, near: np.ndarray, far: np.ndarray, share: np.ndarray) -> np.ndarray:
    share = share[:, None]
    return lines[near] * (np.float32(1) - share) + lines[far] * share


def _check(probabilities, boxes, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    probabilities = np.asarray(probabilities, np.float32)
    boxes = np.asarray(boxes, np.float32)
    if probabilities.ndim != 3 or probabilities.shape[1] != probabilities.shape[2] or probabilities.shape[1] < 1:
        raise ValueError(f"probabilities: expected [K, M, M], got {list(probabilities.shape)}")
    if boxes.shape != (len(probabilities), 4):
        raise ValueError(f"boxes: expected [{len(probabilities)}, 4], got {list(boxes.shape)}")
    if height < 1 or width < 1:
        raise ValueError(f"height, width: must be at least 1, got {height} x {width}")
    broken = np.flatnonzero(~(np.abs(boxes) <= 2**24).all(axis=1))
    if len(broken):
        raise ValueError(f"boxes: box {broken[0]} is not finite or too large: {boxes[broken[0]].tolist()}")
    return probabilities, boxes
