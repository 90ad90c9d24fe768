"""The network's operators: picture to pyramid, detection head, mask head. `jrdp/models` is the definition.

Maps are `[1, C, H, W]`. Names of tensors are the released ones.
"""

from __future__ import annotations

from jrdp.config import InputConfig, ModelConfig
from jrdp.export.graph import Graph
from jrdp.models.shapes import ENHANCED_LEVELS, MASK_SAMPLING_RATIO, MASK_SIZES, RESNETS, SALIENT, STRIDES, TOWER_DEPTH

ENHANCEMENTS = ("none", "progressive", "dense", "regularized", "top_down_regularized", "pa")
_FPN = "backbone.fpn"


def preprocess(graph: Graph, image: str, config: InputConfig) -> str:
    """RGB uint8 `[H, W, 3]` -> normalised float32 `[1, 3, H', W']`, zero-padded right and bottom to multiples of 32."""
    x = graph.cast(image, "float32")
    if config.channel_order == "bgr":
        x = graph.op("Gather", x, graph.integers(2, 1, 0), axis=2)
    if config.scale != 255:
        x = graph.op("Mul", graph.op("Div", x, graph.constant(255)), graph.constant(config.scale))
    x = graph.op("Sub", x, graph.constant(config.mean))
    if config.std != (1.0, 1.0, 1.0):
        x = graph.op("Div", x, graph.constant(config.std))
    x = graph.op("Unsqueeze", graph.op("Transpose", x, perm=[2, 0, 1]), graph.integers(0))
    missing = graph.op("Mod", graph.op("Neg", graph.size(x, 2, 4)), graph.integers(32))
    pads = graph.op("Concat", graph.integers(0, 0, 0, 0, 0, 0), missing, axis=0)
    return graph.op("Pad", x, pads, graph.constant(0), mode="constant")


