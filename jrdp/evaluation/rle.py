"""Masks to and from compressed COCO RLE; RLE from files is checked in `jrdp.data.shapes` first."""

from __future__ import annotations

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
