"""Weights for a comparison that has none: drawn from the names, so that activations stay of order one; and masks."""

from __future__ import annotations

import zlib

import numpy as np

# Residual branches are kept small, and the heads give a usable number of detections on any picture.
_BIASES = {"rpn.head.cls_logits.bias": -3.5, "rpn.head.bbox_pred.bias": 4.0, "rpn.head.centerness.bias": 1.0}


def synthetic_state(shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """float32 tensors for every name of a released checkpoint; the same for the same names, shapes and seed."""
    return {name: _tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


def disc_masks(count: int) -> np.ndarray:
    """Mask probabilities of soft discs, float32 `[count, 32, 32]`."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    return np.repeat((1 / (1 + np.exp(8 * (x**2 + y**2 - 0.8))))[None], count, axis=0).astype(np.float32)


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "running_var":
        return np.exp(0.1 * noise).astype(np.float32)
    if last == "scale" or (last == "weight" and len(shape) == 1):
        return (1 + 0.05 * noise).astype(np.float32)
    if last in ("bias", "running_mean"):
        return (_BIASES.get(name, 0.0) + 0.05 * noise).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    linear = ".fpn." in name or name.startswith(("rpn.head.cls_logits", "rpn.head.bbox_pred", "rpn.head.centerness"))
    gain = np.sqrt((1.0 if linear else 2.0) / fan_in)
    if name.endswith("stem.conv1.weight"):
        gain *= 0.02  # pixels have a standard deviation of about 60
    elif name.endswith(".conv3.weight"):
        gain *= 0.2
    elif name == "rpn.head.cls_logits.weight":
        gain *= 4.0
    return (gain * noise).astype(np.float32)
