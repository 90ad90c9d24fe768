"""The backbone and the pyramid of these examples once more, in PyTorch, to compare with (no Jittor in here):

    jrdp compare layers --images photos --weights runs/mine/final.safetensors --config runs/mine/config.yaml --out report \\
        --twin-python PYTHON_WITH_TORCH --twin-backbone examples.in_torch:ResNet18 --twin-pyramid examples.in_torch:GatedPyramid

Either can be left out where the network has the paper's. The tensors must have the names and shapes of those in Jittor.
"""

import torch
import torch.nn.functional as F
from torch import nn

from jrdp.comparison.twin.model import FPN, FrozenBatchNorm


def conv(inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias)


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv(inputs, outputs, 3, stride, bias=False)
        self.bn1 = FrozenBatchNorm(outputs)
        self.conv2 = conv(outputs, outputs, 3, bias=False)
        self.bn2 = FrozenBatchNorm(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet18(nn.Module):
    """Made as `ResNet18(freeze_at=...)`; the last three of its maps have strides 8, 16, 32."""

    def __init__(self, freeze_at: int = 0):
        super().__init__()
        self.out_channels = (64, 128, 256, 512)
        self.conv1 = conv(3, 64, 7, 2, bias=False)
        self.bn1 = FrozenBatchNorm(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        for part in [self.conv1, self.layer1, self.layer2, self.layer3, self.layer4][:freeze_at]:
            part.requires_grad_(False)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class GatedPyramid(FPN):
    """The same two methods as in Jittor."""

    def build_enhancement(self):
        steps = len(self.covered) - 1
        self.gates = nn.Sequential(*[conv(self.channels, self.channels, 1) for _ in range(steps)])
        self.mixers = nn.Sequential(*[conv(self.channels, self.channels, 3) for _ in range(steps)])

    def enhance(self, levels):
        covered = levels[: len(self.covered)]
        enhanced = [covered[-1]]  # coarse to fine
        for level, gate, mix in zip(covered[-2::-1], self.gates, self.mixers):
            coarser = F.interpolate(enhanced[-1], size=level.shape[-2:], mode="bilinear", align_corners=False)
            enhanced.append(mix(level + torch.sigmoid(gate(level)) * coarser))
        return enhanced[::-1] + levels[len(covered) :]
