"""COCO run-length encoding of masks: column-major runs, zeros first; as a list of counts or packed into a string.

Decoding is written out here rather than left to pycocotools because annotation files are untrusted: every run is
checked against the picture before memory is touched.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask


def parse_rle(segmentation: dict, height: int, width: int) -> np.ndarray:
    """The runs of a COCO RLE dictionary, int64 `[R]`: zeros, ones, zeros, ..., summing to height * width.

    Both forms are read: `counts` as a list of whole numbers (uncompressed) and as a string or bytes (compressed).

    Raises:
        ValueError: with one line about what is malformed.
    """
    size = segmentation.get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(_whole(side) for side in size):
        raise ValueError("an RLE without its size [height, width]")
    if [int(side) for side in size] != [height, width]:
        raise ValueError(f"an RLE for a picture of {size[1]:g}x{size[0]:g}, but the picture is {width}x{height}")
    counts, pixels = segmentation.get("counts"), height * width
    if isinstance(counts, (str, bytes)):
        runs = unpack_runs(counts)
    elif isinstance(counts, list):
        if not all(_whole(count) for count in counts):
            raise ValueError("RLE counts that are not whole numbers")
        runs = np.array([int(count) for count in counts], dtype=np.int64)
    else:
        raise ValueError("an RLE without counts (a string or a list)")
    if runs.size and not 0 <= runs.min() <= runs.max() <= pixels:
        raise ValueError("RLE counts that are not between 0 and the number of pixels")
    if len(runs) > 2 * pixels + 2 or runs.sum() != pixels:
        raise ValueError(f"an RLE that covers {runs.sum()} pixels, but the picture has {pixels}")
    return runs


def _whole(value: object) -> bool:
    """Whether this is an integer of at most 62 bits, or a float equal to one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1 << 62 and value == int(value)


def unpack_runs(counts: str | bytes) -> np.ndarray:
    """int64 run lengths (background first) of a compressed COCO string; raises ValueError where it is malformed.

    Each character holds five bits, low ones first; bit 5 says that more follow and bit 4 of the last one is the
    sign. From the fourth run on, a run is stored as the difference to the one two before it.
    """
    raw = counts.encode("utf-8", errors="surrogatepass") if isinstance(counts, str) else bytes(counts)
    codes = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("a damaged compressed RLE: it holds a character that no RLE has")
    ends = np.flatnonzero((codes & 32) == 0)
    if ends.size == 0 or ends[-1] != codes.size - 1:
        raise ValueError("a damaged compressed RLE: it ends in the middle of a run")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("a damaged compressed RLE: it holds a run of an impossible length")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    # Undo the differences: runs 1, 3, 5, ... and 2, 4, 6, ... are two independent running sums; run 0 stands alone.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def decode_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask of checked `runs` as uint8 `[height, width]`."""
    values = np.arange(len(runs), dtype=np.uint8) & 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def decode_mask(rle: dict) -> np.ndarray:
    """The bool mask `[height, width]` of a compressed RLE that is known to be sound."""
    return coco_mask.decode(rle).astype(bool)


def encode_mask(mask: np.ndarray) -> dict:
    """A mask `[height, width]` as compressed COCO RLE whose counts are a string, ready for json."""
    packed = coco_mask.encode(np.asfortranarray(np.asarray(mask, dtype=bool)).view(np.uint8))
    return {"size": [int(side) for side in packed["size"]], "counts": packed["counts"].decode("ascii")}


def encode_mask_as_list(mask: np.ndarray) -> dict:
    """A mask `[height, width]` as uncompressed COCO RLE (a list of counts)."""
    flat = np.asarray(mask, dtype=bool).T.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": [int(side) for side in mask.shape], "counts": [0] + runs if flat[0] else runs}
