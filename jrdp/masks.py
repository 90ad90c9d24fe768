"""Masks within a picture as bits, and what they are written as: bool arrays and COCO's run lengths.

Imports no Jittor: `jrdp.ops.paste` makes them, and a process that holds no network may turn them into files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask


def words_of(rows):
    """Words that a column of so many rows takes, a number or an array of them; `paste.h` says why."""
    return rows // 32 + 1


@dataclass(frozen=True)
class PastedMasks:
    """K masks in a picture of `height` x `width` pixels; of each the part of the picture that it may cover is kept.

    windows: int64 `[K, 4]`: first row, rows, first column, columns of that part.
    words: little-endian uint32, mask after mask, of each its columns from left to right, of each its rows from the
        lowest bit of the first of `words_of(rows)` words on; the last bit of a column is always zero.
    starts: int64 `[K + 1]`, where the words of each mask begin, and their number.
    """

    words: np.ndarray
    starts: np.ndarray
    windows: np.ndarray
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.windows)

    def arrays(self, which: np.ndarray | None = None) -> np.ndarray:
        """bool `[K, height, width]`; `which`: the indices of those that are asked for, by default all."""
        which = range(len(self)) if which is None else which
        masks = np.zeros((len(which), self.height, self.width), bool)
        for mask, k in zip(masks, which):
            top, rows, left, columns = self.windows[k]
            if self.starts[k + 1] > self.starts[k]:
                bits = np.unpackbits(self.words[self.starts[k] : self.starts[k + 1]].view(np.uint8), bitorder="little")
                mask[top : top + rows, left : left + columns] = bits.reshape(columns, -1)[:, :rows].T
        return masks

    def run_lengths(self) -> list[dict]:
        """COCO RLE `{"size": [height, width], "counts": str}` of each; no mask is ever full size."""
        if len(self) == 0:
            return []
        size = [self.height, self.width]
        packed = coco_mask.frPyObjects([{"size": size, "counts": runs} for runs in self._runs()], *size)
        return [{"size": size, "counts": rle["counts"].decode("ascii")} for rle in packed]

    def _runs(self) -> list[np.ndarray]:
        """COCO's runs (column-major, zeros first) of the pictures that hold the masks and are zero elsewhere."""
        # A bit that differs from the one before it begins or ends a run; before each column's first is a zero.
        before = self.words << np.uint32(1)
        before[1:] |= self.words[:-1] >> np.uint32(31)
        changes = self.words ^ before
        changed = np.flatnonzero(changes)
        bits = np.flatnonzero(np.unpackbits(changes[changed].view(np.uint8), bitorder="little").view(bool))
        word, bit = changed[bits >> 5], bits & 31
        first = np.searchsorted(word, self.starts)  # of each mask; all masks' bits stand one after the other
        counts = np.diff(first)
        top, rows, left, _ = self.windows.T
        column, in_column = np.divmod(word - np.repeat(self.starts[:-1], counts), np.repeat(words_of(rows), counts))
        corner = np.repeat(left * self.height + top, counts)
        position = corner + column * self.height + in_column * 32 + bit  # begin, end, begin, end ... of a mask
        # A run that goes on in the next column, over a gap of zero, is one; what begins another mask never goes on.
        goes_on = np.zeros(len(position) + 1, bool)
        goes_on[1:-1] = position[1:] == position[:-1]
        goes_on[first] = False
        keep = ~(goes_on[:-1] | goes_on[1:])
        first = np.append(0, np.cumsum(keep))[first]
        # Each mask's runs lie between the picture's begin, these positions, and the picture's end.
        ends = np.tile([0, self.height * self.width], len(self))
        runs = np.diff(np.insert(position[keep], np.repeat(first, 2)[1:-1], ends))
        bounds = first + 2 * np.arange(len(first))
        parts = [runs[begin : end - 1] for begin, end in zip(bounds, bounds[1:])]
        return [run if run[-1] else run[:-1] for run in parts]  # no zeros after the last run: none are written
