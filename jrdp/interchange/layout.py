"""The checkpoint keys of the network, in the released order, and how to tell a network from its keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Mapping, Optional

from jrdp.models.shapes import (
    BODY_CHANNELS,
    DECODER_CHANNELS,
    ENHANCED_LEVELS,
    LEVELS,
    MASK_CHANNELS,
    PYRAMID_CHANNELS,
    RESNETS,
    SCALES,
    SINGLE_LEVEL_DEPTH,
    STEM_CHANNELS,
    TOWER_DEPTH,
)

if TYPE_CHECKING:
    from jrdp.config import ModelConfig

BACKBONE = "backbone.body."
LAST_SCALE = "rpn.head.scales.5.scale"  # built and stored by the released code, never used: no gradient, no momentum

BACKBONE_NAMES = {"r50": "ResNet-50", "r101": "ResNet-101", "x101": "ResNeXt-101 32x8d"}
_FUSING = ("progressive", "dense", "regularized")  # enhancements with a choice of `fusion`


@dataclass(frozen=True)
class Entry:
    """One key of a checkpoint. Frozen batch norm's four tensors are buffers; frozen convolutions are parameters."""

    name: str
    shape: tuple
    trainable: bool


def backbone_layout(backbone: str, freeze_at: int = 2) -> list[Entry]:
    """The keys of ResNet "r50", "r101" or ResNeXt "x101" (32x8d); stages up to `freeze_at` (1: the stem) are frozen."""
    entries: list[Entry] = []

    def convolution(name: str, shape: tuple, stage: int) -> None:
        entries.append(Entry(f"{BACKBONE}{name}.weight", shape, stage > freeze_at))

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            entries.append(Entry(f"{BACKBONE}{name}.{part}", (channels,), False))

    shape = RESNETS[backbone]
    convolution("stem.conv1", (STEM_CHANNELS, 3, 7, 7), 1)
    norm("stem.bn1", STEM_CHANNELS)
    before = STEM_CHANNELS
    for layer, (blocks, outer) in enumerate(zip(shape.blocks, BODY_CHANNELS), start=1):
        inner, stage = shape.width << (layer - 1), layer + 1
        for block in range(blocks):
            prefix = f"layer{layer}.{block}"
            if before != outer:
                convolution(f"{prefix}.downsample.0", (outer, before, 1, 1), stage)
                norm(f"{prefix}.downsample.1", outer)
            convolution(f"{prefix}.conv1", (inner, before, 1, 1), stage)
            norm(f"{prefix}.bn1", inner)
            convolution(f"{prefix}.conv2", (inner, inner // shape.groups, 3, 3), stage)
            norm(f"{prefix}.bn2", inner)
            convolution(f"{prefix}.conv3", (outer, inner, 1, 1), stage)
            norm(f"{prefix}.bn3", outer)
            before = outer
    return entries


def _convolution(name: str, outputs: int, inputs: int, size: int, bias: bool = True) -> list[Entry]:
    weight = Entry(f"{name}.weight", (outputs, inputs, size, size), True)
    return [weight, Entry(f"{name}.bias", (outputs,), True)] if bias else [weight]


def _enhancement_layout(enhancement: str, levels: str, fusion: str) -> list[Entry]:
    """The keys of what follows the FPN; `top_down_regularized` has those of `regularized`."""
    wide, steps = PYRAMID_CHANNELS, len(ENHANCED_LEVELS[levels]) - 1
    entries: list[Entry] = []

    def convolution(name: str, inputs: int, size: int) -> None:
        entries.extend(_convolution(f"backbone.fpn.{name}", wide, inputs, size))

    if enhancement in ("progressive", "dense", "regularized", "top_down_regularized"):
        convolution("refine_block_1", wide, 3)
        for block in range(2, steps + 2):
            maps = 2 if enhancement == "progressive" else block
            if fusion == "3x3":
                convolution(f"refine_block_{block}", maps * wide, 3)
            else:
                convolution(f"refine_block_{block}.0", maps * wide, 1)
                convolution(f"refine_block_{block}.1", wide, 3)
        if "regularized" in enhancement:
            for block in range(1, steps + 1):
                convolution(f"att_block_{block}", wide, 3)
    elif enhancement == "pa":
        for part in ("pa_down", "pa_out"):
            for index in range(steps):
                convolution(f"{part}.{index}", wide, 3)
    elif enhancement == "nas_fpn":
        for index in range(7):
            convolution(f"nas_cells.{index}", wide, 3)
    elif enhancement == "bifpn":
        for part in ("bifpn_down", "bifpn_up"):
            for index in range(steps):
                maps = 3 if part == "bifpn_up" and index < steps - 1 else 2
                entries.append(Entry(f"backbone.fpn.{part}.{index}.weight", (maps,), True))
                convolution(f"{part}.{index}.depthwise", 1, 3)
                convolution(f"{part}.{index}.pointwise", wide, 1)
    return entries


def network_layout(
    backbone: str = "r50",
    enhancement: str = "regularized",
    levels: str = "p3-p7",
    fusion: str = "1x1_3x3",
    head_channels: int = 128,
    mask_head: str = "multi_level",
    freeze_at: int = 2,
) -> list[Entry]:
    """The keys of the whole network in the released order; the defaults are the released network.

    The arguments are those of `ModelConfig`.
    """
    wide = PYRAMID_CHANNELS
    entries = backbone_layout(backbone, freeze_at)

    def convolution(name: str, outputs: int, inputs: int, size: int, bias: bool = True) -> None:
        entries.extend(_convolution(name, outputs, inputs, size, bias))

    def group_norm(name: str, channels: int) -> None:
        entries.extend([Entry(f"{name}.weight", (channels,), True), Entry(f"{name}.bias", (channels,), True)])

    for level, channels in enumerate(BODY_CHANNELS[1:], start=2):
        convolution(f"backbone.fpn.fpn_inner{level}", wide, channels, 1)
        convolution(f"backbone.fpn.fpn_layer{level}", wide, wide, 3)
    entries += _enhancement_layout(enhancement, levels, fusion)
    for level in (6, 7):
        convolution(f"backbone.fpn.top_blocks.p{level}", wide, wide, 3)
    for tower in ("cls_tower", "bbox_tower"):
        for index in range(TOWER_DEPTH):
            convolution(f"rpn.head.{tower}.{3 * index}", head_channels, head_channels if index else wide, 3)
            group_norm(f"rpn.head.{tower}.{3 * index + 1}", head_channels)
    for name, outputs in (("cls_logits", 1), ("bbox_pred", 4), ("centerness", 1)):
        convolution(f"rpn.head.{name}", outputs, head_channels, 3)
    for index in range(SCALES):
        entries.append(Entry(f"rpn.head.scales.{index}.scale", (1,), True))
    extractor, predictor = "roi_heads.mask.feature_extractor", "roi_heads.mask.predictor"
    if mask_head == "single_level":
        for index in range(1, SINGLE_LEVEL_DEPTH + 1):
            convolution(f"{extractor}.mask_fcn{index}", wide, wide, 3)
        convolution(f"{predictor}.conv5_mask", wide, wide, 2)
        convolution(f"{predictor}.mask_fcn_logits", MASK_CHANNELS, wide, 1)
        return entries
    for index in range(1, len(LEVELS) + 1):
        convolution(f"{extractor}.inner_maskdecoder_{index}.0", DECODER_CHANNELS, wide, 1, bias=False)
        group_norm(f"{extractor}.inner_maskdecoder_{index}.1", DECODER_CHANNELS)
    for index in range(1, len(LEVELS)):
        convolution(f"{extractor}.conv_maskdecoder_{index}.0", DECODER_CHANNELS, DECODER_CHANNELS, 3, bias=False)
        group_norm(f"{extractor}.conv_maskdecoder_{index}.1", DECODER_CHANNELS)
    convolution(f"{predictor}.mask_fcn_logits", MASK_CHANNELS, DECODER_CHANNELS, 1)
    return entries


def shapes_of(model: ModelConfig) -> dict[str, tuple]:
    """The tensors of the network that `model` describes, whose parts are the package's own, in the released order."""
    pyramid = model.pyramid
    layout = network_layout(
        model.backbone.name, pyramid.enhancement, pyramid.levels, pyramid.fusion, model.fcos.channels, model.mask.head
    )
    return {entry.name: entry.shape for entry in layout}


@dataclass(frozen=True)
class Likeness:
    """What a set of keys and shapes looks like; None where they do not tell, "" where the part is absent."""

    backbone: Optional[str]
    enhancement: Optional[str]
    levels: str
    fusion: str
    head_channels: Optional[int]
    mask_head: Optional[str]
    body: str = "an unknown backbone"  # what a backbone that is none of ours looks like

    @property
    def backbone_only(self) -> bool:
        return self.enhancement == "" and self.head_channels is None and self.mask_head == ""

    def __str__(self) -> str:
        body = {**BACKBONE_NAMES, None: self.body}
        if self.backbone_only:
            return "no part of RDPNet" if self.backbone == "" else f"{body[self.backbone]} alone"
        parts = [body.get(self.backbone, "no backbone")]
        if self.enhancement == "none":
            parts.append("plain FPN")
        elif self.enhancement:
            only = f" on {self.levels}" if self.levels != "p3-p7" else ""
            fused = f" ({self.fusion} fusion)" if self.enhancement in _FUSING else ""
            parts.append(f"{self.enhancement} pyramid{only}{fused}")
        else:
            parts.append("an unknown pyramid" if self.enhancement is None else "no pyramid")
        parts.append(f"{self.head_channels}-channel head" if self.head_channels else "no detection head")
        mask = {None: "an unknown mask head", "": "no mask head"}
        parts.append(mask.get(self.mask_head, f"{self.mask_head} mask head"))
        return ", ".join(parts)

    def model_config(self) -> dict:
        """Values for `ModelConfig`; what the keys do not tell is left at its default."""
        config: dict = {}
        if self.backbone:
            config["backbone"] = {"name": self.backbone}
        if self.enhancement:
            config["pyramid"] = {"enhancement": self.enhancement}
            if self.enhancement != "none":
                config["pyramid"]["levels"] = self.levels
            if self.enhancement in _FUSING:
                config["pyramid"]["fusion"] = self.fusion
        if self.head_channels:
            config["fcos"] = {"channels": self.head_channels}
        if self.mask_head:
            config["mask"] = {"head": self.mask_head}
        return config


def likeness(shapes: Mapping[str, tuple]) -> Likeness:
    """Tell backbone, pyramid and heads from released key names and their shapes."""
    prefix = "backbone.fpn."
    pyramid = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    enhancement, levels, fusion = _pyramid_of(pyramid) if pyramid else ("", "p3-p7", "1x1_3x3")
    tower = shapes.get("rpn.head.cls_tower.0.weight")
    mask = [name for name in shapes if name.startswith("roi_heads.mask.")]
    multi = any("inner_maskdecoder" in name for name in mask)
    return Likeness(
        backbone=_backbone_of(shapes),
        enhancement=enhancement,
        levels=levels,
        fusion=fusion,
        head_channels=tower[0] if tower else None,
        mask_head=("multi_level" if multi else "single_level") if mask else "",
        body=_described_body(shapes),
    )


def _pyramid_of(pyramid: Mapping[str, tuple]) -> tuple[Optional[str], str, str]:
    """(enhancement, levels, fusion). The top-down RDP has the keys of the bottom-up one, which is assumed."""
    own = {name.split(".")[0] for name in pyramid if not re.match(r"(fpn_inner|fpn_layer|top_blocks)", name)}
    levels, fusion = "p3-p7", "3x3" if "refine_block_2.weight" in pyramid else "1x1_3x3"
    if not own:
        return "none", levels, fusion
    if own == {"nas_cells"}:
        return "nas_fpn", levels, fusion
    for enhancement, parts in (("pa", ("pa_down", "pa_out")), ("bifpn", ("bifpn_down", "bifpn_up"))):
        if own == set(parts):
            longer = any(name.startswith(f"{parts[0]}.2.") for name in pyramid)
            return enhancement, "p3-p7" if longer else "p3-p5", fusion
    if any(not re.fullmatch(r"(refine|att)_block_\d", name) for name in own):
        return None, levels, fusion
    levels = "p3-p7" if "refine_block_4" in own else "p3-p5"
    if any(name.startswith("att_block") for name in own):
        return "regularized", levels, fusion
    third = pyramid.get("refine_block_3.0.weight") or pyramid.get("refine_block_3.weight") or (0, 0)
    return "progressive" if third[1] == 2 * PYRAMID_CHANNELS else "dense", levels, fusion


def _backbone_of(shapes: Mapping[str, tuple]) -> Optional[str]:
    if not any(name.startswith(BACKBONE) for name in shapes):
        return ""
    pattern = re.compile(re.escape(BACKBONE) + r"layer(\d)\.(\d+)\.conv3\.weight")
    counts = [0, 0, 0, 0]
    for name in shapes:
        found = pattern.fullmatch(name)
        if found and 1 <= int(found[1]) <= 4:
            counts[int(found[1]) - 1] = max(counts[int(found[1]) - 1], int(found[2]) + 1)
    width = shapes.get(f"{BACKBONE}layer1.0.conv2.weight", ())[:2]
    names = {(shape.blocks, (shape.width, shape.width // shape.groups)): name for name, shape in RESNETS.items()}
    return names.get((tuple(counts), tuple(width)))


def _described_body(shapes: Mapping[str, tuple]) -> str:
    """What people call a ResNet of these tensors, ours or not: "ResNet-18", "ResNeXt-50 32x4d"."""
    pattern = re.compile(re.escape(BACKBONE) + r"layer([1-4])\.(\d+)\.conv1\.weight")
    counts = [0, 0, 0, 0]
    for name in shapes:
        found = pattern.fullmatch(name)
        if found and len(found[2]) < 4:
            counts[int(found[1]) - 1] = max(counts[int(found[1]) - 1], int(found[2]) + 1)
    bottleneck = f"{BACKBONE}layer1.0.conv3.weight" in shapes
    depth = sum(counts) * (3 if bottleneck else 2) + 2
    if not all(counts) or depth not in (18, 26, 34, 50, 101, 152, 200):
        return "an unknown backbone"
    width = tuple(shapes.get(f"{BACKBONE}layer1.0.conv2.weight", (64, 64)))[:2]
    if not bottleneck or width == (64, 64):
        return f"ResNet-{depth}"
    if len(width) == 2 and width[0] == width[1]:
        return f"a wide ResNet-{depth} ({width[0]} channels in its first stage)"
    if len(width) == 2 and width[1] and width[0] % width[1] == 0:
        return f"ResNeXt-{depth} {width[0] // width[1]}x{width[1]}d"
    return "an unknown backbone"
