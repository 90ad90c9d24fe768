"""The network of the released checkpoints on a CPU; `jrdp.models.rdpnet` is its definition.

Maps are `[N, H, W, C]` here. Names of tensors are the released ones, so that a checkpoint is all that is needed.
"""

from __future__ import annotations

from typing import Mapping

import jittor as jt
import numpy as np

from jrdp.config import ModelConfig
from jrdp.errors import UserError
from jrdp.fast import operators
from jrdp.interchange.layout import LAST_SCALE, shapes_of
from jrdp.fast.layers import Convolution, NormalisedConvolution, fold_batch_norm
from jrdp.models.fcos_decode import Detections, decode, instances_of, sigmoid
from jrdp.models.shapes import ENHANCED_LEVELS, LEVELS, MASK_SIZES, RESNETS, STRIDES
from jrdp.structures import ImageBatch, Instances

ENHANCEMENTS = ("none", "progressive", "dense", "regularized")


def unsupported(config: ModelConfig) -> str | None:
    """Why the engine cannot run this configuration here; None when it can."""
    if operators.onednn_home() is None:
        return "oneDNN is not installed"
    if config.backbone.name not in RESNETS:
        return f"it does not know model.backbone.name: {config.backbone.name}"
    if config.pyramid.enhancement not in ENHANCEMENTS:
        return f"it does not know model.pyramid.enhancement: {config.pyramid.enhancement}"
    if config.pyramid.upsample != "nearest":
        return f"it does not know model.pyramid.upsample: {config.pyramid.upsample}"
    if config.mask.head != "multi_level":
        return f"it does not know model.mask.head: {config.mask.head}"
    return None


def refuse_other_tensors(shapes: Mapping[str, tuple], config: ModelConfig) -> None:
    """Raise `UserError` unless tensors of these shapes are exactly those of the network that the engine has."""
    expected = shapes_of(config)
    given = {name: shape for name, shape in shapes.items() if not name.endswith(".num_batches_tracked")}
    for what, names in (
        ("does not know", sorted(given.keys() - expected.keys())),
        ("misses", sorted(expected.keys() - given.keys() - {LAST_SCALE})),
        (
            "knows with another shape",
            [name for name in expected if name in given and tuple(given[name]) != tuple(expected[name])],
        ),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"the fast engine cannot be used: it {what} {names[0]}{more} of these weights; use --set test.engine=plain"
            )


def supports(config: ModelConfig) -> bool:
    """Whether `FastNetwork` can run this configuration; otherwise the plain network has to."""
    return unsupported(config) is None


class FastNetwork:
    """RDPNet for prediction on a CPU, from the tensors of a checkpoint.

    tensors: released name -> float32 array, those of the configuration's network and no others: a layer of somebody's
        own would be left out without a word. Batch norm's counters and the scale that no level uses are let through.
    winograd: whether 3x3 convolutions may use Winograd's algorithm (off: a little less memory, slower).
    dtype: "bfloat16" for convolutions that multiply in bfloat16, without Winograd's algorithm, and for maps between them;
        sums, norms, resizing, RoIAlign and decoding are float32 all the same.

    Raises:
        UserError: for a configuration that the engine does not know (see `supports`), and for tensors that are missing,
            surplus or of another shape.
    """

    def __init__(
        self, tensors: Mapping[str, np.ndarray], config: ModelConfig, winograd: bool = True, dtype: str = "float32"
    ):
        problem = unsupported(config)
        if problem is not None:
            raise UserError(f"the fast engine cannot be used ({problem}); use --set test.engine=plain")
        refuse_other_tensors({name: np.shape(tensor) for name, tensor in tensors.items()}, config)
        self.config = config
        weights = _Weights(tensors, winograd, dtype)
        self.backbone = _Backbone(weights, config)
        self.pyramid = _Pyramid(weights, config)
        self.head = _Head(weights)
        self.mask_head = _MaskHead(weights)
        self._convolutions = weights.made

    @property
    def packed_bytes(self) -> int:
        """Memory that packed weights take now. They are packed when first needed, at most twice a layer."""
        return sum(convolution.packed_bytes for convolution in self._convolutions)

    def detect(self, batch: ImageBatch) -> list[Instances]:
        """The instances of each image in network pixels, with `mask_probabilities`; as `RDPNet.detect`.

        Raises `UserError` where the network answers with what is no number.
        """
        levels = self.pyramid(self.backbone(to_nhwc(batch.images)))
        found = decode(*self.head(levels), batch.sizes, self.config.fcos)
        return instances_of(found, self.mask_head.probabilities(levels, rois_of(found)), batch)

    def stages(self, images: np.ndarray, rois: np.ndarray) -> dict[str, np.ndarray]:
        """Every map that has a name, `[N, C, H, W]`, for images `[N, 3, H, W]` and rois `[R, 5]`; for comparison."""
        stages: dict[str, jt.Var] = {}
        levels = self.pyramid(self.backbone(to_nhwc(images), stages), stages)
        logits, distances, centerness = self.head(levels)
        self.mask_head(levels, rois, stages)
        arrays = {name: to_nchw(x.numpy()) for name, x in stages.items()}
        arrays["mask_logits"] = arrays["mask_logits"][:, : self.mask_head.predict.used_channels]
        for k, level in enumerate(LEVELS):
            arrays[f"cls_logits_P{level}"] = logits[k]
            arrays[f"bbox_reg_P{level}"] = distances[k]
            arrays[f"centerness_P{level}"] = centerness[k]
        return arrays


