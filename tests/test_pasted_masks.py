"""Masks as bits, as arrays and as COCO's run lengths, against NumPy and pycocotools."""

import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jrdp.masks import PastedMasks, words_of


def as_bits(masks: np.ndarray, windows: list) -> PastedMasks:
    """The masks as bits, column by column; windows: (first row, rows, first column, columns) that hold each."""
    words = []
    for mask, (top, rows, left, columns) in zip(masks, windows):
        padded = np.zeros((columns, words_of(rows) * 32), np.uint8)
        padded[:, :rows] = mask[top : top + rows, left : left + columns].T
        words.append(np.packbits(padded, axis=1, bitorder="little").reshape(-1).view("<u4"))
    starts = np.cumsum([0, *map(len, words)])
    return PastedMasks(np.concatenate([*words, np.zeros(0, "<u4")]), starts, np.array(windows).reshape(-1, 4), *masks.shape[1:])


@pytest.fixture(params=[(70, 50), (64, 1), (1, 64), (33, 33)])
def case(request):
    height, width = request.param
    random = np.random.default_rng(height)
    windows = [
        (0, height, 0, width), (0, height, 0, 1), (height - 1, 1, width - 1, 1), (0, 0, 0, width), (height // 2, 1, 0, 0),
        (height // 3, height - height // 3, width // 2, width - width // 2), (0, height, 0, width), (0, height, 0, width),
    ]  # fmt: skip
    masks = np.zeros((len(windows), height, width), bool)
    for k, (mask, (top, rows, left, columns)) in enumerate(zip(masks, windows)):
        mask[top : top + rows, left : left + columns] = random.random((rows, columns)) < (1.0, 0.9, 1.0, 1.0, 1.0, 0.5, 0.0, 0.99)[k]
    return masks, windows


def test_arrays_and_those_asked_for(case):
    masks, windows = case
    pasted = as_bits(masks, windows)
    assert len(pasted) == len(masks)
    np.testing.assert_array_equal(pasted.arrays(), masks)
    for which in ([5, 0, 3], [7], []):
        np.testing.assert_array_equal(pasted.arrays(np.array(which, int)), masks[np.array(which, int)])


def test_run_lengths_are_pycocotools(case):
    masks, windows = case
    for mask, rle in zip(masks, as_bits(masks, windows).run_lengths()):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": list(mask.shape), "counts": expected["counts"].decode()}


def test_another_process_gets_the_same(case):
    masks, windows = case
    sent = pickle.loads(pickle.dumps(as_bits(masks, windows)))
    np.testing.assert_array_equal(sent.arrays(), masks)
    assert sent.run_lengths() == as_bits(masks, windows).run_lengths()


def test_no_masks():
    none = as_bits(np.zeros((0, 5, 7), bool), [])
    assert len(none) == 0 and none.arrays().shape == (0, 5, 7) and none.run_lengths() == []


def test_a_column_has_room_for_one_bit_more_than_it_has_rows():
    assert [words_of(rows) for rows in (0, 1, 31, 32, 63, 64)] == [1, 1, 1, 2, 2, 3]
    np.testing.assert_array_equal(words_of(np.array([31, 32])), [1, 2])
