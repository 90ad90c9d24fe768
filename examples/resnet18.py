"""A backbone of one's own: ResNet-18. Any configuration can name it by its import path:

    jrdp train --config configs/quickstart.yaml --set model.backbone.name=examples.resnet18:ResNet18 \\
        --set train.weights=null --set model.backbone.freeze_at=0 --out runs/resnet18
    jrdp predict --weights runs/resnet18/final.safetensors --set model.backbone.name=examples.resnet18:ResNet18 --out out photos

A backbone is made as `ResNet18(freeze_at=...)`, says in `out_channels` how many channels its maps have, and turns pictures
`[N, 3, H, W]` into maps of which the last three have strides 8, 16 and 32. Any channel counts will do.
"""

import jittor as jt
from jittor import nn

from jrdp.models.layers import Conv, FrozenBatchNorm, relu


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `[N, in, H, W]` -> `[N, out, H/stride, W/stride]`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        self.conv1 = Conv(in_channels, out_channels, 3, stride=stride, bias=False)
        self.bn1 = FrozenBatchNorm(out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3, bias=False)
        self.bn2 = FrozenBatchNorm(out_channels)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            shortcut = Conv(in_channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, FrozenBatchNorm(out_channels))

    def execute(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """`[N, 3, H, W]` -> C2..C5 with 64, 128, 256, 512 channels at strides 4, 8, 16, 32."""

    def __init__(self, freeze_at: int = 0):
        self.out_channels = (64, 128, 256, 512)
        self.conv1 = Conv(3, 64, 7, stride=2, bias=False)
        self.bn1 = FrozenBatchNorm(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        for part in [self.conv1, self.layer1, self.layer2, self.layer3, self.layer4][:freeze_at]:
            for weight in part.parameters():
                weight.stop_grad()

    def execute(self, images: jt.Var) -> list:
        x = nn.max_pool2d(relu(self.bn1(self.conv1(images))), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps
