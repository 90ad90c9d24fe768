"""Decoding and suppression as ONNX operators against the definition in NumPy, on answers that try every rule."""

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime", reason="the export needs pip install '.[onnx]'")
pytest.importorskip("onnx", reason="the export needs pip install '.[onnx]'")

from jrdp.config import FcosConfig
from jrdp.export.onnx_decoding import decode as decode_onnx
from jrdp.export.graph import Graph
from jrdp.models.fcos_decode import decode

SHAPES = ((40, 60), (20, 30), (10, 15), (5, 8), (3, 4))
SIZE = (317, 470)  # height and width of the picture, smaller than the padded input


@pytest.fixture(scope="module")
def session():
    """`session(config)`: a graph of nothing but the decoding."""

    def make(config: FcosConfig):
        graph = Graph({})
        answers = [(f"logits{k}", f"distances{k}", f"centerness{k}") for k in range(5)]
        decode_onnx(graph, answers, "image", config, ("boxes", "scores"))
        inputs = [("image", "uint8", ["height", "width", 3])]
        for names in answers:
            inputs += [(name, "float32", [1, c, f"{name}_h", f"{name}_w"]) for name, c in zip(names, (1, 4, 1))]
        model = graph.model(inputs, [("boxes", "float32", ["k", 4]), ("scores", "float32", ["k"])], {})
        return onnxruntime.InferenceSession(model.SerializeToString())

    return make


def answers(seed: int, logit: float, rounded: bool = False):
    """Random answers around `logit`; rounded ones have many equal scores."""
    rng = np.random.default_rng(seed)
    logits = [(logit + 1.5 * rng.standard_normal((1, 1, *s))).astype(np.float32) for s in SHAPES]
    centerness = [rng.standard_normal((1, 1, *s)).astype(np.float32) for s in SHAPES]
    distances = [np.exp(3 + rng.standard_normal((1, 4, *s))).astype(np.float32) for s in SHAPES]
    if rounded:
        logits, centerness = ([np.round(x) for x in level] for level in (logits, centerness))
    return logits, distances, centerness


@pytest.mark.parametrize(
    "logit, rounded, changes",
    [
        (-3.0, False, {}),
        (1.0, False, {}),  # more than 1,000 candidates on P'3
        (-30.0, False, {}),  # no candidate: the best one of each level, though every probability is tiny
        (-30.0, True, {}),  # several best ones
        (-2.0, False, {"nms_threshold": 0.8}),
        (-2.0, False, {"nms_threshold": 0.0, "post_nms_top_n": 7}),
        (-2.0, True, {"post_nms_top_n": 20}),  # ties at the last place stay
        (0.0, False, {"pre_nms_threshold": 0.6, "pre_nms_top_n": 50}),
    ],
)
def test_the_same_boxes_and_scores_in_the_same_order(session, logit, rounded, changes):
    config = FcosConfig(**changes)
    given = answers(5, logit, rounded)
    wanted = decode(*given, [SIZE], config)[0]
    feed = {"image": np.zeros((*SIZE, 3), np.uint8)}
    for kind, levels in zip(("logits", "distances", "centerness"), given):
        feed.update({f"{kind}{k}": level for k, level in enumerate(levels)})
    boxes, scores = session(config).run(None, feed)
    assert len(boxes) == len(wanted.boxes) > 0
    np.testing.assert_allclose(boxes, wanted.boxes, atol=1e-4)
    np.testing.assert_allclose(scores, wanted.scores, atol=1e-6)


def test_suppression_counts_the_pixels_of_both_ends(session):
    """Two 3-pixel-wide boxes one pixel apart: IoU 2/4 with +1 widths, 1/3 without; 0.4 lies between."""
    given = [[np.full((1, c, *s), v, np.float32) for s in SHAPES] for c, v in ((1, -50.0), (4, 0.5), (1, 9.0))]
    given[0][0][0, 0, 0, :2] = (4, 3)
    given[1][0][0, :, 0, 0] = (0, 0, 2, 9)  # x 4..6
    given[1][0][0, :, 0, 1] = (7, 0, -5, 9)  # x 5..7
    config = FcosConfig(nms_threshold=0.4)
    feed = {"image": np.zeros((*SIZE, 3), np.uint8)}
    for kind, levels in zip(("logits", "distances", "centerness"), given):
        feed.update({f"{kind}{k}": level for k, level in enumerate(levels)})
    boxes, _ = session(config).run(None, feed)
    wanted = decode(*given, [SIZE], config)[0].boxes
    np.testing.assert_array_equal(boxes, wanted)
    assert [4, 4, 6, 13] in boxes.tolist() and [5, 4, 7, 13] not in boxes.tolist()
