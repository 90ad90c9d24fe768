"""From head outputs to boxes, against the released post-processing; and from boxes to instances."""

import jittor as jt
import numpy as np
import pytest

from jrdp.config import FcosConfig
from jrdp.errors import UserError
from jrdp.models.fcos_decode import Detections, decode, decode_launched, decode_vars, instances_of, level_candidates, sigmoid
from jrdp.models.shapes import STRIDES
from jrdp.ops import decoding
from jrdp.structures import ImageBatch


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


def test_the_threshold_itself_is_below_it():
    logits = np.float32([0, 1, 0]).reshape(1, 1, 1, 3)  # a logit of zero is a probability of one half
    config = FcosConfig(pre_nms_threshold=0.5)
    (found,) = level_candidates(logits, np.ones((1, 4, 1, 3), np.float32), np.zeros_like(logits), 8, [(8, 24)], config)
    assert found.boxes.tolist() == [[11, 3, 13, 5]]


def test_of_equal_scores_at_the_limit_the_first_locations_stay():
    random = np.random.default_rng(1)
    logits = random.choice([0.5, 1.0, 1.5], 400).astype(np.float32)
    config = FcosConfig(pre_nms_top_n=200)
    zeros, distances = np.zeros((1, 1, 20, 20), np.float32), np.ones((1, 4, 20, 20), np.float32)
    (found,) = level_candidates(logits.reshape(1, 1, 20, 20), distances, zeros, 8, [(160, 160)], config)
    kept = sorted(sorted(range(400), key=lambda k: -logits[k])[:200])
    np.testing.assert_array_equal(found.boxes[:, 0], [8 * (k % 20) + 3 for k in kept])
    np.testing.assert_array_equal(found.boxes[:, 1], [8 * (k // 20) + 3 for k in kept])


def test_where_answers_are_no_numbers_no_image_has_boxes():
    """The first fault of an image is told, by name and level, in the order classification, distances, centerness."""
    logits, distances, centerness = (list(levels) for levels in single_location(3.0, n=3))
    centerness[1] = np.float32([0, np.inf, np.nan]).reshape(3, 1, 1, 1)
    distances[3] = np.full((3, 4, 1, 1), 10, np.float32)
    distances[3][1, 2] = np.nan
    found = decode(logits, distances, centerness, [(320, 480)] * 3, FcosConfig())
    assert [each.fault for each in found] == ["", "distances at P6", "centerness at P4"]
    for boxes, scores, _ in found:
        assert boxes.shape == (0, 4) and scores.shape == (0,) and boxes.dtype == scores.dtype == np.float32


def test_where_answers_are_infinite_the_boxes_stay():
    logits, distances, centerness = (list(levels) for levels in single_location(3.0, n=2))
    distances[0] = np.full((2, 4, 1, 1), 10, np.float32)
    distances[0][1, 2] = np.inf
    found = decode(logits, distances, centerness, [(320, 480)] * 2, FcosConfig(nms_threshold=1.0))
    assert [each.fault for each in found] == ["", "distances at P3"]
    np.testing.assert_array_equal([each.boxes[0] for each in found], [[0, 0, 14, 14], [0, 0, 479, 14]])


def as_vars(levels):
    return [jt.array(level) for level in levels]


def by_launches(*arguments):
    return decode_launched(*arguments, decoding.KERNELS.shimmed())


@pytest.mark.parametrize("decode_them", [decode_vars, by_launches])
def test_answers_that_are_still_computed_are_decoded_alike(decode_them):
    random = np.random.default_rng(2)
    shapes = [(4, 5), (2, 3), (1, 2), (1, 1), (1, 1)]
    logits, distances, centerness = [
        [random.uniform(low, high, (2, channels, *shape)).astype(np.float32) for shape in shapes]
        for low, high, channels in ((-3, 1, 1), (4, 30, 4), (-1, 1, 1))
    ]
    sizes, config = [(32, 40), (25, 31)], FcosConfig(nms_threshold=0.4, pre_nms_top_n=12, post_nms_top_n=6)
    expected = decode(logits, distances, centerness, sizes, config)
    found = decode_them(*map(as_vars, (logits, distances, centerness)), sizes, config)
    assert [len(each.scores) for each in found] == [len(each.scores) for each in expected]
    assert max(len(each.scores) for each in expected) == 6
    for each, wanted in zip(found, expected):
        np.testing.assert_array_equal(each.boxes, wanted.boxes)
        np.testing.assert_allclose(each.scores, wanted.scores, atol=2e-7)
        assert each.fault == wanted.fault == ""
    logits[2][1] = np.nan
    found = decode_them(*map(as_vars, (logits, distances, centerness)), sizes, config)
    assert not found[0].fault and found[1].fault.startswith("classification")


BATCH = ImageBatch(np.zeros((2, 3, 32, 64), np.float32), [(30, 40), (32, 64)], [(60, 80), (64, 128)], [7, 9], ["a.png", None])


def two_and_one():
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    scores = np.float32([0.5, 0.25, 0.75])
    return [Detections(boxes[:2], scores[:2]), Detections(boxes[2:], scores[2:])]


def test_instances_of_each_image_have_their_masks():
    masks = np.float32([0, 0.5, 1])[:, None, None] * np.ones((3, 4, 4), np.float32)
    first, second = instances_of(two_and_one(), masks, BATCH)
    assert first.size == (30, 40) and second.size == (32, 64)
    np.testing.assert_array_equal(first.boxes, [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(second.boxes, [[8, 9, 10, 11]])
    assert first.scores.tolist() == [0.5, 0.25] and second.scores.tolist() == [0.75]
    assert first.mask_probabilities[:, 3, 3].tolist() == [0, 0.5] and second.mask_probabilities.min() == 1


@pytest.mark.parametrize("image, name", [(0, "a.png"), (1, "image 9")])
def test_faults_and_masks_that_are_no_probabilities_are_refused(image, name):
    masks = np.full((3, 4, 4), 0.5, np.float32)
    found = two_and_one()
    found[image] = found[image]._replace(fault="distances at P3")
    with pytest.raises(UserError, match=rf"answers for {name} are not finite \(distances at P3\)"):
        instances_of(found, masks, BATCH)
    for value in (np.nan, 1.5):
        masks[2 * image, 1, 2] = value
        with pytest.raises(UserError, match=rf"answers for {name} are not finite \(masks\)"):
            instances_of(two_and_one(), masks, BATCH)
