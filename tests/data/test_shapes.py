"""Shapes of annotations: their limits to the last number, and what is measured of them."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jrdp.data.rle import encode_mask
from jrdp.data.shapes import area_of, bounds_of, checked_rle, far_number, finite_numbers, parse_segmentation, rle_of

BLOB = np.zeros((5, 7), np.uint8)
BLOB[1:4, 2:6] = 1


def rectangle(width, height):
    return [0, 0, width, 0, width, height, 0, height]


def test_coordinates_reach_to_a_million_and_no_further():
    for x in (1e6, -1e6):
        parts, runs = parse_segmentation([[x, 0, x, 5, x / 2, 0]], 10, 10)
        assert parts[0].dtype == np.float64 and parts[0].tolist() == [x, 0, x, 5, x / 2, 0] and runs is None
        with pytest.raises(ValueError, match="far outside its picture of 10x20"):
            parse_segmentation([[x * 1.000001, 0, x, 5, x / 2, 0]], 20, 10)


def test_outlines_are_as_long_as_two_million_or_four_times_the_picture():
    assert parse_segmentation([rectangle(600_000, 400_000)], 10, 10)[0][0].dtype == np.float64
    with pytest.raises(ValueError, match="edges are 2e\\+06 pixels long"):
        parse_segmentation([rectangle(600_000, 400_000), [0, 0, 0.25, 0, 0, 0]], 10, 10)
    assert len(parse_segmentation([rectangle(1_000_000, 1_000_000)], 1000, 1000)[0]) == 1
    with pytest.raises(ValueError, match="pixels long"):
        parse_segmentation([rectangle(1_000_000, 1_000_000), [0, 0, 1, 0, 0, 0]], 1000, 1000)


def test_parts_of_less_than_three_corners_are_left_out():
    parts, _ = parse_segmentation([[1, 2, 3, 4], [1, 2, 3, 4, 5, 6], []], 10, 10)
    assert [part.tolist() for part in parts] == [[1, 2, 3, 4, 5, 6]]
    assert parse_segmentation([], 10, 10) == parse_segmentation([[1, 2], [3, 4]], 10, 10) == ([], None)


@pytest.mark.parametrize(
    "segmentation, words",
    [
        ("text", "neither a list of polygons nor RLE"),
        ([1, 2, 3, 4, 5, 6], "one list of numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "malformed polygon"),
        ([[1, 2], [3, 4], [5, 6]], "a polygon that is a list of points"),
        ([[0, 1] * 5] * 10, "a mask in numbers"),
        ([[1, 2], [3, 4], None], "malformed polygon: None"),
        ([["a", "b"]] * 3, r"malformed polygon: \['a', 'b'\]"),
        ([10] * 15, r"one list of numbers, \[10(, 10){14}\]: it needs"),  # 60 characters: shown as they are
        ([10] * 14 + [100], r"one list of numbers, \[10(, 10){13}, \.\.\.: it needs"),
        ([[1, 2, 3, 4, 5, float("nan")]], "malformed polygon"),
        ([[1, 2, 3, 4, 5, True]], "malformed polygon"),
        ([3], "one list of numbers"),
        ([None], "malformed polygon"),
    ],
)
def test_what_is_no_shape_is_named(segmentation, words):
    with pytest.raises(ValueError, match=words):
        parse_segmentation(segmentation, 10, 10)


def test_runs_become_an_rle_and_nothing_becomes_an_empty_one():
    rle = checked_rle(encode_mask(BLOB), 5, 7)
    assert np.array_equal(coco_mask.decode(rle), BLOB)
    assert not coco_mask.decode(rle_of([], None, 5, 7)).any() and not coco_mask.decode(rle_of(None, None, 5, 7)).any()
    assert coco_mask.decode(checked_rle([[2, 1, 6, 1, 6, 4, 2, 4]], 5, 7)).sum() == 12


def test_areas_and_bounds():
    _, runs = parse_segmentation(encode_mask(BLOB), 5, 7)
    assert area_of(None, runs, 5, 7) == 12 and area_of(None, np.array([4, 2, 29]), 5, 7) == 2 and area_of([], None, 5, 7) == 0 and area_of(None, None, 5, 7) == 0
    assert area_of([np.array([2.0, 1, 6, 1, 6, 4, 2, 4])], None, 5, 7) == 12
    assert bounds_of(None, runs, 5) == (2, 1, 6, 4)
    assert bounds_of([np.array([2.5, 1, 6, 1, 6, 4]), np.array([3.0, 3, 4, 4.5, 5, 3])], None, 5) == (2.5, 1, 6, 4.5)
    assert bounds_of([], None, 5) is None and bounds_of(None, np.array([35]), 5) is None
    assert bounds_of(None, np.array([0, 35]), 5) == (0, 0, 7, 5)
    assert bounds_of(None, np.array([4, 2, 29]), 5) == (0, 0, 2, 5)  # the last pixel of a column and the first of the next
    assert bounds_of(None, np.array([6, 2, 0, 1, 26]), 5) == (1, 1, 2, 4)  # runs that touch
    assert bounds_of(None, np.array([6, 0, 29]), 5) is None


def test_numbers():
    assert finite_numbers([1, 2.5, -3]) and finite_numbers(()) and finite_numbers([9e299])
    assert not any(finite_numbers(odd) for odd in (None, 3, [True], ["1"], [1e300], [-1e300], [float("inf")]))
    assert far_number([5, 1e6, -1e6]) is None and far_number([5, -1.5e6, 2e6]) == -1.5e6
