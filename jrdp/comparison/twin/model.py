"""RDPNet once more, in plain torch: an independent witness for the Jittor network.

Legend of shapes: N images, H x W padded network input (multiples of 32), h_l x w_l the map of level l = 3..7 with
stride 2^l, R RoIs of all images together. Parameter names, order and shapes are those of the released checkpoints, so
`load_state_dict(..., strict=True)` takes them as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jrdp.comparison.twin import ops
from jrdp.config import ModelConfig
from jrdp.errors import UserError

STRIDES = (8, 16, 32, 64, 128)
LEVELS = (3, 4, 5, 6, 7)
MASK_ROI_SIZES = (32, 16, 8, 4, 4)  # output of RoIAlign on P'3..P'7
BLOCKS = {"r50": (3, 4, 6, 3), "r101": (3, 4, 23, 3), "x101": (3, 4, 23, 3)}


@dataclass(frozen=True)
class Variant:
    """Deliberate mistakes, one field each, to show that a comparison notices them; the default is as released."""

    rgb: bool = False  # the network is given RGB where it was trained on BGR
    aligned: bool = False  # RoIAlign with the half-pixel shift of later libraries
    nms_without_one: bool = False  # IoU of widths x2 - x1 instead of x2 - x1 + 1
    sqrt_score: bool = False  # the geometric mean of classification and centerness, as later FCOS versions have it
    group_norm_eps: float = 1e-5


RELEASED = Variant()


class FrozenBatchNorm(nn.Module):
    """y = x * scale + shift from four constant buffers; as released, no epsilon under the root."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * self.running_var.rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a residual; the stride sits in the first 1x1 (MSRA) or in the 3x3 (ResNeXt)."""

    def __init__(self, inputs: int, width: int, outputs: int, groups: int, stride: int, stride_in_1x1: bool):
        super().__init__()
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), FrozenBatchNorm(outputs)
            )
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, first, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, groups=groups, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = FrozenBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class Stem(nn.Module):
    """7x7/2 convolution, frozen batch norm, ReLU, 3x3/2 max pooling: [N, 3, H, W] -> [N, 64, H/4, W/4]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm(64)

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, 2, 1)


class Body(nn.Module):
    """ResNet-50, ResNet-101 or ResNeXt-101 32x8d up to C5."""

    def __init__(self, name: str, stride_in_1x1: bool, freeze_at: int):
        super().__init__()
        self.out_channels = (256, 512, 1024, 2048)
        self.stem = Stem()
        groups, width = (32, 256) if name == "x101" else (1, 64)
        inputs = 64
        for stage, blocks in enumerate(BLOCKS[name], start=1):
            outputs = 256 * 2 ** (stage - 1)
            layer = nn.Sequential()
            for block in range(blocks):
                stride = 2 if stage > 1 and block == 0 else 1
                layer.append(Bottleneck(inputs, width * 2 ** (stage - 1), outputs, groups, stride, stride_in_1x1))
                inputs = outputs
            self.add_module(f"layer{stage}", layer)
        for part in [self.stem, self.layer1, self.layer2, self.layer3, self.layer4][:freeze_at]:
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps `stem`, `C2`..`C5`: [N, 64, H/4, W/4], then [N, 256 * 2^(k-2), H/2^k, W/2^k]."""
        stem = self.stem(images)
        c2 = self.layer1(stem)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return {"stem": stem, "C2": c2, "C3": c3, "C4": c4, "C5": c5}


class TopBlocks(nn.Module):
    """P6 and P7 from P5, each a 3x3/2 convolution; only the input of P7 is rectified."""

    def __init__(self):
        super().__init__()
        self.p6 = nn.Conv2d(256, 256, 3, 2, 1)
        self.p7 = nn.Conv2d(256, 256, 3, 2, 1)

    def forward(self, p5: Tensor) -> tuple[Tensor, Tensor]:
        p6 = self.p6(p5)
        return p6, self.p7(F.relu(p6))


