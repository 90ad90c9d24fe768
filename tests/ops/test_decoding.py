"""FCOS' decoding in CUDA, its kernels run through the shim, against the NumPy definition and the goldens."""

import jittor as jt
import numpy as np
import pytest

from jrdp.config import FcosConfig
from jrdp.models.fcos_decode import decode, decode_launched, limits_of
from jrdp.models.shapes import STRIDES
from jrdp.ops import decode_on_device, decoding


def decode_through_the_shim(logits, distances, centerness, sizes, config):
    levels = [[jt.array(level) for level in levels] for levels in (logits, distances, centerness)]
    return decode_launched(*levels, sizes, config, decoding.KERNELS.shimmed())


def assert_same(found, expected):
    assert len(found) == len(expected)
    for (boxes, scores, fault), (expected_boxes, expected_scores, expected_fault) in zip(found, expected):
        assert bool(fault) == bool(expected_fault)
        assert len(boxes) == len(expected_boxes)
        np.testing.assert_array_equal(boxes, expected_boxes)
        np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=2e-7)


def answers(random, images, sizes, logit=0.0, coarse=False):
    """Random answers; `coarse` ones are few distinct numbers, so that many scores are equal."""

    def draw(low, high, channels):
        values = [random.uniform(low, high, (images, channels, *size)).astype(np.float32) for size in sizes]
        return [np.round(2 * value) / 2 for value in values] if coarse else values

    return draw(logit - 3, logit + 3, 1), draw(1, 40, 4), draw(-2, 2, 1)


SMALL = [(20, 24), (10, 12), (5, 6), (3, 3), (2, 2)]


@pytest.mark.parametrize("case", ["many", "batch2", "ties", "train"])
def test_goldens(golden, case):
    ops = np.load(golden / "ops.npz")
    levels = [[ops[f"post/{case}/{what}{k}"] for k in range(5)] for what in ("cls", "reg", "ctr")]
    sizes = [tuple(size) for size in ops[f"post/{case}/image_hw"].tolist()]
    assert_same(decode_through_the_shim(*levels, sizes, FcosConfig()), decode(*levels, sizes, FcosConfig()))


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("images, per_level, per_image", [(1, 1000, 100), (2, 30, 7), (3, 1, 1), (1, 100, 1000)])
def test_limits_and_ties(images, per_level, per_image, coarse):
    random = np.random.default_rng(per_level)
    levels = answers(random, images, SMALL, coarse=coarse)
    config = FcosConfig(pre_nms_top_n=per_level, post_nms_top_n=per_image)
    sizes = [(160, 192), (97, 111), (1, 1)][:images]
    expected = decode(*levels, sizes, config)
    assert_same(decode_through_the_shim(*levels, sizes, config), expected)
    if coarse and per_image == 7:
        assert any(len(each.scores) > 7 for each in expected)  # ties at the last place stay


@pytest.mark.parametrize("overlap", [0.0, 0.6, 1.0])
def test_suppression_over_all_levels(overlap):
    levels = answers(np.random.default_rng(5), 2, SMALL, logit=1.0)
    config = FcosConfig(nms_threshold=overlap, post_nms_top_n=20)
    sizes = [(160, 192)] * 2
    assert_same(decode_through_the_shim(*levels, sizes, config), decode(*levels, sizes, config))


def test_levels_without_a_confident_location_give_the_best_of_the_batch():
    logits, distances, centerness = answers(np.random.default_rng(6), 2, SMALL, logit=-9.0)
    logits[2][:] = -9.0  # all equal: all are the best
    config = FcosConfig(nms_threshold=1.0)
    expected = decode(logits, distances, centerness, [(160, 192)] * 2, config)
    assert sum(len(each.scores) for each in expected) == 4 + 2 * 30
    assert_same(decode_through_the_shim(logits, distances, centerness, [(160, 192)] * 2, config), expected)


def test_threshold_is_strict():
    logits, distances, centerness = answers(np.random.default_rng(7), 1, SMALL)
    logits = [np.zeros_like(level) for level in logits]
    logits[0][0, 0, 0, :5] = 1.0
    config = FcosConfig(nms_threshold=1.0, pre_nms_threshold=0.5)  # the probability of a logit of zero
    expected = decode(logits, distances, centerness, [(160, 192)], config)
    assert len(expected[0].scores) == 100
    assert_same(decode_through_the_shim(logits, distances, centerness, [(160, 192)], config), expected)


@pytest.mark.parametrize("logit", [3.0, -90.0])
def test_infinite_distances_are_clipped(logit):
    logits, distances, centerness = answers(np.random.default_rng(8), 2, SMALL)
    distances[1][0, 2, 4, 5] = np.inf
    logits[1][0, 0, 4, 5] = logit
    sizes, config = [(160, 192)] * 2, FcosConfig()
    expected = decode(logits, distances, centerness, sizes, config)
    assert [each.fault for each in expected] == ["distances at P4", ""]  # and told
    assert_same(decode_through_the_shim(logits, distances, centerness, sizes, config), expected)


