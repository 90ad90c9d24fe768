"""A pyramid of one's own, beside the paper's: each level takes the next coarser one as far as a learnt gate lets it.

    jrdp train --config configs/quickstart.yaml --set model.pyramid.enhancement=examples.gated_pyramid:GatedPyramid --out runs/gated
    bash scripts/ablation.sh --recipe configs/quickstart.yaml --seeds 1,2 --out runs/ablation \\
        configs/ablations/fpn.yaml configs/ablations/rdp.yaml examples/gated_pyramid.yaml

A pyramid is derived from `FPN`, which makes P3..P7 of `self.channels` channels each, and has two methods. It may use
`self.covered` (the numbers of the levels that `model.pyramid.levels` names) and `self.fusion`.
"""

import jittor as jt
from jittor import nn

from jrdp.models.fpn import FPN
from jrdp.models.layers import Conv, resize_like


class GatedPyramid(FPN):
    """P'_7 = P_7; P'_i = conv3x3(P_i + sigmoid(conv1x1(P_i)) resize(P'_{i+1}))."""

    def build_enhancement(self) -> None:
        steps = len(self.covered) - 1
        self.gates = nn.Sequential(*[Conv(self.channels, self.channels, 1) for _ in range(steps)])
        self.mixers = nn.Sequential(*[Conv(self.channels, self.channels, 3) for _ in range(steps)])

    def enhance(self, levels: list) -> list:
        covered = levels[: len(self.covered)]
        enhanced = [covered[-1]]  # coarse to fine
        for level, gate, mix in zip(covered[-2::-1], self.gates, self.mixers):
            coarser = resize_like(enhanced[-1], level)
            enhanced.append(mix(level + jt.sigmoid(gate(level)) * coarser))
        return enhanced[::-1] + levels[len(covered) :]
