"""From small mask probabilities to masks of the picture's size (convention 22); on the GPU where Jittor computes there."""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

import jittor as jt
import numpy as np
from pycocotools import mask as coco_mask

from .compile import Kernels

KERNELS = Kernels(cpu="paste_cpu.h", cuda="paste.cuh")


def paste_masks(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Resize each mask to its box, cut at `threshold` and lay it into the picture.

    The mask gets a border of one zero pixel and its box grows by (M + 2) / M about its centre; corners are
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
    spans = _spans(probabilities, boxes, height, width)
    words, starts = _paste(probabilities, spans, threshold)
    for mask, (rows, columns), start, end in zip(masks, spans, starts, starts[1:]):
        if end > start:
            bits = np.unpackbits(words[start:end].view(np.uint8), bitorder="little").reshape(columns.count, -1)
            there = slice(rows.first, rows.first + rows.count), slice(columns.first, columns.first + columns.count)
            mask[there] = bits[:, : rows.count].T
    return masks


def paste_mask_rle(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> list[dict]:
    """As `paste_masks`, as COCO RLE `{"size": [height, width], "counts": str}`; no mask is ever full size."""
    probabilities, boxes = _check(probabilities, boxes, height, width)
    if len(boxes) == 0:
        return []
    spans = _spans(probabilities, boxes, height, width)
    runs = _runs(*_paste(probabilities, spans, threshold), spans, height, width)
    packed = coco_mask.frPyObjects([{"size": [height, width], "counts": counts} for counts in runs], height, width)
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in packed]


class _Span(NamedTuple):
    """One side of a pasted mask: where the grown box begins and how long it is, and what of it is in the picture."""

    low: int
    length: int
    first: int
    count: int


Spans = List[Tuple[_Span, _Span]]  # of each mask the rows, and the columns


def _spans(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int) -> Spans:
    grown = _expand(boxes, probabilities.shape[1])
    return [(_span(y1, y2, height), _span(x1, x2, width)) for x1, y1, x2, y2 in grown]


def _paste(probabilities: np.ndarray, spans: Spans, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """What of each mask is in the picture, a bit a pixel, fetched once for all masks.

    Returns:
        words: little-endian uint32, mask after mask, of each its columns from left to right, of each its rows from the
            lowest bit of the first of `_words(count)` words on; the last bit of a column is always zero.
        starts: int64 `[K + 1]`, where the words of each mask begin, and their number.
    """
    sizes = [_words(rows.count) * columns.count for rows, columns in spans]
    starts = np.cumsum([0, *sizes])
    total = int(starts[-1])
    if total == 0:
        return np.zeros(0, "<u4"), starts
    if total >= 2**31:
        raise ValueError(f"{len(spans)} masks of {total * 32} pixels are too many at once: paste fewer of them together")
    plan = np.concatenate([_numbers(spans), starts[:-1, None]], axis=1).astype(np.int32)
    source = 'paste_run(in0_p, in1_p, in0_shape0, in0_shape1, data["threshold"], (int)data["most"], out0_p);'
    inputs = [jt.array(np.ascontiguousarray(probabilities)), jt.array(plan)]
    data = {"threshold": threshold, "most": max(sizes)}
    return KERNELS.run(source, inputs, [[total]], ["int32"], data)[0].numpy().view("<u4"), starts


def _numbers(spans: Spans) -> np.ndarray:
    """int64 `[K, 8]`: of each mask the numbers of its rows, then of its columns."""
    return np.array([[*rows, *columns] for rows, columns in spans], np.int64)


def _words(rows):
    """Words that a column of so many rows takes, a number or an array of them; paste.h says why."""
    return rows // 32 + 1


def _runs(words: np.ndarray, starts: np.ndarray, spans: Spans, height: int, width: int) -> list[np.ndarray]:
    """COCO's runs (column-major, zeros first) of the pictures that hold the masks and are zero elsewhere."""
    # A bit that differs from the one before it begins or ends a run; before each column's first is a zero.
    before = words << np.uint32(1)
    before[1:] |= words[:-1] >> np.uint32(31)
    changes = words ^ before
    changed = np.flatnonzero(changes)
    bits = np.flatnonzero(np.unpackbits(changes[changed].view(np.uint8), bitorder="little").view(bool))
    word, bit = changed[bits >> 5], bits & 31
    first = np.searchsorted(word, starts)  # of each mask; all masks' bits stand one after the other
    counts = np.diff(first)
    rows, columns = _numbers(spans).reshape(-1, 2, 4).transpose(1, 2, 0)
    column, in_column = np.divmod(word - np.repeat(starts[:-1], counts), np.repeat(_words(rows[3]), counts))
    corner = np.repeat(columns[2] * height + rows[2], counts)
    position = corner + column * height + in_column * 32 + bit  # begin, end, begin, end ... of a mask
    # A run that goes on in the next column, over a gap of zero, is one; what begins another mask never goes on.
    goes_on = np.zeros(len(position) + 1, bool)
    goes_on[1:-1] = position[1:] == position[:-1]
    goes_on[first] = False
    keep = ~(goes_on[:-1] | goes_on[1:])
    first = np.append(0, np.cumsum(keep))[first]
    # Each mask's runs lie between the picture's begin, these positions, and the picture's end.
    ends = np.tile([0, height * width], len(spans))
    runs = np.diff(np.insert(position[keep], np.repeat(first, 2)[1:-1], ends))
    bounds = first + 2 * np.arange(len(first))
    parts = [runs[begin : end - 1] for begin, end in zip(bounds, bounds[1:])]
    return [run if run[-1] else run[:-1] for run in parts]  # no zeros after the last run: none are written


def _expand(boxes: np.ndarray, size: int) -> list[list[int]]:
    """Boxes of the padded masks, [K, 4] whole pixels."""
    scale = np.float32((size + 2) / size)
    low, high = boxes[:, :2], boxes[:, 2:]
    half = (high - low) * np.float32(0.5) * scale
    centre = (high + low) * np.float32(0.5)
    expanded = np.concatenate([centre - half, centre + half], axis=1)
    return np.trunc(expanded).astype(np.int64).tolist()


def _span(low: int, high: int, length: int) -> _Span:
    """The pixels low..high of a picture of that length; at least one is aimed at."""
    target = max(high - low + 1, 1)
    first = max(low, 0)
    return _Span(low, target, first, max(min(high + 1, length) - first, 0))


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
