"""From the answers of an FCOS head to boxes without leaving the GPU; `jrdp.models.fcos_decode` is the definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import jittor as jt
import numpy as np

from .compile import Kernels

MAX_LEVELS = 8  # kDecodeMaxLevels in kernels/decode.cuh
KERNELS = Kernels(cpu=None, cuda="decode.cuh")


@dataclass(frozen=True)
class Limits:
    """When an answer is a candidate, and how many stay; see `jrdp.config.FcosConfig`."""

    threshold: float
    per_level: int
    iou_threshold: float
    per_image: int


def decode_on_device(
    logits: Sequence,
    distances: Sequence,
    centerness: Sequence,
    strides: Sequence[int],
    sizes: np.ndarray,
    limits: Limits,
    kernels: Kernels = KERNELS,
) -> jt.Var:
    """What `fcos_decode.decode` finds, without waiting for the device; CUDA only.

    Args:
        logits, centerness: per level Var [N, 1, H, W] float32 before the sigmoid.
        distances: per level Var [N, 4, H, W] float32, (left, top, right, bottom) in network pixels.
        strides: per level, network pixels.
        sizes: int [N, 2], (height, width) of each image, to which boxes are clipped.

    Returns:
        Var float32 of one dimension, to be fetched and taken apart by `found_in`.

    Raises:
        ValueError: wrong shapes or dtypes, or too many levels.
    """
    levels = len(logits)
    _check(logits, distances, centerness, strides)
    sizes = np.asarray(sizes, np.int32)
    images = logits[0].shape[0]
    if sizes.shape != (images, 2):
        raise ValueError(f"sizes: expected [{images}, 2] to go with {images} images, got {list(sizes.shape)}")
    areas = [level.shape[2] * level.shape[3] for level in logits]
    capacity = sum(min(area, limits.per_level) for area in areas)
    words = (capacity + 63) // 64
    shapes = {  # in the order of `decode_run`'s arguments
        "found": [images * (5 * capacity + 2)],  # all boxes, all scores, all status
        "answers": [2, images, sum(areas)],
        "candidates": [images, capacity, 5],
        "sorted": [images, capacity, 5],
        "largest": [levels + images],
        "counts": [images],
        "keep": [images, capacity],
        "order": [images, capacity],
        "flags": [images, capacity],
        "mask": [images, (capacity + 1) * words * 2],
    }
    integers = {"largest", "counts", "keep", "order", "flags", "mask"}
    data = {
        "threshold": limits.threshold,
        "per_level": limits.per_level,
        "overlap": limits.iou_threshold,
        "per_image": limits.per_image,
        "capacity": capacity,
        "places": capacity,
        **{f"stride{level}": stride for level, stride in enumerate(strides)},
    }
    found, *_ = kernels.run(
        _source(levels, len(shapes)),
        [jt.array(sizes), *logits, *distances, *centerness],
        list(shapes.values()),
        ["int32" if name in integers else "float32" for name in shapes],
        data,
    )
    return found


def found_in(values: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `decode_on_device` found in N images, fetched.

    Returns:
        boxes: [N, C, 4] float32, C = sum over the levels of min(H * W, limits.per_level).
        scores: [N, C] float32; equal scores share their fate, so more than `per_image` may stay.
        status: [N, 2] int32: how many of them each image has, none where a candidate is no number; and 1 where an answer
            for the image is not finite, else 0.
    """
    boxes, scores, status = np.split(values, np.array([4, 5]) * ((len(values) - 2 * images) // 5))
    return boxes.reshape(images, -1, 4), scores.reshape(images, -1), status.view(np.int32).reshape(images, 2)


def _source(levels: int, outputs: int) -> str:
    """C++ that collects the levels and runs the kernels: input 0 is `sizes`, then logits, distances, centerness."""
    lines = ["DecodeLevels levels = decode_levels(in0_shape0);"]
    for level in range(levels):
        logit, distance, center = (f"in{1 + part * levels + level}" for part in range(3))
        lines.append(
            f"decode_add_level(levels, {logit}_p, {distance}_p, {center}_p, {logit}_shape2, {logit}_shape3, "
            f'data["stride{level}"]);'
        )
    pointers = ", ".join(f"out{index}_p" for index in range(1, outputs))
    lines.append('const size_t places = (size_t)in0_shape0 * (size_t)data["places"];')
    lines.append(
        'decode_run(levels, in0_p, data["threshold"], (int)data["per_level"], data["overlap"], '
        f'(int)data["per_image"], (int)data["capacity"], out0_p, out0_p + 4 * places, (int*)(out0_p + 5 * places), {pointers});'
    )
    return "\n".join(lines)


def _check(logits: Sequence, distances: Sequence, centerness: Sequence, strides: Sequence[int]) -> None:
    levels = len(logits)
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"logits: 1 to {MAX_LEVELS} levels are supported, got {levels}")
    images = logits[0].shape[0]
    for name, values, channels in (("logits", logits, 1), ("distances", distances, 4), ("centerness", centerness, 1)):
        if len(values) != levels:
            raise ValueError(f"{name}: {len(values)} levels, logits has {levels}")
        for level, value in enumerate(values):
            _, _, height, width = logits[level].shape
            expected = [images, channels, height, width]
            if value.dtype != "float32" or list(value.shape) != expected:
                raise ValueError(f"{name}[{level}]: expected float32 {expected}, got {value.dtype} {list(value.shape)}")
    if len(strides) != levels:
        raise ValueError(f"strides: {len(strides)} values for {levels} levels")
