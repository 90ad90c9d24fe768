"""The backbone start that comes with the package, `generated_r50`: ResNet-50 whose first stages were trained on generated
pictures for 400 iterations of 4 (`scripts/train_start.py`), in 2.7 MB.

It is for trying things out where ImageNet weights cannot be had, not for photographs. The file holds what was trained:
the stem, layer1, three blocks of layer2 and the first of layer3, as 8-bit integers with a factor for each output channel,
and their batch norms. `expand` makes a whole backbone of it: the blocks that are missing begin as the identity (their
last convolution is zero, the others are random), and C5 begins as every second pixel of C4, twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np

from jrdp.interchange.backbones import DETECTRON_PREPROCESSING
from jrdp.interchange.layout import BACKBONE, backbone_layout

NAME = "generated_r50"
PATH = Path(__file__).parent / f"{NAME}.safetensors"
KEPT = {"layer1": 3, "layer2": 3, "layer3": 1}  # blocks of each
METADATA = {  # of what `expand` makes
    "preprocessing": {**DETECTRON_PREPROCESSING, "stride_in_1x1": True},
    "origin": f"{NAME}: trained on generated pictures",
}
_SEED = 0


def pack(trained: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convolutions `[out, in, k, k]` as int8 and `NAME.factor` `[out]`, scales and shifts of batch norm as float16."""
    packed = {}
    for name, values in ((f"{BACKBONE}{name}", values) for name, values in trained.items()):
        if values.ndim == 4:
            factor = np.maximum(np.abs(values).max(axis=(1, 2, 3)), 1e-12).astype(np.float32) / 127
            packed[name] = np.rint(values / factor[:, None, None, None]).astype(np.int8)
            packed[f"{name}.factor"] = factor
        else:
            packed[name] = values.astype(np.float16)
    return packed


def expand(packed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The whole backbone, float32 under the released names, of a file's tensors; always the same."""
    random = np.random.default_rng(_SEED)
    tensors: dict[str, np.ndarray] = {}
    for entry in backbone_layout("r50"):
        if entry.name in packed:
            values = np.asarray(packed[entry.name], np.float32)
            if len(entry.shape) == 4:
                values = values * np.asarray(packed[f"{entry.name}.factor"])[:, None, None, None]
        elif len(entry.shape) == 4:
            values = _missing(entry.name[len(BACKBONE) :], entry.shape, random)
        else:
            values = np.full(entry.shape, 1 if entry.name.endswith((".weight", ".running_var")) else 0, np.float32)
        tensors[entry.name] = values
    return tensors


def _missing(name: str, shape: tuple, random: np.random.Generator) -> np.ndarray:
    """A convolution that was not trained."""
    if name == "layer4.0.downsample.0.weight":  # [2048, 1024, 1, 1]
        return np.tile(np.eye(shape[1], dtype=np.float32), (shape[0] // shape[1], 1))[:, :, None, None]
    if ".conv3." in name:
        return np.zeros(shape, np.float32)
    deviation = np.sqrt(2.0 / np.prod(shape[1:]))
    return (deviation * random.standard_normal(shape)).astype(np.float32)
