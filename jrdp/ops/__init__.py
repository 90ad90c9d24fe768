"""The operators that Jittor lacks or does slower: RoIAlign, NMS, pasting, norms, joining maps, decoding on a GPU, a level
of an FCOS head beside the other, gradients and SGD for all parameters at once."""

from . import canvas
from .compile import constant
from .decoding import Limits, decode_on_device, found_in
from .frozen_norm import frozen_norm
from .joining import join
from .many import report, sgd
from .normalization import group_norm
from .pasting import paste, paste_mask_rle, paste_masks
from .roi_pooling import multilevel_roi_align, roi_align
from .suppression import nms, nms_on_device

__all__ = [
    "Limits",
    "canvas",
    "constant",
    "decode_on_device",
    "found_in",
    "frozen_norm",
    "group_norm",
    "join",
    "multilevel_roi_align",
    "nms",
    "nms_on_device",
    "paste",
    "paste_mask_rle",
    "paste_masks",
    "report",
    "roi_align",
    "sgd",
]
