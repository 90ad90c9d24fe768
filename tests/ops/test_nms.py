"""Non-maximum suppression on the CPU, and its CUDA kernels through the shim."""

import jittor as jt
import numpy as np
import ops_reference as reference
import pytest

from jrdp.ops import nms, suppression

THRESHOLDS = ("0.10", "0.30", "0.50", "0.60", "0.70", "0.80", "0.95")


def nms_through_the_shim(boxes, scores, threshold):
    keep, status = suppression.nms_on_device(boxes, scores, threshold, suppression.KERNELS.shimmed())
    keep, (count, broken) = keep.numpy(), status.numpy()
    assert broken == -1
    assert (keep[count:] == -1).all()
    return keep[:count].astype(np.int64)


@pytest.fixture(params=["cpu", "cuda"])
def suppress(request):
    return nms if request.param == "cpu" else nms_through_the_shim


def crowd(random, count):
    """Clusters of overlapping boxes on whole pixels, so that many overlaps and many scores are exactly equal."""
    centres = random.integers(0, 200, (max(count // 6, 1), 2))
    low = centres[random.integers(0, len(centres), count)] + random.integers(-6, 7, (count, 2))
    boxes = np.concatenate([low, low + random.integers(0, 40, (count, 2))], axis=1).astype(np.float32)
    return boxes, (random.integers(0, max(count // 4, 2), count) / max(count, 1)).astype(np.float32)


def golden_sets(golden):
    with np.load(golden / "ops.npz") as numbers:
        for index in range(12):
            boxes, scores = numbers[f"nms/{index:02d}/boxes"], numbers[f"nms/{index:02d}/scores"]
            for threshold in THRESHOLDS:
                yield boxes, scores, float(threshold), numbers[f"nms/{index:02d}/keep_gt_{threshold}"]


def test_equals_the_released_operator(golden, suppress):
    for boxes, scores, threshold, expected in golden_sets(golden):
        np.testing.assert_array_equal(suppress(boxes, scores, threshold), expected)


def test_reference_equals_the_released_operator_and_without_plus_one_does_not(golden):
    wrong = 0
    for boxes, scores, threshold, expected in golden_sets(golden):
        if threshold in (0.3, 0.6):
            np.testing.assert_array_equal(reference.nms(boxes, scores, threshold), expected)
            wrong += not np.array_equal(reference.nms(boxes, scores, threshold, plus=0), expected)
    assert wrong >= 4


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 129, 300])
def test_equals_the_reference_with_ties(suppress, count):
    boxes, scores = crowd(np.random.default_rng(count), count)
    for threshold in (0.0, 0.5, 0.6, 1.0):
        np.testing.assert_array_equal(suppress(boxes, scores, threshold), reference.nms(boxes, scores, threshold))


def test_cuda_equals_cpu_on_a_thousand_boxes():
    random = np.random.default_rng(0)
    boxes, scores = crowd(random, 1000)
    kept = nms(boxes, scores, 0.6)
    assert 50 < len(kept) < 950
    np.testing.assert_array_equal(nms_through_the_shim(boxes, scores, 0.6), kept)


def test_overlap_equal_to_the_threshold_is_kept(suppress):
    boxes = [[0, 0, 9, 9], [0, 0, 9, 4], [100, 0, 109, 9]]  # the first two overlap by one half
    assert suppress(np.array(boxes, np.float32), np.array([0.9, 0.8, 0.7], np.float32), 0.5).tolist() == [0, 1, 2]
    assert suppress(np.array(boxes, np.float32), np.array([0.9, 0.8, 0.7], np.float32), 0.49).tolist() == [0, 2]


def test_fractions_at_the_threshold_are_rounded_once(suppress):
    # IoU a/b for many whole numbers against the float32 threshold nearest to a/b: an approximate division, or a product
    # in its place, decides some of them otherwise.
    for whole in range(3, 60):
        for part in range(1, whole, 5):
            boxes = np.array([[0, 0, whole - 1, 0], [0, 0, part - 1, 0]], np.float32)
            threshold = float(np.float32(part) / np.float32(whole))
            below = float(np.nextafter(np.float32(threshold), np.float32(0)))
            assert len(suppress(boxes, np.array([1, 0.5], np.float32), threshold)) == 2, (part, whole)
            assert len(suppress(boxes, np.array([1, 0.5], np.float32), below)) == 1, (part, whole)


def test_equal_scores_keep_the_earlier_box(suppress):
    boxes = np.repeat(np.array([[10, 10, 20, 20]], np.float32), 70, axis=0)
    assert suppress(boxes, np.full(70, 0.5, np.float32), 0.6).tolist() == [0]


def test_kept_indices_ascend_whatever_the_scores(suppress):
    boxes = np.array([[i * 100, 0, i * 100 + 10, 10] for i in range(100)], np.float32)
    scores = np.random.default_rng(0).permutation(100).astype(np.float32)
    assert suppress(boxes, scores, 0.5).tolist() == list(range(100))


def test_points_inverted_boxes_and_negative_scores(suppress):
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [9, 9, 3, 3], [-50, -50, -40, -40]], np.float32)
    scores = np.array([-1, -2, 0, -3], np.float32)
    np.testing.assert_array_equal(suppress(boxes, scores, 0.5), reference.nms(boxes, scores, 0.5))


def test_zero_boxes(suppress):
    kept = suppress(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == np.int64


@pytest.mark.parametrize("kernels", [suppression.KERNELS, suppression.KERNELS.shimmed()], ids=["cpu", "shim"])
def test_zero_boxes_on_the_device(kernels):
    keep, status = suppression.nms_on_device(np.zeros((0, 4)), np.zeros(0), 0.5, kernels)
    assert keep.shape == [0] and keep.dtype == status.dtype == "int32"
    assert status.numpy().tolist() == [0, -1]  # none is kept, and none is broken


# Of n boxes: which are kept [n], status [2]; and for CUDA, as nms.cuh says, boxes with their areas in order [n, 5], where each
# came from [n], a bit for each other box in words of 64 and one such row more, counted as int32, and a mark for each [n].
@pytest.mark.parametrize("count, mask", [(64, 65 * 1 * 2), (65, 66 * 2 * 2), (128, 129 * 2 * 2), (130, 131 * 3 * 2)])
def test_memory(count, mask, allocated):
    boxes, scores = crowd(np.random.default_rng(count), count)
    nms_through_the_shim(boxes, scores, 0.5)
    nms(boxes, scores, 0.5)
    assert allocated == [[count, 2, 5 * count, count, mask, count], [count, 2, 1, 1, 1, 1]]


def test_vars_and_arrays_alike():
    boxes, scores = crowd(np.random.default_rng(9), 50)
    np.testing.assert_array_equal(nms(jt.array(boxes), jt.array(scores), 0.5), nms(boxes, scores, 0.5))


@pytest.mark.parametrize("first", [0, 31])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_named(value, first):
    boxes, scores = crowd(np.random.default_rng(9), 50)
    boxes[first, 2] = value
    scores[40] = value
    with pytest.raises(ValueError, match=f"boxes: box {first} or its score is not finite"):
        nms(boxes, scores, 0.5)
    keep, status = suppression.nms_on_device(boxes, scores, 0.5, suppression.KERNELS.shimmed())
    assert status.numpy().tolist() == [0, first]
    assert (keep.numpy() == -1).all()


@pytest.mark.parametrize(
    "boxes, scores, threshold, message",
    [
        (np.zeros((3, 5)), np.zeros(3), 0.5, r"boxes: expected \[n, 4\], got \[3, 5\]"),
        (np.zeros((3, 4)), np.zeros(2), 0.5, r"scores: expected \[3\] to go with 3 boxes, got \[2\]"),
        (np.zeros((3, 4)), np.zeros(3), float("nan"), "iou_threshold: expected 0 to 1"),
        (np.zeros((3, 4)), np.zeros(3), 1.5, "iou_threshold: expected 0 to 1, got 1.5"),
        (np.zeros((3, 4)), np.zeros(3), -0.5, "iou_threshold: expected 0 to 1, got -0.5"),
        (jt.zeros((3, 4), "int32"), np.zeros(3), 0.5, "boxes: expected float32, got int32"),
    ],
)
def test_bad_arguments(boxes, scores, threshold, message):
    with pytest.raises(ValueError, match=message):
        nms(boxes, scores, threshold)
