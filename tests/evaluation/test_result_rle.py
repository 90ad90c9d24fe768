"""The checked reading of run-length encoded masks against plain decoding."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jrdp.data.rle import decode_mask, encode_mask, unpack_runs
from jrdp.data.shapes import checked_rle


def plain_runs(mask):
    runs, value, length = [], 0, 0
    for pixel in mask.T.reshape(-1):  # column by column
        if pixel == value:
            length += 1
        else:
            runs.append(length)
            value, length = pixel, 1
    return runs + [length]


def sample_masks():
    rng = np.random.default_rng(3)
    masks = [np.zeros((7, 5), bool), np.ones((7, 5), bool), rng.random((40, 31)) > 0.5, rng.random((1, 9)) > 0.3]
    wide = np.zeros((400, 600), bool)
    wide[3:390, 100:580] = True
    first = np.zeros((6, 4), bool)
    first[0, 0] = True
    return masks + [wide, first]


@pytest.mark.parametrize("index", range(6))
def test_runs_and_round_trip(index):
    mask = sample_masks()[index]
    rle = encode_mask(mask)
    assert isinstance(rle["counts"], str)
    assert unpack_runs(rle["counts"]).tolist() == plain_runs(mask)
    checked = checked_rle(rle, *mask.shape)
    np.testing.assert_array_equal(decode_mask(checked), mask)
    uncompressed = {"size": list(mask.shape), "counts": plain_runs(mask)}
    np.testing.assert_array_equal(decode_mask(checked_rle(uncompressed, *mask.shape)), mask)


def test_polygons_are_merged_as_pycocotools_does_and_degenerate_parts_are_dropped():
    parts = [[2, 2, 20, 2, 20, 18, 2, 18], [25, 5, 38, 5, 30, 25]]
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 30, 40))).astype(bool)
    np.testing.assert_array_equal(decode_mask(checked_rle(parts, 30, 40)), expected)
    np.testing.assert_array_equal(decode_mask(checked_rle([[1, 1, 5, 5]] + parts, 30, 40)), expected)
    assert not decode_mask(checked_rle([[1, 1, 5, 5]], 30, 40)).any()
    assert not decode_mask(checked_rle([], 30, 40)).any()


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ({"size": [4, 6], "counts": "0"}, "for a picture"),
        ({"size": [6, 4], "counts": ""}, "covers|between 0"),
        ({"size": [6, 4], "counts": "8"}, "covers|between 0"),
        ({"size": [6, 4], "counts": "P"}, "middle of a run"),
        ({"size": [6, 4], "counts": "P" * 20 + "0"}, "impossible length"),
        ({"size": [6, 4], "counts": "\x01"}, "character"),
        ({"size": [6, 4], "counts": "é"}, "character"),
        ({"size": [6, 4], "counts": [30, -6]}, "covers|between 0"),
        ({"size": [6, 4], "counts": [12.5, 11.5]}, "whole"),
        ({"size": [6, 4], "counts": [None]}, "whole"),
        ({"size": [6, 4], "counts": 24}, "without counts"),
        ({"size": [6, 4]}, "without counts"),
        ({"size": 24, "counts": "0"}, "without its size"),
        ([["a", 1, 2, 3, 4, 5]], "malformed polygon"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, 6, 7]], "malformed polygon"),
        (None, "neither"),
    ],
)
def test_bad_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        checked_rle(segmentation, 6, 4)


def test_every_damaged_string_is_refused_or_still_fills_the_picture():
    mask = np.random.default_rng(5).random((20, 30)) > 0.5
    counts = encode_mask(mask)["counts"]
    refused = 0
    for position in range(len(counts)):
        flipped = chr(48 + ((ord(counts[position]) - 48) ^ 4))
        for damaged in (counts[:position], counts[:position] + flipped + counts[position + 1 :]):
            try:
                rle = checked_rle({"size": [20, 30], "counts": damaged}, 20, 30)
            except ValueError:
                refused += 1
            else:
                assert decode_mask(rle).shape == (20, 30)
    assert refused > len(counts)
