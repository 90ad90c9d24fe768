"""From head outputs to boxes, against the released post-processing."""

import numpy as np
import pytest

from jrdp.config import FcosConfig
from jrdp.models.fcos_decode import decode, level_candidates, sigmoid
from jrdp.models.shapes import STRIDES


def inputs(golden, case):
    ops = np.load(golden / "ops.npz")
    levels = [[ops[f"post/{case}/{what}{k}"] for k in range(5)] for what in ("cls", "reg", "ctr")]
    return ops, levels, [tuple(size) for size in ops[f"post/{case}/image_hw"].tolist()]


def as_sets(boxes, scores):
    """Rows in an order that does not depend on the order in which they came."""
    rows = np.concatenate([boxes, scores[:, None]], axis=1)
    return rows[np.lexsort(rows.round(2).T)]


@pytest.mark.parametrize("case", ["many", "batch2", "ties", "train"])
def test_candidates_of_each_level(golden, case):
    ops, (logits, distances, centerness), sizes = inputs(golden, case)
    for k, stride in enumerate(STRIDES):
        found = level_candidates(logits[k], distances[k], centerness[k], stride, sizes, FcosConfig())
        for image, (boxes, scores, _) in enumerate(found):
            expected = [ops[f"post/{case}/level{k}_im{image}/{what}"] for what in ("boxes", "scores")]
            assert boxes.shape == expected[0].shape and boxes.dtype == scores.dtype == np.float32
            if len(boxes) == 1000:  # the order of the released top 1,000 is unspecified
                np.testing.assert_allclose(as_sets(boxes, scores), as_sets(*expected), atol=1e-4)
            else:
                np.testing.assert_allclose(boxes, expected[0], atol=1e-4)
                np.testing.assert_allclose(scores, expected[1], atol=1e-6)


@pytest.mark.parametrize("case", ["many", "batch2", "ties", "train"])
def test_detections(golden, case):
    ops, levels, sizes = inputs(golden, case)
    for image, (boxes, scores, _) in enumerate(decode(*levels, sizes, FcosConfig())):
        expected = [ops[f"post/{case}/out_im{image}/{what}"] for what in ("boxes", "scores")]
        if case == "train":  # the ground truth is appended there
            truth = len(ops[f"post/train/gt_im{image}"])
            expected = [each[:-truth] for each in expected]
        if case == "many":
            boxes, scores = np.split(as_sets(boxes, scores), [4], axis=1)
            expected = np.split(as_sets(*expected), [4], axis=1)
        np.testing.assert_allclose(boxes, expected[0], atol=1e-4)
        np.testing.assert_allclose(scores, expected[1], atol=1e-6)


def single_location(logit: float, distance: float = 10.0, n: int = 1):
    """Five levels of one location each; only P3's is above the threshold."""
    logits = [np.full((n, 1, 1, 1), logit if k == 0 else -9.0 + k, np.float32) for k in range(5)]
    distances = [np.full((n, 4, 1, 1), distance, np.float32)] * 5
    return logits, distances, [np.zeros((n, 1, 1, 1), np.float32)] * 5


def test_a_level_below_the_threshold_gives_its_best():
    found = decode(*single_location(3.0), [(320, 480)], FcosConfig(nms_threshold=1.0))[0]
    assert len(found.scores) == 5
    np.testing.assert_allclose(found.scores[0], 0.5 / (1 + np.exp(-3.0)), rtol=1e-6)
    np.testing.assert_array_equal(found.boxes[0], [0, 0, 14, 14])
    np.testing.assert_array_equal(found.boxes[1], [0, 0, 18, 18])


def test_the_best_of_a_level_is_that_of_the_batch():
    logits, distances, centerness = single_location(3.0, n=2)
    logits[4][1] = -4.0
    found = decode(logits, distances, centerness, [(320, 480)] * 2, FcosConfig(nms_threshold=1.0))
    assert [len(each.scores) for each in found] == [4, 5]


def test_boxes_are_clipped_to_the_image_and_may_be_empty():
    found = decode(*single_location(3.0, distance=1000.0), [(30, 40)], FcosConfig(nms_threshold=1.0))[0]
    np.testing.assert_array_equal(found.boxes, [[0, 0, 39, 29]] * 5)
    found = decode(*single_location(3.0, distance=0.5), [(30, 3)], FcosConfig(nms_threshold=1.0))[0]
    np.testing.assert_array_equal(found.boxes[0], [2, 3.5, 2, 4.5])


def test_configured_limits():
    rng = np.random.default_rng(0)
    sizes = [(20, 24), (10, 12), (5, 6), (3, 3), (2, 2)]
    logits = [rng.normal(2, 1, (1, 1, *size)).astype(np.float32) for size in sizes]
    distances = [rng.uniform(1, 3, (1, 4, *size)).astype(np.float32) for size in sizes]
    centerness = [rng.normal(0, 1, (1, 1, *size)).astype(np.float32) for size in sizes]
    config = FcosConfig(post_nms_top_n=7, pre_nms_top_n=30)
    candidates = level_candidates(logits[0], distances[0], centerness[0], 8, [(160, 192)], config)[0]
    scores = (sigmoid(logits[0]) * sigmoid(centerness[0])).ravel()
    best = np.sort(np.argsort(-scores)[:30])
    np.testing.assert_array_equal(candidates.scores, scores[best])
    found = decode(logits, distances, centerness, [(160, 192)], config)[0]
    assert len(found.scores) == 7


def test_sigmoid():
    x = np.array([-200, -90, -3, -0.0, 0, 1e-3, 5, 90, 200], np.float32)
    with np.errstate(over="raise"):
        found = sigmoid(x)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=1e-37)
