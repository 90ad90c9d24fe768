"""Pasting masks into pictures, as masks and as COCO's run lengths."""

import json

import numpy as np
import ops_reference as reference
import pytest
from pycocotools import mask as coco_mask

from jrdp.ops import paste_mask_rle, paste_masks, pasting

BOXES = np.array(
    [
        [10, 12, 60, 50],
        [-20.5, -13.2, 30.7, 20.1],
        [50, 30, 120, 90],
        [-30, -30, 200, 200],
        [40, 20, 40, 20],
        [40.4, 20, 40.9, 55],
        [200, 200, 250, 260],
        [-90, -90, -50, -50],
        [79, 59, 79, 59],
        [30, 40, 10, 20],
        [0, 0, 79, 59],
    ],
    np.float32,
)


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch):
    """Pasting by the CPU's kernel; and by the CUDA kernel, run through the shim."""
    if request.param == "cuda":
        monkeypatch.setattr(pasting, "KERNELS", pasting.KERNELS.shimmed())
    return request.param


def smooth_masks(random, count, size):
    coarse = random.random((count, 4, 4))
    near = np.minimum(np.arange(size) * 4 // size, 3)
    return (0.8 * coarse[:, near][:, :, near] + 0.2 * random.random((count, size, size))).astype(np.float32)


@pytest.mark.parametrize("size", [14, 28, 32])
def test_equals_the_released_code(device, golden, size):
    with np.load(golden / "ops.npz") as numbers:
        height, width = (int(value) for value in numbers["paste/im_hw"])
        masks = paste_masks(numbers[f"paste/M{size}/prob"], numbers["paste/boxes"], height, width)
        expected = numbers[f"paste/M{size}/mask"]
    assert masks.dtype == bool
    assert expected.any()
    np.testing.assert_array_equal(masks, expected.astype(bool))


@pytest.mark.parametrize("size", [1, 7, 32])
def test_equals_the_reference(device, size):
    probabilities = smooth_masks(np.random.default_rng(size), len(BOXES), size)
    masks = paste_masks(probabilities, BOXES, 60, 80)
    for mask, probability, box in zip(masks, probabilities, BOXES):
        expected = reference.paste_probability(probability, box, 60, 80)
        clear = np.abs(expected - 0.5) > 1e-5  # float32 may decide otherwise nearer to the threshold
        np.testing.assert_array_equal(mask[clear], (expected > 0.5)[clear])
        assert clear.mean() > 0.99


def test_a_mask_without_its_border_would_be_noticed(device):
    # Of a full mask, the outermost pixels are decided by the border of zeros and by how far the box grows for it.
    full = np.ones((1, 4, 4), np.float32)
    for box in BOXES[[0, 10]]:
        mask = paste_masks(full, box[None], 60, 80, threshold=0.75)[0]
        with_border = reference.paste_probability(full[0], box, 60, 80, border=1)
        without = reference.paste_probability(full[0], box, 60, 80, border=0)
        assert (np.abs(with_border - 0.75) > 1e-5).all()
        np.testing.assert_array_equal(mask, with_border > 0.75)
        assert (mask != (without > 0.75)).sum() > 10


def test_threshold_is_strict_and_free(device):
    probabilities = np.full((1, 32, 32), 0.5, np.float32)
    assert not paste_masks(probabilities, BOXES[:1], 60, 80).any()
    assert paste_masks(probabilities, BOXES[:1], 60, 80, threshold=0.49).any()


@pytest.mark.parametrize("height, width", [(60, 80), (1, 1), (400, 3)])
def test_rle_holds_the_same_masks(device, height, width):
    probabilities = smooth_masks(np.random.default_rng(3), len(BOXES), 32)
    masks = paste_masks(probabilities, BOXES, height, width)
    encoded = paste_mask_rle(probabilities, BOXES, height, width)
    assert json.loads(json.dumps(encoded)) == encoded
    for mask, rle in zip(masks, encoded):
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle == {"size": [height, width], "counts": expected["counts"].decode()}


def test_what_lies_near_the_threshold_is_the_same_in_both_kernels(monkeypatch):
    # The CPU's decides whole stretches between two lines of the mask at once where both are clearly inside or outside.
    random = np.random.default_rng(5)
    steps = np.array([-1, -2e-6, -1e-6, -6e-8, 0, 6e-8, 1e-6, 2e-6, 1], np.float32)
    with_nan = smooth_masks(random, len(BOXES), 14)
    with_nan[:, ::3, ::5] = np.nan
    for threshold in (0.5, 0.05, -3.0):
        near = np.float32(threshold) + random.choice(steps, (len(BOXES), 14, 14))
        for probabilities in (near, with_nan, random.random((len(BOXES), 14, 14), np.float32)):
            for height, width in ((60, 80), (200, 3), (1, 90)):
                on_cpu = paste_masks(probabilities, BOXES, height, width, threshold)
                with monkeypatch.context() as changed:
                    changed.setattr(pasting, "KERNELS", pasting.KERNELS.shimmed())
                    np.testing.assert_array_equal(on_cpu, paste_masks(probabilities, BOXES, height, width, threshold))
                assert on_cpu.any()


def test_zero_masks(device):
    nothing = np.zeros((0, 32, 32), np.float32), np.zeros((0, 4), np.float32)
    assert paste_masks(*nothing, 60, 80).shape == (0, 60, 80)
    assert paste_mask_rle(*nothing, 60, 80) == []


def test_a_mask_is_asked_for_within_its_grown_box_alone(device):
    # Of 2 x 2 values, so twice as large about (19.5, 21.5): from (0.5, 2.5) to (38.5, 40.5), cut to whole pixels.
    box, nothing = np.array([[10, 12, 29, 31]], np.float32), np.zeros((1, 2, 2), np.float32)
    for height in (60, 35):
        expected = np.zeros((height, 80), bool)
        expected[2:41, 0:39] = True
        np.testing.assert_array_equal(paste_masks(nothing, box, height, 80, threshold=-1)[0], expected)


def test_more_words_than_an_int_counts_are_refused_before_they_are_made():
    # A column of 65,535 rows takes 2,048 words of 32 bits, and 2^20 columns of 2^11 words take 2^31.
    with pytest.raises(ValueError, match="1 masks of 68719476736 pixels are too many at once: paste fewer"):
        paste_mask_rle(np.ones((1, 2, 2)), [[0, 0, 2**20, 2**16]], 2**16 - 1, 2**20)


@pytest.mark.parametrize("far, accepted", [(2**24, True), (-(2**24), True), (2**24 + 2, False), (-(2**24) - 2, False)])
def test_how_far_a_corner_may_be(far, accepted):
    arguments = np.ones((1, 2, 2)), [[-8, -8, 8, far]], 4, 4  # 2^24 + 2 is the next float32
    if accepted:
        assert paste_masks(*arguments).any() == (far > 0)
    else:
        with pytest.raises(ValueError, match="boxes: box 0 is not finite or too large"):
            paste_masks(*arguments)


@pytest.mark.parametrize("paste", [paste_masks, paste_mask_rle])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"probabilities": np.zeros((2, 3, 4))}, r"probabilities: expected \[K, M, M\], got \[2, 3, 4\]"),
        ({"boxes": np.zeros((3, 4))}, r"boxes: expected \[2, 4\], got \[3, 4\]"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, np.nan, 1]]}, "boxes: box 1 is not finite"),
        ({"height": 0}, "height, width: must be at least 1, got 0 x 80"),
    ],
)
def test_bad_arguments(paste, changes, message):
    arguments = {"probabilities": np.zeros((2, 4, 4)), "boxes": np.zeros((2, 4)), "height": 60, "width": 80, **changes}
    with pytest.raises(ValueError, match=message):
        paste(**arguments)
