"""COCO run-length encoding of masks: column-major runs, zeros first; as a list of counts or packed into a string.

Decoding is written out here rather than left to pycocotools because annotation files are untrusted: every run is
checked against the picture before memory is touched.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask


def parse_rle(segmentation: dict, height: int, width: int) -> np.ndarray:
    """The runs of a COCO RLE dictionary, int64 `[R]`: zeros, ones, zeros, ..., summing to height * width.

    Both forms are read: `counts` as a list (uncompressed) and as a string or bytes (compressed).

    Raises:
        ValueError: with one line about what is malformed.
    """
    size = segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int for side in size):
        raise ValueError("its RLE has no size [height, width]")
    if size != [height, width]:
        raise ValueError(f"its RLE is for a picture of {size[1]}x{size[0]}, but the picture is {width}x{height}")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = counts.encode("utf-8", errors="surrogatepass")
    if isinstance(counts, bytes):
        runs = _unpack(counts, height * width)
    elif isinstance(counts, list):
        if any(type(count) is not int or not 0 <= count <= height * width for count in counts):
            raise ValueError("its RLE counts must be integers between 0 and the number of pixels")
        runs = counts
    else:
        raise ValueError("its RLE has no counts")
    if sum(runs) != height * width:
        raise ValueError(f"its RLE covers {sum(runs)} pixels, but the picture has {height * width}")
    return np.array(runs, dtype=np.int64)


def _unpack(text: bytes, pixels: int) -> list[int]:
    """Runs from the compressed form: 5 bits a character, low bits first, from the third run on as differences."""
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift = 0, 0
        while True:
            if position == len(text) or not 0 <= text[position] - 48 < 64 or shift > 60:
                raise ValueError("its compressed RLE is damaged")
            character = text[position] - 48
            position += 1
            value |= (character & 31) << shift
            shift += 5
            if not character & 32:
                break
        if character & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if not 0 <= value <= pixels:
            raise ValueError("its compressed RLE is damaged")
        runs.append(value)
    return runs


def decode_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask of checked `runs` as uint8 `[height, width]`."""
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def encode_mask(mask: np.ndarray) -> dict:
    """A mask `[height, width]` as compressed COCO RLE whose counts are a string, ready for json."""
    packed = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode("ascii")}


def encode_mask_as_list(mask: np.ndarray) -> dict:
    """A mask `[height, width]` as uncompressed COCO RLE (a list of counts)."""
    flat = np.asarray(mask, dtype=bool).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": [int(side) for side in mask.shape], "counts": [0] + runs if flat[0] else runs}
