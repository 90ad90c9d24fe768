"""Run-length encoding against pycocotools, and damaged encodings."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jrdp.data import rle


def _masks():
    random = np.random.default_rng(3)
    yield np.zeros((5, 7), np.uint8)
    yield np.ones((5, 7), np.uint8)
    yield (random.random((31, 17)) < 0.5).astype(np.uint8)
    blob = np.zeros((200, 300), np.uint8)
    blob[40:180, 33:250] = 1
    blob[60:100, 50:90] = 0
    yield blob
    yield np.ones((1, 1), np.uint8)


@pytest.mark.parametrize("mask", list(_masks()), ids=["zeros", "ones", "noise", "blob", "pixel"])
def test_round_trips_and_agreement_with_pycocotools(mask):
    height, width = mask.shape
    packed, listed = rle.encode_mask(mask), rle.encode_mask_as_list(mask)
    for encoded in (packed, listed, {**packed, "counts": packed["counts"].encode()}):
        runs = rle.parse_rle(encoded, height, width)
        assert np.array_equal(rle.decode_runs(runs, height, width), mask)
    assert np.array_equal(coco_mask.decode(packed), mask)
    assert np.array_equal(coco_mask.decode(coco_mask.frPyObjects(listed, height, width)), mask)


def test_any_number_but_zero_is_part_of_a_mask():
    for kind in (np.uint8, np.int64, np.float32):
        mask = np.array([[0, 3, 1], [2, 2, 0]], kind)
        assert rle.encode_mask_as_list(mask) == rle.encode_mask_as_list(mask > 0) == {"size": [2, 3], "counts": [1, 4, 1]}
        assert rle.encode_mask(mask) == rle.encode_mask(mask > 0) == {"size": [2, 3], "counts": "141"}


@pytest.mark.parametrize(
    "segmentation, words",
    [
        ({"counts": [35]}, "without its size"),
        ({"size": [5], "counts": [35]}, "without its size"),
        ({"size": [7, 5], "counts": [35]}, "for a picture"),
        ({"size": [5, 7]}, "without counts"),
        ({"size": [5, 7], "counts": [30]}, "covers 30"),
        ({"size": [5, 7], "counts": [40, -5]}, "between 0"),
        ({"size": [5, 7], "counts": [10.5, 24.5]}, "whole"),
        ({"size": [5, 7], "counts": [True, 34]}, "whole"),
        ({"size": [5, 7], "counts": ["1", 34]}, "whole"),
        ({"size": [True, 7], "counts": [35]}, "without its size"),
        ({"size": [5, 7], "counts": "p"}, "holds a character that no RLE has"),
        ({"size": [5, 7], "counts": "/"}, "holds a character that no RLE has"),
        ({"size": [5, 7], "counts": "O"}, "between 0"),  # code 31: the largest of one character, minus one
        ({"size": [5, 7], "counts": "R"}, "damaged"),
        ({"size": [5, 7], "counts": "oooooooooooooooooooo"}, "damaged"),
        ({"size": [5, 7], "counts": "1\u00e41"}, "damaged"),
        ({"size": [5, 7], "counts": "\ud800"}, "holds a character that no RLE has"),  # half of one, as JSON can write it
        ({"size": [5, 7], "counts": ""}, "covers 0 pixels"),
        ({"size": [5, 7], "counts": []}, "covers 0 pixels"),
    ],
)
def test_damaged_encodings(segmentation, words):
    with pytest.raises(ValueError, match=words):
        rle.parse_rle(segmentation, 5, 7)


def test_every_truncation_and_changed_character_is_an_error_or_another_mask():
    mask = list(_masks())[2]
    text = rle.encode_mask(mask)["counts"]
    for cut in range(len(text)):
        with pytest.raises(ValueError):
            rle.parse_rle({"size": [31, 17], "counts": text[:cut]}, 31, 17)
    for position in range(len(text)):
        changed = text[:position] + chr(48 + (ord(text[position]) - 48 ^ 5)) + text[position + 1 :]
        try:
            runs = rle.parse_rle({"size": [31, 17], "counts": changed}, 31, 17)
        except ValueError:
            continue
        assert runs.sum() == 31 * 17 and not np.array_equal(rle.decode_runs(runs, 31, 17), mask)


def test_runs_of_nothing_and_padded_numbers_are_taken_up_to_a_bound():
    assert rle.parse_rle({"size": [1, 1], "counts": [0, 0, 0, 1]}, 1, 1).tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError):
        rle.parse_rle({"size": [1, 1], "counts": [0, 0, 0, 0, 1]}, 1, 1)
    assert rle.unpack_runs("SQ" + "P" * 5 + "0").tolist() == [35]  # 3 + 1 * 32, and zeros
    with pytest.raises(ValueError, match="impossible length"):
        rle.unpack_runs("SQ" + "P" * 6 + "0")
