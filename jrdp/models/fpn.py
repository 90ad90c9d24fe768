"""The feature pyramid network (Lin et al., 2017) with P6 and P7, which every enhancement builds upon."""

from __future__ import annotations

from typing import Sequence

import jittor as jt
from jittor import nn

from jrdp.models.layers import Conv, Stages, record_stage, relu, resize_like
from jrdp.models.own_parts import takes_stages
from jrdp.models.shapes import ENHANCED_LEVELS, LEVELS
from jrdp.models.shapes import PYRAMID_CHANNELS as CHANNELS


class TopBlocks(nn.Module):
    """P6 and P7 from P5, each a 3x3 convolution of stride 2; the ReLU is on the way to P7 only (convention 14)."""

    def __init__(self):
        self.p6 = Conv(CHANNELS, CHANNELS, 3, stride=2)
        self.p7 = Conv(CHANNELS, CHANNELS, 3, stride=2)

    def execute(self, p5: jt.Var) -> tuple[jt.Var, jt.Var]:
        p6 = self.p6(p5)
        return p6, self.p7(relu(p6))


class FPN(nn.Module):
    """C3, C4, C5 -> P3..P7, each `[N, 256, H/s, W/s]` with s = 8, 16, 32, 64, 128 (rounded up). No activations.

    `fpn_inner2`, `fpn_layer2` belong to C3 and P3, as in the released checkpoints (C2 is not used).
    A pyramid that enhances these levels is a subclass with `build_enhancement` and `enhance`; its parameters come
    between the FPN's own and those of P6 and P7, which are made from the P5 that is not enhanced.

    in_channels: of C3, C4, C5.
    levels: "p3-p7" or "p3-p5", the levels that the enhancement covers (`covered`); the others pass unchanged.
    upsample: "nearest" or "bilinear", of the top-down path (convention 2).
    fusion: "1x1_3x3" or "3x3", of concatenated maps, for the enhancements that concatenate.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        levels: str = "p3-p7",
        upsample: str = "nearest",
        fusion: str = "1x1_3x3",
    ):
        self.channels = CHANNELS
        self.covered, self.upsample, self.fusion = ENHANCED_LEVELS[levels], upsample, fusion
        c3, c4, c5 = in_channels
        self.fpn_inner2 = Conv(c3, CHANNELS, 1)
        self.fpn_layer2 = Conv(CHANNELS, CHANNELS, 3)
        self.fpn_inner3 = Conv(c4, CHANNELS, 1)
        self.fpn_layer3 = Conv(CHANNELS, CHANNELS, 3)
        self.fpn_inner4 = Conv(c5, CHANNELS, 1)
        self.fpn_layer4 = Conv(CHANNELS, CHANNELS, 3)
        self.build_enhancement()
        self.top_blocks = TopBlocks()

    def build_enhancement(self) -> None:
        """Make the layers of `enhance`; the plain FPN has none."""

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        """P3..P7 -> as many maps of the same shapes; the plain FPN leaves them as they are."""
        return levels

    def execute(self, c3: jt.Var, c4: jt.Var, c5: jt.Var, stages: Stages = None) -> list[jt.Var]:
        top5, lateral4, lateral3 = self.fpn_inner4(c5), self.fpn_inner3(c4), self.fpn_inner2(c3)
        top4 = lateral4 + self._upsample(top5, lateral4)
        top3 = lateral3 + self._upsample(top4, lateral3)
        p3, p4, p5 = self.fpn_layer2(top3), self.fpn_layer3(top4), self.fpn_layer4(top5)
        levels = [p3, p4, p5, *self.top_blocks(p5)]
        for level, x in zip(LEVELS, levels):
            record_stage(stages, f"P{level}", x)
        levels = self.enhance(levels, stages) if takes_stages(self.enhance) else self.enhance(levels)
        for level, x in zip(LEVELS, levels if stages is not None else ()):
            record_stage(stages, f"RP{level}", x)
        return levels

    def _upsample(self, x: jt.Var, like: jt.Var) -> jt.Var:
        """`x` at twice its height and width, which are those of `like`."""
        if self.upsample == "bilinear":
            return resize_like(x, like)
        return nn.interpolate(x, scale_factor=2, mode="nearest")
