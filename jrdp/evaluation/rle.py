"""Run-length encoded masks, checked before pycocotools sees them: its C code trusts the runs it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_masks(masks: np.ndarray) -> list[dict]:
    """COCO RLEs (`{"size": [h, w], "counts": str}`, ready for JSON) of bool or uint8 masks `[K, h, w]`."""
    if len(masks) == 0:
        return []
    stacked = np.asfortranarray(np.moveaxis(np.asarray(masks, dtype=np.uint8), 0, 2))  # [h, w, K], column-major
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in coco_mask.encode(stacked)]


def decode_mask(rle: dict) -> np.ndarray:
    """The bool mask `[h, w]` of a compressed RLE."""
    return coco_mask.decode(rle).astype(bool)


def decode_runs(counts: str | bytes) -> np.ndarray:
    """int64 run lengths (background first) of a compressed COCO string; raises ValueError where it is malformed.

    Each character holds five bits, low ones first; bit 5 says that more follow and bit 4 of the last one is the
    sign. From the fourth run on, a run is stored as the difference to the one two before it.
    """
    raw = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else bytes(counts), dtype=np.uint8)
    codes = raw.astype(np.int64) - 48
    if codes.size == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("it holds a character that no RLE has")
    ends = np.flatnonzero((codes & 32) == 0)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise ValueError("it ends in the middle of a run")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("it holds a run of an impossible length")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    # Undo the differences: runs 1, 3, 5, ... and 2, 4, 6, ... are two independent running sums; run 0 stands alone.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def checked_rle(segmentation: Any, height: int, width: int) -> dict:
    """A compressed RLE (bytes counts) of an `height` x `width` picture from any COCO segmentation.

    `segmentation` is a list of polygons, a compressed RLE (str or bytes) or an uncompressed one (list of runs).
    Raises ValueError, saying what is wrong, for anything else and for runs that do not fill the picture.
    """
    if isinstance(segmentation, list):
        return _rle_of_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError("it is neither a list of polygons nor an RLE with size and counts")
    if not isinstance(segmentation["size"], (list, tuple)) or list(segmentation["size"]) != [height, width]:
        raise ValueError(f"its size {segmentation['size']} is not the picture's [{height}, {width}] (height, width)")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        try:
            runs = np.array(counts, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError("its counts are not numbers") from None
        if runs.ndim != 1 or not np.all(runs == np.floor(runs)):
            raise ValueError("its counts are not whole numbers")
    elif isinstance(counts, (str, bytes)):
        try:
            runs = decode_runs(counts)
        except UnicodeEncodeError:
            raise ValueError("it holds a character that no RLE has") from None
    else:
        raise ValueError("its counts are neither a string nor a list")
    if np.any(runs < 0) or runs.sum() != height * width:
        raise ValueError(f"its runs do not add up to the picture's {height} x {width} pixels")
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": [int(run) for run in runs]}, height, width)
    return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else bytes(counts)}


def _rle_of_polygons(parts: list, height: int, width: int) -> dict:
    polygons = []
    for part in parts:
        try:
            polygon = np.asarray(part, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError("a polygon holds something that is not a number") from None
        if polygon.ndim != 1 or polygon.size % 2 or not np.all(np.isfinite(polygon)):
            raise ValueError("a polygon is not a flat list of finite x, y pairs")
        if polygon.size >= 6:  # fewer than three corners enclose nothing
            polygons.append(polygon.tolist())
    if not polygons:
        return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
