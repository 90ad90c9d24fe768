"""Enhancements by others that Table V compares with, on the same FPN and with its 256 channels.

None has a batch norm, because nothing else in this pyramid has one. As for the paper's own, P6 and P7 come from the
FPN's P5, and with `levels: p3-p5` they pass unchanged.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from jrdp.errors import UserError
from jrdp.models.fpn import FPN
from jrdp.models.layers import Conv, Stages, kaiming_normal_fan_out, per_channel, relu
from jrdp.models.shapes import LEVELS
from jrdp.models.shapes import PYRAMID_CHANNELS as CHANNELS

BIFPN_EPSILON = 1e-4


def same_conv(stride: int = 1, groups: int = 1, kernel: int = 3) -> Conv:
    return Conv(CHANNELS, CHANNELS, kernel, stride=stride, groups=groups, init=kaiming_normal_fan_out)


def nearest(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    """A map magnified to `size` by repeating pixels: by the power of two between two levels, cut off at `size`."""
    factor = 1
    while x.shape[2] * factor < size[0] or x.shape[3] * factor < size[1]:
        factor *= 2
    if factor == 1:
        return x
    return nn.interpolate(x, scale_factor=factor, mode="nearest")[:, :, : size[0], : size[1]]


class PathAggregation(FPN):
    """The bottom-up path of PANet (Liu et al., CVPR 2018, Sec. 3.1).

    N_3 = P_3; N_i = ReLU(conv3x3(ReLU(conv3x3, stride 2 (N_{i-1})) + P_i)).
    """

    def build_enhancement(self) -> None:
        steps = len(self.covered) - 1
        self.pa_down = nn.Sequential(*[same_conv(stride=2) for _ in range(steps)])
        self.pa_out = nn.Sequential(*[same_conv() for _ in range(steps)])

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        path = [levels[0]]
        for level, down, out in zip(levels[1:], self.pa_down, self.pa_out):
            path.append(relu(out(relu(down(path[-1])) + level)))
        return path + levels[len(path) :]


class NasFpn(FPN):
    """The graph of seven merging cells that NAS-FPN found (Ghiasi et al., CVPR 2019, Fig. 6), once.

    A cell merges two maps at the size of its output (smaller maps repeated, larger ones max-pooled), by their sum or by
    global pooling, GP(a, b) = b + sigmoid(max over the map of b) a; then ReLU and a 3x3 convolution. P_5 and P_7,
    which no cell takes, are added to what their level's cell merges.
    """

    def build_enhancement(self) -> None:
        if self.covered != LEVELS:
            raise UserError("model.pyramid.levels: nas_fpn connects all of P3..P7, so levels must be p3-p7")
        self.nas_cells = nn.Sequential(*[same_conv() for _ in range(7)])

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        p3, p4, p5, p6, p7 = levels
        cell = [lambda x, conv=conv: conv(relu(x)) for conv in self.nas_cells]
        inner4 = cell[0](_global_pooling(p6, p4, p4))
        middle4 = cell[1](inner4 + p4)
        out3 = cell[2](_at(middle4, p3) + p3)
        out4 = cell[3](_at(out3, p4) + middle4)
        out5 = cell[4](_global_pooling(out4, out3, p5) + p5)
        out7 = cell[5](_global_pooling(out5, middle4, p7) + p7)
        out6 = cell[6](_global_pooling(out7, out5, p6))
        return [out3, out4, out5, out6, out7]


def _global_pooling(a: jt.Var, b: jt.Var, like: jt.Var) -> jt.Var:
    a, b = _at(a, like), _at(b, like)
    attention = jt.sigmoid(b.max(dim=3, keepdims=True).max(dim=2, keepdims=True))
    return b + attention.reshape(b.shape[:2]).broadcast(b, [2, 3]) * a


def _at(x: jt.Var, like: jt.Var) -> jt.Var:
    """`x` at the size of `like`: repeated when smaller, max-pooled by a power of two when larger."""
    height, width = like.shape[2:]
    while x.shape[2] > height or x.shape[3] > width:
        x = max_pool_half(x, window=2)
    return nearest(x, (height, width))


def max_pool_half(x: jt.Var, window: int) -> jt.Var:
    """Max-pooling of stride 2, `[N, C, H, W]` -> `[N, C, ceil(H/2), ceil(W/2)]`, over pixels inside the map only.

    window 2 takes pixels 2i, 2i + 1, window 3 also 2i - 1. Jittor's own does not take maps smaller than its window.
    """
    rows, columns = _pool_indices(x.shape[2], window), _pool_indices(x.shape[3], window)
    x = _maximum([x[:, :, index] for index in rows])
    return _maximum([x[:, :, :, index] for index in columns])


def _pool_indices(length: int, window: int) -> list[jt.Var]:
    """Which pixels each output compares; beyond the border it compares the last pixel with itself."""
    first = 2 * np.arange((length + 1) // 2, dtype=np.int32)
    offsets = (0, 1) if window == 2 else (-1, 0, 1)
    return [jt.array(np.clip(first + offset, 0, length - 1)) for offset in offsets]


def _maximum(maps: list[jt.Var]) -> jt.Var:
    largest = maps[0]
    for x in maps[1:]:
        largest = jt.maximum(largest, x)
    return largest


class BiFpn(FPN):
    """One layer of BiFPN (Tan et al., EfficientDet, CVPR 2020, Sec. 3.2-3.3) with weighted fast fusion.

    From coarse to fine T_i = conv(fuse(P_i, up(T_{i+1}))), then from fine to coarse
    P'_i = conv(fuse(P_i, T_i, down(P'_{i-1}))), with P'_finest = T_finest and no T_i at the coarsest level.
    fuse(x_1, ..) = sum w_k x_k / (sum w_k + 0.0001), w_k = ReLU of a learnt number; up repeats pixels, down is a 3x3
    max-pooling of stride 2; conv is swish, then a depthwise 3x3 and a 1x1 convolution.
    """

    def build_enhancement(self) -> None:
        steps = len(self.covered) - 1
        self.bifpn_down = nn.Sequential(*[FastFusion(2) for _ in range(steps)])
        self.bifpn_up = nn.Sequential(*[FastFusion(3) for _ in range(steps - 1)], FastFusion(2))

    def enhance(self, levels: list[jt.Var], stages: Stages = None) -> list[jt.Var]:
        steps = len(self.bifpn_down)
        covered = levels[: steps + 1]
        top_down = [covered[-1]]  # coarse to fine
        for level, fuse in zip(covered[-2::-1], self.bifpn_down):
            top_down.append(fuse(level, nearest(top_down[-1], level.shape[2:])))
        out = [top_down[-1]]
        for level, between, fuse in zip(covered[1:-1], top_down[-2:0:-1], self.bifpn_up):
            out.append(fuse(level, between, max_pool_half(out[-1], window=3)))
        out.append(self.bifpn_up[-1](covered[-1], max_pool_half(out[-1], window=3)))
        return out + levels[steps + 1 :]


class FastFusion(nn.Module):
    """Maps of one shape -> one: their weighted mean, swish, depthwise 3x3, 1x1."""

    def __init__(self, maps: int):
        self.weight = jt.array(np.ones(maps, np.float32))
        self.depthwise = same_conv(groups=CHANNELS)
        self.pointwise = same_conv(kernel=1)

    def execute(self, *maps: jt.Var) -> jt.Var:
        weight = nn.relu(self.weight)
        weight = weight / (weight.sum() + BIFPN_EPSILON)
        x = sum(per_channel(weight[k].broadcast([CHANNELS]), x) * x for k, x in enumerate(maps))
        return self.pointwise(self.depthwise(x * jt.sigmoid(x)))
