"""The mask heads: the paper's multi-level decoder and Mask R-CNN's single-level head that it is compared with.

Shapes: R RoIs (batch index, x1, y1, x2, y2 in network pixels) of all images of a batch together. Both heads answer
`[R, 2, M, M]` logits of the mask within the RoI; channel 1 is "salient", channel 0 is never trained nor used
(convention 18). M is 32 for the multi-level head and 28 for the single-level one; losses and pasting work with either.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from jrdp import boxes as box_ops
from jrdp.models.layers import (
    Conv,
    ConvNormReLU,
    GroupNorm,
    ReLU,
    Stages,
    kaiming_normal_fan_out,
    record_stage,
    relu,
    resize_like,
)
from jrdp.models.shapes import (
    DECODER_CHANNELS,
    MASK_CHANNELS,
    MASK_SAMPLING_RATIO,
    MASK_SIZES,
    SINGLE_LEVEL_MASK_SIZE,
    STRIDES,
)
from jrdp.ops import join, multilevel_roi_align, roi_align


class MaskHead(nn.Module):
    """Features of each RoI, then a prediction: `[R, 2, M, M]` logits from P'3..P'7 and RoIs `[R, 5]`.

    in_channels: of P'3..P'7.
    kind: "multi_level" or "single_level".
    """

    def __init__(self, in_channels: int, kind: str = "multi_level"):
        if kind == "single_level":
            self.resolution = SINGLE_LEVEL_MASK_SIZE * 2
            self.feature_extractor = SingleLevelExtractor(in_channels)
            self.predictor = UpsamplingPredictor(in_channels)
        else:
            self.resolution = MASK_SIZES[0]
            self.feature_extractor = MultiLevelDecoder(in_channels)
            self.predictor = Predictor(DECODER_CHANNELS)

    def execute(self, features: list[jt.Var], rois: jt.Var, stages: Stages = None) -> jt.Var:
        if rois.shape[0] == 0:
            return jt.zeros((0, MASK_CHANNELS, self.resolution, self.resolution))
        return record_stage(stages, "mask_logits", self.predictor(self.feature_extractor(features, rois, stages)))


def conv_norm_relu(in_channels: int, kernel: int) -> ConvNormReLU:
    return ConvNormReLU(
        Conv(in_channels, DECODER_CHANNELS, kernel, bias=False, init=kaiming_normal_fan_out),
        GroupNorm(DECODER_CHANNELS),
        ReLU(),
    )


class MultiLevelDecoder(nn.Module):
    """MRA, the multi-level RoIAlign decoder (Sec. III-C): every RoI is pooled from all five levels.

    A RoI is 32x32 in P'3, 16x16 in P'4, 8x8 in P'5, 4x4 in P'6 and P'7; the decoder goes from coarse to fine, each time
    resizing (convention 5), adding the finer map and convolving.
    P'3..P'7 `[N, 256, H, W]`, RoIs `[R, 5]` -> `[R, 128, 32, 32]`.
    `inner_maskdecoder_k` belongs to P'(k+2) and works on the whole map, its group norm over the padding too
    (convention 18); `conv_maskdecoder_1` works at 4x4, `..._4` at 32x32.
    """

    def __init__(self, in_channels: int):
        self.inner_maskdecoder_1 = conv_norm_relu(in_channels, 1)
        self.inner_maskdecoder_2 = conv_norm_relu(in_channels, 1)
        self.inner_maskdecoder_3 = conv_norm_relu(in_channels, 1)
        self.inner_maskdecoder_4 = conv_norm_relu(in_channels, 1)
        self.inner_maskdecoder_5 = conv_norm_relu(in_channels, 1)
        self.conv_maskdecoder_1 = conv_norm_relu(DECODER_CHANNELS, 3)
        self.conv_maskdecoder_2 = conv_norm_relu(DECODER_CHANNELS, 3)
        self.conv_maskdecoder_3 = conv_norm_relu(DECODER_CHANNELS, 3)
        self.conv_maskdecoder_4 = conv_norm_relu(DECODER_CHANNELS, 3)

    def execute(self, features: list[jt.Var], rois: jt.Var, stages: Stages = None) -> jt.Var:
        inner = (
            self.inner_maskdecoder_1,
            self.inner_maskdecoder_2,
            self.inner_maskdecoder_3,
            self.inner_maskdecoder_4,
            self.inner_maskdecoder_5,
        )
        maps = [record_stage(stages, f"mask_inner_{k}", block(x)) for k, (block, x) in enumerate(zip(inner, features), 1)]
        pooled = multilevel_roi_align(maps, rois, MASK_SIZES, tuple(1 / s for s in STRIDES), MASK_SAMPLING_RATIO)
        for k, roi in enumerate(pooled, 1):
            record_stage(stages, f"mask_roi_{k}", roi)
        roi3, roi4, roi5, roi6, roi7 = pooled
        x = record_stage(stages, "mask_conv_1", self.conv_maskdecoder_1(roi7 + roi6))  # [R, 128, 4, 4]
        x = record_stage(stages, "mask_conv_2", self.conv_maskdecoder_2(resize_like(x, roi5) + roi5))  # 8x8
        x = record_stage(stages, "mask_conv_3", self.conv_maskdecoder_3(resize_like(x, roi4) + roi4))  # 16x16
        x = record_stage(stages, "mask_conv_4", self.conv_maskdecoder_4(resize_like(x, roi3) + roi3))  # 32x32
        return x


class Predictor(nn.Module):
    """`[R, C, M, M]` -> `[R, 2, M, M]`, one 1x1 convolution."""

    def __init__(self, in_channels: int):
        self.mask_fcn_logits = Conv(in_channels, MASK_CHANNELS, 1, init=kaiming_normal_fan_out)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.mask_fcn_logits(x)


class SingleLevelExtractor(nn.Module):
    """The mask head of Mask R-CNN (He et al., 2017) up to its last convolution: RoIs `[R, 5]` -> `[R, C, 14, 14]`.

    Each RoI is pooled from the one level that its size asks for; then four 3x3 convolutions with ReLU, C channels
    and no norm, as in Mask R-CNN: it is the baseline that the paper's decoder is measured against.
    """

    def __init__(self, channels: int):
        self.mask_fcn1 = Conv(channels, channels, 3, init=kaiming_normal_fan_out)
        self.mask_fcn2 = Conv(channels, channels, 3, init=kaiming_normal_fan_out)
        self.mask_fcn3 = Conv(channels, channels, 3, init=kaiming_normal_fan_out)
        self.mask_fcn4 = Conv(channels, channels, 3, init=kaiming_normal_fan_out)

    def execute(self, features: list[jt.Var], rois: jt.Var, stages: Stages = None) -> jt.Var:
        x = record_stage(stages, "mask_roi", self._pool(features, rois.numpy()))
        for k, conv in enumerate((self.mask_fcn1, self.mask_fcn2, self.mask_fcn3, self.mask_fcn4), 1):
            x = record_stage(stages, f"mask_conv_{k}", relu(conv(x)))
        return x

    def _pool(self, features: list[jt.Var], rois: np.ndarray) -> jt.Var:
        levels = roi_levels(rois[:, 1:], coarsest=len(features) + 2)
        pooled, order = [], []
        for k, (x, stride) in enumerate(zip(features, STRIDES)):
            chosen = np.flatnonzero(levels == k + 3)
            pooled.append(roi_align(x, jt.array(rois[chosen]), SINGLE_LEVEL_MASK_SIZE, 1 / stride, MASK_SAMPLING_RATIO))
            order.append(chosen)
        together = join(pooled, dim=0)
        back = np.append(np.argsort(np.concatenate(order)), 0).astype(np.int32)  # one more: see `layers.resize_like`
        return together.reindex(together.shape, ["@e0(i0)", "i1", "i2", "i3"], extras=[jt.array(back)])


def roi_levels(boxes: np.ndarray, coarsest: int = 7) -> np.ndarray:
    """Mask R-CNN's rule which pyramid level a box `[R, 4]` is pooled from, int `[R]` in 3..`coarsest`.

    k = floor(4 + log2(sqrt(area) / 224)), areas with the legacy + 1 and 1e-6 against rounding below a power of two.
    """
    side = np.sqrt(box_ops.area(boxes))
    level = np.floor(4 + np.log2(side / np.float32(224) + np.float32(1e-6)))
    return np.clip(level, 3, coarsest).astype(np.int64)


class UpsamplingPredictor(nn.Module):
    """Mask R-CNN's predictor, `[R, C, 14, 14]` -> `[R, 2, 28, 28]`: 2x2 deconvolution of stride 2, ReLU, 1x1."""

    def __init__(self, channels: int):
        self.conv5_mask = nn.ConvTranspose(channels, channels, 2, stride=2)
        self.conv5_mask.weight = jt.array(kaiming_normal_fan_out((channels, channels, 2, 2)))
        self.conv5_mask.bias = jt.array(np.zeros(channels, np.float32))
        self.mask_fcn_logits = Conv(channels, MASK_CHANNELS, 1, init=kaiming_normal_fan_out)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.mask_fcn_logits(relu(self.conv5_mask(x)))
