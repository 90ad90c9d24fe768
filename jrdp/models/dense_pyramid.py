"""The dense pyramids of the paper (Sec. III-B) and what they are compared with in Table IV.

Notation: P_i is a level of the FPN, P'_i the enhanced one, i = 3..7; F is a fusion of concatenated maps (`fuse`),
resize is bilinear, directly from the one level's size to the other's.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jrdp.models.fpn import FPN
from jrdp.models.layers import Conv, Stages, kaiming_normal_fan_out, record_stage, resize_like
from jrdp.models.shapes import LEVELS
from jrdp.models.shapes import PYRAMID_CHANNELS as CHANNELS
from jrdp.ops import join


def fuse(kind: str, maps: int) -> nn.Module:
    """F: `maps` concatenated maps -> one of 256 channels. 1x1 and 3x3, or one 3x3 (convention 3); no ReLU."""
    if kind == "3x3":
        return Conv(maps * CHANNELS, CHANNELS, 3, init=kaiming_normal_fan_out)
    return nn.Sequential(
        Conv(maps * CHANNELS, CHANNELS, 1, init=kaiming_normal_fan_out),
        Conv(CHANNELS, CHANNELS, 3, init=kaiming_normal_fan_out),
    )


class RefinedPyramid(FPN):
    """What they have in common: the blocks F, one for each level that is enhanced, in the order of enhancement.

    With `levels: p3-p5` only P3, P4, P5 are enhanced; P6 and P7 (made from the FPN's P5 in any case) pass unchanged.
    """

    def _build_refine_blocks(self, maps: tuple[int, int, int, int]) -> None:
        """F of the first level is one 3x3; the next ones fuse `maps` maps each."""
        self.refine_block_1 = Conv(CHANNELS, CHANNELS, 3, init=kaiming_normal_fan_out)
        self.refine_block_2 = fuse(self.fusion, maps[0])
        self.refine_block_3 = fuse(self.fusion, maps[1])
        if 7 in self.covered:
            self.refine_block_4 = fuse(self.fusion, maps[2])
            self.refine_block_5 = fuse(self.fusion, maps[3])

    def _later_refine_blocks(self) -> list[nn.Module]:
        """F of all levels but the first."""
        blocks = [self.refine_block_2, self.refine_block_3]
        return blocks + [self.refine_block_4, self.refine_block_5] if hasattr(self, "refine_block_4") else blocks


class ProgressivePyramid(RefinedPyramid):
    """NP, the plain bottom-up pyramid (Eq. 3-4): P'_3 = F(P_3), P'_i = F([resize(P'_{i-1}), P_i])."""

    def build_enhancement(self) -> None:
        self._build_refine_blocks(maps=(2, 2, 2, 2))

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        refined = [self.refine_block_1(levels[0])]
        for level, refine in zip(levels[1:], self._later_refine_blocks()):
            finer = resize_like(refined[-1], level)
            refined.append(refine(join([finer, level], dim=1)))
        return refined + levels[len(refined) :]


class DensePyramid(RefinedPyramid):
    """DP (Eq. 5): P'_3 = F(P_3), P'_i = F([resize(P'_3), ..., resize(P'_{i-1}), P_i])."""

    def build_enhancement(self) -> None:
        self._build_refine_blocks(maps=(2, 3, 4, 5))

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        refined = [self.refine_block_1(levels[0])]
        for level, refine in zip(levels[1:], self._later_refine_blocks()):
            finer = [resize_like(x, level) for x in refined]
            refined.append(refine(join([*finer, level], dim=1)))
        return refined + levels[len(refined) :]


class RegularizedDensePyramid(RefinedPyramid):
    """RDP (Eq. 6-8), convention 15: the level itself decides, pixel by pixel, what it takes from the finer ones.

    A_i = sigmoid(conv3x3(P_i)), 256 channels; P'_i = F([A_i resize(P'_3), ..., A_i resize(P'_{i-1}), P_i]).
    `att_block_1` belongs to P4.
    """

    def build_enhancement(self) -> None:
        self._build_refine_blocks(maps=(2, 3, 4, 5))
        self.att_block_1 = Conv(CHANNELS, CHANNELS, 3, init=kaiming_normal_fan_out)
        self.att_block_2 = Conv(CHANNELS, CHANNELS, 3, init=kaiming_normal_fan_out)
        if 7 in self.covered:
            self.att_block_3 = Conv(CHANNELS, CHANNELS, 3, init=kaiming_normal_fan_out)
            self.att_block_4 = Conv(CHANNELS, CHANNELS, 3, init=kaiming_normal_fan_out)

    def _attention_blocks(self) -> list[nn.Module]:
        blocks = [self.att_block_1, self.att_block_2]
        return blocks + [self.att_block_3, self.att_block_4] if hasattr(self, "att_block_3") else blocks

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        count = 1 + len(self._later_refine_blocks())
        return self._refine(levels[:count], LEVELS[:count], stages) + levels[count:]

    def _refine(self, levels: list[jt.Var], numbers: tuple[int, ...], stages: Stages) -> list[jt.Var]:
        """The enhanced `levels`, each from itself and those before it; `numbers` name them."""
        refined = [self.refine_block_1(levels[0])]
        later = zip(levels[1:], numbers[1:], self._later_refine_blocks(), self._attention_blocks())
        for level, number, refine, attend in later:
            attention = jt.sigmoid(record_stage(stages, f"att_logit_P{number}", attend(level)))
            before = [attention * resize_like(x, level) for x in refined]
            refined.append(refine(join([*before, level], dim=1)))
        return refined


class TopDownRegularizedPyramid(RegularizedDensePyramid):
    """The top-down RDP of Table IV: Eq. 6-8 with the levels from coarse to fine.

    P'_7 = F(P_7), P'_i = F([A_i resize(P'_7), ..., A_i resize(P'_{i+1}), P_i]); with `levels: p3-p5` from P5 on.
    `refine_block_1` belongs to the coarsest level, `att_block_1` to the one below it.
    """

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        count = 1 + len(self._later_refine_blocks())
        refined = self._refine(levels[:count][::-1], LEVELS[:count][::-1], stages)
        return refined[::-1] + levels[count:]
