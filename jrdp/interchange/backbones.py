"""ImageNet backbones under other names: Detectron's (Caffe2) and torchvision's -> the released keys.

Each comes with the preprocessing and stride convention that it was trained with; they travel with the tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Mapping, Optional

import numpy as np

from jrdp.interchange.layout import BACKBONE
from jrdp.interchange.tensors import FormatError, Tensor, as_float32, dtype_name

# Detectron's: MSRA ResNets; std 1 for its ResNeXt too, as the released configurations use it.
DETECTRON_PREPROCESSING = {
    "channel_order": "bgr",
    "scale": 255.0,
    "mean": [102.9801, 115.9465, 122.7717],
    "std": [1.0, 1.0, 1.0],
}
TORCHVISION_PREPROCESSING = {
    "channel_order": "rgb",
    "scale": 1.0,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "stride_in_1x1": False,
}
TORCHVISION_EPS = 1e-5

RELEASED, CAFFE2, TORCHVISION, UNKNOWN = "released", "caffe2", "torchvision", "unknown"


@dataclass
class Row:
    """A line of the conversion table; `target` is None for a tensor that is left out, `source` None for one made up."""

    source: Optional[str]
    target: Optional[str]
    shape: tuple
    dtype: str
    note: str = ""


@dataclass
class Renamed:
    tensors: dict[str, Tensor]
    rows: list[Row] = field(default_factory=list)

    def put(self, source: Optional[str], target: str, tensor: Tensor, note: str = "") -> None:
        if target in self.tensors:
            raise FormatError(f"two of its tensors, one of them {source}, are both {target}")
        self.tensors[target] = tensor
        self.rows.append(Row(source, target, tuple(tensor.shape), dtype_name(tensor), note))

    def leave(self, source: str, tensor: Tensor, reason: str) -> None:
        self.rows.append(Row(source, None, tuple(tensor.shape), dtype_name(tensor), f"left out: {reason}"))


def naming(names: Mapping) -> str:
    """Whose names these are: "released", "caffe2", "torchvision" or "unknown"."""
    if any(name.startswith(("backbone.body.", "backbone.fpn.", "rpn.head.", "roi_heads.")) for name in names):
        return RELEASED
    if "res2_0_branch2a_w" in names or "conv1_w" in names:
        return CAFFE2
    if "layer1.0.conv1.weight" in names:
        return TORCHVISION
    return UNKNOWN


def from_torchvision(tensors: Mapping[str, Tensor]) -> Renamed:
    """torchvision's ResNet-50/101 and ResNeXt-101 32x8d. Names that are not a ResNet's are kept, for `match` to refuse.

    Their batch norm adds eps = 1e-5 to the variance, ours adds nothing: running_var becomes running_var + eps, in
    float32 as batch norm computes it.
    """
    result = Renamed({})
    for name, tensor in tensors.items():
        if name in ("fc.weight", "fc.bias"):
            result.leave(name, tensor, "the ImageNet classifier")
        elif name.endswith(".num_batches_tracked"):
            result.leave(name, tensor, "a counter of batch norm's training")
        elif not re.match(r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.", name):
            result.put(name, name, tensor)
        else:
            target = f"{BACKBONE}{name}" if name.startswith("layer") else f"{BACKBONE}stem.{name}"
            if name.endswith("running_var"):
                variance = as_float32(tensor) + np.float32(TORCHVISION_EPS)
                result.put(name, target, variance, f"+ {TORCHVISION_EPS:g}, the eps of torchvision's batch norm")
            else:
                result.put(name, target, tensor)
    return result


def from_caffe2(blobs: Mapping[str, Tensor]) -> Renamed:
    """Detectron's model files: R-50, R-101, X-101-32x8d. Batch norm is scale and shift there (mean 0, variance 1)."""
    result = Renamed({})
    for name, blob in blobs.items():
        if name.endswith("_momentum"):
            result.leave(name, blob, "momentum of the ImageNet training")
        elif re.match(r"(fc1000|pred)_[wb]$", name):
            result.leave(name, blob, "the ImageNet classifier")
        elif name in ("lr", "weight_order", "model_iter", "cur_iter"):
            result.leave(name, blob, "state of the ImageNet training")
        elif name == "conv1_b":
            result.leave(name, blob, "folded into the batch norm after it")
        else:
            target, note = _caffe2_target(name), ""
            if name in ("conv1_bn_b", "res_conv1_bn_b") and "conv1_b" in blobs:
                scale = blobs[name[:-1] + "s"] if name[:-1] + "s" in blobs else np.float32(1)
                blob = as_float32(blob) + as_float32(scale) * as_float32(blobs["conv1_b"])
                note = "with conv1_b folded in"
            result.put(name, target, blob, note)
    for target in [name for name in result.tensors if re.search(r"(bn\d|downsample\.1)\.weight$", name)]:
        channels = result.tensors[target].shape
        norm = target[: -len("weight")]
        result.put(None, f"{norm}running_mean", np.zeros(channels, np.float32), "0: the file has scale and shift only")
        result.put(None, f"{norm}running_var", np.ones(channels, np.float32), "1: the file has scale and shift only")
    return result


def _caffe2_target(name: str) -> str:
    """`res3_0_branch2a_bn_s` -> `backbone.body.layer2.0.bn1.weight`; names of another form are returned unchanged."""
    part = {"w": "weight", "s": "weight", "b": "bias"}
    stem = re.fullmatch(r"(conv1)_(w)|(?:res_)?(conv1_bn)_([sb])", name)
    if stem:
        return f"{BACKBONE}stem.{'conv1' if stem[1] else 'bn1'}.{part[stem[2] or stem[4]]}"
    block = re.fullmatch(r"res([2-5])_(\d+)_branch(1|2[abc])(_w|_bn_[sb])", name)
    if not block:
        return name
    layer, index, branch, kind = int(block[1]) - 1, block[2], block[3], block[4]
    norm = kind != "_w"
    if branch == "1":
        module = f"downsample.{int(norm)}"
    else:
        module = f"{'bn' if norm else 'conv'}{'abc'.index(branch[1]) + 1}"
    return f"{BACKBONE}layer{layer}.{index}.{module}.{part[kind[-1]]}"
