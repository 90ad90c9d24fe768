"""From small mask probabilities to masks of the picture's size (convention 22); on the GPU where Jittor computes there."""

from __future__ import annotations

import jittor as jt
import numpy as np

from jrdp.masks import PastedMasks, words_of

from .compile import Kernels

KERNELS = Kernels(cpu="paste_cpu.h", cuda="paste.cuh")


def paste(probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5) -> PastedMasks:
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
        the K masks, fetched once for all of them; see `jrdp.masks.PastedMasks`.

    Raises:
        ValueError: wrong shapes, or a box that is not finite, named by its index.
    """
    probabilities, boxes = _check(probabilities, boxes, height, width)
    numbers = _spans(_expand(boxes, probabilities.shape[1]), height, width)
    windows = numbers[:, [2, 3, 6, 7]]
    starts = np.append(0, np.cumsum(words_of(windows[:, 1]) * windows[:, 3]))
    return PastedMasks(_paste(probabilities, numbers, starts, threshold), starts, windows, height, width)


def paste_masks(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """`paste` as a bool array [K, height, width]."""
    return paste(probabilities, boxes, height, width, threshold).arrays()


def paste_mask_rle(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> list[dict]:
    """`paste` as COCO RLE `{"size": [height, width], "counts": str}`."""
    return paste(probabilities, boxes, height, width, threshold).run_lengths()


def _paste(probabilities: np.ndarray, numbers: np.ndarray, starts: np.ndarray, threshold: float) -> np.ndarray:
    """The words of `PastedMasks`; numbers: as `_spans` gives them."""
    total = int(starts[-1])
    if total == 0:
        return np.zeros(0, "<u4")
    if total >= 2**31:
        raise ValueError(f"{len(numbers)} masks of {total * 32} pixels are too many at once: paste fewer of them together")
    plan = np.concatenate([numbers, starts[:-1, None]], axis=1).astype(np.int32)
    source = 'paste_run(in0_p, in1_p, in0_shape0, in0_shape1, data["threshold"], (int)data["most"], out0_p);'
    inputs = [jt.array(np.ascontiguousarray(probabilities)), jt.array(plan)]
    data = {"threshold": threshold, "most": int(np.diff(starts).max())}
    return KERNELS.run(source, inputs, [[total]], ["int32"], data)[0].numpy().view("<u4")


def _expand(boxes: np.ndarray, size: int) -> np.ndarray:
    """Boxes of the padded masks, int64 [K, 4]: whole pixels."""
    scale = np.float32((size + 2) / size)
    low, high = boxes[:, :2], boxes[:, 2:]
    half = (high - low) * np.float32(0.5) * scale
    centre = (high + low) * np.float32(0.5)
    expanded = np.concatenate([centre - half, centre + half], axis=1)
    return np.trunc(expanded).astype(np.int64)


def _spans(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """int64 [K, 8], of the rows and then of the columns: the first pixel of the mask and how many, at least one, it is resized
    to; the first of these that is in the picture, and how many are."""
    low, high = boxes[:, 1::-1], boxes[:, :1:-1]
    first = np.maximum(low, 0)
    inside = np.maximum(np.minimum(high + 1, [height, width]) - first, 0)
    return np.stack([low, np.maximum(high - low + 1, 1), first, inside], axis=2).reshape(-1, 8)


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
