"""From small mask probabilities to masks of the picture's size (convention 22); on the GPU where Jittor computes there."""

from __future__ import annotations

from typing import Iterator, NamedTuple

import jittor as jt
import numpy as np
from pycocotools import mask as coco_mask

from .compile import Kernels

KERNELS = Kernels(cpu=None, cuda="paste.cuh")


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
    for mask, (rows, columns, inside) in zip(masks, _paste(probabilities, boxes, height, width, threshold)):
        mask[rows.first : rows.last, columns.first : columns.last] = inside
    return masks


def paste_mask_rle(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> list[dict]:
    """As `paste_masks`, as COCO RLE `{"size": [height, width], "counts": str}`; no mask is ever full size."""
    probabilities, boxes = _check(probabilities, boxes, height, width)
    if len(boxes) == 0:
        return []
    pasted = _paste(probabilities, boxes, height, width, threshold)
    runs = [{"size": [height, width], "counts": _runs(*part, height, width)} for part in pasted]
    packed = coco_mask.frPyObjects(runs, height, width)
    return [{"size": [height, width], "counts": rle["counts"].decode("ascii")} for rle in packed]


class _Span(NamedTuple):
    """One side of a pasted mask: where the grown box begins and how long it is, and what of it is in the picture."""

    low: int
    length: int
    first: int
    last: int


def _paste(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float
) -> Iterator[tuple[_Span, _Span, np.ndarray]]:
    """Yield for each mask its rows and columns, and the mask there: bool `[rows, columns]` of what is in the picture."""
    spans = [
        (_span(y1, y2, height), _span(x1, x2, width)) for x1, y1, x2, y2 in _expand(boxes, probabilities.shape[1])
    ]
    paste = paste_on_device if jt.flags.use_cuda else _paste_on_host
    for (rows, columns), inside in zip(spans, paste(probabilities, spans, threshold)):
        yield rows, columns, inside


def _paste_on_host(
    probabilities: np.ndarray, spans: list[tuple[_Span, _Span]], threshold: float
) -> Iterator[np.ndarray]:
    padded = np.pad(probabilities, ((0, 0), (1, 1), (1, 1)))
    size, level = padded.shape[1], np.float32(threshold)
    for probability, (rows, columns) in zip(padded, spans):
        # Columns first, while there are only M + 2 rows of them.
        yield _blend(_blend(probability.T, *_taps(columns, size)).T, *_taps(rows, size)) > level


def paste_on_device(
    probabilities: np.ndarray, spans: list[tuple[_Span, _Span]], threshold: float, kernels: Kernels = KERNELS
) -> Iterator[np.ndarray]:
    """The same bits from the GPU, a bit a pixel, fetched once for all masks."""
    counts = [((rows.last - rows.first + 31) // 32, columns.last - columns.first) for rows, columns in spans]
    sizes = [words * columns for words, columns in counts]
    total = sum(sizes)
    if total == 0:
        yield from (np.zeros((r.last - r.first, c.last - c.first), bool) for r, c in spans)
        return
    if total >= 2**31:
        raise ValueError(f"{len(spans)} masks of {total * 32} pixels are too many at once: paste fewer of them together")
    starts = np.cumsum([0, *sizes])
    numbers = [
        [side for span in pair for side in (span.low, span.length, span.first, span.last - span.first)] for pair in spans
    ]
    plan = np.concatenate([np.array(numbers, np.int32), starts[:-1, None].astype(np.int32)], axis=1)
    source = (
        'paste_run(in0_p, in1_p, in0_shape0, in0_shape1, data["threshold"], (int)data["most"], out0_p);'
    )
    inputs = [jt.array(np.ascontiguousarray(probabilities)), jt.array(plan)]
    data = {"threshold": threshold, "most": max(sizes)}
    words = kernels.run(source, inputs, [[total]], ["int32"], data)[0].numpy()
    bits = np.unpackbits(words.astype("<i4", copy=False).view(np.uint8), bitorder="little")
    for (rows, columns), (in_column, _), start, end in zip(spans, counts, starts * 32, starts[1:] * 32):
        inside = bits[start:end].reshape(columns.last - columns.first, in_column * 32)
        yield inside[:, : rows.last - rows.first].T.astype(bool)


def _runs(rows: _Span, columns: _Span, inside: np.ndarray, height: int, width: int) -> np.ndarray:
    """COCO's runs (column-major, zeros first) of a picture whose mask is `inside` there and zero elsewhere."""
    pixels = height * width
    framed = np.zeros((inside.shape[1], inside.shape[0] + 2), bool)
    framed[:, 1:-1] = inside.T
    changes = np.flatnonzero(framed[:, 1:] != framed[:, :-1])  # of each column: begin, end, begin, end ...
    column = changes // (inside.shape[0] + 1)
    position = changes + column * (height - inside.shape[0] - 1) + (columns.first * height + rows.first)
    edges = np.concatenate([[0], position, [pixels]])
    runs = np.diff(edges)
    # A run that goes on in the next column, over a gap of zero, is one; a last run of zero is left out.
    gaps = 2 * np.flatnonzero(runs[2:-1:2] == 0) + 2
    keep = np.ones(len(edges), bool)
    keep[gaps] = keep[gaps + 1] = False
    keep[-1] = runs[-1] != 0
    return np.diff(edges[keep])


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
    return _Span(low, target, first, max(min(low + target, high + 1, length), first))


def _taps(span: _Span, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel of `span` in the picture the two lines of the mask that it lies between, and the second's share."""
    position = np.arange(span.first - span.low, span.last - span.low, dtype=np.float32)
    position = np.float32(size / span.length) * (position + np.float32(0.5)) - np.float32(0.5)
    position = np.maximum(position, np.float32(0))
    near = np.minimum(position.astype(np.int64), size - 1)
    far = np.minimum(near + 1, size - 1)
    return near, far, position - near.astype(np.float32)


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
