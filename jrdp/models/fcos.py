"""The FCOS detector (Tian et al., 2019): one head for all levels, and its losses. Conventions 1, 16 and 26.

Shapes: N images, L = locations of all levels together, level by level (P3..P7) and row-major within a level.
A box is regressed as its distances (left, top, right, bottom) from the location, in network pixels.
`fcos_targets.py` says what each location should answer, `fcos_decode.py` turns the answers into boxes.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import jittor as jt
import numpy as np
from jittor import nn

from jrdp.models.fcos_targets import LocationTargets
from jrdp.models.layers import (
    Conv,
    ConvNormReLU,
    GroupNorm,
    ReLU,
    Stages,
    note_relu,
    per_channel,
    record_stage,
    relus_are_watched,
    small_normal,
)
from jrdp.models.shapes import LEVELS, SCALES, TOWER_DEPTH
from jrdp.ops import canvas, constant, join
from jrdp.ops.compile import Kernels

PRIOR = 0.01  # what the untrained head answers everywhere (focal loss, Lin et al., 2017)
FOCAL_ALPHA = 0.25
LOG_SMALLEST_FLOAT = math.log(np.finfo(np.float32).tiny)


class HeadOutput(NamedTuple):
    """Per level (P3..P7) what the head says of each location."""

    logits: list[jt.Var]  # [N, 1, H, W], salient or not, before the sigmoid
    distances: list[jt.Var]  # [N, 4, H, W], positive, network pixels
    centerness: list[jt.Var]  # [N, 1, H, W], before the sigmoid
    # All levels together, logits [N, 1, L], distances [N, 4, L], centerness [N, 1, L], where they were computed so: then
    # gradients go through these.
    together: Optional[tuple[jt.Var, jt.Var, jt.Var]] = None


class Scale(nn.Module):
    """One learnt factor `[1]`."""

    def __init__(self):
        self.scale = jt.array(np.ones(1, np.float32))

    def execute(self, x: jt.Var) -> jt.Var:
        return x * per_channel(self.scale.broadcast([x.shape[1]]), x)


def tower(in_channels: int, channels: int) -> ConvNormReLU:
    """Four times 3x3 convolution, group norm, ReLU."""
    layers = ConvNormReLU()
    for k in range(TOWER_DEPTH):
        layers.append(Conv(channels if k else in_channels, channels, 3, init=small_normal))
        layers.append(GroupNorm(channels))
        layers.append(ReLU())
    return layers


class FcosHead(nn.Module):
    """P'3..P'7 `[N, in_channels, H, W]` -> `HeadOutput`. Centerness comes from the classification tower.

    Six scales exist and five are used: the sixth is in every released checkpoint (`state.UNUSED_PARAMETERS`).
    On a GPU all levels lie on one canvas, and each layer is one launch instead of five.
    """

    def __init__(self, in_channels: int, channels: int):
        self.cls_tower = tower(in_channels, channels)
        self.bbox_tower = tower(in_channels, channels)
        bias = -math.log((1 - PRIOR) / PRIOR)
        self.cls_logits = Conv(channels, 1, 3, init=small_normal, bias_value=bias)
        self.bbox_pred = Conv(channels, 4, 3, init=small_normal)
        self.centerness = Conv(channels, 1, 3, init=small_normal)
        self.scales = nn.Sequential(*[Scale() for _ in range(SCALES)])

    def execute(self, features: list[jt.Var], stages: Stages = None) -> HeadOutput:
        output = self._on_canvas(features) if jt.flags.use_cuda else self._level_by_level(features)
        for level, logits, distances, centerness in zip(LEVELS, *output[:3]):
            record_stage(stages, f"cls_logits_P{level}", logits)
            record_stage(stages, f"bbox_reg_P{level}", distances)
            record_stage(stages, f"centerness_P{level}", centerness)
        return output

    def _level_by_level(self, features: list[jt.Var]) -> HeadOutput:
        output = HeadOutput([], [], [])
        for x, scale in zip(features, self.scales):
            cls, box = self.cls_tower(x), self.bbox_tower(x)
            output.logits.append(self.cls_logits(cls))
            # The exponential makes a relative error of an absolute one, so this sum is taken with care.
            output.distances.append(jt.exp(scale(self.bbox_pred.in_lanes(box))))
            output.centerness.append(self.centerness(cls))
        return output

    def _on_canvas(self, features: list[jt.Var], kernels: Kernels = canvas.KERNELS) -> HeadOutput:
        layout = canvas.Layout.of([tuple(x.shape[2:]) for x in features])
        placed = canvas.place([x.float32() for x in features], layout, kernels)
        towers = [self._tower(layers, placed, layout, kernels) for layers in (self.cls_tower, self.bbox_tower)]
        for level in range(len(features) if relus_are_watched() else 0):  # in the order of `_level_by_level`
            for x in (*towers[0], *towers[1]):
                note_relu(layout.level(x, level))
        cls, box = towers[0][-1], towers[1][-1]
        last = (self.cls_logits, cls), (self.bbox_pred, box), (self.centerness, cls)
        said = [conv.without_bias(x) for conv, x in last]
        scales = [scale.scale for scale, _ in zip(self.scales, features)]
        return HeadOutput(*canvas.answers(*said, [conv.bias for conv, _ in last], scales, layout, kernels))

    @staticmethod
    def _tower(layers: ConvNormReLU, x: jt.Var, layout: canvas.Layout, kernels: Kernels) -> list[jt.Var]:
        """What each of its layers gives."""
        given = []
        for conv, norm in layers.pairs():
            x = conv.without_bias(x)
            x = canvas.norm_relu(x, conv.bias, norm.weight, norm.bias, norm.groups, norm.eps, layout, kernels)
            given.append(x)
        return given


class LossCounts(NamedTuple):
    """What the losses are divided by: counts over the images of the batch (under MPI the mean over the ranks)."""

    images: float
    positives: float  # positive locations
    centerness: float  # sum of the centerness targets
    mask_pixels: float  # pixels of the mask targets


def fcos_losses(output: HeadOutput, targets: LocationTargets, counts: LossCounts) -> dict[str, jt.Var]:
    """loss_cls, loss_reg, loss_centerness, each `[1]`; `targets` are those of all N images.

    Convention 26: the focal loss is divided by the number of positive locations + N; the box loss -log IoU (areas + 1)
    is weighted by the centerness target; the centerness loss is the mean over positives. Without a positive the last
    two are zero. Sums run over every location with a weight, so that shapes do not depend on the ground truth.
    """
    logits, distances, centerness = output.together or [flatten(levels) for levels in output[:3]]
    logits, centerness = channel(logits, 0), channel(centerness, 0)  # [N, L]; distances [N, 4, L]
    positive = jt.array(targets.positive.astype(np.float32))  # [N, L]
    weight = jt.array(targets.centerness)  # [N, L], zero where not positive

    loss_cls = sum_float64(sigmoid_focal_loss(logits, positive)) / dynamic_scalar(counts.positives + counts.images)

    # Elsewhere than at positives both sides get the same harmless distances: an IoU loss of zero.
    wanted = np.where(targets.positive[:, :, None], targets.distances, np.float32(1)).transpose(0, 2, 1)
    wanted = jt.array(np.ascontiguousarray(wanted))
    given = jt.ternary(jt.array(targets.positive).broadcast(distances, [1]), distances, wanted)
    loss_reg = sum_float64(weight * iou_loss(given, wanted)) / dynamic_scalar(counts.centerness or 1.0)

    loss_centerness = sum_float64(positive * bce_with_logits(centerness, weight)) / dynamic_scalar(counts.positives or 1.0)
    return {"loss_cls": loss_cls, "loss_reg": loss_reg, "loss_centerness": loss_centerness}


def flatten(levels: list[jt.Var]) -> jt.Var:
    """Per level `[N, C, H, W]` -> `[N, C, L]`."""
    return join([x.reshape(*x.shape[:2], -1) for x in levels], dim=2)


def channel(x: jt.Var, index: int) -> jt.Var:
    """x[:, index]: `[N, C, ...]` -> `[N, ...]`. Jittor's own has a gradient that is compiled anew for an N of 1."""
    n, _, *rest = x.shape
    return x.reindex([n, *rest], ["i0", str(index), *(f"i{k + 1}" for k in range(len(rest)))])


