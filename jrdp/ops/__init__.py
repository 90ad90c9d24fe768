"""The operators that Jittor lacks: RoIAlign, non-maximum suppression, mask pasting. Nothing here knows the network."""

from .pasting import paste_mask_rle, paste_masks
from .roi_pooling import multilevel_roi_align, roi_align
from .suppression import nms, nms_on_device

__all__ = ["multilevel_roi_align", "nms", "nms_on_device", "paste_mask_rle", "paste_masks", "roi_align"]
