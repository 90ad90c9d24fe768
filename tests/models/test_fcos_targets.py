"""FCOS targets against the released ones and a plain statement of the rule."""

import numpy as np
import pytest

from jrdp.models.fcos_targets import assign_targets, locations
from jrdp.models.shapes import STRIDES

SHAPES = ((20, 24), (10, 12), (5, 6), (3, 3), (2, 2))
POINTS = [locations(*shape, stride) for shape, stride in zip(SHAPES, STRIDES)]
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, np.inf))
CASES = ("nested", "equal_area", "edges", "range_bounds", "tiny", "huge", "single")


def by_level(values):
    return np.split(values, np.cumsum([len(points) for points in POINTS])[:-1])


def test_locations(golden):
    ops = np.load(golden / "ops.npz")
    for level, points in enumerate(POINTS, 3):
        np.testing.assert_array_equal(points, ops[f"targets/locations_P{level}"])
        assert points.dtype == np.float32


@pytest.mark.parametrize("case", CASES)
def test_released_targets(golden, case):
    ops = np.load(golden / "ops.npz")
    targets = assign_targets(POINTS, [ops[f"targets/{case}/boxes"]])
    levels = zip(by_level(targets.positive[0]), by_level(targets.distances[0]), by_level(targets.centerness[0]))
    for level, (positive, distances, centerness) in enumerate(levels, 3):
        name = f"targets/{case}/P{level}"
        np.testing.assert_array_equal(np.flatnonzero(positive), ops[f"{name}_pos"])
        np.testing.assert_array_equal(distances[positive], ops[f"{name}_reg_pos"])
        if positive.any():
            np.testing.assert_allclose(centerness[positive], ops[f"{name}_ctr_pos"], rtol=1e-6)
        assert not distances[~positive].any() and not centerness[~positive].any()


def plain_targets(boxes):
    """(box index or -1) of every location, one location at a time."""
    chosen = []
    for points, (low, high) in zip(POINTS, RANGES):
        for x, y in points:
            best, smallest = -1, np.inf
            for g, (x1, y1, x2, y2) in enumerate(boxes):
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                area = (x2 - x1 + 1) * (y2 - y1 + 1)
                if min(sides) > 0 and low <= max(sides) <= high and area < smallest:
                    best, smallest = g, area
            chosen.append(best)
    return np.array(chosen)


def test_random_boxes():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, [192, 160], (12, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    targets = assign_targets(POINTS, [boxes, boxes[:0], boxes[::-1]])
    expected = plain_targets(boxes)
    np.testing.assert_array_equal(targets.positive[0], expected >= 0)
    points = np.concatenate(POINTS)
    for k in np.flatnonzero(expected >= 0):
        x1, y1, x2, y2 = boxes[expected[k]]
        x, y = points[k]
        np.testing.assert_array_equal(targets.distances[0, k], [x - x1, y - y1, x2 - x, y2 - y])
    assert not targets.positive[1].any() and not targets.distances[1].any() and not targets.centerness[1].any()
    np.testing.assert_array_equal(targets.positive[2], targets.positive[0])


def test_a_boundary_of_two_ranges_belongs_to_both_levels():
    """Distance 64 to the farthest side, from a point of P3 and one of P4."""
    points = [np.array([[100, 100]], np.float32)] * 5
    positive = assign_targets(points, [np.array([[36, 60, 140, 140]], np.float32)]).positive
    assert positive.tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize(
    "distance, levels",
    [(0.5, [0]), (63.5, [0]), (64, [0, 1]), (64.5, [1]), (128, [1, 2]), (128.5, [2]), (256, [2, 3]), (256.5, [3]),
     (512, [3, 4]), (512.5, [4]), (9000, [4])],
)  # fmt: skip
def test_every_range_has_both_its_ends(distance, levels):
    points = [np.array([[9000, 9000]], np.float32)] * 5
    near = min(distance, 8)
    positive = assign_targets(points, [np.array([[9000 - distance, 9000 - near, 9000 + near, 9000 + near]], np.float32)])
    assert np.flatnonzero(positive.positive[0]).tolist() == levels


def test_no_ground_truth_at_all():
    targets = assign_targets(POINTS, [np.zeros((0, 4), np.float32)])
    assert targets.positive.shape == (1, sum(map(len, POINTS))) and not targets.positive.any()
    assert targets.distances.dtype == targets.centerness.dtype == np.float32