def dynamic_scalar(number: float) -> jt.Var:
    """A `[1]` float32 that no kernel is compiled for, as Jittor does for 0, 1 and 2 when they are given as they are."""
    return constant(number)


def sum_float64(x: jt.Var) -> jt.Var:
    """The sum of all of `x`, `[1]` float32, added up in float64: float32 loses digits over many thousand terms."""
    return x.float64().sum().float32()


class _SigmoidFocalLoss(jt.Function):
    """The released CUDA kernel's formulas for gamma = 2, value and gradient, which stay finite for any logit.

    There log(p) is taken of p no smaller than the smallest normal float. Here it comes from the logit, because Jittor's
    sigmoid itself ends at 1e-13.
    """

    def execute(self, logits: jt.Var, positive: jt.Var) -> jt.Var:
        p, not_p = jt.sigmoid(logits), jt.sigmoid(-logits)
        rest = jt.log(1.0 + jt.exp(-jt.abs(logits)))
        log_p = jt.maximum(jt.minimum(logits, 0.0) - rest, LOG_SMALLEST_FLOAT)
        log_not_p = -jt.maximum(logits, 0.0) - rest
        self.saved = positive, p, not_p, log_p, log_not_p
        loss_positive = not_p * not_p * log_p
        loss_negative = p * p * log_not_p
        return -FOCAL_ALPHA * positive * loss_positive - (1.0 - FOCAL_ALPHA) * (1.0 - positive) * loss_negative

    def grad(self, grad_loss: jt.Var):
        positive, p, not_p, log_p, log_not_p = self.saved
        grad_positive = not_p * not_p * (not_p - 2.0 * p * log_p)
        grad_negative = p * p * (2.0 * not_p * log_not_p - p)
        grad = -FOCAL_ALPHA * positive * grad_positive - (1.0 - FOCAL_ALPHA) * (1.0 - positive) * grad_negative
        return grad_loss * grad, None