def backbone(graph: Graph, x: str, config: ModelConfig) -> list[str]:
    """Images -> C3, C4, C5."""
    body = "backbone.body"
    shape = RESNETS[config.backbone.name]
    x = graph.op("Relu", graph.frozen(x, f"{body}.stem.conv1", f"{body}.stem.bn1", stride=2))
    x = graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    maps = []
    for k, blocks in enumerate(shape.blocks):
        for block in range(blocks):
            stride = 2 if block == 0 and k > 0 else 1
            first, second = (stride, 1) if config.backbone.strides_in_1x1 else (1, stride)
            name = f"{body}.layer{k + 1}.{block}"
            shortcut = x
            if block == 0:
                shortcut = graph.frozen(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            y = graph.op("Relu", graph.frozen(x, f"{name}.conv1", f"{name}.bn1", first))
            y = graph.op("Relu", graph.frozen(y, f"{name}.conv2", f"{name}.bn2", second, shape.groups))
            y = graph.frozen(y, f"{name}.conv3", f"{name}.bn3")
            x = graph.op("Relu", graph.op("Add", y, shortcut))
        maps.append(x)
    return maps[1:]


def pyramid(graph: Graph, maps: list[str], config: ModelConfig) -> list[str]:
    """C3, C4, C5 -> P'3..P'7."""
    c3, c4, c5 = maps
    upsample = config.pyramid.upsample
    top5 = graph.layer(c5, f"{_FPN}.fpn_inner4")
    top4 = graph.op("Add", graph.layer(c4, f"{_FPN}.fpn_inner3"), graph.double(top5, upsample))
    top3 = graph.op("Add", graph.layer(c3, f"{_FPN}.fpn_inner2"), graph.double(top4, upsample))
    levels = [graph.layer(top, f"{_FPN}.fpn_layer{k}") for k, top in zip((2, 3, 4), (top3, top4, top5))]
    levels.append(graph.layer(levels[2], f"{_FPN}.top_blocks.p6", stride=2))
    levels.append(graph.layer(graph.op("Relu", levels[3]), f"{_FPN}.top_blocks.p7", stride=2))
    count = len(ENHANCED_LEVELS[config.pyramid.levels])
    return _enhance(graph, levels[:count], config) + levels[count:]


def _enhance(graph: Graph, levels: list[str], config: ModelConfig) -> list[str]:
    enhancement = config.pyramid.enhancement
    if enhancement == "none":
        return levels
    if enhancement == "pa":
        return _path_aggregation(graph, levels)
    if enhancement == "top_down_regularized":
        return _refine(graph, levels[::-1], config)[::-1]
    return _refine(graph, levels, config)


def _refine(graph: Graph, levels: list[str], config: ModelConfig) -> list[str]:
    """Each level from itself and the refined ones before it (Eq. 3 to 8)."""
    refined: list[str] = []
    for k, level in enumerate(levels, 1):
        if not refined:
            refined.append(graph.layer(level, f"{_FPN}.refine_block_1"))
            continue
        before = refined[-1:] if config.pyramid.enhancement == "progressive" else refined
        before = [graph.resize_like(x, level) for x in before]
        if config.pyramid.enhancement in ("regularized", "top_down_regularized"):
            attention = graph.op("Sigmoid", graph.layer(level, f"{_FPN}.att_block_{k - 1}"))
            before = [graph.op("Mul", attention, x) for x in before]
        x = graph.op("Concat", *before, level, axis=1)
        for part in [""] if config.pyramid.fusion == "3x3" else [".0", ".1"]:
            x = graph.layer(x, f"{_FPN}.refine_block_{k}{part}")
        refined.append(x)
    return refined


def _path_aggregation(graph: Graph, levels: list[str]) -> list[str]:
    path = [levels[0]]
    for k, level in enumerate(levels[1:]):
        down = graph.op("Relu", graph.layer(path[-1], f"{_FPN}.pa_down.{k}", stride=2))
        path.append(graph.op("Relu", graph.layer(graph.op("Add", down, level), f"{_FPN}.pa_out.{k}")))
    return path


def head(graph: Graph, levels: list[str]) -> list[tuple[str, str, str]]:
    """P'3..P'7 -> per level logits `[1, 1, H, W]`, distances `[1, 4, H, W]` in network pixels, centerness."""
    name, answers = "rpn.head", []
    for k, x in enumerate(levels):
        towers = []
        for tower in ("cls_tower", "bbox_tower"):
            y = x
            for layer in range(TOWER_DEPTH):
                y = graph.normalised(y, f"{name}.{tower}.{3 * layer}", f"{name}.{tower}.{3 * layer + 1}")
            towers.append(y)
        cls, box = towers
        scale = graph.constant(graph.tensor(f"{name}.scales.{k}.scale"))
        distances = graph.op("Exp", graph.op("Mul", graph.layer(box, f"{name}.bbox_pred"), scale))
        answers.append((graph.layer(cls, f"{name}.cls_logits"), distances, graph.layer(cls, f"{name}.centerness")))
    return answers


def masks(graph: Graph, levels: list[str], boxes: str, name: str) -> str:
    """P'3..P'7 and boxes `[K, 4]` -> the probability of the salient channel, `[K, 32, 32]`, as the output `name`."""
    extractor = "roi_heads.mask.feature_extractor"
    image = graph.op("Expand", graph.integers(0), graph.size(boxes, 0, 1))  # the batch index of every box
    pooled = []
    for k, (level, size, stride) in enumerate(zip(levels, MASK_SIZES, STRIDES), 1):
        block = f"{extractor}.inner_maskdecoder_{k}"
        x = graph.normalised(level, f"{block}.0", f"{block}.1")
        pooled.append(
            graph.op(  # "output_half_pixel" is the legacy RoIAlign: no shift of half a pixel, at least one pixel wide
                "RoiAlign", x, boxes, image, coordinate_transformation_mode="output_half_pixel", mode="avg",
                output_height=size, output_width=size, sampling_ratio=MASK_SAMPLING_RATIO, spatial_scale=1 / stride,
            )
        )
    x = graph.op("Add", pooled[4], pooled[3])
    for k, finer in enumerate((None, pooled[2], pooled[1], pooled[0]), 1):
        if finer is not None:
            x = graph.op("Add", graph.double(x, "bilinear"), finer)
        x = graph.normalised(x, f"{extractor}.conv_maskdecoder_{k}.0", f"{extractor}.conv_maskdecoder_{k}.1")
    weight, bias = (graph.tensor(f"roi_heads.mask.predictor.mask_fcn_logits.{part}") for part in ("weight", "bias"))
    logits = graph.conv(x, weight[SALIENT : SALIENT + 1], bias[SALIENT : SALIENT + 1])
    return graph.op("Sigmoid", graph.op("Squeeze", logits, graph.integers(1)), name=name)
