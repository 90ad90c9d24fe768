"""From the head's answers to boxes and scores inside the graph; `jrdp.models.fcos_decode` is the definition."""

from __future__ import annotations

from jrdp.config import FcosConfig
from jrdp.export.graph import Graph
from jrdp.models.shapes import STRIDES


def decode(
    graph: Graph, answers: list[tuple[str, str, str]], image: str, config: FcosConfig, names: tuple[str, str]
) -> tuple[str, str]:
    """Boxes `[K, 4]` in pixels of the picture and scores `[K]`, level by level and row-major; outputs `names`.

    answers: per level logits, distances, centerness; image: the picture `[H, W, 3]`, to which boxes are clipped.
    """
    size = graph.cast(graph.op("Sub", graph.size(image, 0, 2), graph.integers(1)), "float32")
    limit = graph.op("Gather", size, graph.integers(1, 0, 1, 0))  # width - 1, height - 1, twice
    found = [_level(graph, *level, stride, limit, config) for level, stride in zip(answers, STRIDES)]
    boxes, scores = (graph.op("Concat", *parts, axis=0) for parts in zip(*found))
    kept = _suppress(graph, boxes, scores, config)
    return (
        graph.op("Gather", boxes, kept, axis=0, name=names[0]),
        graph.op("Gather", scores, kept, axis=0, name=names[1]),
    )


def _level(
    graph: Graph, logits: str, distances: str, centerness: str, stride: int, limit: str, config: FcosConfig
) -> tuple[str, str]:
    """One level's candidates: boxes `[k, 4]`, clipped, and scores `[k]`, in the order of their locations."""
    flat = graph.integers(-1)
    probability = graph.exact_sigmoid(graph.op("Reshape", logits, flat))
    score = graph.op("Mul", probability, graph.exact_sigmoid(graph.op("Reshape", centerness, flat)))
    # Where nothing is above the threshold the best location is a candidate all the same. Where something is, the best
    # one is above it, so that "or" says both.
    best = graph.op("ReduceMax", probability, keepdims=1)
    above = graph.op("Greater", probability, graph.constant(config.pre_nms_threshold))
    candidate = graph.op("Or", above, graph.op("GreaterOrEqual", probability, best))
    chosen = graph.op("Reshape", graph.op("NonZero", candidate), flat)
    count = graph.op("Min", graph.size(chosen, 0, 1), graph.integers(config.pre_nms_top_n))
    _, top = graph.op("TopK", graph.op("Gather", score, chosen), count, outputs=2)  # equal scores: the first ones
    chosen = graph.op("Gather", chosen, top)
    chosen, _ = graph.op("TopK", chosen, count, outputs=2, largest=0)  # back into the order of locations

    width = graph.size(logits, 3, 4)
    column, row = graph.op("Mod", chosen, width), graph.op("Div", chosen, width)
    steps, half = graph.constant(stride), graph.constant(stride // 2)
    x, y = (graph.op("Add", graph.op("Mul", graph.cast(v, "float32"), steps), half) for v in (column, row))
    distance = graph.op("Gather", graph.op("Reshape", distances, graph.integers(4, -1)), chosen, axis=1)
    left, top, right, bottom = graph.op("Split", distance, outputs=4, axis=0, num_outputs=4)
    edges = [
        graph.op(kind, point, way)  # [1, k]
        for kind, point, way in (("Sub", x, left), ("Sub", y, top), ("Add", x, right), ("Add", y, bottom))
    ]
    boxes = graph.op("Transpose", graph.op("Concat", *edges, axis=0), perm=[1, 0])
    boxes = graph.op("Min", graph.op("Max", boxes, graph.constant(0)), limit)
    return boxes, graph.op("Gather", score, chosen)


def _suppress(graph: Graph, boxes: str, scores: str, config: FcosConfig) -> str:
    """Indices that stay, ascending: suppression over all levels together, then the best ones; ties at the end stay.

    ONNX's widths are x2 - x1; the released ones are x2 - x1 + 1, which is the same for boxes whose far corner is moved
    by one pixel. Both suppress above the threshold.
    """
    grown = graph.op("Add", boxes, graph.constant([0, 0, 1, 1]))
    selected = graph.op(
        "NonMaxSuppression",
        graph.op("Unsqueeze", grown, graph.integers(0)),
        graph.op("Unsqueeze", scores, graph.integers(0, 1)),
        graph.size(boxes, 0, 1),
        graph.constant([config.nms_threshold]),
    )  # [k, 3]: image, class, box; by descending score
    kept = graph.op("Reshape", graph.op("Gather", selected, graph.integers(2), axis=1), graph.integers(-1))
    count = graph.op("Min", graph.size(kept, 0, 1), graph.integers(config.post_nms_top_n))
    kept_scores = graph.op("Gather", scores, kept)
    last = graph.op("Gather", kept_scores, graph.op("Sub", count, graph.integers(1)))  # the worst score that stays
    kept = graph.op("Compress", kept, graph.op("GreaterOrEqual", kept_scores, last), axis=0)
    ascending, _ = graph.op("TopK", kept, graph.size(kept, 0, 1), outputs=2, largest=0)
    return ascending