class FPN(nn.Module):
    """FPN on C3..C5 with P6 and P7. A pyramid of one's own is derived from it and has two methods.

    in_channels: of C3, C4, C5. covered: the numbers of the levels that an enhancement works on, the finest first.
    fusion: "1x1_3x3" or "3x3", for whoever concatenates.
    """

    def __init__(self, in_channels: Sequence[int], covered: Sequence[int] = LEVELS, fusion: str = "1x1_3x3"):
        super().__init__()
        self.channels, self.covered, self.fusion = 256, covered, fusion
        for index, channels in zip((2, 3, 4), in_channels):
            self.add_module(f"fpn_inner{index}", nn.Conv2d(channels, 256, 1))
            self.add_module(f"fpn_layer{index}", nn.Conv2d(256, 256, 3, padding=1))
        self.build_enhancement()
        self.top_blocks = TopBlocks()

    def build_enhancement(self) -> None:
        """Make the layers of `enhance`; the plain FPN has none."""

    def enhance(self, levels: list[Tensor]) -> list[Tensor]:
        """P3..P7 -> as many maps of the same shapes; the plain FPN leaves them as they are."""
        return levels

    def fpn(self, c3: Tensor, c4: Tensor, c5: Tensor) -> dict[str, Tensor]:
        """`P3`..`P7`, each [N, 256, h_l, w_l]."""
        inner5 = self.fpn_inner4(c5)
        inner4 = self.fpn_inner3(c4) + F.interpolate(inner5, scale_factor=2, mode="nearest")
        inner3 = self.fpn_inner2(c3) + F.interpolate(inner4, scale_factor=2, mode="nearest")
        p3, p4, p5 = self.fpn_layer2(inner3), self.fpn_layer3(inner4), self.fpn_layer4(inner5)
        p6, p7 = self.top_blocks(p5)
        return {"P3": p3, "P4": p4, "P5": p5, "P6": p6, "P7": p7}

    def enhanced(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """`RP3`..`RP7` of `P3`..`P7`, and what else is to be compared."""
        levels = self.enhance([maps[f"P{level}"] for level in LEVELS])
        return {f"RP{level}": x for level, x in zip(LEVELS, levels)}


class Pyramid(FPN):
    """The regularized dense pyramid (Sec. III-B, Eq. 6-8, fusion as released)."""

    def build_enhancement(self) -> None:
        self.refine_block_1 = nn.Conv2d(256, 256, 3, padding=1)
        self.refine_block_2 = self._fusion(2)
        self.refine_block_3 = self._fusion(3)
        self.refine_block_4 = self._fusion(4)
        self.refine_block_5 = self._fusion(5)
        self.att_block_1 = nn.Conv2d(256, 256, 3, padding=1)
        self.att_block_2 = nn.Conv2d(256, 256, 3, padding=1)
        self.att_block_3 = nn.Conv2d(256, 256, 3, padding=1)
        self.att_block_4 = nn.Conv2d(256, 256, 3, padding=1)

    @staticmethod
    def _fusion(maps: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(256 * maps, 256, 1), nn.Conv2d(256, 256, 3, padding=1))

    def enhanced(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """`RP3`..`RP7` and the attention logits `att_logit_P4`..`att_logit_P7`, each [N, 256, h_l, w_l]."""
        out = {"RP3": self.refine_block_1(maps["P3"])}
        stages: dict[str, Tensor] = {}
        attention = (self.att_block_1, self.att_block_2, self.att_block_3, self.att_block_4)
        fusion = (self.refine_block_2, self.refine_block_3, self.refine_block_4, self.refine_block_5)
        for level, attend, fuse in zip(LEVELS[1:], attention, fusion):
            own = maps[f"P{level}"]
            logit = attend(own)
            gate = logit.sigmoid()
            finer = [
                F.interpolate(refined, size=own.shape[-2:], mode="bilinear", align_corners=False) * gate
                for refined in out.values()
            ]
            stages[f"att_logit_P{level}"] = logit
            out[f"RP{level}"] = fuse(torch.cat([*finer, own], dim=1))
        return {**stages, **out}


class Scale(nn.Module):
    """One learnt factor."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Head(nn.Module):
    """The FCOS head that all levels share; the sixth scale exists in the checkpoints and is never used."""

    def __init__(self, channels: int):
        super().__init__()
        self.cls_tower = self._tower(channels)
        self.bbox_tower = self._tower(channels)
        self.cls_logits = nn.Conv2d(channels, 1, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(6))

    @staticmethod
    def _tower(channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for index in range(4):
            inputs = 256 if index == 0 else channels
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.GroupNorm(32, channels), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Per level `cls_logits_Pl` [N, 1, h_l, w_l], `bbox_reg_Pl` [N, 4, h_l, w_l] (l, t, r, b in network pixels),
        `centerness_Pl` [N, 1, h_l, w_l] (logits)."""
        out = {}
        for level, x, scale in zip(LEVELS, maps, self.scales):
            classified = self.cls_tower(x)
            out[f"cls_logits_P{level}"] = self.cls_logits(classified)
            out[f"bbox_reg_P{level}"] = scale(self.bbox_pred(self.bbox_tower(x))).exp()
            out[f"centerness_P{level}"] = self.centerness(classified)
        return out


def _conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(32, outputs), nn.ReLU())


class MaskFeatures(nn.Module):
    """The multi-level decoder (Sec. III-C): every RoI is pooled from all five levels and decoded coarse to fine."""

    def __init__(self, aligned: bool):
        super().__init__()
        self.aligned = aligned
        for index in range(1, 6):
            self.add_module(f"inner_maskdecoder_{index}", _conv_norm_relu(256, 128, 1))
        for index in range(1, 5):
            self.add_module(f"conv_maskdecoder_{index}", _conv_norm_relu(128, 128, 3))

    def inner(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """`mask_inner_1`..`mask_inner_5`: [N, 128, h_l, w_l] for P'3..P'7."""
        blocks = (
            self.inner_maskdecoder_1,
            self.inner_maskdecoder_2,
            self.inner_maskdecoder_3,
            self.inner_maskdecoder_4,
            self.inner_maskdecoder_5,
        )
        return {f"mask_inner_{k}": block(x) for k, (block, x) in enumerate(zip(blocks, maps), start=1)}

    def pool(self, inner: dict[str, Tensor], rois: Tensor) -> dict[str, Tensor]:
        """`mask_roi_k`: [R, 128, S, S] with S of `MASK_ROI_SIZES`; rois [R, 5] as (image, x1, y1, x2, y2)."""
        return {
            f"mask_roi_{k}": ops.roi_align(inner[f"mask_inner_{k}"], rois, size, 1.0 / stride, 2, self.aligned)
            for k, (size, stride) in enumerate(zip(MASK_ROI_SIZES, STRIDES), start=1)
        }

    def decode(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        """`mask_conv_1`..`mask_conv_4`: [R, 128, S, S] with S = 4, 8, 16, 32."""
        out = {"mask_conv_1": self.conv_maskdecoder_1(pooled["mask_roi_5"] + pooled["mask_roi_4"])}
        blocks = (self.conv_maskdecoder_2, self.conv_maskdecoder_3, self.conv_maskdecoder_4)
        for index, (block, lateral) in enumerate(zip(blocks, (3, 2, 1)), start=2):
            finer = pooled[f"mask_roi_{lateral}"]
            coarse = out[f"mask_conv_{index - 1}"]
            up = F.interpolate(coarse, size=finer.shape[-2:], mode="bilinear", align_corners=False)
            out[f"mask_conv_{index}"] = block(up + finer)
        return out


class _Backbone(nn.Module):
    def __init__(self, body: nn.Module, fpn: FPN):
        super().__init__()
        self.body = body
        self.fpn = fpn


class _Rpn(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.head = Head(channels)


class _MaskPredictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask_fcn_logits = nn.Conv2d(128, 2, 1)


class _MaskHead(nn.Module):
    def __init__(self, aligned: bool):
        super().__init__()
        self.feature_extractor = MaskFeatures(aligned)
        self.predictor = _MaskPredictor()


class _RoiHeads(nn.Module):
    def __init__(self, aligned: bool):
        super().__init__()
        self.mask = _MaskHead(aligned)


@dataclass
class Trunk:
    """What is computed before any box exists: every stage by name, in order of computation, and two shortcuts."""

    stages: dict[str, Tensor]

    @property
    def pyramid(self) -> list[Tensor]:
        """P'3..P'7, each [N, 256, h_l, w_l]."""
        return [self.stages[f"RP{level}"] for level in LEVELS]

    def head(self, name: str) -> list[Tensor]:
        """The five maps of `cls_logits`, `bbox_reg` or `centerness`."""
        return [self.stages[f"{name}_P{level}"] for level in LEVELS]


class Twin(nn.Module):
    """The network of the released checkpoints; `config.model` chooses backbone, thresholds and top-n.

    body, fpn: others in place of the released ones (`own_parts` makes them).
    Raises `UserError` for a configuration that the released network does not have (the paper's ablations): without
    them, the twin witnesses the released network only.
    """

    def __init__(
        self, config: ModelConfig, variant: Variant = RELEASED, body: nn.Module | None = None, fpn: FPN | None = None
    ):
        super().__init__()
        _check_released(config, ("mask",) if fpn is not None else ("pyramid", "mask"))
        self.config = config
        self.variant = variant
        if body is None:
            body = Body(config.backbone.name, config.backbone.strides_in_1x1, config.backbone.freeze_at)
        self.backbone = _Backbone(body, Pyramid(body.out_channels[-3:]) if fpn is None else fpn)
        self.rpn = _Rpn(config.fcos.channels)
        self.roi_heads = _RoiHeads(variant.aligned)
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.eps = variant.group_norm_eps
        self._initialise()

    def _initialise(self) -> None:
        """Random weights as released, for training from scratch (normally a checkpoint follows)."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            if name.startswith("rpn.head."):
                nn.init.normal_(module.weight, std=0.01)
            elif "fpn_" in name or "top_blocks" in name:
                nn.init.kaiming_uniform_(module.weight, a=1)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.rpn.head.cls_logits.bias, -math.log(99))

    def trunk(self, images: Tensor) -> Trunk:
        """Backbone, pyramid and head of images [N, 3, H, W], H and W multiples of 32."""
        maps = self.backbone.body(images.flip(1) if self.variant.rgb else images)
        stages = maps if isinstance(maps, dict) else dict(zip(("C3", "C4", "C5"), maps[-3:]))
        stages |= self.backbone.fpn.fpn(stages["C3"], stages["C4"], stages["C5"])
        stages |= self.backbone.fpn.enhanced({f"P{level}": stages[f"P{level}"] for level in LEVELS})
        stages |= self.rpn.head([stages[f"RP{level}"] for level in LEVELS])
        return Trunk(stages)

    def masks(self, pyramid: list[Tensor], rois: Tensor) -> dict[str, Tensor]:
        """All stages of the mask head and `mask_logits` [R, 2, 32, 32] for rois [R, 5] in network pixels."""
        features = self.roi_heads.mask.feature_extractor
        stages = features.inner(pyramid)
        stages |= features.pool(stages, rois)
        stages |= features.decode(stages)
        stages["mask_logits"] = self.roi_heads.mask.predictor.mask_fcn_logits(stages["mask_conv_4"])
        return stages


def _check_released(config: ModelConfig, sections: Sequence[str]) -> None:
    released = ModelConfig()
    for section in sections:
        if getattr(config, section) != getattr(released, section):
            raise UserError(
                f"the PyTorch twin has only the released network, not model.{section} = "
                f"{getattr(config, section).model_dump()}; leave that section out to compare"
            )
