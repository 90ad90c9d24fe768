"""Mask targets: bit for bit the released ones for polygons; bitmaps like the polygon of the same shape."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jrdp.models.mask_targets import project_masks
from jrdp.structures import Targets


def _targets(polygons, size, bitmaps=None):
    polygons = [[np.asarray(part, np.float64) for part in parts] if parts else None for parts in polygons]
    count = len(polygons)
    return Targets(np.zeros((count, 4), np.float32), polygons, bitmaps or [None] * count, size)


def _draw(polygons, size):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))


@pytest.fixture(scope="module")
def project(golden):
    case = json.loads((golden / "ops.json").read_text())["project"]
    width, height = case["image_wh"]
    return np.load(golden / "ops.npz"), case["instances"], (height, width)


@pytest.mark.parametrize("size", [28, 32])
def test_polygons_equal_the_released_targets(project, size):
    arrays, instances, image_size = project
    pairs = arrays["project/pairs"]
    boxes = arrays["project/boxes"][pairs[:, 1]]
    masks = project_masks(_targets(instances, image_size), pairs[:, 0], boxes, size)
    expected = np.unpackbits(arrays[f"project/M{size}_bits"], axis=1)[:, : size * size].reshape(-1, size, size)
    assert masks.dtype == np.uint8 and np.array_equal(masks, expected)
    assert np.allclose(masks.mean(axis=(1, 2)), arrays[f"project/M{size}_mean"])
    with_the_one = project_masks(_targets(instances, image_size), pairs[:, 0], boxes + [0, 0, 1, 1], size)
    assert not np.array_equal(with_the_one, expected)


def test_rasterising_equals_the_released_masks(project):
    arrays, instances, (height, width) = project
    for i, parts in enumerate(instances):
        mask = _draw(parts, (height, width))
        assert np.array_equal(np.packbits(mask, axis=1), arrays[f"raster/{i}"])


def test_training_step_targets_equal_the_released_ones(golden):
    arrays = np.load(golden / "r50" / "train.npz")
    for image in range(4):
        counts = arrays[f"b1/gt{image}/n_polys"]
        polygons = [[arrays[f"b1/gt{image}/poly_{i}_{j}"] for j in range(n)] for i, n in enumerate(counts)]
        width, height = arrays[f"b1/gt{image}/size_wh"]
        positive = arrays[f"b1/prop{image}/mask_label"] > 0
        boxes = arrays[f"b1/prop{image}/boxes"][positive]
        matched = arrays[f"b1/prop{image}/matched_idx"][positive]
        masks = project_masks(_targets(polygons, (int(height), int(width))), matched, boxes)
        expected = np.unpackbits(arrays[f"b1/prop{image}/mask_target_bits"], axis=1).reshape(-1, 32, 32)
        assert np.array_equal(masks, expected)


def test_bitmaps_agree_with_polygons_of_the_same_shape(project):
    arrays, instances, image_size = project
    instances = [parts for i, parts in enumerate(instances) if i != 4]  # without the one of a single pixel
    polygons = _targets(instances, image_size)
    bitmaps = _targets([None] * len(instances), image_size, [_draw(parts, image_size) for parts in instances])
    boxes = np.array([[8, 8, 62, 72], [65.5, 15.25, 112.75, 88.5], [0, 0, 119, 89], [20, 20, 70, 80]], np.float32)
    checked = 0
    for instance in range(len(instances)):
        matched = np.full(len(boxes), instance)
        for a, b in zip(project_masks(polygons, matched, boxes), project_masks(bitmaps, matched, boxes)):
            if a.sum() > 200:
                assert (a & b).sum() / (a | b).sum() > 0.93
                checked += 1
            shifted = np.roll(a, 6, axis=1)
            assert not a.any() or a.all() or (shifted & b).sum() <= (a & b).sum()
    assert checked >= 8


def test_bitmap_by_hand():
    bitmap = np.zeros((4, 6), np.uint8)
    bitmap[1:3, 2:5] = 1
    targets = _targets([None], (4, 6), [bitmap])
    assert np.array_equal(project_masks(targets, [0], [[0, 0, 6, 4]], size=2)[0], [[0, 1], [0, 0]])
    assert project_masks(targets, [0], [[2, 1, 5, 3]], size=8).all()
    outside = project_masks(targets, [0], [[4, 2, 8, 6]], size=4)[0]
    assert np.array_equal(outside, [[1, 0, 0, 0]] + [[0, 0, 0, 0]] * 3)


@pytest.mark.parametrize("kind", ["polygon", "bitmap"])
def test_boxes_without_extent_do_not_fail(kind):
    square = [[10, 10, 40, 10, 40, 40, 10, 40]]
    targets = _targets([square], (50, 60))
    if kind == "bitmap":
        targets = _targets([None], (50, 60), [_draw(square, (50, 60))])
    inside, above = [20, 15, 20, 30], [20, 2, 20, 2]
    masks = project_masks(targets, [0, 0, 0, 0], [inside, above, [np.nan, 0, np.inf, 5], [30, 30, 20, 20]])
    assert masks[0].all() and not masks[1].any() and not masks[2].any() and masks[3].all()
    tiny = project_masks(targets, [0], [[39.99999, 20, 40, 20.00001]])
    assert tiny.shape == (1, 32, 32)


def test_a_box_without_extent_counts_as_one_pixel():
    targets = _targets([[[10, 10, 40, 10, 40, 40, 10, 40]]], (50, 60))
    flat, one, two = project_masks(targets, [0] * 3, [[39.5, 20, 39.5, 30], [39.5, 20, 40.5, 30], [39.5, 20, 41.5, 30]])
    assert np.array_equal(flat, one) and not np.array_equal(flat, two)
    assert one[:, :16].all() and not one[:, 17:].any()


def test_a_box_beyond_the_picture_begins_at_its_last_pixel():
    bitmap = np.zeros((50, 60), np.uint8)
    bitmap[49, 59] = 1
    (mask,) = project_masks(_targets([None], (50, 60), [bitmap]), [0], [[80, 70, 82, 72]], size=4)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_polygons_are_placed_in_float32():
    """(119.8 - 54.9) * 32 / (125.3 - 54.9) is 29.5, the middle of a pixel, in float32, and 29.4999996 in more digits."""
    polygon = [[0, 0, 119.8, 0, 119.8, 32, 0, 32]]
    (mask,) = project_masks(_targets([polygon], (40, 200)), [0], [[54.9, 0, 125.3, 32]])
    assert mask.sum(axis=1).tolist() == [30] * 32


def test_boxes_count_in_float32():
    """As the network gives them: what float64 tells from a half is one there."""
    bitmap = np.zeros((4, 6), np.uint8)
    bitmap[0, 3] = 1
    (mask,) = project_masks(_targets([None], (4, 6), [bitmap]), [0], [[2.5 - 1e-9, 0, 3.5 - 1e-9, 1]], size=1)
    assert mask.tolist() == [[1]]


def test_no_boxes():
    masks = project_masks(_targets([], (50, 60)), np.zeros(0, int), np.zeros((0, 4), np.float32))
    assert masks.shape == (0, 32, 32)
