"""The network's measures: blocks, channels, levels, strides. Needs no Jittor.

Read by the network itself, by the names of its tensors (`interchange/layout.py`) and by the engines that run it
elsewhere (`fast`, `export`).
"""

from __future__ import annotations

from typing import NamedTuple


class ResNetShape(NamedTuple):
    blocks: tuple[int, int, int, int]  # bottlenecks in layer1..layer4
    groups: int  # of the 3x3 convolutions
    width: int  # channels of the 3x3 convolutions in layer1; doubles with every layer


RESNETS = {
    "r50": ResNetShape((3, 4, 6, 3), 1, 64),
    "r101": ResNetShape((3, 4, 23, 3), 1, 64),
    "x101": ResNetShape((3, 4, 23, 3), 32, 256),
}
STEM_CHANNELS = 64
BODY_CHANNELS = (256, 512, 1024, 2048)  # of C2, C3, C4, C5
BODY_STRIDES = (4, 8, 16, 32)  # of C2, C3, C4, C5 against the network input

LEVELS = (3, 4, 5, 6, 7)  # P3..P7
STRIDES = (8, 16, 32, 64, 128)  # of P3..P7 against the network input
PYRAMID_CHANNELS = 256
ENHANCED_LEVELS = {"p3-p5": (3, 4, 5), "p3-p7": LEVELS}

TOWER_DEPTH = 4  # convolutions of each tower of the FCOS head
SCALES = 6  # factors that the FCOS head stores; the last is used by no level (convention 16)

DECODER_CHANNELS = 128
MASK_SIZES = (32, 16, 8, 4, 4)  # bins a side that the multi-level decoder pools a RoI to from P'3..P'7
MASK_SAMPLING_RATIO = 2
MASK_CHANNELS = 2
SALIENT = 1  # the mask channel that counts
SINGLE_LEVEL_MASK_SIZE = 14  # bins a side of the single-level head, which doubles them
SINGLE_LEVEL_DEPTH = 4  # its 3x3 convolutions
