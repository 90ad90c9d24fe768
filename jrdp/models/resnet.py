"""ResNet-50, ResNet-101 (He et al., 2016) and ResNeXt-101 32x8d (Xie et al., 2017) with frozen batch norm."""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jrdp.models.layers import Conv, FrozenBatchNorm, Stages, record_stage
from jrdp.models.shapes import BODY_CHANNELS, STEM_CHANNELS

class Stem(nn.Module):
    """`[N, 3, H, W]` -> `[N, 64, H/4, W/4]`."""

    def __init__(self):
        self.conv1 = Conv(3, STEM_CHANNELS, 7, stride=2, bias=False)
        self.bn1 = FrozenBatchNorm(STEM_CHANNELS)

    def execute(self, images: jt.Var) -> jt.Var:
        x = self.bn1(self.conv1(images), rectify=True)
        return nn.max_pool2d(x, 3, 2, 1)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut: `[N, in, H, W]` -> `[N, out, H/s, W/s]`.

    `stride_in_1x1`: the first 1x1 halves the map (MSRA ResNets), otherwise the 3x3 does.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, stride: int, groups: int, stride_in_1x1: bool):
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = nn.Sequential(
                Conv(in_channels, out_channels, 1, stride=stride, bias=False), FrozenBatchNorm(out_channels)
            )
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = Conv(in_channels, width, 1, stride=first, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = Conv(width, width, 3, stride=second, groups=groups, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.conv3 = Conv(width, out_channels, 1, bias=False)
        self.bn3 = FrozenBatchNorm(out_channels)

    def execute(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x), rectify=True)
        x = self.bn2(self.conv2(x), rectify=True)
        return self.bn3(self.conv3(x), add=shortcut, rectify=True)


class ResNet(nn.Module):
    """`[N, 3, H, W]` -> C2..C5: `[N, 256 * 2**k, H / 2**(k+2), W / 2**(k+2)]` for k = 0..3.

    blocks: bottlenecks in layer1..layer4.
    groups, width: of the 3x3 convolutions; `width` in layer1, doubled with every layer.
    freeze_at: how many of stem, layer1, ..., layer4 are not trained.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int] = (3, 4, 6, 3),
        groups: int = 1,
        width: int = 64,
        stride_in_1x1: bool = True,
        freeze_at: int = 2,
    ):
        self.out_channels = BODY_CHANNELS
        self.stem = Stem()
        in_channels = STEM_CHANNELS
        layers = []
        for k, (count, out_channels) in enumerate(zip(blocks, BODY_CHANNELS)):
            layer = nn.Sequential()
            for block in range(count):
                stride = 2 if block == 0 and k > 0 else 1
                layer.append(Bottleneck(in_channels, width << k, out_channels, stride, groups, stride_in_1x1))
                in_channels = out_channels
            layers.append(layer)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self._freeze(freeze_at)

    def _freeze(self, freeze_at: int) -> None:
        """Stop training the first `freeze_at` of stem, layer1, ..., layer4."""
        for part in [self.stem, self.layer1, self.layer2, self.layer3, self.layer4][:freeze_at]:
            for module in part.modules():
                if isinstance(module, Conv):
                    module.weight.stop_grad()

    def execute(self, images: jt.Var, stages: Stages = None) -> list[jt.Var]:
        x = record_stage(stages, "stem", self.stem(images))
        maps = []
        for k, layer in enumerate((self.layer1, self.layer2, self.layer3, self.layer4)):
            x = record_stage(stages, f"C{k + 2}", layer(x))
            maps.append(x)
        return maps
