"""Weights in and out, as dictionaries of NumPy arrays: no torch, no Jittor, and no unpickling of what a file asks for.

    file = interchange.read("r50_isod.pth")               # any format; UserError for what is no checkpoint
    matched = interchange.match({name: shape, ...}, file)  # strict; matched.tensors: every name exactly once
    interchange.write("r50_isod.safetensors", file)
    print(interchange.convert("r50_isod.pth", "r50_isod.safetensors"))
"""

from jrdp.interchange.convert import Conversion, convert
from jrdp.interchange.imagenet import imagenet_weights, write_imagenet_weights
from jrdp.interchange.matching import Matched, match, match_part
from jrdp.interchange.tensors import BFloat16
from jrdp.interchange.training_state import TrainingState, from_pytorch, to_pytorch
from jrdp.interchange.weight_file import WeightFile, infer_config, infer_model, read, stored_config, write

__all__ = [
    "BFloat16",
    "Conversion",
    "Matched",
    "TrainingState",
    "WeightFile",
    "convert",
    "from_pytorch",
    "imagenet_weights",
    "infer_config",
    "infer_model",
    "match",
    "match_part",
    "read",
    "stored_config",
    "to_pytorch",
    "write",
    "write_imagenet_weights",
]