def sigmoid_focal_loss(logits: jt.Var, positive: jt.Var) -> jt.Var:
    """Focal loss (Lin et al., 2017), alpha 0.25, gamma 2, of each logit; `positive` is float32 0 or 1 of that shape."""
    return _SigmoidFocalLoss.apply(logits, positive)


def iou_loss(given: jt.Var, wanted: jt.Var) -> jt.Var:
    """-log((I + 1) / (U + 1)) of two boxes around the same location: distances `[N, 4, L]` -> `[N, L]`.

    I and U are areas of intersection and union in square pixels (no + 1 on the sides here).
    """
    left, top, right, bottom = [channel(given, k) for k in range(4)]
    wanted_left, wanted_top, wanted_right, wanted_bottom = [channel(wanted, k) for k in range(4)]
    width = jt.minimum(left, wanted_left) + jt.minimum(right, wanted_right)
    height = jt.minimum(top, wanted_top) + jt.minimum(bottom, wanted_bottom)
    intersection = width * height
    wanted_area = (wanted_left + wanted_right) * (wanted_top + wanted_bottom)
    union = (left + right) * (top + bottom) + wanted_area - intersection
    return -jt.log((intersection + 1.0) / (union + 1.0))


def bce_with_logits(logits: jt.Var, wanted: jt.Var) -> jt.Var:
    """Binary cross entropy of each logit against a float32 target in 0..1; finite for any logit.

    Written without |x|, whose gradient at 0 in Jittor is 1: x (1 - t) + log(1 + exp(-x)), the logarithm taken out of a
    common factor exp(m).
    """
    m = jt.maximum(-logits, 0.0).stop_grad()
    return logits * (1.0 - wanted) + m + jt.log(jt.exp(-m) + jt.exp(-logits - m))
