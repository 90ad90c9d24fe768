"""The operators that Jittor lacks or does slower: RoIAlign, NMS, pasting, group norm, joining maps, decoding on a GPU."""

from .decoding import Limits, decode_on_device
from .joining import join
from .normalization import group_norm
from .pasting import paste_mask_rle, paste_masks
from .roi_pooling import multilevel_roi_align, roi_align
from .suppression import nms, nms_on_device

__all__ = [
    "Limits",
    "decode_on_device",
    "group_norm",
    "join",
    "multilevel_roi_align",
    "nms",
    "nms_on_device",
    "paste_mask_rle",
    "paste_masks",
    "roi_align",
]
