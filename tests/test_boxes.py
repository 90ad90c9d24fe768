"""Box conventions against the released network's numbers and hand-counted pixels."""

import numpy as np
import pytest

from jrdp import boxes


@pytest.fixture(scope="module")
def ops(golden):
    return np.load(golden / "ops.npz")


def test_iou_and_area_equal_the_released_ones(ops):
    assert np.array_equal(boxes.area(ops["iou/a"]), ops["iou/area_a"])
    assert np.allclose(boxes.iou(ops["iou/a"], ops["iou/b"]), ops["iou/iou"], rtol=0, atol=1e-7)
    without_the_one = ops["iou/a"] - np.array([0, 0, 1, 1], np.float32)
    assert not np.allclose(boxes.iou(without_the_one, ops["iou/b"]), ops["iou/iou"], atol=1e-3)


def test_transformations_equal_the_released_ones(ops):
    a = ops["iou/a"]  # in an image of 100 x 80
    assert np.array_equal(boxes.to_xywh(a), ops["box/xywh_of_a"])
    assert np.array_equal(boxes.flip(a, 100), ops["box/hflip"])
    assert np.array_equal(boxes.resize(a, (80, 100), (120, 200)), ops["box/resize_200x120"])
    assert np.array_equal(boxes.resize(a, (80, 100), (160, 200)), ops["box/resize_200x160"])
    clipped = boxes.clip(a, 80, 100)
    assert np.array_equal(clipped[boxes.nonempty(clipped)], ops["box/clip_remove_empty"])
    truth = boxes.clip(ops["box/gt_xywh_to_xyxy"], 80, 100)
    assert np.array_equal(truth[boxes.nonempty(truth)], ops["box/gt_clip"])
    small = ops["box/remove_small0_in"]
    assert np.array_equal(small[boxes.large_enough(small, 0)], ops["box/remove_small0_out"])


def test_from_xywh_by_hand():
    given = [[10, 10, 1, 5], [10, 10, 0, 0], [10, 10, 0.5, 7], [0, 70, 16, 10], [90, 5, 10, 10]]
    expected = [[10, 10, 10, 14], [10, 10, 10, 10], [10, 10, 10, 16], [0, 70, 15, 79], [90, 5, 99, 14]]
    assert np.array_equal(boxes.from_xywh(given), np.array(expected, np.float32))
    assert np.array_equal(boxes.to_xywh(boxes.from_xywh(given[3:])), np.array(given[3:], np.float32))


def test_area_and_iou_count_pixels():
    a, b = [2, 3, 5, 7], [4, 5, 9, 9]
    masks = np.zeros((2, 12, 12), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, (a, b)):
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
    assert boxes.area([a, b]).tolist() == masks.sum(axis=(1, 2)).tolist()
    assert boxes.iou([a], [b])[0, 0] == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def test_flip_twice_is_the_identity_and_arguments_survive():
    given = np.array([[1, 2, 30, 40], [0, 0, 99, 79]], np.float32)
    copy = given.copy()
    assert np.array_equal(boxes.flip(boxes.flip(given, 100), 100), given)
    boxes.clip(given, 10, 10), boxes.resize(given, (80, 100), (8, 10)), boxes.from_xywh(given)
    assert np.array_equal(given, copy)


def test_no_boxes():
    none = np.zeros((0, 4), np.float32)
    for result in (boxes.clip(none, 5, 5), boxes.flip(none, 5), boxes.from_xywh([]), boxes.to_xywh([])):
        assert result.shape == (0, 4) and result.dtype == np.float32
    assert boxes.iou(none, [[0, 0, 1, 1]]).shape == (0, 1)
    assert boxes.area([]).shape == (0,) and boxes.nonempty([]).shape == (0,)


def test_clip_moves_every_edge_to_the_last_pixel_of_its_side():
    assert boxes.clip([[-9, -8, 200, 300], [150, 160, 170, 180]], 30, 50).tolist() == [[0, 0, 49, 29], [49, 29, 49, 29]]


def test_large_enough_counts_pixels_of_both_sides():
    given = [[10, 20, 13, 24], [10, 20, 14, 23], [10, 20, 14, 24], [10, 20, 15, 25]]  # 4x5, 5x4, 5x5, 6x6
    assert boxes.large_enough(given, 5).tolist() == [False, False, True, True]


def test_overlap_of_a_coco_box_and_bounds_by_hand():
    assert boxes.overlap((10, 20, 4, 6), (10, 20, 14, 26)) == 1
    assert boxes.overlap((10, 20, 4, 6), (12, 22, 18, 30)) == pytest.approx(2 * 4 / (4 * 6 + 6 * 8 - 2 * 4))
    assert boxes.overlap((10, 20, 4, 6), (14, 20, 20, 26)) == 0 and boxes.overlap((10, 20, 4, 6), (10, 26, 14, 30)) == 0
    assert boxes.overlap((10, 20, 4, 6), (30, 40, 31, 41)) == 0  # both ways apart: no product of two negative sides
    # Sides without extent count as one pixel, on either side.
    assert boxes.overlap((10, 20, 0, 0), (10, 20, 10, 20)) == 1
    assert boxes.overlap((10, 20, 3, 2), (10, 20, 10, 20)) == pytest.approx(1 / 6)
    assert boxes.overlap((10, 20, 0, 0), (10, 20, 13, 22)) == pytest.approx(1 / 6)
