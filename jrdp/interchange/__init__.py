"""Weights in and out, as dictionaries of NumPy arrays: no torch, no Jittor, and no unpickling of what a file asks for."""

from jrdp.interchange.imagenet import imagenet_weights, write_imagenet_weights
from jrdp.interchange.matching import Matched, match
from jrdp.interchange.weight_file import WeightFile, infer_config, infer_model, read, write

__all__ = [
    "Matched",
    "WeightFile",
    "imagenet_weights",
    "infer_config",
    "infer_model",
    "match",
    "read",
    "write",
    "write_imagenet_weights",
]