def to_nhwc(images: np.ndarray) -> jt.Var:
    return jt.array(np.ascontiguousarray(images.transpose(0, 2, 3, 1), np.float32))


def to_nchw(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def rois_of(found: list[Detections]) -> np.ndarray:
    """Boxes of all images `[R, 5]`, with the image's index in front."""
    return np.concatenate(
        [np.concatenate([np.full((len(each.boxes), 1), i), each.boxes], axis=1) for i, each in enumerate(found)]
    ).astype(np.float32)


class _Weights:
    """Makes layers from released names, and remembers the convolutions it made."""

    def __init__(self, tensors: Mapping[str, np.ndarray], winograd: bool, dtype: str):
        self._tensors, self._winograd, self.dtype = tensors, winograd, dtype
        self.made: list[Convolution] = []

    def tensor(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise UserError(f"the weights have no tensor {name}, which this configuration needs")
        return np.asarray(self._tensors[name], np.float32)

    def make(self, weight: np.ndarray, bias: np.ndarray | None, stride: int = 1, groups: int = 1) -> Convolution:
        self.made.append(Convolution(weight, bias, stride, groups, self._winograd, self.dtype))
        return self.made[-1]

    def convolution(self, name: str, stride: int = 1, bias: bool = True) -> Convolution:
        return self.make(self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias") if bias else None, stride)

    def folded(self, name: str, norm: str, stride: int = 1, groups: int = 1) -> Convolution:
        """A convolution and its frozen batch norm."""
        parts = {part: self.tensor(f"{norm}.{part}") for part in ("weight", "bias", "running_mean", "running_var")}
        return self.make(*fold_batch_norm(self.tensor(f"{name}.weight"), parts), stride, groups)

    def normalised(self, name: str, norm: str, bias: bool) -> NormalisedConvolution:
        """A convolution, its group norm, ReLU."""
        return NormalisedConvolution(
            self.convolution(name, bias=bias), self.tensor(f"{norm}.weight"), self.tensor(f"{norm}.bias")
        )


class _Bottleneck:
    def __init__(self, weights: _Weights, name: str, strides: tuple[int, int], groups: int, downsample: bool):
        self.first = weights.folded(f"{name}.conv1", f"{name}.bn1", strides[0])
        self.second = weights.folded(f"{name}.conv2", f"{name}.bn2", strides[1], groups)
        self.third = weights.folded(f"{name}.conv3", f"{name}.bn3")
        self.shortcut = None
        if downsample:
            stride = strides[0] * strides[1]
            self.shortcut = weights.folded(f"{name}.downsample.0", f"{name}.downsample.1", stride)

    def __call__(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.third(self.second(self.first(x, relu=True), relu=True), relu=True, add=shortcut)


class _Backbone:
    """`[N, H, W, 3]` -> C3, C4, C5."""

    def __init__(self, weights: _Weights, config: ModelConfig):
        body = "backbone.body"
        shape = RESNETS[config.backbone.name]
        self.stem = weights.folded(f"{body}.stem.conv1", f"{body}.stem.bn1", stride=2)
        self.layers = []
        for k, count in enumerate(shape.blocks):
            blocks = []
            for block in range(count):
                stride = 2 if block == 0 and k > 0 else 1
                strides = (stride, 1) if config.backbone.strides_in_1x1 else (1, stride)
                name = f"{body}.layer{k + 1}.{block}"
                blocks.append(_Bottleneck(weights, name, strides, shape.groups, downsample=block == 0))
            self.layers.append(blocks)

    def __call__(self, images: jt.Var, stages: dict | None = None) -> list[jt.Var]:
        if self.stem.dtype == "bfloat16":
            images = operators.to_bfloat16(images)
        x = operators.max_pool(self.stem(images, relu=True))
        maps = [x]
        for blocks in self.layers:
            for block in blocks:
                x = block(x)
            maps.append(x)
        _keep(stages, dict(zip(("stem", "C2", "C3", "C4", "C5"), maps)))
        return maps[2:]


class _Pyramid:
    """C3, C4, C5 -> P'3..P'7, each `[N, H / s, W / s, 256]`."""

    def __init__(self, weights: _Weights, config: ModelConfig):
        fpn, count = "backbone.fpn", len(ENHANCED_LEVELS[config.pyramid.levels])
        self.enhancement = config.pyramid.enhancement
        self.inner = [weights.convolution(f"{fpn}.fpn_inner{k}") for k in (2, 3, 4)]  # C3, C4, C5
        self.layer = [weights.convolution(f"{fpn}.fpn_layer{k}") for k in (2, 3, 4)]
        self.p6 = weights.convolution(f"{fpn}.top_blocks.p6", stride=2)
        self.p7 = weights.convolution(f"{fpn}.top_blocks.p7", stride=2)
        self.refine: list[list[Convolution]] = []  # of P'3, P'4, ...: the convolutions one after the other
        self.attend: list[Convolution] = []  # of P'4, P'5, ...
        if self.enhancement != "none":
            self.refine.append([weights.convolution(f"{fpn}.refine_block_1")])
            parts = ("",) if config.pyramid.fusion == "3x3" else (".0", ".1")
            for k in range(2, count + 1):
                self.refine.append([weights.convolution(f"{fpn}.refine_block_{k}{part}") for part in parts])
        if self.enhancement == "regularized":
            self.attend = [weights.convolution(f"{fpn}.att_block_{k}") for k in range(1, count)]

    def __call__(self, maps: list[jt.Var], stages: dict | None = None) -> list[jt.Var]:
        c3, c4, c5 = maps
        top5 = self.inner[2](c5)
        top4 = self.inner[1](c4, add=top5)
        top3 = self.inner[0](c3, add=top4)
        p3, p4, p5 = [layer(top) for layer, top in zip(self.layer, (top3, top4, top5))]
        # P7 is made from the ReLU of P6; P6 is so small that computing it twice is cheaper than an operator for that.
        levels = [p3, p4, p5, self.p6(p5), self.p7(self.p6(p5, relu=True))]
        _keep(stages, {f"P{level}": x for level, x in zip(LEVELS, levels)})
        levels = self.enhance(levels, stages)
        _keep(stages, {f"RP{level}": x for level, x in zip(LEVELS, levels)})
        return levels

    def enhance(self, levels: list[jt.Var], stages: dict | None = None) -> list[jt.Var]:
        """P3..P7 -> P'3..P'7."""
        refined: list[jt.Var] = []
        for k, (level, fuse) in enumerate(zip(levels, self.refine)):
            x = level
            if refined:
                attention = self.attend[k - 1](level, out="float32") if self.attend else None
                if attention is not None:
                    _keep(stages, {f"att_logit_P{LEVELS[k]}": attention})
                finer = refined[-1:] if self.enhancement == "progressive" else refined
                x = operators.resize_concat(finer, level, attention)
            for convolution in fuse:
                x = convolution(x)
            refined.append(x)
        return refined + levels[len(refined) :]


class _Head:
    """The FCOS head; classification and centerness share a tower and are one convolution here."""

    def __init__(self, weights: _Weights):
        head = "rpn.head"
        self.cls_tower, self.box_tower = [
            [weights.normalised(f"{head}.{tower}.{3 * k}", f"{head}.{tower}.{3 * k + 1}", bias=True) for k in range(4)]
            for tower in ("cls_tower", "bbox_tower")
        ]
        self.cls = weights.make(
            *[
                np.concatenate([weights.tensor(f"{head}.{name}.{part}") for name in ("cls_logits", "centerness")])
                for part in ("weight", "bias")
            ]
        )
        self.box = weights.convolution(f"{head}.bbox_pred")
        self.scales = [weights.tensor(f"{head}.scales.{k}.scale").item() for k in range(len(LEVELS))]

    def __call__(self, levels: list[jt.Var]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Per level logits `[N, 1, H, W]`, distances `[N, 4, H, W]` in network pixels, centerness `[N, 1, H, W]`."""
        answers = []
        for x in levels:
            cls = box = x
            for layer in self.cls_tower:
                cls = layer(cls)
            for layer in self.box_tower:
                box = layer(box)
            answers.append((self.cls(cls, out="float32"), self.box(box, out="float32")))
        jt.sync([answer for pair in answers for answer in pair])
        logits, distances, centerness = [], [], []
        for (cls, box), scale in zip(answers, self.scales):
            cls, box = to_nchw(cls.numpy()[..., :2]), to_nchw(box.numpy()[..., :4])
            logits.append(cls[:, :1])
            centerness.append(cls[:, 1:])
            with np.errstate(over="ignore"):  # an infinite distance is refused by name, without NumPy's warning before it
                distances.append(np.exp(np.float32(scale) * box))
        return logits, distances, centerness


class _MaskHead:
    """The multi-level mask decoder: RoIs pooled from all five levels, decoded from coarse to fine."""

    def __init__(self, weights: _Weights):
        inner, decoder = [
            f"roi_heads.mask.feature_extractor.{name}_maskdecoder" for name in ("inner", "conv")
        ]
        self.inner = [
            weights.normalised(f"{inner}_{k}.0", f"{inner}_{k}.1", bias=False) for k in range(1, 6)
        ]
        self.decoders = [
            weights.normalised(f"{decoder}_{k}.0", f"{decoder}_{k}.1", bias=False) for k in range(1, 5)
        ]
        self.predict = weights.convolution("roi_heads.mask.predictor.mask_fcn_logits")

    def __call__(self, levels: list[jt.Var], rois: np.ndarray, stages: dict | None = None) -> jt.Var:
        """P'3..P'7 and rois `[R, 5]`, R > 0 -> logits `[R, 32, 32, 2]` (and idle channels)."""
        boxes = jt.array(np.ascontiguousarray(rois, np.float32))
        maps = self.predict.dtype  # of what goes into convolutions; RoIs are pooled and resized in float32
        inner = [layer(level, out="float32") for layer, level in zip(self.inner, levels)]
        x = operators.roi_align(inner[4], boxes, MASK_SIZES[4], 1 / STRIDES[4])
        _keep(stages, {f"mask_inner_{k}": map_ for k, map_ in enumerate(inner, 1)})
        _keep(stages, {"mask_roi_5": x})
        for k, (decode_, level) in enumerate(zip(self.decoders, (3, 2, 1, 0)), 1):
            x = operators.roi_align(inner[level], boxes, MASK_SIZES[level], 1 / STRIDES[level], coarse=x, dtype=maps)
            x = decode_(x, out="float32" if level > 0 else maps)
            _keep(stages, {f"mask_conv_{k}": x})
        logits = self.predict(x, out="float32")
        _keep(stages, {"mask_logits": logits})
        return logits

    def probabilities(self, levels: list[jt.Var], rois: np.ndarray) -> np.ndarray:
        """float32 `[R, 32, 32]`, the probability of channel 1, the salient one; R may be 0."""
        if len(rois) == 0:
            return np.zeros((0, MASK_SIZES[0], MASK_SIZES[0]), np.float32)
        return sigmoid(self(levels, rois).numpy()[..., 1])


def _keep(stages: dict | None, named: dict) -> None:
    if stages is not None:
        stages.update(named)
