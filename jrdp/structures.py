"""What flows between the parts of jrdp: ImageBatch, Targets, Instances.

Boxes are float32 `[K, 4]` as (x1, y1, x2, y2) in pixels, in the legacy convention of the released network:
a box that covers pixels a..b has x1 = a, x2 = b, so its width is x2 - x1 + 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import numpy as np


@dataclass
class ImageBatch:
    """Network input and what is needed to get back to the photographs.

    images: float32 `[N, 3, H, W]`, normalised, zero-padded right and bottom; H and W are multiples of 32.
        An array, or a Jittor Var that is on its way to the GPU (`engine/steps.py`).
    sizes: per image (height, width) after resizing, without the padding.
    original_sizes: per image (height, width) of the photograph.
    image_ids: per image the COCO image id (or its position, when there is no dataset).
    files: per image the file that it was read from, or None; empty where nothing is known of that.
    """

    images: np.ndarray
    sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    files: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, image: int) -> str:
        """What to call an image of the batch in an error: its file, or its id."""
        file = self.files[image] if self.files else None
        return file or f"image {self.image_ids[image]}"


@dataclass
class Targets:
    """Ground truth of one training image, in network pixels.

    boxes: float32 `[G, 4]`.
    polygons: per instance a list of parts, each float64 `[2 * P]` as x, y, x, y, ...; None for an instance that has
        a bitmap instead (an RLE annotation).
    bitmaps: per instance uint8 `[h, w]` at the resized image's size, or None.
    size: (height, width) of the resized image, without padding.
    """

    boxes: np.ndarray
    polygons: list[list[np.ndarray] | None]
    bitmaps: list[np.ndarray | None]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)


def check_targets(targets: Sequence[Targets], batch: ImageBatch) -> None:
    """Raise `ValueError` for what is no ground truth of `batch`: most of it would train the network on something else."""
    if len(targets) != len(batch):
        raise ValueError(f"{len(targets)} targets for a batch of {len(batch)} images: one is needed for each")
    for number, (target, size) in enumerate(zip(targets, batch.sizes)):
        wrong = _fault(target, tuple(size))
        if wrong:
            raise ValueError(f"targets[{number}]: {wrong}")


def _fault(target: Targets, size: tuple[int, int]) -> str | None:
    boxes = np.asarray(target.boxes, np.float32)
    if boxes.shape != (len(target), 4) and len(target):
        return f"boxes are {list(boxes.shape)}, not [G, 4]"
    boxes = boxes.reshape(-1, 4)
    unordered = np.flatnonzero(~(boxes[:, :2] <= boxes[:, 2:]).all(axis=1) | ~np.isfinite(boxes).all(axis=1))
    if len(unordered):
        return f"box {unordered[0]}, {boxes[unordered[0]].tolist()}, is not x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"
    if tuple(target.size) != size:
        return f"its size {tuple(target.size)} is not the image's, {size} (height, width)"
    if not len(target.polygons) == len(target.bitmaps) == len(boxes):
        return f"{len(boxes)} boxes, {len(target.polygons)} polygons and {len(target.bitmaps)} bitmaps: None stands for what an instance has not"
    for number, (polygons, bitmap) in enumerate(zip(target.polygons, target.bitmaps)):
        if polygons is None and bitmap is None:
            return f"instance {number} has neither polygons nor a bitmap"
        if polygons is None and (np.shape(bitmap) != size or np.max(bitmap) > 1):
            return f"the bitmap of instance {number} is {list(np.shape(bitmap))} up to {np.max(bitmap)}, not {list(size)} of 0 and 1"
    return None


@dataclass
class Instances:
    """Detections of one image, in the network's order (level by level, row-major), not sorted by score.

    boxes: float32 `[K, 4]`, in the pixels of `size`.
    scores: float32 `[K]` in 0..1: classification times centerness, without a square root (convention 19).
    mask_probabilities: float32 `[K, M, M]` (M = 32), sigmoid of the salient channel, relative to the box.
    size: (height, width) of the image that the boxes refer to.
    masks: bool `[K, height, width]`, filled by pasting; None before that.
    """

    boxes: np.ndarray
    scores: np.ndarray
    mask_probabilities: np.ndarray
    size: tuple[int, int]
    masks: np.ndarray | None = field(default=None)

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: np.ndarray) -> Instances:
        """The instances at `keep`: a boolean `[K]` or integer index array."""
        return Instances(
            self.boxes[keep],
            self.scores[keep],
            self.mask_probabilities[keep],
            self.size,
            None if self.masks is None else self.masks[keep],
        )
