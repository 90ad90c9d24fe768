"""What a network decided while it computed losses, as arrays that one framework can hand to the other.

Gradients are not continuous in the weights: a ReLU whose input is within rounding of zero passes a whole gradient path
or none. `Decisions` holds every such choice of one training step, so that a second implementation can compute with the
same ones and what is left of the difference is rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jrdp.comparison.exchange import load_arrays, save_arrays

MAPS = ("cls_logits", "bbox_reg", "centerness")


@dataclass
class Decisions:
    """Of one training step on N images.

    relus: for every ReLU in order of computation, bool in its shape: where the input was positive. pooling: for every
    maximum pooling (flat index into the input's plane, int64 [N, C, h, w]). smaller: bool [P, 4], for the P positive
    locations (level by level, image by image, row by row) whether the predicted l, t, r, b is below the wanted one: the
    minimum in the box loss. positive: bool [N, L], the locations that answer for a box. maps: the head's `cls_logits_P3`
    and so on, which the proposals are chosen from. proposals: per image boxes [K, 4] and scores [K]. rois [R, 5] and
    masks [R', M, M]: what learns a mask; without any, R is 1 (a RoI of weight zero) and R' is 0.
    """

    relus: list[np.ndarray]
    pooling: list[np.ndarray]
    smaller: np.ndarray
    positive: np.ndarray
    maps: dict[str, np.ndarray]
    proposals: list[tuple[np.ndarray, np.ndarray]]
    rois: np.ndarray
    masks: np.ndarray

    def save(self, path: str | Path) -> None:
        """Write them as one .npz."""
        arrays = {f"map/{name}": value for name, value in self.maps.items()}
        for index, mask in enumerate(self.relus):
            arrays |= packed(f"relu/{index}", mask)
        for index, choice in enumerate(self.pooling):
            arrays[f"pooling/{index}"] = choice
        for image, (boxes, scores) in enumerate(self.proposals):
            arrays[f"proposals/{image}/boxes"], arrays[f"proposals/{image}/scores"] = boxes, scores
        arrays |= {"smaller": self.smaller, "positive": self.positive, "rois": self.rois, "masks": self.masks}
        save_arrays(path, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Decisions:
        """What `save` wrote."""
        arrays = load_arrays(path)
        return cls(
            [unpacked(arrays, f"relu/{index}") for index in range(_count(arrays, "relu/{}/bits"))],
            [arrays[f"pooling/{index}"] for index in range(_count(arrays, "pooling/{}"))],
            arrays["smaller"],
            arrays["positive"],
            {name[len("map/") :]: value for name, value in arrays.items() if name.startswith("map/")},
            [
                (arrays[f"proposals/{image}/boxes"], arrays[f"proposals/{image}/scores"])
                for image in range(_count(arrays, "proposals/{}/boxes"))
            ],
            arrays["rois"],
            arrays["masks"],
        )


def packed(name: str, mask: np.ndarray) -> dict[str, np.ndarray]:
    """A bool array as eight to a byte, with its shape."""
    return {f"{name}/bits": np.packbits(mask), f"{name}/shape": np.array(mask.shape, np.int64)}


def unpacked(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What `packed` made."""
    shape = tuple(arrays[f"{name}/shape"].tolist())
    return np.unpackbits(arrays[f"{name}/bits"], count=int(np.prod(shape))).astype(bool).reshape(shape)


def pooling_choice(x: np.ndarray, kernel: int = 3, stride: int = 2, padding: int = 1) -> np.ndarray:
    """Which input each output of a maximum pooling takes: the first of equals, row by row; int64 [N, C, h, w]."""
    n, c, height, width = x.shape
    edges = (padding, padding)
    padded = np.pad(x, ((0, 0), (0, 0), edges, edges), constant_values=-np.inf)
    rows, columns = (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1
    best = np.full((n, c, rows, columns), -np.inf, x.dtype)
    index = np.zeros(best.shape, np.int64)
    for dy in range(kernel):
        for dx in range(kernel):
            value = padded[:, :, dy : dy + stride * rows : stride, dx : dx + stride * columns : stride]
            value = value[:, :, :rows, :columns]
            y = np.arange(rows)[:, None] * stride + dy - padding
            place = y * width + np.arange(columns)[None] * stride + dx - padding
            better = value > best
            best = np.where(better, value, best)
            index = np.where(better, place, index)
    return index


def _count(arrays: dict[str, np.ndarray], pattern: str) -> int:
    count = 0
    while pattern.format(count) in arrays:
        count += 1
    return count
