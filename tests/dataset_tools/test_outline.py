"""Outlines along pixel edges give the mask back exactly, except for holes, which are reported."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jrdp.dataset_tools.outline import trace


def _filled(polygons, height, width):
    if not polygons:
        return np.zeros((height, width), np.uint8)
    parts = [list(map(float, polygon)) for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, height, width)))


def _even_odd(polygon, height, width):
    """Pixel centres inside one polygon, by counting crossings."""
    points = np.array(polygon, float).reshape(-1, 2)
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0)):
        if y1 != y2:
            crosses = (min(y1, y2) <= y) & (y < max(y1, y2)) & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
            inside ^= crosses
    return inside


def test_one_pixel_and_a_rectangle():
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True
    assert trace(mask) == ([[2, 1, 3, 1, 3, 2, 2, 2]], False)
    mask[1:3, 1:4] = True
    assert trace(mask) == ([[1, 1, 4, 1, 4, 3, 1, 3]], False)
    assert trace(np.zeros((3, 3))) == ([], False)
    assert trace(np.ones((3, 2))) == ([[0, 0, 2, 0, 2, 3, 0, 3]], False)


def test_pixels_that_touch_at_a_corner_are_two_parts():
    polygons, holes = trace(np.array([[1, 0], [0, 1]]))
    assert sorted(polygons) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]] and not holes
    polygons, holes = trace(np.array([[0, 1], [1, 0]]))
    assert len(polygons) == 2 and not holes


@pytest.mark.parametrize("seed", range(6))
def test_random_masks(seed):
    random = np.random.default_rng(seed)
    mask = random.random((15, 19)) < 0.25 + 0.1 * seed
    polygons, holes = trace(mask)
    union = np.zeros(mask.shape, bool)
    for polygon in polygons:
        part = _even_odd(polygon, *mask.shape)
        union |= part
    assert (union & mask).sum() == mask.sum()
    assert holes or np.array_equal(union, mask)
    if not holes:
        assert np.array_equal(_filled(polygons, *mask.shape), mask)


def test_smooth_shapes_survive_pycocotools():
    y, x = np.mgrid[:80, :90]
    mask = ((x - 40) ** 2 / 900 + (y - 35) ** 2 / 500 < 1) | ((x - 66) ** 2 + (y - 50) ** 2 < 300)
    polygons, holes = trace(mask)
    assert len(polygons) == 1 and not holes and np.array_equal(_filled(polygons, 80, 90), mask)


def test_holes_are_reported_and_filled():
    mask = np.ones((9, 9), bool)
    mask[3:6, 3:6] = False
    polygons, holes = trace(mask)
    assert holes and polygons == [[0, 0, 9, 0, 9, 9, 0, 9]]