@pytest.mark.parametrize("limit", [1, 1000])
@pytest.mark.parametrize("logit", [3.0, -90.0])  # of the location, in which it is a candidate or none
@pytest.mark.parametrize("part, value, fault", [
    (0, np.nan, "classification at P4"), (0, np.inf, "classification at P4"), (0, -np.inf, "classification at P4"),
    (1, np.nan, "distances at P4"), (2, np.nan, "centerness at P4"), (2, -np.inf, "centerness at P4"),
])  # fmt: skip
def test_answers_that_are_no_numbers_are_told(part, value, fault, logit, limit):
    """Wherever they are, since all that follows from them would be left out without a word."""
    levels = answers(np.random.default_rng(8), 2, SMALL)
    levels[0][1][1, 0, 4, 5] = logit
    levels[part][1][1, -1, 4, 5] = value
    sizes, config = [(160, 192)] * 2, FcosConfig(pre_nms_top_n=limit)
    assert [each.fault for each in decode(*levels, sizes, config)] == ["", fault]
    first, second = decode_through_the_shim(*levels, sizes, config)
    assert len(first[0]) > 0 and not first[2] and second[2] and np.isfinite(second[0]).all() and np.isfinite(second[1]).all()


def test_one_location():
    levels = answers(np.random.default_rng(9), 1, [(1, 1)] * 5)
    assert_same(
        decode_through_the_shim(*levels, [(320, 480)], FcosConfig()), decode(*levels, [(320, 480)], FcosConfig())
    )


@pytest.mark.parametrize(
    "images, sizes, limit, capacity, mask",
    [
        (2, SMALL, 30, 30 + 30 + 30 + 9 + 4, 104 * 2 * 2),  # locations: 480 + 120 + 30 + 9 + 4 = 643
        (1, [(16, 4)], 1000, 64, 65 * 1 * 2),
        (3, [(16, 4), (1, 1)], 1000, 65, 66 * 2 * 2),
    ],
)
def test_memory(images, sizes, limit, capacity, mask, allocated):
    """What decode.cuh says: of each image so many candidates, and of these words of 64 bits, counted as int32."""
    levels, locations = answers(np.random.default_rng(12), images, sizes), sum(h * w for h, w in sizes)
    sizes, config = [(160, 192)] * images, FcosConfig(pre_nms_top_n=limit)
    assert_same(decode_through_the_shim(*levels, sizes, config), decode(*levels, sizes, config))
    found = images * (4 * capacity + capacity + 2)  # boxes, scores, and how many with whether they are right
    each = [2 * locations, 5 * capacity, 5 * capacity]  # probabilities and scores; candidates, as found and in order
    listed = [capacity, capacity, capacity, mask]
    made = allocated[0]  # `decode` itself makes more
    largest, counts = len(levels[0]) + images, images
    assert made == [found, *[images * n for n in each], largest, counts, *[images * n for n in listed]]


def test_sigmoid_of_another_sign_would_be_noticed():
    logits, distances, centerness = answers(np.random.default_rng(10), 1, SMALL)
    expected = decode([-level for level in logits], distances, centerness, [(160, 192)], FcosConfig())
    with pytest.raises(AssertionError):
        assert_same(decode_through_the_shim(logits, distances, centerness, [(160, 192)], FcosConfig()), expected)


def test_bad_arguments():
    levels = [[jt.array(level) for level in part] for part in answers(np.random.default_rng(11), 1, SMALL)]
    limits = limits_of(FcosConfig())
    with pytest.raises(ValueError, match=r"sizes: expected \[1, 2\]"):
        decode_on_device(*levels, STRIDES, [(1, 2), (3, 4)], limits)
    with pytest.raises(ValueError, match=r"distances\[0\]: expected float32 \[1, 4, 20, 24\], got float32 \[1, 1, 20"):
        decode_on_device(levels[0], levels[0], levels[2], STRIDES, [(1, 2)], limits)
    with pytest.raises(ValueError, match="strides: 4 values for 5 levels"):
        decode_on_device(*levels, STRIDES[:4], [(1, 2)], limits)
    with pytest.raises(ValueError, match=r"centerness\[0\]: expected float32 \[2, 1, 20, 24\], got float32 \[1, 1, 20"):
        twice = [[jt.concat([level, level]) for level in part] for part in levels[:2]]
        decode_on_device(*twice, levels[2], STRIDES, [(1, 2)] * 2, limits)
    with pytest.raises(ValueError, match="strides: 7 values for 8 levels"):  # eight are not too many
        decode_on_device(*[part[:1] * 8 for part in levels], [8] * 7, [(1, 2)], limits)
    with pytest.raises(ValueError, match="1 to 8 levels are supported, got 9"):
        decode_on_device(*[part[:1] * 9 for part in levels], [8] * 9, [(1, 2)], limits)
